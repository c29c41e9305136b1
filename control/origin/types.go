package origin

import (
	digest "github.com/opencontainers/go-digest"
)

// Ref names a blob at an origin.
type Ref struct {
	// Namespace is the repository that the blob is asked for or pushed as, such as
	// "team/app". It chooses the backend. Empty if it is not known: then the blob is
	// found by the record of where it lives, or in backends that need no repository.
	Namespace string
	Digest    digest.Digest
}

func (r Ref) String() string {
	if r.Namespace == "" {
		return string(r.Digest)
	}
	return r.Namespace + "@" + string(r.Digest)
}

// NewUpload is an upload that is to be begun.
type NewUpload struct {
	Namespace string // which takes it
	// Owner stands for whose it is, by letters and digits (CheckOwner). Nobody may have too many.
	// Empty: it is not known, or does not matter.
	Owner string
	// Digest is that of the blob that the upload is likely to become, which says where it is best begun.
	// Empty: not known.
	Digest digest.Digest
}

// Upload is what an origin says of an upload. Namespace and Owner are empty if the origin is of an
// earlier release, Owner if the upload was begun without one.
type Upload struct {
	Offset           int64 // where the next byte goes
	Namespace, Owner string
}

// Info is what an origin says of a blob.
type Info struct {
	Size int64 // bytes
	// Durable: it is in a backend, or will stay at the origin for good.
	Durable bool
}
