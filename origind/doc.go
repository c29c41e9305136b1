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
//	disks.go     several disks, of which one can fail; diskstores.go: their blobs as those of one; diskfile.go: whose a disk is
//	openledger.go what is kept, on all disks, at the start; lostdisk.go: what comes of a disk that has failed
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
// # Several disks
//
// With Config.Data an origin has several disks, and each of them that fails costs what is on it, not the member. There are two kinds of
// things, and that is all that has to be known:
//
//   - What the member keeps, the ledger (records, deletion log, ring.json), is on every disk, byte for byte. It is written to all at once,
//     and counts when all have it. record.Dirs does that, and openledger.go chooses at the start.
//   - Bytes (blobs with their sums, cold reads, the cache, uploads) are on one disk: each has a content.Store of its own and a directory
//     of uploads, and [disks] has a content.Store's methods for all of them. A blob is found by what is there; no table says where it is.
//     A new one comes on one of the disks with the most room, in turn; an upload stays on its disk, as the blob that it becomes does.
//     Cache.Size is divided evenly; the free floor is each file system's.
//
// So a member knows of every blob that it has to have, whatever disk is lost, and which of them it has not. Those are to the ring what
// wrong bytes are: it counts them no more, takes them from other members to the disks that are left, and is not whole before that;
// asked whether a blob is anywhere, the member is one that cannot say no (ringstate.Ring.misses), so that the answer is 503 where it
// might otherwise be 404.
//
// What can happen to a disk:
//
//	it fails (EIO, read only, it does not sync,     it is not used any more until the next start: first of all its id is taken out of the
//	hangs for 30 s, is unmounted or another one)    set of disks in ring.json on the others, before anything counts that it does not have.
//	                                                Found out by whoever writes, and by a small file written every 5 s. Its uploads go
//	                                                on at their mirrors. The last disk's failure is the origin's end
//	it is full                                      the others take what is new; the member is full when all are
//	it is not there at the start, does not open,    what is to be kept and is not here is wrong as a whole until it is (diskSet.lost).
//	or was taken out of the list                    After a crash it may know more than the others, if these failed before it: the
//	                                                member has a new incarnation, as if it had lost its only disk
//	it comes back, or is new and empty              its ledger becomes that of the disk which was last in the set; what is there of blobs
//	                                                that nothing is kept of, or that were removed, goes
//	it changes places with another one              nothing: a disk is known by its id, in disk.json
//	it is another member's or cluster's             the origin does not start, and says whose it is
//	its directory is not there                      that is a disk that is not there: with several disks no directory is made, lest the
//	                                                blobs come on what is below a mount that has failed
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
