package origin

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/errclass"
)

// ErrBusy: as much is under way as may be, and nothing of it can be given up yet. It is an errdefs.ErrResourceExhausted that passes by
// itself, within a minute or so.
var ErrBusy = fmt.Errorf("too much is under way: %w", errdefs.ErrResourceExhausted)

// classes is the one table of what errors are on the wire.
var classes = errclass.Table{
	{Name: "unavailable", Status: http.StatusServiceUnavailable, Err: errdefs.ErrUnavailable},
	{Name: "data_loss", Status: http.StatusBadGateway, Err: errdefs.ErrDataLoss},
	{Name: "busy", Status: http.StatusTooManyRequests, Err: ErrBusy},
	{Name: "resource_exhausted", Status: http.StatusInsufficientStorage, Err: errdefs.ErrResourceExhausted},
	{Name: "invalid_argument", Status: http.StatusBadRequest, Err: errdefs.ErrInvalidArgument},
	{Name: "out_of_range", Status: http.StatusRequestedRangeNotSatisfiable, Err: errdefs.ErrOutOfRange},
	{Name: "failed_precondition", Status: http.StatusPreconditionFailed, Err: errdefs.ErrFailedPrecondition},
	{Name: "conflict", Status: http.StatusConflict, Err: errdefs.ErrConflict},
	{Name: "permission_denied", Status: http.StatusForbidden, Err: errdefs.ErrPermissionDenied},
	{Name: "unauthenticated", Status: http.StatusUnauthorized, Err: errdefs.ErrUnauthenticated},
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

// ClassOf is the reverse of Class: the error that stands for a class, or nil if
// there is no such class.
func ClassOf(name string) error { return classes.Of(name) }

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
