package origin

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/httpclient"
)

// When origins are asked who they are.
const (
	learnEvery  = time.Minute
	learnOften  = 10 * time.Second // while some are not up
	learnSoon   = time.Second      // after a failure: not more often
	learnWithin = 3 * time.Second  // each
	learnWait   = 5 * time.Second  // of a caller who has to know
	learnValid  = 3 * learnEvery   // so long a member of a ring is believed to answer for all
	maxStatus   = 1 << 20          // bytes of an answer
	maxMembers  = 256              // in it
)

// members finds out who the origins are, in the background: no request waits for it but those that
// have no other way to go on.
type members struct {
	http *httpclient.Client
	ask  func(context.Context, *httpclient.Server) (*RingStatus, error)

	view atomic.Pointer[view]
	due  atomic.Int64 // when to ask next, in nanoseconds of the Unix time

	mu      sync.Mutex
	told    map[*httpclient.Server]*said
	running chan struct{} // closed when all have been asked; nil: nobody is being asked
	ended   time.Time     // when that was the last time
	closed  bool
	stop    context.CancelFunc
	wg      sync.WaitGroup
}

func newMembers(h *httpclient.Client, ask func(context.Context, *httpclient.Server) (*RingStatus, error)) *members {
	m := &members{http: h, ask: ask, told: map[*httpclient.Server]*said{}, stop: func() {}}
	m.view.Store(newView(h, m.told))
	return m
}

// close ends what runs in the background.
func (m *members) close() {
	m.mu.Lock()
	m.closed = true
	m.stop()
	m.mu.Unlock()
	m.wg.Wait()
}

// now returns what is known, and sees to it that it does not grow old.
func (m *members) now() *view {
	if m.isDue() {
		m.mu.Lock()
		if m.isDue() { // nobody else has asked meanwhile
			m.begin()
		}
		m.mu.Unlock()
	}
	return m.view.Load()
}

func (m *members) isDue() bool { return time.Now().UnixNano() >= m.due.Load() }

// soon has the origins be asked again: one of them has failed.
func (m *members) soon() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if at := m.ended.Add(learnSoon).UnixNano(); !m.ended.IsZero() && at < m.due.Load() {
		m.due.Store(at)
	}
}

// known returns what is known after all have been asked, lately. It waits for that.
func (m *members) known(ctx context.Context) *view {
	m.mu.Lock()
	fresh := !m.ended.IsZero() && time.Since(m.ended) < learnEvery
	m.mu.Unlock()
	if !fresh {
		select {
		case <-m.learn():
		case <-time.After(learnWait):
		case <-ctx.Done():
		}
	}
	return m.view.Load()
}

// learn asks all origins, unless they are being asked. What it returns is closed when that is over.
func (m *members) learn() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.begin()
}

// begin is learn. m.mu is held.
func (m *members) begin() <-chan struct{} {
	if m.running != nil {
		return m.running
	}
	running := make(chan struct{})
	if m.closed {
		close(running)
		return running
	}
	m.running = running
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	m.wg.Go(func() {
		defer cancel()
		answered := m.askAll(ctx)
		m.mu.Lock()
		defer m.mu.Unlock()
		m.ended = time.Now()
		next := learnEvery
		switch {
		case !answered:
			next = 5 * learnSoon
		case m.view.Load().changes:
			next = learnOften
		}
		m.due.Store(m.ended.Add(next).UnixNano())
		m.running = nil
		close(running)
	})
	return running
}

// askAll asks the origins that are configured, and if none of them answers those that they have named,
// until one does.
func (m *members) askAll(ctx context.Context) (answered bool) {
	configured := m.http.Servers()
	var any atomic.Bool
	var wg sync.WaitGroup
	for _, s := range configured {
		wg.Go(func() {
			if m.askOne(ctx, s) {
				any.Store(true)
			}
		})
	}
	wg.Wait()
	if any.Load() {
		return true
	}
	for _, s := range m.view.Load().order("") {
		if !slices.Contains(configured, s) && ctx.Err() == nil && m.askOne(ctx, s) {
			return true
		}
	}
	return false
}

// askOne asks one server, and reports whether it has answered.
func (m *members) askOne(ctx context.Context, s *httpclient.Server) bool {
	within, cancel := httpclient.Within(ctx, learnWithin)
	defer cancel()
	status, err := m.ask(within, s)
	if ctx.Err() != nil {
		return false
	}
	old := errdefs.IsNotImplemented(err) || errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) || errdefs.IsPermissionDenied(err)
	answered := err == nil || old
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.told[s]
	switch {
	case answered && d == nil:
		d = &said{}
		m.told[s] = d
		fallthrough
	case answered:
		d.hear(status, time.Now())
	case d == nil || d.silent:
		return false
	default:
		d.silent = true
	}
	v := newView(m.http, m.told)
	m.view.Store(v)
	for s := range m.told {
		if !v.has(s) {
			delete(m.told, s)
		}
	}
	m.http.Keep(v.has)
	return answered
}

// status asks an origin who the members of its ring are.
func (c *Client) status(ctx context.Context, o *httpclient.Server) (*RingStatus, error) {
	st, err := (&Member{c, o}).RingStatus(ctx)
	if err == nil && (st.Name == "" || len(st.Members) > maxMembers) {
		text := fmt.Sprintf("it is a member named %q of %d", shorten(st.Name), len(st.Members))
		return nil, c.http.Stranger(o, &httpclient.Request{Method: "GET", Path: PathRing}, text)
	}
	return st, err
}
