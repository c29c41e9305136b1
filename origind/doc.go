// Package origind is the origin: a dedicated seeder that takes pushes, keeps
// blobs on disk, writes them to backends and reads them from there.
//
// Start from [Run] and [Config]. The HTTP API is control/ORIGIN.md; its client is
// package control/origin.
//
//	api.go       HTTP: who may do what, ranges, limits
//	uploads.go   uploads, resumable; hasher.go: their digest and sums in one pass
//	upload.go    one of them: what its machine (ringstate/mirror) decides is done here
//	peers.go     other members of the ring, which mirror uploads
//	blobs.go     from upload to blob: commit, delete, how durable it is
//	holdings.go  what is here, and what of it is pinned; where a blob can be read now
//	records.go   where each blob lives, so that a digest alone finds it
//	ledger.go    what a member of a ring has decided, durably; ringfile.go: its ring.json
//	homes.go     the backends where blobs live
//	find.go      look-ups of what is not here, in records and backends
//	cold.go      cut-through: one backend read, many readers
//	take.go      copies from other members; donors.go: whom they come from; sums.go: what they are verified by
//	queue.go     what is to be written when, in a queue that survives restarts
//	write.go     writing a blob to its backend
//	seed.go      what is offered to the swarm and announced to the trackers
//	errands.go   what peers and trackers ask for
//	run.go       puts these together
//
// # What is durable when
//
// A push is acknowledged when its bytes, its sums and its record are fsynced
// here; with durability = "backend", when the backend has it, too. From the
// moment of the acknowledgement until the backend has it (always, if there is
// none) it is pinned: content.Store's blobs/, from which nothing is evicted. What a
// backend has is in cache/, and goes when room is needed.
//
// A blob is visible if it is whole and has a record. Whatever a crash leaves
// without one was never acknowledged.
//
// # Concurrency
//
// What changes a blob's record or pin holds that digest's lock (records.lock),
// over disk I/O, but not over a backend's (deletions excepted) or a client's. It is
// taken before every other lock. The mutexes of coldReads, queue, finder, uploads and
// errands guard maps and counters: none is held while another is taken, over I/O, or
// over a call of somebody else (coldReads.promise excepted, which says so).
//
// Each part is given what it needs and says so in interfaces of its own; none knows the
// server. What runs in the background runs in tasks (look-ups, cold reads, errands) or
// is a part of the daemon (write-back, seeding); [Run] ends both and waits for them
// before it closes the store.
package origind
