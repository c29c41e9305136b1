// Package record says where blobs live, as the members of a ring of origins agree about it, and keeps it on disk.
//
// Start from [Record], which is format 2 of FORMAT.md, and [Merge]: what two members know of a blob becomes what both
// know, in whatever order and however often it is merged. [Stamp] and [Clock] order pushes and removals. All of these are
// values: they do no I/O and read no clock. A Record is never changed once it was passed on; what changes one returns
// another. Format 1, that of an origin without a ring, is [FromV1] and [Record.V1].
package record
