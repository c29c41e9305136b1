package httpclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// ErrTimeout is in the error of what took too long, which is errdefs.ErrUnavailable:
// the server's fault, not that of a caller who gave up.
var ErrTimeout = errors.New("no answer in time")

// Within returns a context for what has to be over soon; when it is not, the cause of
// its end is an ErrTimeout.
func Within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("%w (%v): %w", ErrTimeout, d, errdefs.ErrUnavailable))
}

// Stall ends a transfer by which nothing moves any more. Its clock runs only while the
// other side is waited for: a caller who is slow himself is not blamed on it.
type Stall struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	limit  time.Duration

	mu    sync.Mutex // a request's body may be read after its answer has come
	timer *time.Timer
	wait  time.Duration // that the clock was started for
}

// NewStall returns a Stall for a transfer under ctx that may stand still for limit. Its
// clock does not run yet. It must be ended, by End or by closing what Answer returns.
func NewStall(ctx context.Context, limit time.Duration) *Stall {
	s := &Stall{limit: limit}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	return s
}

// Context is the transfer's. It ends with End, or with an ErrTimeout as its cause.
func (s *Stall) Context() context.Context { return s.ctx }

// Start starts the clock: something has to move within d.
func (s *Stall) Start(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wait = d
	if s.timer == nil {
		s.timer = time.AfterFunc(d, s.stalled)
	} else {
		s.timer.Reset(d)
	}
}

func (s *Stall) stalled() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancel(fmt.Errorf("%w: not a byte for %v: %w", ErrTimeout, s.wait, errdefs.ErrUnavailable))
}

// Stop stops the clock.
func (s *Stall) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
	}
}

// End ends the transfer. Whatever the clock says afterwards does not count.
func (s *Stall) End() {
	s.Stop()
	s.cancel(nil)
}

// Err returns why the transfer ended, if it has stalled, and err otherwise.
func (s *Stall) Err(err error) error {
	if cause := context.Cause(s.ctx); errors.Is(cause, ErrTimeout) {
		return cause
	}
	return err
}

// Answer is an answer's body, of which each Read has to bring something in time.
// Closing it ends the Stall.
func (s *Stall) Answer(body io.ReadCloser) io.ReadCloser {
	s.Stop()
	return &answer{body, s}
}

type answer struct {
	io.ReadCloser
	stall *Stall
}

func (a *answer) Read(p []byte) (int, error) {
	a.stall.Start(a.stall.limit)
	n, err := a.ReadCloser.Read(p)
	a.stall.Stop()
	if err != nil && !errors.Is(err, io.EOF) {
		err = a.stall.Err(err)
	}
	return n, err
}

func (a *answer) Close() error {
	defer a.stall.End()
	return a.ReadCloser.Close()
}

// Sending is the body of a request, of which something has to be taken in time. While it
// is not being read, the server takes nothing, or has yet to answer.
func (s *Stall) Sending(body io.Reader) io.ReadCloser {
	s.Start(s.limit)
	return &sending{body, s}
}

type sending struct {
	io.Reader
	stall *Stall
}

func (b *sending) Read(p []byte) (int, error) {
	b.stall.Stop()
	n, err := b.Reader.Read(p)
	b.stall.Start(b.stall.limit)
	return n, err
}

// Close implements io.Closer, for http.Client. The reader is its owner's to close.
func (b *sending) Close() error { return nil }
