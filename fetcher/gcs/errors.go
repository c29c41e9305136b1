package gcs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"cloud.google.com/go/auth"
	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/errdefs"
	"google.golang.org/api/googleapi"

	"github.com/capelin-io/capelin/internal/httpobject"
)

// classed makes one of errdefs' classes of what the library, or the way to it, returns.
func classed(ctx context.Context, err error) error {
	var answer *googleapi.Error
	var token *auth.Error
	var status *httpobject.StatusError
	var network *httpobject.NetworkError
	var sent *url.Error
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &answer):
		return statusError(answer)
	case errors.As(err, &token):
		return tokenError(token)
	case errors.As(err, &status), errors.As(err, &network), errdefs.IsConflict(err),
		errdefs.IsFailedPrecondition(err), errdefs.IsUnauthorized(err):
		if errors.As(err, &sent) {
			return sent.Err // a URL may have a secret
		}
		return err
	}
	return &httpobject.NetworkError{Err: err}
}

// statusError has what the storage says, cut to what is fit to be read.
func statusError(e *googleapi.Error) error {
	var said struct { // the library does not look into answers to a download
		Error struct {
			Message string
			Errors  []struct{ Reason string }
		}
	}
	body := io.NopCloser(strings.NewReader(e.Body))
	s := httpobject.Failure(&http.Response{StatusCode: e.Code, Header: e.Header, Body: body}, func(data []byte) string {
		_ = json.Unmarshal(data, &said)
		return said.Error.Message
	})
	if e.Code != http.StatusForbidden {
		return s
	}
	for _, i := range said.Error.Errors {
		switch i.Reason {
		case "rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded":
			s.Code = http.StatusTooManyRequests // that is what newer ones answer
		}
	}
	return s
}

// tokenError is the failure to get an access token. The answer to that is not told: it may have secrets.
func tokenError(e *auth.Error) error {
	code := 0
	if e.Response != nil {
		code = e.Response.StatusCode
	}
	if code == 0 || code == http.StatusRequestTimeout || code == http.StatusTooManyRequests || code >= 500 {
		return &httpobject.NetworkError{Err: fmt.Errorf("getting an access token: status %d", code)}
	}
	return fmt.Errorf("getting an access token: status %d; is the service account there, and may we use it?: %w",
		code, errdefs.ErrUnauthenticated)
}

// statusOf returns the status that an error comes from; 0: none.
func statusOf(err error) int {
	var s *httpobject.StatusError
	if errors.As(err, &s) {
		return s.Code
	}
	return 0
}

// unclear reports whether a request that failed so may have been carried out, or may be yet.
func unclear(err error) bool {
	var network *httpobject.NetworkError
	code := statusOf(err)
	return errors.As(err, &network) || code == http.StatusRequestTimeout || code >= 500
}

// ask calls f until it succeeds, or fails with what will not change.
func (b *Backend) ask(ctx context.Context, f func(*api) error) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.Multiplier, pause.MaxInterval = b.pause, 2, maxPause
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := b.once(ctx, f)
		if err != nil && !unclear(err) && statusOf(err) != http.StatusTooManyRequests {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(pause), backoff.WithMaxTries(tries))
	if err != nil && ctx.Err() != nil { // what succeeded has, and may have to be closed
		return ctx.Err()
	}
	return err
}

// once calls f, and classes its error.
func (b *Backend) once(ctx context.Context, f func(*api) error) error {
	s, err := b.connect(ctx)
	if err == nil {
		err = f(s)
	}
	return classed(ctx, err)
}
