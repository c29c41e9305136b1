// Package indexd is the index: which repositories there are, what their tags
// name, and which manifests, blobs and referrers they have. It keeps all of it
// in a [fetcher.Backend] that can compare and swap, and no bytes of images.
//
// What it has is brought to other clusters and registries by package replicate.
//
// Start from [Run] and [Config] for the daemon, and from [Index] for what it does;
// control/index has the client and the vocabulary, control/INDEX.md the API, FORMAT.md
// what is in the storage.
//
// # Promises
//
// A write that was acknowledged is durable, and seen by whoever reads after it, on
// every index over the same storage, restart or not: every read asks the storage. Each
// acknowledged write of a tag is a revision of its own. A manifest or tag is accepted
// only when everything that it reaches is there (complete.go).
//
// # Concurrency
//
// An Index is safe for concurrent use, also with others over the same storage. It
// starts no goroutine that outlives a call. A write whose error is not that it was
// refused may have been carried out, whole.
package indexd
