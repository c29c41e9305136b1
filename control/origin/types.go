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

// Info is what an origin says of a blob.
type Info struct {
	Size int64 // bytes
	// Durable: it is in a backend, or will stay at the origin for good.
	Durable bool
}
