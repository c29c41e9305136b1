// Package durable makes small files, directories and names survive a power cut.
//
// There is one sequence for publishing, and everything in Capelin that must not
// be half there after a crash uses it:
//
//	openat(dir, ".tmp-x", O_CREAT|O_EXCL)
//	write
//	fsync(file)
//	rename(".tmp-x", name)
//	fsync(dir)
//
// And a directory's own name is its parent's: [MkdirAll] and [Dirs] make
// directories, from the top, and sync the parent of each.
//
// [BootID] tells what an earlier process may have written without a sync from what
// a power cut has left of that.
//
// The functions may be called concurrently; two writers of one name leave one
// of the two contents, whole. The operations themselves are package disk's.
package durable
