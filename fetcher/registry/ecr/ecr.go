package ecr

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// refusedPause is the time between two requests for a token because one was refused.
	refusedPause = 30 * time.Second
	// renewPause is the time between two attempts to renew a token that can still be used.
	renewPause = time.Minute
	// An error is told to all who ask within so long, without asking AWS again.
	unavailablePause, deniedPause = time.Second, 10 * time.Second
	// askTimeout is how long AWS, and the credentials' chain, may take for a token.
	askTimeout = 30 * time.Second
	// minLife is how long a token is used at least, whatever the clock says of its end.
	minLife = time.Minute
)

// Token is what a registry is told.
type Token struct {
	secret         string // base64 of "AWS:" and a password
	got, renew, by time.Time
}

// Authorize adds the token to a request.
func (t *Token) Authorize(r *http.Request) { r.Header.Set("Authorization", "Basic "+t.secret) }

// Age is how long ago AWS gave it.
func (t *Token) Age() time.Duration { return time.Since(t.got) }

// String has no secret.
func (t *Token) String() string { return fmt.Sprintf("token of %s", t.got.UTC().Format(time.RFC3339)) }

// GoString has no secret.
func (t *Token) GoString() string { return t.String() }

// Asker asks for a token, and when it ends: base64 of "AWS:" and a password. Its errors have
// errdefs' classes.
type Asker func(context.Context) (secret string, expires time.Time, err error)

// Tokens has the token of one registry. It is safe for concurrent use.
type Tokens struct {
	ask     Asker
	closing context.Context
	closed  context.CancelFunc
	wg      sync.WaitGroup

	mu     sync.Mutex
	token  *Token
	stale  bool      // it was refused
	asked  time.Time // last, with whatever result
	failed error     // of that; nil: it succeeded
	flight chan struct{}
}

// New returns the tokens of a registry, from AWS. It asks nobody yet.
func New(r Registry) *Tokens { return From(asking(r)) }

// From returns tokens that come from elsewhere.
func From(ask Asker) *Tokens {
	t := &Tokens{ask: ask}
	t.closing, t.closed = context.WithCancel(context.Background())
	return t
}

// Close ends a request under way.
func (t *Tokens) Close() {
	t.closed()
	t.wg.Wait()
}

// Get returns a token that AWS says is valid, and asks it for one if there is none. It
// ends with ctx, but what others wait for goes on.
func (t *Tokens) Get(ctx context.Context) (*Token, error) {
	t.mu.Lock()
	now := time.Now()
	usable := t.token != nil && !t.stale && now.Before(t.token.by)
	if t.flight == nil {
		switch {
		case usable && now.Before(t.token.renew), usable && t.failed != nil && now.Sub(t.asked) < renewPause:
		case !usable && t.failed != nil && now.Sub(t.asked) < pauseAfter(t.failed):
			defer t.mu.Unlock()
			return nil, t.failed
		default:
			t.flight = make(chan struct{})
			t.wg.Go(t.fetch)
		}
	}
	token, flight := t.token, t.flight
	t.mu.Unlock()
	if usable {
		return token, nil
	}
	select {
	case <-flight:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failed != nil {
		return nil, t.failed
	}
	return t.token, nil
}

func pauseAfter(err error) time.Duration {
	if errdefs.IsUnavailable(err) {
		return unavailablePause
	}
	return deniedPause
}

// fetch asks for a token.
func (t *Tokens) fetch() {
	ctx, cancel := context.WithTimeout(t.closing, askTimeout)
	defer cancel()
	secret, expires, err := t.ask(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if err == nil {
		life := max(expires.Sub(now), minLife)
		t.token = &Token{secret, now, now.Add(life * 4 / 5), now.Add(life)}
	}
	// A refused token is better than none: that it was refused may have had another reason.
	t.asked, t.failed, t.stale = now, err, false
	close(t.flight)
	t.flight = nil
}

// Refused is told that a registry refused a token, and reports whether there is another one
// or will be, so that the request is worth repeating.
func (t *Tokens) Refused(token *Token) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.token != token:
		return true
	case t.flight == nil && time.Since(t.asked) < refusedPause:
		return false
	}
	t.stale = true
	return true
}
