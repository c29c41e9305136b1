// Package origind is the origin: a dedicated seeder that takes pushes, keeps
// blobs on disk, writes them to backends and reads them from there.
//
// Start from [Run] and [Config]. The HTTP API is control/ORIGIN.md; its client is
// package control/origin.
//
//	api.go      HTTP: who may do what, ranges, limits
//	uploads.go  uploads, resumable; hasher.go: their digest and sums in one pass
//	blobs.go    from upload to blob: commit, delete, what is here and what is durable
//	records.go  where each blob lives, so that a digest alone finds it
//	find.go     look-ups of what is not here, in records and backends
//	cold.go     cut-through: one backend read, many readers
//	queue.go    write-back, from a queue that survives restarts
//	seed.go     the swarm and the trackers
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
// over disk I/O, but not over a backend's (deletions excepted) or a client's.
package origind
