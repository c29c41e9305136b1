// Package record says where blobs live, as the members of a ring of origins agree about it, and keeps it on disk.
//
// Start from [Record], which is format 2 of FORMAT.md, and [Merge]: what two members know of a blob becomes what both
// know, in whatever order and however often it is merged. [Stamp] and [Clock] order pushes and removals. All of these are
// values: they do no I/O and read no clock. A Record is never changed once it was passed on; what changes one returns
// another. Format 1, that of an origin without a ring, is [FromV1] and [Record.V1].
//
// [Store] keeps a record of each of a million blobs, and [Deletions] is the log by which members tell each other what was
// deleted. Both may be used by any goroutine, and take many changes with one sync. What they have acknowledged is durable;
// those who wait at the same time share a sync. A crash leaves each change whole or not at all. What a disk has damaged is
// never taken for what a crash has left: it is refused, with the file's name (errdefs.ErrDataLoss). A full disk is
// errdefs.ErrResourceExhausted, and whatever has failed can be tried again.
//
//	record.go     records, and what they mean; merge.go: what two of them make; stamp.go: clocks
//	json.go       as members tell them; pack.go: as they are kept and hashed; v1.go: format 1
//	journal.go    files that are appended to, with a sync for many
//	deletions.go  the deletion log
//	store.go      records on disk; index.go: and in memory; migrate.go: from format 1, and back
package record
