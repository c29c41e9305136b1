// Package keylock is a lock per key, such as a digest, for what is done to one of
// many things at a time. [Locks] may be used by any goroutine; a lock may be held
// while its holder does I/O, since waiting for one does not stop a fake clock.
// Whoever waits does so until the lock is free: no context ends that.
package keylock
