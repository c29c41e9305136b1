// Package fetcher is where bytes come from and go to beyond the swarm: the
// pluggable storage behind origins and the index.
//
// Start from [Backend], the contract that every storage fulfils, and
// fetchertest.Run, the suite that holds them to it. The backends are packages
// below this one: fetcher/file (a directory), fetcher/s3 (a bucket), fetcher/hdfs (a directory
// of a Hadoop file system), fetcher/registry (another OCI registry, read only) and
// fetcher/httpfile (a web server, read only). Package fetcher/backends makes them of a daemon's
// configuration, and finds the one that a namespace belongs to.
//
// A backend holds objects: bytes under a key. Keys are paths of elements
// separated by "/" (see [CheckKey]). What has a digest is an object whose key
// [BlobKey] makes, unless the backend has a [Locator] of its own, because its
// storage names blobs otherwise.
//
// # Errors
//
// Errors are containerd's errdefs classes, wrapped, with a text that names the
// backend and the key. [errdefs.ErrNotFound] means that the object is certainly not
// there: whoever is told so may act on it. Anything that says less (no answer,
// 5xx, a timeout) is [errdefs.ErrUnavailable]; a refusal is
// [errdefs.ErrPermissionDenied] or [errdefs.ErrUnauthenticated]; what the backend
// cannot do is [errdefs.ErrNotImplemented]; a lost compare-and-swap is
// [errdefs.ErrConflict]; a storage that is full is [errdefs.ErrResourceExhausted].
// The end of a context is its own error, wrapped.
//
// Package fetcher/owned has a storage know whose it is, and fetcher/moving lets its contents go to another one while they are used.
//
// A storage that says that it compares and swaps may not: [Prove] finds out. Package fetcher/parts cuts large objects, for
// those that take them so, and fetcher/limit bounds what moves per second.
//
// # Concurrency
//
// Backends are safe for concurrent use. Every call ends soon after its context,
// a reader's Read included.
package fetcher
