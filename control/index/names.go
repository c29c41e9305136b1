package index

import (
	_ "crypto/sha256" // digests need both
	_ "crypto/sha512"
	"fmt"
	"regexp"
	"strings"

	"cuelabs.dev/go/oci/ociregistry/ociref"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
)

// Limits of names, in bytes.
const (
	MaxRepository = 255
	// maxElement of a repository's name, between two "/": what storage can keep.
	maxElement   = 200
	MaxTag       = 128
	MaxMediaType = 255
)

// CheckRepository reports what is wrong with the name of a repository, as
// errdefs.ErrInvalidArgument: it follows the grammar of the OCI distribution
// specification and has at most 255 bytes, at most 200 between two "/".
func CheckRepository(name string) error {
	if len(name) > MaxRepository || !ociref.IsValidRepository(name) {
		return fmt.Errorf("%s is no name of a repository: %w", quote(name), errdefs.ErrInvalidArgument)
	}
	for e := range strings.SplitSeq(name, "/") {
		if len(e) > maxElement {
			return fmt.Errorf("the repository's name %q has more than %d bytes between two slashes: %w",
				name, maxElement, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// CheckTag reports what is wrong with the name of a tag, as
// errdefs.ErrInvalidArgument.
func CheckTag(name string) error {
	if name == "" || len(name) > MaxTag || !ociref.IsValidTag(name) {
		return fmt.Errorf("%s is no name of a tag: %w", quote(name), errdefs.ErrInvalidArgument)
	}
	return nil
}

var writePattern = regexp.MustCompile(`^[A-Za-z0-9]{1,64}$`)

// CheckWrite reports what is wrong with the id of a write, as errdefs.ErrInvalidArgument.
func CheckWrite(id string) error {
	if !writePattern.MatchString(id) {
		return fmt.Errorf("%s is no id of a write, 1 to 64 letters and digits: %w", quote(id), errdefs.ErrInvalidArgument)
	}
	return nil
}

// CheckDigest reports what is wrong with a digest, as errdefs.ErrInvalidArgument.
func CheckDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("%s is no digest: %w: %w", quote(string(d)), err, errdefs.ErrInvalidArgument)
	}
	return nil
}

var mediaTypePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}$`)

// CheckMediaType reports what is wrong with a media type (RFC 6838), as
// errdefs.ErrInvalidArgument.
func CheckMediaType(t string) error {
	if !mediaTypePattern.MatchString(t) {
		return fmt.Errorf("%s is no media type: %w", quote(t), errdefs.ErrInvalidArgument)
	}
	return nil
}

// quote is for messages about what strangers sent.
func quote(s string) string {
	if len(s) > 300 {
		s = s[:300] + "…"
	}
	return fmt.Sprintf("%q", s)
}
