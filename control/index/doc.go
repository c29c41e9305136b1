// Package index is the vocabulary and the client of the index: what a tag and a
// manifest are, what a manifest refers to, and the HTTP/JSON API that control/INDEX.md
// specifies.
//
// Start from [Client]; package indexd is the other side. [ParseManifest] reads
// manifests from anybody.
//
// # Errors
//
// Errors are containerd's errdefs classes, the same on both sides of the API.
// [errdefs.ErrNotFound]: what was asked for is certainly not there.
// [errdefs.ErrFailedPrecondition]: a write was refused; if it is a [MissingError], because
// of what it refers to and is not there. [errdefs.ErrInvalidArgument]: it can never be
// accepted. [errdefs.ErrUnavailable]: no index could say, or it is not known whether a
// write was carried out; try again, all writes may be repeated.
//
// # Concurrency
//
// A Client is safe for concurrent use. It starts no goroutine of its own;
// each call ends soon after its context.
package index
