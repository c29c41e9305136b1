package azure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/httpobject"
)

// failure is an answer that is no success. It does not unwrap.
type failure struct {
	status int
	code   bloberror.Code
}

func (f *failure) Error() string {
	s := fmt.Sprintf("status %d (%s)", f.status, http.StatusText(f.status))
	if f.code != "" {
		s += fmt.Sprintf(": %.60q", f.code)
	}
	return s
}

// Is gives it one class. What is not known to say more is errdefs.ErrUnavailable, a 404 without a code included, which may
// be that of something on the way.
func (f *failure) Is(target error) bool {
	switch {
	case f.code == bloberror.BlobNotFound:
		return target == errdefs.ErrNotFound
	case f.code == bloberror.ContainerNotFound, f.code == bloberror.ResourceNotFound:
		return target == errdefs.ErrFailedPrecondition
	case f.code == bloberror.AuthenticationFailed, f.code == bloberror.InvalidAuthenticationInfo, f.status == http.StatusUnauthorized:
		return target == errdefs.ErrUnauthenticated
	case f.status == http.StatusForbidden:
		return target == errdefs.ErrPermissionDenied
	}
	return target == errdefs.ErrUnavailable
}

// lost reports that the blob is not as a condition demands it.
func lost(err error) bool {
	switch codeOf(err) {
	case bloberror.ConditionNotMet, bloberror.TargetConditionNotMet, bloberror.BlobAlreadyExists:
		return true
	}
	return false
}

func codeOf(err error) bloberror.Code {
	var f *failure
	if errors.As(err, &f) {
		return f.code
	}
	return ""
}

// unclear reports whether a request that failed so may have been carried out, or may be yet.
func unclear(err error) bool {
	var f *failure
	var network *httpobject.NetworkError
	return errors.As(err, &network) || errors.As(err, &f) && (f.status == http.StatusRequestTimeout || f.status >= 500)
}

// classed makes one of errdefs' classes of what the library, or the way to it, returns.
func classed(ctx context.Context, err error) error {
	var answer *azcore.ResponseError
	var token *azidentity.AuthenticationFailedError
	var sent *url.Error
	var status *failure
	var network *httpobject.NetworkError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &answer):
		return &failure{answer.StatusCode, bloberror.Code(answer.ErrorCode)}
	case errors.As(err, &token):
		return tokenError(token.RawResponse, err)
	case errors.As(err, &status), errors.As(err, &network), errdefs.IsUnauthorized(err), errdefs.IsFailedPrecondition(err),
		errdefs.IsConflict(err):
		return err // it has one
	case errors.As(err, &sent):
		return &httpobject.NetworkError{Err: sent} // without the query, where a signature is
	case strings.Contains(err.Error(), "Credential"):
		return tokenError(nil, err) // the library does not export the type of those that are not there
	}
	return &httpobject.NetworkError{Err: err}
}

// tokenError is the failure to get an access token.
func tokenError(resp *http.Response, err error) error {
	if resp != nil && (resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 500) {
		return &httpobject.NetworkError{Err: fmt.Errorf("getting an access token: status %d", resp.StatusCode)}
	}
	text := strings.Join(strings.Fields(err.Error()), " ")
	if len(text) > 600 {
		text = strings.ToValidUTF8(text[:600], "") + "…"
	}
	return fmt.Errorf("getting an access token (see the key credentials): %s: %w", text, errdefs.ErrUnauthenticated)
}

// ask calls f until it succeeds, or fails with what will not change.
func (b *Backend) ask(ctx context.Context, f func() error) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.Multiplier, pause.MaxInterval = b.pause, 2, maxPause
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := classed(ctx, f())
		var status *failure
		if err != nil && !unclear(err) && !(errors.As(err, &status) && status.status == http.StatusTooManyRequests) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(pause), backoff.WithMaxTries(tries))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

var (
	errLost    = fmt.Errorf("it has another ETag by now: %w", errdefs.ErrConflict)
	errChanged = fmt.Errorf("it was replaced or deleted while it was being read: %w: %w", io.ErrUnexpectedEOF, errdefs.ErrUnavailable)
)
