// Package disk is the file system as far as a power cut can tell: opening for
// writing, naming, writing and syncing. Each function is the os package's or the
// kernel's of that name, unless a test watches the directory ([Intercept], and
// package disktest, which plays power cuts and failing disks).
//
// Files are real ones. Reading, sendfile and mmap do not pass through here, and a
// write costs one atomic load more than it would.
//
// All may be called concurrently. What makes something durable with these is package durable's.
package disk
