package index

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
)

// classes is the one table of what errors are on the wire: the first class that
// an error is. Whatever is none of them is "internal". A class that says less
// comes before one that says more, so that an error that wraps both is not taken
// for certain.
var classes = []struct {
	name   string
	status int
	err    error
}{
	{"unavailable", http.StatusServiceUnavailable, errdefs.ErrUnavailable},
	{"data_loss", http.StatusInternalServerError, errdefs.ErrDataLoss},
	{"invalid_argument", http.StatusBadRequest, errdefs.ErrInvalidArgument},
	{"failed_precondition", http.StatusPreconditionFailed, errdefs.ErrFailedPrecondition},
	{"conflict", http.StatusConflict, errdefs.ErrConflict},
	{"permission_denied", http.StatusForbidden, errdefs.ErrPermissionDenied},
	{"unauthenticated", http.StatusUnauthorized, errdefs.ErrUnauthenticated},
	{"resource_exhausted", http.StatusTooManyRequests, errdefs.ErrResourceExhausted},
	{"not_implemented", http.StatusNotImplemented, errdefs.ErrNotImplemented},
	{"not_found", http.StatusNotFound, errdefs.ErrNotFound},
	// Whoever waited no longer, it is not known how it would have ended.
	{"unavailable", http.StatusServiceUnavailable, context.DeadlineExceeded},
	{"unavailable", http.StatusServiceUnavailable, context.Canceled},
	{"internal", http.StatusInternalServerError, errdefs.ErrInternal},
}

// Class returns the name of an error's class on the wire and the HTTP status
// that goes with it; "ok" and 200 of nil.
func Class(err error) (name string, status int) {
	if err == nil {
		return "ok", http.StatusOK
	}
	for _, c := range classes {
		if errors.Is(err, c.err) {
			return c.name, c.status
		}
	}
	return "internal", http.StatusInternalServerError
}

// classOf is the reverse of Class; nil if there is no such class.
func classOf(name string) error {
	for _, c := range classes {
		if c.name == name {
			return c.err
		}
	}
	return nil
}

// Missing is something that a manifest refers to and is not there.
type Missing struct {
	Digest digest.Digest `json:"digest"`
	// Kind is "blob" or "manifest".
	Kind string `json:"kind"`
	// NeededBy is the manifest that refers to it.
	NeededBy digest.Digest `json:"neededBy,omitempty"`
	// Why says where it is missing, such as "no origin has it".
	Why string `json:"why"`
}

func (m Missing) String() string {
	s := fmt.Sprintf("%s %s: %s", m.Kind, m.Digest, m.Why)
	if m.NeededBy != "" && m.NeededBy != m.Digest {
		s += fmt.Sprintf(" (%s refers to it)", m.NeededBy)
	}
	return s
}

// MaxMissing is how many a MissingError lists.
const MaxMissing = 10

// MissingError refuses a manifest or tag that is not complete. It is an
// errdefs.ErrFailedPrecondition.
type MissingError struct {
	Repository string
	Missing    []Missing // the first few
	More       int       // how many others
}

func (e *MissingError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "repository %s is incomplete; push first", e.Repository)
	for i, m := range e.Missing {
		b.WriteString([]string{": ", "; "}[min(i, 1)])
		b.WriteString(m.String())
	}
	if e.More > 0 {
		fmt.Fprintf(&b, "; and %d more", e.More)
	}
	return b.String()
}

func (e *MissingError) Unwrap() error { return errdefs.ErrFailedPrecondition }

// remoteError is what an index answered.
type remoteError struct {
	index, text string
	class       error
}

func (e *remoteError) Error() string { return "index " + e.index + ": " + e.text }
func (e *remoteError) Unwrap() error { return e.class }
