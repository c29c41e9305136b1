// Package seeding is what agents and origins do alike to offer blobs to a swarm: a
// [Seeder] announces what is whole, opens a blob when a peer first wants it, and leaves
// it when nobody takes anything of it any more. [NewNode] makes their part in the swarm,
// and [Trackers] configures their client of the trackers.
//
// What is open takes a file descriptor; so the Seeder bounds how many blobs are, and for
// how long. Opening one again costs little. It borrows them of the store, and closes them
// when their space is needed ([Seeder.Unlend]), those last that a peer takes something of.
//
// # Concurrency
//
// All methods may be called by any goroutine, and do not block, but for [Seeder.Run] and
// [Seeder.Unlend]. No function of a [Config] is called with a lock held. Run waits
// for every goroutine that it started.
package seeding
