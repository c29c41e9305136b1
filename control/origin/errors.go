package origin

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
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
	{"data_loss", http.StatusBadGateway, errdefs.ErrDataLoss},
	{"resource_exhausted", http.StatusInsufficientStorage, errdefs.ErrResourceExhausted},
	{"invalid_argument", http.StatusBadRequest, errdefs.ErrInvalidArgument},
	{"out_of_range", http.StatusRequestedRangeNotSatisfiable, errdefs.ErrOutOfRange},
	{"failed_precondition", http.StatusPreconditionFailed, errdefs.ErrFailedPrecondition},
	{"conflict", http.StatusConflict, errdefs.ErrConflict},
	{"permission_denied", http.StatusForbidden, errdefs.ErrPermissionDenied},
	{"unauthenticated", http.StatusUnauthorized, errdefs.ErrUnauthenticated},
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

// ClassOf is the reverse of Class: the error that stands for a class, or nil if
// there is no such class.
func ClassOf(name string) error {
	for _, c := range classes {
		if c.name == name {
			return c.err
		}
	}
	return nil
}

// Reason returns an error's text as HeaderReason has it: at most MaxReason bytes
// of printable ASCII.
func Reason(err error) string {
	s := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, err.Error())
	if len(s) > MaxReason {
		s = s[:MaxReason]
	}
	return s
}

// remoteError is what an origin answered.
type remoteError struct {
	origin, text string
	class        error
}

func (e *remoteError) Error() string { return "origin " + e.origin + ": " + e.text }
func (e *remoteError) Unwrap() error { return e.class }
