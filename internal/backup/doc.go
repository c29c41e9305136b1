// Package backup copies all that a cluster keeps, its index's objects and the blobs that they name, into a storage, and back.
//
// [Backup] makes a back-up, or brings one up to date; [Restore] puts one into a cluster.
//
// # What a back-up is
//
//	index/…           the index's objects, byte for byte, under the keys that indexd/FORMAT.md specifies
//	blobs/<alg>/…     the blobs, manifests among them, under fetcher.BlobKey
//	capelin-backup    what it is: one JSON object with "format"
//
// So ordinary tools can read it, and an index and an origin can be pointed at a copy of it.
//
// # What it holds
//
// It is made while others push. All objects but tags are copied, then the tags, then what has appeared since: what a tag reaches was
// recorded before the tag was, and so is in the back-up when the tag is. Then all blobs that the copied objects name are read
// from the origins, and verified while they are written. What is there already is not moved again. What the index has no more is removed
// from the back-up, but no blob is.
//
// A manifest that is deleted while the back-up is made may leave a tag in it that names it, which an index takes
// for not found. A blob that nobody has is named in the [Report], which then says that the back-up is not whole.
//
// # Memory and concurrency
//
// Both have the memory of some pages of names and some buffers, however much there is. A value is used once, by one goroutine.
package backup
