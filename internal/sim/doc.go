// Package sim runs thousands of swarm.Peers in one process, in virtual time:
// the very state machine that the node agent runs, driven by an event heap
// instead of sockets and disks. A run is a function of its [Config], Seed
// included: the same Config yields the same [Result], event by event.
//
// Start from [Run].
//
// # What is modelled
//
// Each host has an uplink that sends one block after the other at its
// bandwidth, and a downlink that receives one after the other at its own; a
// block begins to arrive one latency after it began to be sent. Messages of one
// connection arrive in order, so small ones wait behind the blocks before them.
// Connections take one and a half round trips to set up. Zones may share a link
// to the others, each way. Messages may have a size. Storing a piece takes
// a time per piece and per byte. Hosts join at given times, leave, crash (their
// connections are reset), freeze (nothing is heard of them, nothing told), and
// lie: wrong bytes, sums and sizes, pieces that they do not have. A source may
// still be receiving the blob from upstream. The tracker is the state machine that
// trackerd runs (trackerd/state), with a stream from each host; it may be away for a
// while, in which nobody who joins hears of anybody, and has forgotten everything when
// it is back. It grants no leases here: who has a blob is part of the Config.
//
// With Coarse above 1 several blocks of a piece travel as one: three times as
// fast, and a little optimistic (100 hosts, one blob, one seed: a median of 1.024
// times the ideal with 8, of 1.029 exactly).
//
// [Goals] is the table that the swarm is held to, and cmd/sim prints it.
//
// # Bytes
//
// There are none. The Data of a block is a part of one of a few shared slices
// of the right length, whose first byte says whether the bytes are right; the
// states of the sums are random numbers. "Verifying" a piece looks at that byte
// and compares the list's two states around the piece with the true ones.
//
// # What is left out
//
// TCP (slow start, loss, congestion inside the network, socket buffers; the
// only congestion is at the hosts' and zones' own links), the time that machines
// need to think and hash, disks that seek, the codecs, what trackerd costs, and hosts
// with several addresses. The queues of a real network are latency here: with
// a Latency of 20 ms, as tc's token buckets with 20 ms of waiting have under load, 32
// hosts behind 10 MB/s come to what real agents come to (make calibrate).
package sim
