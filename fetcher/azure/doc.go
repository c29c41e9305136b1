// Package azure is a [fetcher.Backend] in a container of Azure's Blob Storage.
//
// Start from [Open]. A blob's name is its key, after the configured prefix. All methods may be
// called concurrently, by any number of processes. The account has no hierarchical namespace, which lists in another
// order: that is noticed, and is an error.
//
// # Library
//
// azblob and azidentity, which make a capelin 2.7 MB larger (azidentity 1.2 of them) and its start-up memory 2 MB. azblob after
// 1.8.0 brings Apache Arrow for lists, another 3 MB, for nothing that is used here. The library's own retries
// are off: they do not know what a lost answer means. Credentials are a file (a shared access signature, or the
// account's key), or azidentity's default chain; it sends no token over plain HTTP.
//
// # Requests
//
//	Stat             1
//	Open             1, and 1 more for an empty range
//	Write, ≤ 8 MiB   2: which version is there; the blob
//	Write, larger    1 for each 8 MiB, up to 4 at the same time, and 1; blocks of an object beyond 390 GiB are larger
//	WriteIf          1
//	List             1 for each 1,000 blobs
//	Delete           2
//	Check            2: a list, and a write whose condition does not hold
//
// All writes together hold in memory what the key memory says. A request that failed is sent up to 5 times, with
// growing pauses.
//
// # Versions
//
// A version is the blob's ETag, which is a new one at each write. Writes and deletions are conditional on it, so that a
// request that is repeated because its answer was lost does not undo what others did meanwhile; only the end of an upload
// in blocks is not, which cannot be done twice once others have written. Each write puts a nonce into the
// blob's metadata (capelin_write): whether a blob is its own after an answer was lost, it reads there. If somebody else's
// is there then, a compare-and-swap was lost, though it may have been done before that.
//
// The storage drops blocks that nobody has committed when another write of the same name ends: of several large
// writes of one name at the same time the first to end wins, and the others fail with errdefs.ErrUnavailable.
//
// # Crashes
//
// A blob is there when its blocks are committed, never before. Blocks whose process ends, or whose source fails, cannot be
// seen; the storage removes them after a week.
package azure
