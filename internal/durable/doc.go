// Package durable makes small files and renames survive a power cut.
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
// The functions may be called concurrently; two writers of one name leave one
// of the two contents, whole.
package durable
