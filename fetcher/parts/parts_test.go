package parts_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher/parts"
)

// storage is what parts are sent to.
type storage struct {
	mu    sync.Mutex
	parts map[int]parts.Part
	busy  atomic.Int32
	peak  atomic.Int32
	fail  func(p parts.Part) error
}

func (s *storage) send(ctx context.Context, p parts.Part) error {
	n := s.busy.Add(1)
	defer s.busy.Add(-1)
	for p := s.peak.Load(); n > p && !s.peak.CompareAndSwap(p, n); p = s.peak.Load() {
	}
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.fail != nil {
		if err := s.fail(p); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p.Data = bytes.Clone(p.Data)
	if s.parts == nil {
		s.parts = map[int]parts.Part{}
	}
	s.parts[p.Number] = p
	return nil
}

// whole puts the parts together.
func (s *storage) whole(t *testing.T, size int64) string {
	var all []byte
	for n := range len(s.parts) {
		p, ok := s.parts[n]
		if !ok || p.Offset != int64(len(all)) || p.Last != (n == len(s.parts)-1) || !p.Last && int64(len(p.Data)) != size {
			t.Errorf("part %d of %d: there %v, offset %d, last %v, %d bytes", n, len(s.parts), ok, p.Offset, p.Last, len(p.Data))
		}
		all = append(all, p.Data...)
	}
	return string(all)
}

func TestSend(t *testing.T) {
	for _, n := range []int{0, 1, 9, 10, 11, 20, 99, 100, 101} {
		for _, known := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				text, size := strings.Repeat("0123456789", 11)[:n], int64(-1)
				if known {
					size = int64(n)
				}
				var s storage
				o := parts.Options{Size: 10, Parallel: 3, Budget: parts.NewBudget(1000)}
				got, err := parts.Send(t.Context(), iotest.HalfReader(strings.NewReader(text)), size, o, s.send)
				if err != nil || got != int64(n) || s.whole(t, 10) != text {
					t.Errorf("%d bytes, known %v: %d, %v, %q", n, known, got, err, s.whole(t, 10))
				}
				if want := min(3, max((n-1)/10, 1)); int(s.peak.Load()) != want {
					t.Errorf("%d bytes: %d parts were sent at once, want %d", n, s.peak.Load(), want)
				}
			})
		}
	}
}

func TestSendFails(t *testing.T) {
	boom := errors.New("boom")
	long := strings.Repeat("x", 95)
	is := func(want error) func(error) bool { return func(err error) bool { return errors.Is(err, want) } }
	for name, tt := range map[string]struct {
		size int64
		r    io.Reader
		fail func(p parts.Part) error
		ok   func(error) bool
	}{
		"short":            {96, strings.NewReader(long), nil, errdefs.IsInvalidArgument},
		"long":             {94, strings.NewReader(long), nil, errdefs.IsInvalidArgument},
		"long by parts":    {20, strings.NewReader(long), nil, errdefs.IsInvalidArgument},
		"empty":            {1, strings.NewReader(""), nil, errdefs.IsInvalidArgument},
		"not empty":        {0, strings.NewReader("1"), nil, errdefs.IsInvalidArgument},
		"reader":           {95, io.MultiReader(strings.NewReader(long[:50]), iotest.ErrReader(boom)), nil, is(boom)},
		"reader at end":    {95, io.MultiReader(strings.NewReader(long), iotest.ErrReader(boom)), nil, is(boom)},
		"reader ends":      {-1, io.MultiReader(strings.NewReader(long), iotest.ErrReader(io.ErrUnexpectedEOF)), nil, is(io.ErrUnexpectedEOF)},
		"first part":       {95, strings.NewReader(long), func(p parts.Part) error { return when(p.Number == 0, boom) }, is(boom)},
		"last but one":     {95, strings.NewReader(long), func(p parts.Part) error { return when(p.Number == 8, boom) }, is(boom)},
		"last part":        {95, strings.NewReader(long), func(p parts.Part) error { return when(p.Last, boom) }, is(boom)},
		"only part":        {5, strings.NewReader(long[:5]), func(parts.Part) error { return boom }, is(boom)},
		"endless, refused": {-1, endless{}, func(p parts.Part) error { return when(p.Number == 50, boom) }, is(boom)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var last atomic.Bool
				s := storage{fail: func(p parts.Part) error {
					if p.Last {
						last.Store(true)
					}
					if tt.fail != nil {
						return tt.fail(p)
					}
					return nil
				}}
				budget := parts.NewBudget(25)
				_, err := parts.Send(t.Context(), tt.r, tt.size, parts.Options{Size: 10, Parallel: 3, Budget: budget}, s.send)
				if err == nil || !tt.ok(err) {
					t.Errorf("got %v", err)
				}
				if last.Load() && name != "last part" && name != "only part" {
					t.Error("the last part was sent")
				}
				if s.busy.Load() != 0 {
					t.Error("parts are still being sent")
				}
				spent(t, budget, 25)
			})
		})
	}
}

func when(is bool, err error) error {
	if is {
		return err
	}
	return nil
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// spent fails if something has not been given back: what needs all of the budget waits for it.
func spent(t *testing.T, b *parts.Budget, all int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	o := parts.Options{Size: all, Parallel: 1, Budget: b}
	if _, err := parts.Send(ctx, strings.NewReader("all"), -1, o, func(context.Context, parts.Part) error { return nil }); err != nil {
		t.Errorf("the budget is spent: %v", err)
	}
}

// TestBudget: objects at the same time keep to one budget, all come to their end, and one whose parts are larger
// than all of it has its turn as well.
func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		budget := parts.NewBudget(50)
		var stores [9]storage
		var held, peak atomic.Int64
		var wg sync.WaitGroup
		for i := range stores {
			wg.Go(func() {
				o := parts.Options{Size: 10, Parallel: 4, Budget: budget}
				if i == 8 {
					o.Size = 80
				}
				_, err := parts.Send(t.Context(), strings.NewReader(strings.Repeat("x", 400)), 400, o, func(ctx context.Context, p parts.Part) error {
					now := held.Add(int64(min(len(p.Data), 50)))
					defer held.Add(-int64(min(len(p.Data), 50)))
					for was := peak.Load(); now > was && !peak.CompareAndSwap(was, now); was = peak.Load() {
					}
					return stores[i].send(ctx, p)
				})
				if err != nil || len(stores[i].whole(t, o.Size)) != 400 {
					t.Errorf("object %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		if got := peak.Load(); got > 50 || got < 50 {
			t.Errorf("%d bytes of 50 were held at once", got)
		}
		spent(t, budget, 50)
	})
}

// TestCancel: who gives up is not kept waiting, neither for room nor for the storage.
func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		budget := parts.NewBudget(10)
		o := parts.Options{Size: 10, Parallel: 2, Budget: budget}
		var errs []error
		var wg sync.WaitGroup
		var mu sync.Mutex
		for range 2 { // one has the room, one waits for it
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			wg.Go(func() {
				_, err := parts.Send(ctx, endless{}, -1, o, func(ctx context.Context, _ parts.Part) error { <-ctx.Done(); return ctx.Err() })
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			})
		}
		wg.Wait()
		if len(errs) != 2 || slices.ContainsFunc(errs, func(err error) bool { return !errors.Is(err, context.DeadlineExceeded) }) {
			t.Errorf("got %v", errs)
		}
		spent(t, budget, 10)
	})
}
