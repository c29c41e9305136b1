package fetchtest

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capelin-io/capelin/plugin/fetch"
	"github.com/capelin-io/capelin/swarm/piece"
)

// World is everything around fetches, in a synctest bubble.
type World struct {
	*testing.T
	Blobs   *Blobs
	Peers   *Peers
	Finder  *Finder
	Fetches *fetch.Fetches
	ID      piece.ID // a blob of 11 pieces
	Data    []byte
	Start   time.Time
	Stop    context.CancelFunc // what Fetches.Run was given

	mu       sync.Mutex
	outcomes []fetch.Outcome
}

// Bubble calls f with a World, and checks that nothing is left of it afterwards.
func Bubble(t *testing.T, change func(*fetch.Config), f func(w *World)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := &World{T: t, Blobs: NewBlobs(), Peers: NewPeers(), Start: time.Now(), Stop: cancel}
		cfg := fetch.Config{
			Rules: fetch.Rules{Find: 200 * time.Millisecond, Stall: 5 * time.Second, Prefetch: time.Minute, MaxPrefetch: 4, Registry: 1},
			OnAnswer: func(o fetch.Outcome, _ time.Duration) {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.outcomes = append(w.outcomes, o)
			},
		}
		if change != nil {
			change(&cfg)
		}
		w.ID, w.Data = Random(t, 10<<16+5, 1)
		w.Fetches = fetch.New(cfg, w.Blobs)
		w.Finder = NewFinder(w.Fetches)
		w.Fetches.Connect(w.Peers, w.Finder)
		done := make(chan struct{})
		go func() { _ = w.Fetches.Run(ctx); close(done) }()
		f(w)
		cancel()
		<-done
		if n := w.Blobs.Get(w.ID).Opened; n != 0 {
			t.Errorf("%d handles of the blob are left", n)
		}
	})
}

// Outcomes returns how sessions were answered.
func (w *World) Outcomes() []fetch.Outcome {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.outcomes)
}

// Got is what a session was told.
type Got struct {
	fetch.Answer
	Err     error
	After   time.Duration // since the World's start
	Session *fetch.Session
}

// Wait starts a session that waits; its result comes on the channel.
func (w *World) Wait(ctx context.Context) <-chan Got {
	ch := make(chan Got, 1)
	s := w.Fetches.Open(w.ID, fetch.Client{})
	go func() {
		a, err := s.Wait(ctx)
		ch <- Got{a, err, time.Since(w.Start), s}
	}()
	return ch
}

// Want checks an answer.
func (w *World) Want(g Got, offset int64, after time.Duration) {
	w.Helper()
	if g.Err != nil || g.Offset != offset || g.After != after {
		w.Errorf("answer %d (%v) after %v, want %d after %v", g.Offset, g.Err, g.After, offset, after)
	}
}

// WantEvents checks what the trackers have heard since it was last asked.
func (w *World) WantEvents(want ...string) {
	w.Helper()
	synctest.Wait()
	if got := w.Finder.Events(); !slices.Equal(got, want) {
		w.Errorf("the trackers heard %s; want %s", strings.Join(got, ", "), strings.Join(want, ", "))
	}
}
