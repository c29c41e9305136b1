// Package disktest is a disk for tests that loses what was not synced, and fails
// when it is told to.
//
// [Watch] records what package disk does below a real directory. Each operation is a
// moment at which the power may go: [Disk.Cuts] builds the directory as it may be
// afterwards, in another place, for the normal recovery to open. [Disk.FailAt] has
// one operation fail instead.
//
// # What survives
//
// A file's data and size survive as they were at its last fdatasync or fsync, its
// modification time as at its last fsync. A name survives once its directory was
// synced, and only if the directory's own name does; so does its removal. Of
// everything else any part may survive: of a file's data any pages, its old size or
// its new one; of a directory's changes any of them, in whatever order they were
// made. A rename is one change, except that its two directories are synced on their
// own: then both names may be there, but never none, as on every journaling file
// system. After a sync that failed the data count as clean, and no later sync brings
// them (Linux does it so): only writing them anew does.
//
// What is done behind package disk's back, by os or by another package, is found at the
// next operation, and counts as not synced.
//
// A Disk is for one goroutine at a time: Watch a directory that nobody else is at.
package disktest
