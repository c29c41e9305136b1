package origin

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Paths of the API (control/ORIGIN.md section 2). A digest or an upload's id
// follows after a slash.
const (
	PathBlobs   = "/v1/blobs"
	PathUploads = "/v1/uploads"
	PathRing    = "/v1/ring" // the status; asks of members and what operators say are below it
	// SumsOf follows a blob's path: its sums.
	SumsOf = "/sums"
)

// Query parameters.
const (
	ParamNamespace = "namespace"
	ParamDigest    = "digest"
	ParamOffset    = "offset"
	ParamOwner     = "owner"   // whose an upload is
	ParamID        = "id"      // of an upload that another member leads
	ParamFrom      = "from"    // that member
	ParamReplica   = "replica" // the term by which it leads
	ParamHop       = "hop"     // "1": a member asks, which is to be sent to no other
	ParamSize      = "size"    // of a blob, in bytes
)

// Headers of answers.
const (
	HeaderSize    = "Capelin-Size"      // of the whole blob, in bytes
	HeaderDurable = "Capelin-Durable"   // "true" or "false", Info.Durable
	HeaderCopies  = "Capelin-Copies"    // how many members have confirmed a push
	HeaderUpload  = "Capelin-Upload"    // an upload's id
	HeaderSpace   = "Capelin-Namespace" // to which an upload was begun
	HeaderOwner   = "Capelin-Owner"     // whose it is
	HeaderOffset  = "Capelin-Offset"    // where an upload's next byte goes
	HeaderTerm    = "Capelin-Term"      // by which an upload is led
	HeaderLeads   = "Capelin-Leads"     // "true": this member leads it
	HeaderFeeds   = "Capelin-Feeds"     // "true": and feeds whoever asks
	HeaderDigest  = "Capelin-Digest"    // of the blob that an upload became
	HeaderError   = "Capelin-Error"     // the error's class, see Class
	HeaderReason  = "Capelin-Reason"    // the error's text, for HEAD too

	// Of asks between members of a ring, and of their answers: who says this, and the disk that it has.
	HeaderMember      = "Capelin-Member"
	HeaderIncarnation = "Capelin-Incarnation"
	HeaderAddress     = "Capelin-Address" // of asks only: where whoever asks is reached
)

// Limits.
const (
	MaxSize      = piece.MaxSize // bytes of a blob
	MaxNamespace = 255           // bytes
	MaxReason    = 1 << 10       // bytes
	MaxMember    = 255           // bytes of a member's name
	MaxOwner     = 64            // bytes
	UploadIDLen  = 32            // of an upload's id at its origin: lower-case hexadecimal digits
)

// CheckDigest reports what is wrong with a blob's name, as
// errdefs.ErrInvalidArgument: it must be of sha256 or sha512, in lower case.
func CheckDigest(d digest.Digest) error {
	if _, err := piece.ParseID(string(d), 1); err != nil {
		return fmt.Errorf("%q is not the digest of a blob: %w", shorten(string(d)), errdefs.ErrInvalidArgument)
	}
	return nil
}

// CheckNamespace reports what is wrong with a namespace, as
// errdefs.ErrInvalidArgument. Empty is nothing wrong.
func CheckNamespace(ns string) error {
	if ns == "" {
		return nil
	}
	if len(ns) > MaxNamespace {
		return fmt.Errorf("namespace %q is longer than %d bytes: %w", shorten(ns), MaxNamespace, errdefs.ErrInvalidArgument)
	}
	if err := fetcher.CheckKey(ns); err != nil {
		return fmt.Errorf("namespace: %w", err)
	}
	return nil
}

// CheckOwner reports what is wrong with what stands for the owner of an upload, as
// errdefs.ErrInvalidArgument: it has letters and digits of ASCII only. Empty is nothing wrong: it is anybody's.
func CheckOwner(s string) error {
	if len(s) > MaxOwner || strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) {
		return fmt.Errorf("%q does not stand for an owner: %w", shorten(s), errdefs.ErrInvalidArgument)
	}
	return nil
}

// CheckUploadID reports what is wrong with an upload's id at its origin, as
// errdefs.ErrInvalidArgument.
func CheckUploadID(id string) error {
	if len(id) != UploadIDLen || strings.Trim(id, "0123456789abcdef") != "" {
		return fmt.Errorf("%q is not the id of an upload: %w", shorten(id), errdefs.ErrInvalidArgument)
	}
	return nil
}

// IsEmpty reports whether d is the digest of no bytes at all. That blob is at
// every origin, always.
func IsEmpty(d digest.Digest) bool {
	a := d.Algorithm()
	return a.Available() && d == a.FromBytes(nil)
}

func shorten(s string) string {
	if len(s) > 160 {
		return s[:160] + "…"
	}
	return s
}
