package owned

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type memory = fetchertest.Memory

// hidden lists no object of this package.
type hidden struct{ *Storage }

func (h *hidden) List(ctx context.Context, prefix, after string, limit int) ([]fetcher.Info, bool, error) {
	if limit < 1 || limit > 1000 {
		limit = 1000
	}
	page, more, err := h.Storage.List(ctx, prefix, after, limit+1)
	kept := page[:0]
	for _, info := range page {
		if info.Key != Key {
			kept = append(kept, info)
		}
	}
	if len(kept) > limit {
		kept, more = kept[:limit], true
	}
	return kept, more, err
}

func TestConformance(t *testing.T) {
	fetchertest.Run(t, func(*testing.T) fetcher.Backend { return &hidden{New(new(memory), "c")} },
		fetchertest.Options{Without: []string{"ListLong"}})
}

// faulty counts and breaks what is asked of a storage.
type faulty struct {
	fetcher.Backend
	asked  int
	reads  error
	writes error
	plain  bool // it does not compare and swap
}

func (f *faulty) Capabilities() fetcher.Capabilities {
	c := f.Backend.Capabilities()
	c.CompareAndSwap = c.CompareAndSwap && !f.plain
	return c
}

func (f *faulty) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	f.asked++
	if f.reads != nil && key == Key {
		return nil, fetcher.Info{}, f.reads
	}
	return f.Backend.Open(ctx, key, off, n)
}

func (f *faulty) WriteIf(ctx context.Context, key string, data []byte, version string) (fetcher.Info, error) {
	f.asked++
	if f.writes != nil && key == Key {
		return fetcher.Info{}, f.writes
	}
	return f.Backend.WriteIf(ctx, key, data, version)
}

func put(t *testing.T, b fetcher.Backend, key string) {
	t.Helper()
	if _, err := b.Write(t.Context(), key, 1, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
}

// A storage belongs to whoever writes first, and to nobody by being read; then others are refused, whatever they do.
func TestOneCluster(t *testing.T) {
	m := new(memory)
	put(t, m, "blobs/old") // before there was such an object
	a, b := New(m, "a"), New(m, "b")
	for _, s := range []*Storage{a, b} {
		if _, err := s.Stat(t.Context(), "blobs/old"); err != nil || s.ID() != "" {
			t.Fatalf("%v, %q", err, s.ID())
		}
	}
	put(t, a, "blobs/x")
	if err := b.Check(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("b did not hear of it: %v", err)
	}
	c := New(m, "b")
	for name, do := range map[string]func(s *Storage) error{
		"stat": func(s *Storage) error { _, err := s.Stat(t.Context(), "blobs/x"); return err },
		"open": func(s *Storage) error { _, _, err := s.Open(t.Context(), "blobs/x", 0, -1); return err },
		"list": func(s *Storage) error { _, _, err := s.List(t.Context(), "", "", 0); return err },
		"write": func(s *Storage) error {
			_, err := s.Write(t.Context(), "blobs/x", 1, strings.NewReader("y"))
			return err
		},
		"swap":   func(s *Storage) error { _, err := s.WriteIf(t.Context(), "blobs/y", nil, ""); return err },
		"delete": func(s *Storage) error { return s.Delete(t.Context(), "blobs/x") },
	} {
		for _, s := range []*Storage{b, c} {
			err := do(s)
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), `cluster "a"`) ||
				!strings.Contains(err.Error(), `cluster "b"`) || !strings.Contains(err.Error(), Key) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if _, err := m.Stat(t.Context(), "blobs/x"); err != nil {
		t.Errorf("another cluster changed it: %v", err)
	}
	again := New(m, "a")
	put(t, again, "blobs/z")
	if again.ID() == "" || again.ID() != a.ID() {
		t.Errorf("ids %q and %q", a.ID(), again.ID())
	}
	if other := New(new(memory), "a"); other.Check(t.Context()) != nil || other.ID() != "" {
		t.Errorf("a storage was written that was only looked at: %q", other.ID())
	}
}

// Many that are the first at the same time find the same id.
func TestRace(t *testing.T) {
	m := new(memory)
	all := make([]*Storage, 20)
	var wg sync.WaitGroup
	for i := range all {
		all[i] = New(m, "a")
		wg.Go(func() {
			if _, err := all[i].WriteIf(t.Context(), fmt.Sprint("blobs/", i), nil, ""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, s := range all {
		if s.ID() == "" || s.ID() != all[0].ID() {
			t.Fatalf("ids %q and %q", s.ID(), all[0].ID())
		}
	}
}

// Once it is known, nothing is asked any more but by Check.
func TestRequests(t *testing.T) {
	f := &faulty{Backend: new(memory)}
	s := New(f, "a")
	for range 3 {
		if _, err := s.Stat(t.Context(), "blobs/x"); !errdefs.IsNotFound(err) {
			t.Fatal(err)
		}
	}
	if f.asked != 1 {
		t.Errorf("%d requests of who only reads", f.asked)
	}
	for range 3 {
		put(t, s, "blobs/x")
	}
	if f.asked != 5 {
		t.Errorf("%d requests until it was known", f.asked)
	}
}

func TestFaults(t *testing.T) {
	away := fmt.Errorf("away: %w", errdefs.ErrUnavailable)
	denied := fmt.Errorf("no: %w", errdefs.ErrPermissionDenied)
	f := &faulty{Backend: new(memory), reads: away}
	s := New(f, "a")
	if _, err := s.Stat(t.Context(), "blobs/x"); !errdefs.IsUnavailable(err) {
		t.Errorf("it is not known whose it is: %v", err)
	}
	f.reads, f.writes = nil, away
	if _, err := s.Write(t.Context(), "blobs/x", 1, strings.NewReader("x")); !errdefs.IsUnavailable(err) {
		t.Errorf("it is not known whose it is: %v", err)
	}
	f.writes = denied
	put(t, s, "blobs/x")
	if err := s.Check(t.Context()); err != nil || s.ID() != "" {
		t.Error(err, s.ID())
	}
	f.writes = nil
	if put(t, s, "blobs/x"); s.ID() == "" {
		t.Error("it is not tried again when it may be allowed")
	}
	f = &faulty{Backend: new(memory), reads: denied}
	if s = New(f, "a"); errors.Join(s.Check(t.Context())) != nil {
		t.Error("who may not read it may use nothing")
	}
	f = &faulty{Backend: new(memory), plain: true}
	s = New(f, "a")
	put(t, s, "blobs/x")
	if s.ID() == "" {
		t.Error("no id without compare-and-swap")
	}
	for _, text := range []string{
		"{", `{"format":2,"cluster":"a","id":"x"}`, `{"format":1,"cluster":"a"}`, strings.Repeat(" ", maxIdentity+1),
	} {
		m := new(memory)
		if _, err := m.Write(t.Context(), Key, -1, strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
		if _, err := New(m, "a").Stat(t.Context(), "blobs/x"); !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), Key) {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}
