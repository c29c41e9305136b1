// Package ringstate is what one member of a ring of origins decides, without its sockets, disk and clock: who is a
// member, where blobs belong, how many copies there are, what was deleted, who writes to the backend, and what may
// be said of a blob that is not here.
//
// Start from [Ring]: a plain value with one method that changes it. [Ring.Step] takes an [Instant] and an [Event] and
// returns [Action]s. There is no clock, no I/O, no goroutine and no lock in here, and equal events give equal actions.
// The tests run several of them in virtual time, with a network, disks and a backend that fail in every way they can
// (world_test.go, chaos_test.go), and hold them to the invariants below (oracle_test.go); history_test.go has what went wrong once.
//
// # The shell
//
// Whoever runs a Ring does the actions in their order; [ActRing], [ActSave], [ActUnpin], [ActLog] and [ActTrim] are
// durable before the next is begun, so that nothing is said before it is so. Records are not kept in here, only what
// has to be known of a pinned blob: some 280 bytes, its digest included. So an event that is about blobs brings what the disk has of them
// ([Local]), and the shell holds their locks from reading that until the Step's actions are done. Asks to other members
// may be lost, and answers late: an ask without an answer ends after Config.Ask.
//
//	members.go  who is there, the view, joining and leaving; status.go: what members tell each other
//	blobs.go    pinned blobs, who owns them, which are short; place.go: giving them to who lacks them; take.go: taking them
//	compare.go  pairs of owners compare what they have
//	put.go      pushes and their copies; delete.go, log.go: removals and the deletion log
//	backend.go  who writes, and when a blob is unpinned because a backend has it; erase.go: removals there
//	lookup.go   reads; whole.go: the proof that each blob has its copies
//	wire.go     asks and answers as JSON
//
// # Members
//
// Everybody asks everybody for its [Status] each second. A member is down when it gave no sign of life for 10 s to this
// member nor to any that this one hears, gone after 15 min. Owners are the members that are [Up] and not gone, so a restart
// moves nothing. Lists and DNS add names, also those that others know; [Remove] and [Forget] take one away until [Readmit],
// and who is gone after [Drained] has left until it is heard of again. What is said of members is ordered by [Order], which
// no clock can spoil.
//
// The [View] is a hash of R, names, zones and owners. What a member has heard of others' copies is true in one view and of one
// disk each: when the view changes, or a member comes with another disk (incarnation), all of it is void (Ring.void)
// and is found out anew. An answer counts only if it was asked for after that. So two members never unpin by
// each other's word.
//
// # Copies
//
// A push is acknowledged when min_replicas members have it pinned with a record in which it survived, asked for this very push.
// Owners compare sums; what one lacks it is given. Who is no owner unpins when all owners, min_replicas at least, have said in
// its view that they have the blob pinned with all that its own record says. Who is asked to have a blob answers when it is there, or a
// second later, so that repair waits for bytes and not for asks. When somebody is down, only what is below min_replicas
// is copied, to others if its owners are down.
//
// # Removals
//
// A deletion is acknowledged when all who are not down, and more than N - min_replicas of N members, have it in their log: so each
// min_replicas members, the fewest that acknowledge a push, have one among them that knows it, and a push after it gets a
// later stamp, however wrong clocks are. (What the log no longer has after a week needs clocks that are not wrong by a
// week.) As many as min_replicas of them erase at the backend, in case a disk is lost. Who is in touch with fewer than
// min_replicas - 1 others may have missed one: it does not serve for 30 s, and leaves backends alone.
//
// BUG: a deletion that is acknowledged while the backend does not answer may leave the object there: if it was pushed by a clock that was
// ahead by more than [record.MaxLead], and all who knew of that push have lost their disks since, one after the other, its stamp is known
// beside the object only, and is the later one.
//
// # The backend
//
// Beside each object lies its record, because what a backend has is pinned nowhere, and the members that know of its namespaces
// may lose their disks one after the other. A holder unpins after it has itself seen the object, and its own push in the record
// beside it, after the push, and after each member said that it erases nothing of before.
//
// # Invariants
//
//  1. A blob that was acknowledged, and not deleted, is readable while fewer than min_replicas disks were lost since the
//     ring was last whole.
//  2. Nobody unpins but after it saw the blob in its own backend, or by the answers of the owners.
//  3. Nobody says 404 of such a blob.
//  4. Merging records is commutative, associative and idempotent (package record).
//  5. When all is quiet there is one view, and every pinned blob is at exactly its owners.
//  6. What was deleted is not written again, and not served by who can know it; a push after a deletion is not deleted.
//  7. A backend is sent the bytes of a blob once, and what was in flight when its writer died.
//  8. Nobody says that the ring is whole while a blob has fewer than min_replicas copies.
package ringstate
