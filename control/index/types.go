package index

import (
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Tag is a name for a manifest in a repository, which may move: tags are mutable, and each
// write of one is a revision of its own.
type Tag struct {
	Repository string `json:"repository"`
	Name       string `json:"name"`
	// Descriptor is of the manifest: media type, digest and size.
	Descriptor ocispec.Descriptor `json:"descriptor"`
	// Revision grows by one with each write of the tag, deletions included.
	Revision uint64 `json:"revision"`
	// Cluster wrote this, be it here or elsewhere, and Stamp says when among all writes of all clusters (Source).
	Cluster string    `json:"cluster"`
	Stamp   uint64    `json:"stamp,omitempty"`
	Updated time.Time `json:"updated"` // here
	// Previous are the digests that it had before, the latest first, at most 16.
	Previous []digest.Digest `json:"previous,omitempty"`

	// Deleted: it names nothing any more; Descriptor is empty. Only who asks for what became of a tag sees that.
	Deleted bool `json:"deleted,omitempty"`
	// Superseded: what was to be written is earlier than this, and was not.
	Superseded bool `json:"superseded,omitempty"`
}

// Source says which write this is.
func (t *Tag) Source() Source { return Source{t.Cluster, t.Stamp} }

// TokenKey is a secret with which the gateways of a cluster sign what they give their clients (HS256).
type TokenKey struct {
	ID     string    `json:"id"`
	Secret []byte    `json:"secret"` // 32 bytes
	Made   time.Time `json:"made"`
}

// TokenKeys are the keys that are good now: one signs with the first, and believes all of them.
type TokenKeys struct {
	Keys []TokenKey `json:"keys"`
}

// Proof says that a storage was found to compare and swap.
type Proof struct {
	Storage string    `json:"storage"`
	Proved  time.Time `json:"proved"`
	By      string    `json:"by"` // which version of Capelin has found it out
}

// Manifest is a manifest or index that a repository has. The bytes are a blob at
// the origins.
type Manifest struct {
	Descriptor ocispec.Descriptor `json:"descriptor"` // media type, digest, size
	// ArtifactType is what its referrers' list says of it: for an image manifest
	// that has none, the media type of its config.
	ArtifactType string              `json:"artifactType,omitempty"`
	Annotations  map[string]string   `json:"annotations,omitempty"`
	Subject      *ocispec.Descriptor `json:"subject,omitempty"`
	// Blobs and Manifests are what it refers to, the subject excepted. Not all
	// Blobs need to be there (NeedsBlob).
	Blobs     []ocispec.Descriptor `json:"blobs,omitempty"`
	Manifests []ocispec.Descriptor `json:"manifests,omitempty"`
}

// Referrer returns how m appears among the referrers of its subject.
func (m *Manifest) Referrer() ocispec.Descriptor {
	d := m.Descriptor
	d.ArtifactType, d.Annotations = m.ArtifactType, m.Annotations
	return d
}
