// Package file is a [fetcher.Backend] in a directory: an object is a plain file,
// whose path below the directory is its key. Files that were put there by other
// means (cp, rsync) are objects like any.
//
// Start from [Open]. All methods may be called concurrently, by any number of
// processes too, on one machine or on several that share a file system with
// working flock (NFS has it since Linux 2.6.12; see [Coherent]).
//
// # What is on disk
//
//	<path>/blobs/sha256/ab/abcd…   objects
//	<path>/.capelin/lock           held while a process opens the directory
//	<path>/.capelin/locks/00..3f   held while an object is replaced or deleted
//	<path>/.capelin/tmp/<id>/      what a process is writing; it holds <id>/lock
//
// No object's key begins with ".capelin". Only regular files are objects. A symbolic
// link is none; a linked directory is passed through if a key names it and it is
// inside, but not listed; nothing leads out. Files whose names are no keys (see
// [fetcher.CheckKey]) are not listed. Directories that have become empty stay.
//
// # Lists
//
// A page costs a look at all names of its directory, as a file system has them in no order. The names of a large
// directory (more than 8,192) that nobody has changed for 3 s are kept in memory, in order, while pages are asked for: 32 MiB of one
// directory, 64 MiB of all, until a minute after the last page. Then a page costs what it returns.
//
// # Durability
//
// A write goes to a temporary file, which is synced, renamed, and whose new
// directory is synced; directories that are made on the way are synced from the
// top. A crash at any point leaves the old object or the new one. Temporary files
// of processes that are gone are removed when the directory is next opened.
//
// If only the last of these syncs fails, the error says so and the new object is
// visible, although a power cut may bring back the old one.
//
// # Versions
//
// A version is the file's modification time and inode. Modification times are
// chosen, not left to the clock's ticks: every write and delete takes the lock of
// its key, and gives the file a time after that of the file which it replaces, even if
// the clock went back, with up to a millisecond of chance on top. So as long as an
// object exists its times only rise, and A → B → A has three versions. The time is
// in the inode before the file is synced and renamed: what a power cut leaves is
// the old object with the old version, or the new with the new; a version that was
// seen, and then lost with the power before it was durable, is not given out again,
// because of the chance. There is no second file that could disagree with the
// first. The inode tells apart what other programs put there with times of their
// own; a directory that was restored from a copy has new versions, which costs those who
// hold old ones a conflict.
package file
