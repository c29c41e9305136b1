package gateway

import (
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"cuelabs.dev/go/oci/ociregistry"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/ociapi"
)

// writeError answers with an error. What failed behind the gateway is logged as it is, and told
// without what only operators need to know.
func writeError(w http.ResponseWriter, r *http.Request, err error) {
	status := ociapi.Status(err)
	switch {
	case status == http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", callerOf(r.Context()).challenge(err))
	case status >= http.StatusInternalServerError && r.Context().Err() == nil: // somebody is there to read it
		log.G(r.Context()).WithError(err).WithFields(log.Fields{"method": r.Method, "path": r.URL.Path, "status": status}).Warn("request failed")
	}
	ociapi.WriteError(w, err, told(err))
}

// What errors of servers behind the gateway have besides what happened: who they are, and the request that they were asked.
var (
	internalPattern = regexp.MustCompile(`(?:(?i:GET|HEAD|PUT|POST|PATCH|DELETE) )?"?\bhttps?://[^\s"]*[^\s":,;]"?|` +
		`\b(?:GET|HEAD|PUT|POST|PATCH|DELETE) /v1/[^\s:,;]*[^\s:,;]|` +
		`\[[0-9a-fA-F:.]+(?:%\w+)?\]:\d+|\b\d+\.\d+\.\d+\.\d+:\d+|->`)
	spaces = regexp.MustCompile(` {2,}`)
)

// classes are texts of errors that the status says already.
var classes = map[string]bool{}

func init() {
	for _, err := range []error{
		errdefs.ErrUnavailable, errdefs.ErrNotFound, errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition, errdefs.ErrOutOfRange,
		errdefs.ErrResourceExhausted, errdefs.ErrConflict, errdefs.ErrPermissionDenied, errdefs.ErrUnauthenticated, errdefs.ErrDataLoss,
		errdefs.ErrInternal, errdefs.ErrNotImplemented, errdefs.ErrAborted,
	} {
		classes[err.Error()] = true
	}
}

// told is an error's text for clients: without addresses of servers behind the gateway, without the names of
// classes, and nothing twice.
func told(err error) string {
	if m, ok := errors.AsType[*index.MissingError](err); ok {
		return m.Error()
	}
	text := err.Error()
	if e, ok := errors.AsType[*ociregistry.WireError](err); ok { // its text begins with its code
		text = strings.ReplaceAll(text, e.Error(), e.Message)
	}
	var said []string
	for line := range strings.SplitSeq(text, "\n") {
		for part := range strings.SplitSeq(internalPattern.ReplaceAllString(line, ""), ": ") {
			part = strings.Trim(spaces.ReplaceAllString(part, " "), " :,")
			if part == "" || classes[part] && len(said) > 0 || slices.Contains(said, part) {
				continue
			}
			said = append(said, part)
		}
	}
	return strings.Join(said, ": ")
}

// translate makes a registry's error of one of errdefs' classes. Not found is what
// the caller says.
func translate(err error, notFound error) error {
	var known ociregistry.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return err
	case errdefs.IsNotFound(err):
		return notFound
	case errdefs.IsOutOfRange(err):
		return ociapi.WithStatus(http.StatusRequestedRangeNotSatisfiable, ociregistry.ErrRangeInvalid.Code(), err)
	case errdefs.IsInvalidArgument(err):
		return ociapi.WithStatus(http.StatusBadRequest, ociregistry.ErrUnsupported.Code(), err)
	case errdefs.IsConflict(err):
		return ociapi.WithStatus(http.StatusConflict, "CONFLICT", err)
	case errdefs.IsPermissionDenied(err), errdefs.IsUnauthorized(err):
		// Of us, by our own servers or a storage: the client can do nothing about it.
		return ociapi.WithStatus(http.StatusBadGateway, "UNAVAILABLE", err)
	case errors.Is(err, origin.ErrBusy):
		return ociapi.WithStatus(http.StatusTooManyRequests, ociregistry.ErrTooManyRequests.Code(), err)
	case errdefs.IsResourceExhausted(err):
		return ociapi.WithStatus(http.StatusInsufficientStorage, "UNAVAILABLE", err)
	}
	return unavailable(err)
}

func unavailable(err error) error {
	return ociapi.WithStatus(http.StatusServiceUnavailable, "UNAVAILABLE", err)
}

func noDigest(s string) error {
	return ociapi.Refuse(http.StatusBadRequest, ociregistry.ErrDigestInvalid.Code(), "%.300q is no digest of sha256, sha384 or sha512", s)
}

// notFound returns an error of what a repository does not have.
func notFound(code ociregistry.Error, format string, args ...any) error {
	return ociapi.Refuse(http.StatusNotFound, code.Code(), format, args...)
}
