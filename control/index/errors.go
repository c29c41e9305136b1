package index

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/internal/errclass"
)

// classes is the one table of what errors are on the wire.
var classes = errclass.Table{
	{Name: "unavailable", Status: http.StatusServiceUnavailable, Err: errdefs.ErrUnavailable},
	{Name: "data_loss", Status: http.StatusInternalServerError, Err: errdefs.ErrDataLoss},
	{Name: "invalid_argument", Status: http.StatusBadRequest, Err: errdefs.ErrInvalidArgument},
	{Name: "failed_precondition", Status: http.StatusPreconditionFailed, Err: errdefs.ErrFailedPrecondition},
	{Name: "conflict", Status: http.StatusConflict, Err: errdefs.ErrConflict},
	{Name: "permission_denied", Status: http.StatusForbidden, Err: errdefs.ErrPermissionDenied},
	{Name: "unauthenticated", Status: http.StatusUnauthorized, Err: errdefs.ErrUnauthenticated},
	{Name: "resource_exhausted", Status: http.StatusTooManyRequests, Err: errdefs.ErrResourceExhausted},
	{Name: "not_implemented", Status: http.StatusNotImplemented, Err: errdefs.ErrNotImplemented},
	{Name: "not_found", Status: http.StatusNotFound, Err: errdefs.ErrNotFound},
	// Whoever waited no longer, it is not known how it would have ended.
	{Name: "unavailable", Status: http.StatusServiceUnavailable, Err: context.DeadlineExceeded},
	{Name: "unavailable", Status: http.StatusServiceUnavailable, Err: context.Canceled},
	{Name: "internal", Status: http.StatusInternalServerError, Err: errdefs.ErrInternal},
}

// Class returns the name of an error's class on the wire and the HTTP status
// that goes with it; "ok" and 200 of nil.
func Class(err error) (name string, status int) { return classes.Class(err) }

// classOf is the reverse of Class; nil if there is no such class.
func classOf(name string) error { return classes.Of(name) }

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
