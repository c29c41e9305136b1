// Package mirror is a push to a ring of origins without its sockets and files: an upload is
// copied to other members while it arrives, and survives the one that takes it.
//
// Start from [Upload]: one value per upload at each member that has some of it. Its
// [Upload.Step] takes the time and an event and returns what to do. There is no clock, no
// I/O, no goroutine and no lock in here. An Upload is for one goroutine at a time.
// [Search] finds an upload that a member does not know.
//
// # Who leads
//
// The member that a client last appended to, or asked to commit, leads the upload: it
// feeds MinReplicas - 1 others, its mirrors, from its file, by the same requests as
// clients make. All others obey. Whoever begins to lead takes the next higher term, which
// goes with each request to a mirror; a request of a lower term is refused, and its sender
// lets go, unless a client is at it just now: then it takes a higher term still. So the
// member that has the client wins. Two that lead at once are harmless: a blob
// is what its digest says, wherever its bytes came from.
//
// # What an answer promises
//
// A client's append depends on the own disk only; no mirror slows it down. A commit is
// acknowledged when MinReplicas members, this one among them, have said since it was asked
// for that they have the whole blob, synced. What an earlier commit heard counts for nothing:
// members lose their disks.
//
// # What is forgotten
//
// Terms and leaders are in memory only. After a restart an upload is what its file has, and
// obeys whoever comes first.
package mirror
