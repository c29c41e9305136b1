package httpobject

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/httpclient"
)

const (
	// maxErrorBody is how much is read of the text of a refusal, in bytes.
	maxErrorBody = 8 << 10
	// maxErrorText is how much of it is told.
	maxErrorText = 300
	// maxPause is the longest pause between two attempts that is ours to choose.
	maxPause = 5 * time.Second
)

// StatusError is an answer that is no success.
type StatusError struct {
	Code   int
	Header http.Header
	Text   string // of its body, if that is for people; may be empty
}

func (e *StatusError) Error() string {
	s := fmt.Sprintf("status %d", e.Code)
	if t := http.StatusText(e.Code); t != "" {
		s += " (" + t + ")"
	}
	if e.Text != "" {
		s += ": " + e.Text
	}
	return s
}

// Is makes a status one of errdefs' classes. What is not known to say more is
// errdefs.ErrUnavailable: only a 404 is certain.
func (e *StatusError) Is(target error) bool { return target == classOf(e.Code) }

func classOf(code int) error {
	switch code {
	case http.StatusNotFound:
		return errdefs.ErrNotFound
	case http.StatusUnauthorized:
		return errdefs.ErrUnauthenticated
	case http.StatusForbidden:
		return errdefs.ErrPermissionDenied
	}
	return errdefs.ErrUnavailable
}

// temporary reports whether the same request may be answered otherwise later.
func (e *StatusError) temporary() bool {
	switch e.Code {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// Failure reads what an answer says beyond its status, and closes it. parse returns what
// a body of the server's own kind says, or ""; it may be nil.
func Failure(resp *http.Response, parse func(body []byte) string) *StatusError {
	defer resp.Body.Close()
	e := &StatusError{Code: resp.StatusCode, Header: resp.Header}
	data, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if parse != nil {
		e.Text = parse(data)
	}
	if e.Text == "" && strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
		e.Text = strings.TrimSpace(string(data))
	}
	e.Text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, e.Text)
	if len(e.Text) > maxErrorText {
		e.Text = strings.ToValidUTF8(e.Text[:maxErrorText], "") + "…"
	}
	return e
}

// NetworkError is the lack of an answer, or of its end. It does not unwrap: a timeout
// inside is not the end of a caller's context.
type NetworkError struct{ Err error }

// Error has no URL's query, which may hold secrets.
func (e *NetworkError) Error() string {
	var ue *url.Error
	if !errors.As(e.Err, &ue) {
		return e.Err.Error()
	}
	u, err := url.Parse(ue.URL)
	if err != nil {
		return ue.Err.Error()
	}
	return fmt.Sprintf("%s %s://%s%s: %v", ue.Op, u.Scheme, u.Host, u.EscapedPath(), ue.Err)
}

// Is makes it errdefs.ErrUnavailable.
func (e *NetworkError) Is(target error) bool {
	return target == errdefs.ErrUnavailable || target == io.ErrUnexpectedEOF && errors.Is(e.Err, io.ErrUnexpectedEOF)
}

// Retry calls ask until it succeeds, or fails with what will not change: what is neither
// a NetworkError nor a status that is temporary, unless again, which may be nil, says
// otherwise. Pauses begin with first and grow, or are as long as the server demands
// (Retry-After); none begins that would go beyond limit. The error is the last one's, or
// that of ctx.
func Retry(
	ctx context.Context, first, limit time.Duration, again func(error) bool, ask func() (*http.Response, error),
) (*http.Response, error) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = first, maxPause
	return backoff.Retry(ctx, func() (*http.Response, error) {
		resp, err := ask()
		var status *StatusError
		var network *NetworkError
		switch {
		case err == nil:
			return resp, nil
		case errors.As(err, &status) && status.temporary():
			if d, ok := retryAfter(status.Header); ok {
				err = fmt.Errorf("%w, %w", err, &backoff.RetryAfterError{Duration: d})
			}
			return nil, err
		case errors.As(err, &network), again != nil && again(err):
			return nil, err
		}
		return nil, backoff.Permanent(err)
	}, backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(limit))
}

// retryAfter returns the pause that a server demands (RFC 9110, 10.2.3).
func retryAfter(h http.Header) (time.Duration, bool) {
	v := h.Get("Retry-After")
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(n) * time.Second, true
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(time.Until(t), 0), true
	}
	return 0, false
}

// Do sends a request and returns the answer, whose body ends with an error when it brings
// nothing for so long as stall. How long its header may take is the client's to say. The
// error is that of the request's context, or a NetworkError.
func Do(client *http.Client, req *http.Request, stall time.Duration) (*http.Response, error) {
	s := httpclient.NewStall(req.Context(), stall)
	resp, err := client.Do(req.WithContext(s.Context()))
	if err != nil {
		s.End()
		if cerr := req.Context().Err(); cerr != nil {
			return nil, cerr
		}
		return nil, &NetworkError{err}
	}
	resp.Body = s.Answer(resp.Body)
	return resp, nil
}
