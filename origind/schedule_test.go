package origind

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/internal/daemon/config"
)

// shift is a queue and its workers, of a test in a bubble.
type shift struct {
	*queue
	t     *testing.T
	start time.Time
	stop  func() // ends run, and waits for it

	mu    sync.Mutex
	began []string // "b at 2s"
	ended int      // turns, by the end of the queue
	fail  map[digest.Digest]bool
	takes time.Duration // a turn
}

func newShift(t *testing.T, workers int) *shift {
	s := &shift{t: t, start: time.Now(), fail: map[digest.Digest]bool{}}
	s.queue = newQueue(QueueConfig{Workers: workers, Backoff: config.Duration(time.Second), Max: config.Duration(10 * time.Second)}, s.turn)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { s.run(ctx); close(done) }()
	s.stop = func() { cancel(); <-done }
	t.Cleanup(s.stop)
	return s
}

func (s *shift) turn(ctx context.Context, d digest.Digest) error {
	s.mu.Lock()
	s.began = append(s.began, fmt.Sprintf("%s at %v", d, time.Since(s.start).Round(time.Second)))
	fail, takes := s.fail[d], s.takes
	s.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		time.Sleep(time.Second) // it does not end at once
		s.set(func() { s.ended++ })
		return ctx.Err()
	}
	if fail {
		return errDown
	}
	return nil
}

func (s *shift) set(f func()) { s.mu.Lock(); defer s.mu.Unlock(); f() }

// expect checks which turns began since the last time, and how many blobs wait.
func (s *shift) expect(when string, waiting int, began ...string) {
	s.t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, _ := s.length(); n != waiting || !slices.Equal(s.began, began) {
		s.t.Errorf("%s: %d wait, turns began: %s; want %d: %s", when, n, strings.Join(s.began, ", "), waiting, strings.Join(began, ", "))
	}
	s.began = nil
}

// A blob that could not be written is tried again after pauses that double, each between
// half of what it is called and all of it, up to the longest.
func TestQueuePauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShift(t, 1)
		s.fail["a"] = true
		s.add("a")
		synctest.Wait()
		for i, seconds := range []int{1, 2, 4, 8, 10, 10} {
			pause := time.Duration(seconds) * time.Second
			s.set(func() { s.began = nil })
			time.Sleep(pause/2 - time.Nanosecond)
			synctest.Wait()
			s.mu.Lock()
			early := len(s.began)
			s.mu.Unlock()
			for range 1000 { // until it begins, so that the next pause is measured from there
				synctest.Wait()
				s.mu.Lock()
				n := len(s.began)
				s.mu.Unlock()
				if n > 0 {
					break
				}
				time.Sleep(pause / 2000)
			}
			s.mu.Lock()
			n := len(s.began)
			s.mu.Unlock()
			if early != 0 || n != 1 {
				t.Errorf("pause %d of %v: %d turns before half of it, %d before its end", i, pause, early, n)
			}
		}
	})
}

// As many are written at once as there are workers, those first that are due first.
func TestQueueOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShift(t, 2)
		s.takes = 10 * time.Second
		for _, d := range []digest.Digest{"a", "b", "c", "d"} {
			s.add(d)
			time.Sleep(time.Second)
		}
		s.expect("two workers", 4, "a at 0s", "b at 1s")
		time.Sleep(10 * time.Second)
		s.expect("when the first two are done", 2, "c at 10s", "d at 11s")
		if n, oldest := s.length(); n != 2 || oldest.Sub(s.start) != 2*time.Second {
			t.Errorf("%d wait, the oldest since %v; want 2 since 2s", n, oldest.Sub(s.start))
		}
		time.Sleep(10 * time.Second)
		s.expect("when all are done", 0)
		if _, oldest := s.length(); !oldest.IsZero() {
			t.Errorf("nothing waits, since %v", oldest)
		}
	})
}

// What is added again is due at once, with its first pause; what is remembered is not
// touched if it is there; what is being written is written once more.
func TestQueueAddAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShift(t, 1)
		s.fail["a"] = true
		s.add("a")
		time.Sleep(20 * time.Second)
		synctest.Wait()
		s.set(func() { s.began = nil })
		s.remember("a")
		s.expect("remembered during a long pause", 1)
		s.add("a")
		s.expect("added during a long pause", 1, "a at 20s")
		time.Sleep(time.Second)
		s.expect("after the first pause", 1, "a at 21s")

		s.set(func() { s.fail["a"] = false; s.takes = 3 * time.Second })
		s.add("a")
		s.expect("added", 1, "a at 21s")
		s.add("a")
		s.add("a")
		time.Sleep(2 * time.Second)
		s.expect("while it is being written", 1)
		time.Sleep(time.Second)
		s.expect("when it is written", 1, "a at 24s")
		time.Sleep(3 * time.Second)
		s.expect("when it is written again", 0)
		s.remember("a")
		s.expect("remembered when it is not there", 1, "a at 27s")
	})
}

// A blob that needs no writing any more is not written; who waits for it is told.
func TestQueueRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShift(t, 1)
		s.takes = time.Minute
		s.add("a")
		told := make(chan error, 1)
		time.Sleep(time.Second)
		go func() { told <- s.wait(t.Context(), "b") }()
		s.expect("a worker is busy", 2, "a at 0s")
		s.remove("b")
		s.remove("a") // the worker finds out
		s.remove("c")
		if err := <-told; err != nil {
			t.Errorf("who waits is told %v", err)
		}
		s.expect("removed", 1)
		time.Sleep(time.Minute)
		s.expect("when the worker is done", 0)
	})
}

// Who waits learns how the attempt went, not how it ends one day; and not before.
func TestQueueWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShift(t, 1)
		s.takes = 2 * time.Second
		s.fail["a"] = true
		for _, want := range []error{errdefs.ErrUnavailable, errdefs.ErrUnavailable, nil} {
			if want == nil {
				s.set(func() { s.fail["a"] = false })
			}
			start := time.Now()
			err := s.wait(t.Context(), "a")
			named := err == nil || strings.Contains(err.Error(), "a is kept here")
			if took := time.Since(start); !errors.Is(err, want) || took != s.takes || !named {
				t.Errorf("waited %v and was told %v, want %v", took, err, want)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.wait(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("who gives up is told %v", err)
		}
	})
}

// What is being written when the origin stops is waited for, and stays in the queue.
func TestQueueStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShift(t, 1)
		s.takes = time.Hour
		s.add("a")
		s.add("b")
		s.expect("under way", 2, "a at 0s")
		s.stop()
		if n, _ := s.length(); n != 2 || s.ended != 1 {
			t.Errorf("%d in the queue after the end, want both; %d turns have ended, want the one that was under way", n, s.ended)
		}
	})
}
