// Package origind is the origin: a dedicated seeder that takes pushes, keeps
// blobs on disk, writes them to backends and reads them from there.
//
// Start from [Run] and [Config]. The HTTP API is control/ORIGIN.md; its client is
// package control/origin.
//
//	api.go       HTTP: who may do what, ranges, limits; api_uploads.go: pushes; ringapi.go: what members and operators ask
//	uploads.go   uploads, resumable; hasher.go: their digest and sums in one pass
//	upload.go    one of them: what its machine (ringstate/mirror) decides is done here
//	member.go    this origin as a member of its ring (ringstate decides); batch.go: keeping and doing what it decides
//	ledger.go    what is kept: records, the deletion log, ring.json (ringfile.go)
//	peers.go     the other members, which are asked, and mirror uploads; members.go: finding them
//	ring.go      the ring's configuration; ringstatus.go: what is said of it
//	blobs.go     from upload to blob, and from blob to nothing
//	holdings.go  what is here; where a blob can be read now
//	homes.go     the backends where blobs live
//	objects.go   what is done at backends; beside.go: the record beside an object
//	find.go      look-ups of what is not here, in records and backends
//	cold.go      cut-through: one backend read, many readers
//	take.go      copies from other members, by the same way; donors.go: who gives them; sums.go: what they are verified by
//	sending.go   answers with bytes; verified.go: which are verified, piece by piece, whenever they are read
//	heal.go      wrong pieces of what is pinned are replaced, and kept from readers; scrub.go: they are looked for
//	seed.go      what is offered to the swarm and announced to the trackers
//	errands.go   what peers and trackers ask for
//	run.go       puts these together
//
// # The ring
//
// Every origin is a member of a ring; one without ring.members is the only one. So there is one way for everything:
// ringstate.Ring, a value, decides, and [member] is the goroutine around it. It takes all that has happened, has the ring decide
// about each, makes that durable with one sync, and only then answers, asks others, and has backends written.
//
// # What is durable when
//
// A push is acknowledged when as many members as ring.min_replicas have its bytes, its sums and its record fsynced; with
// durability = "backend", when the backend has it, too. From the moment of the acknowledgement until the backend has it
// (always, if there is none) it is pinned: content.Store's blobs/, from which nothing is evicted. What a
// backend has is in cache/, and goes when room is needed.
//
// A blob is visible if it is whole and was not removed. Bytes of a push that nobody acknowledged may be read by who knows their
// digest; they go after a while, or at the next start.
//
// # Concurrency
//
// What is kept of blobs, and which are pinned, changes on the member's goroutine alone. It waits for the own disk, and for nobody
// else. The mutexes of coldReads, finder, uploads, peers and errands guard maps and counters: none is held while another is
// taken, over I/O, or over a call of somebody else (coldReads.promise excepted, which says so).
//
// Each part is given what it needs and says so in interfaces of its own; none knows the
// server. What runs in the background runs in tasks (asks, works at backends, look-ups, cold reads, errands) or
// is a part of the daemon (seeding, members); [Run] ends both, waits for the parts, then for the member's goroutine, which begins
// tasks, and then for those, before it closes the store.
package origind
