// Package moving lets go to another storage what is in one, while it serves: an index ([Index]), or the blobs of origins ([Blobs]).
//
// [Storage] is what they use instead of their storage: a fetcher.Backend that knows whether all moves. [Mover] is who
// moves it: Run copies, verifies and switches, and goes on where it was after a crash. Below, «index» is whoever uses a storage.
//
// # How nothing is lost
//
// One object in the old storage, the state, says how far the move is: copying, closed, moved. It is changed by
// compare-and-swap only. An index that is told the next storage reads it
//
//   - before each read: while it does not say moved, the old storage is read, afterwards the new one;
//   - before and after each write. Before, because a write goes to the old storage while copying, waits while closed, and goes
//     to the new one when moved. After, because a write is acknowledged only if the state has not changed meanwhile. So what
//     was acknowledged was in the old storage before the state changed, and whoever copies after that sees it.
//
// While copying, each write leaves the name of its object in a journal before it is done, under the epoch that the state
// names. The Mover begins a new epoch, and copies what the journal of the one before names: what was acknowledged in that epoch is
// there. It does so until little is left, closes, copies the rest, and only then says moved. So the time in which writes wait
// is that of the last few objects, however large the index is. No clock and no deadline decides anything: an index that was
// frozen for an hour in the middle of a write does not acknowledge it.
//
// A write that failed because the state changed may be in the old storage, and be seen there until the index has moved. It was not
// acknowledged, and may be gone then.
//
// # Blobs
//
// Each blob is verified twice: as it is read from the old storage, before the last of its bytes are given to the new one, and by reading it
// from there. What the new one has of an attempt of before is read, too, and not copied if it is right. Whoever copies looks whether
// it still is the one who moves before it gives the last bytes away: one that was frozen meanwhile brings back nothing that was deleted
// since. A storage without compare-and-swap cannot refuse a second Mover; then it is for people not to run two.
//
// # Who takes part
//
// Each index is registered in its storage while it runs. It registers first and then reads the state; the Mover writes the state
// first and then looks who is registered, and does not begin before all of them are told the next storage. One that is not told refuses to
// start once there is a state. What a killed index leaves there a person has to say is gone. An origin has a name of its own, and takes
// what was killed by that name off the register itself.
package moving
