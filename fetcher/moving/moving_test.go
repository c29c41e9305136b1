package moving

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/fetcher/walk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type memory = fetchertest.Memory

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// hooked calls before and after each call that changes something.
type hooked struct {
	fetcher.Backend
	before, after func(op, key string) error
}

func (h *hooked) do(op, key string, do func() error) error {
	if h.before != nil {
		if err := h.before(op, key); err != nil {
			return err
		}
	}
	if err := do(); err != nil {
		return err
	}
	if h.after != nil {
		return h.after(op, key)
	}
	return nil
}

func (h *hooked) Write(ctx context.Context, key string, size int64, r io.Reader) (info fetcher.Info, err error) {
	err = h.do("write", key, func() error { info, err = h.Backend.Write(ctx, key, size, r); return err })
	return info, err
}

func (h *hooked) WriteIf(ctx context.Context, key string, data []byte, version string) (info fetcher.Info, err error) {
	err = h.do("swap", key, func() error { info, err = h.Backend.WriteIf(ctx, key, data, version); return err })
	return info, err
}

func (h *hooked) Delete(ctx context.Context, key string) error {
	return h.do("delete", key, func() error { return h.Backend.Delete(ctx, key) })
}

func put(t *testing.T, b fetcher.Backend, key, text string) {
	t.Helper()
	_, err := b.Write(t.Context(), key, int64(len(text)), strings.NewReader(text))
	check(t, err)
}

func text(t *testing.T, b fetcher.Backend, key string) string {
	t.Helper()
	data, _, err := walk.Read(t.Context(), b, key, 1<<20)
	if errdefs.IsNotFound(err) {
		return "none"
	}
	check(t, err)
	return string(data)
}

// What an index sees of its storage is a storage as any: alone, told a next one, and after it has moved.
func TestConformance(t *testing.T) {
	t.Run("alone", func(t *testing.T) {
		fetchertest.Run(t, func(*testing.T) fetcher.Backend { return &hidden{Index.New(new(memory), nil, "x:1")} }, fetchertest.Options{})
	})
	t.Run("told", func(t *testing.T) {
		fetchertest.Run(t, func(*testing.T) fetcher.Backend { return &hidden{Index.New(new(memory), new(memory), "x:1")} }, fetchertest.Options{})
	})
	t.Run("moved", func(t *testing.T) {
		fetchertest.Run(t, func(t *testing.T) fetcher.Backend {
			a, b := new(memory), new(memory)
			_, err := (&Mover{Kind: Index, From: a, To: b}).Run(t.Context())
			check(t, err)
			return &hidden{Index.New(a, b, "x:1")}
		}, fetchertest.Options{})
	})
}

// hidden lists no objects of this package.
type hidden struct{ *Storage }

func (h *hidden) List(ctx context.Context, prefix, after string, limit int) ([]fetcher.Info, bool, error) {
	if limit < 1 || limit > 1000 {
		limit = 1000
	}
	var page []fetcher.Info
	for info, err := range walk.All(ctx, h.Storage, prefix, after) {
		if err != nil {
			return nil, false, err
		}
		if strings.HasPrefix(info.Key, "capelin-move") {
			continue
		}
		if len(page) == limit {
			return page, true, nil
		}
		page = append(page, info)
	}
	if _, _, err := h.Storage.List(ctx, prefix, after, limit); err != nil {
		return nil, false, err
	}
	return page, false, nil
}

// counter is an object of an index that only grows, as tags' revisions do.
func count(ctx context.Context, b fetcher.Backend, key string) (int, error) {
	data, info, err := walk.Read(ctx, b, key, 1<<20)
	n := 0
	if err == nil {
		err = json.Unmarshal(data, &n)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return 0, err
	}
	n++
	_, err = b.WriteIf(ctx, key, fmt.Append(nil, n), info.Version)
	return n, err
}

// Several indexes write and read all the time, the Mover is killed at random places and begins again: what was acknowledged is there
// at whichever index, always, and nothing is there that was not written.
func TestWhileServing(t *testing.T) {
	const indexes, keys = 3, 40
	for seed := range uint64(8) {
		chance := rand.New(rand.NewPCG(seed, 1))
		a, b := new(memory), new(memory)
		for i := range 1500 {
			put(t, a, fmt.Sprintf("index/still/%04d", i), fmt.Sprint(i))
		}
		var stores []*Storage
		for i := range indexes {
			s := Index.New(a, b, fmt.Sprintf("x:%d", i))
			check(t, s.Join(t.Context()))
			stores = append(stores, s)
		}
		var acked [keys]atomic.Int64 // the highest revision that was acknowledged
		var writes atomic.Int64
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i, s := range stores {
			chance := rand.New(rand.NewPCG(seed, uint64(i)+2))
			wg.Go(func() {
				for ctx.Err() == nil {
					k := chance.IntN(keys)
					key := fmt.Sprintf("index/tags/%02d", k)
					at := acked[k].Load()
					n, err := count(t.Context(), s, key)
					switch {
					case errdefs.IsConflict(err) || errdefs.IsUnavailable(err):
						continue
					case err != nil:
						t.Error(err)
						return
					case int64(n) <= at:
						t.Errorf("seed %d: revision %d of %s was acknowledged after %d", seed, n, key, at)
						return
					}
					writes.Add(1)
					for old := acked[k].Load(); old < int64(n) && !acked[k].CompareAndSwap(old, int64(n)); old = acked[k].Load() {
					}
				}
			})
		}
		killed := errors.New("killed")
		for try := 0; ; try++ {
			left := int64(chance.IntN(2500))
			die := func(string, string) error {
				if atomic.AddInt64(&left, -1) < 0 && try < 8 {
					return killed
				}
				return nil
			}
			m := &Mover{Kind: Index, From: &hooked{Backend: a, before: die}, To: &hooked{Backend: b, before: die}}
			_, err := m.Run(t.Context())
			if err == nil {
				break
			}
			if !errors.Is(err, killed) {
				t.Fatal(err)
			}
		}
		enough := writes.Load() + 100
		for writes.Load() < enough && !t.Failed() {
			runtime.Gosched()
		}
		stop()
		wg.Wait()
		for k := range keys {
			key := fmt.Sprintf("index/tags/%02d", k)
			for _, s := range append([]fetcher.Backend{b}, stores[0], stores[1], stores[2]) {
				n := 0
				if got := text(t, s, key); got != "none" {
					check(t, json.Unmarshal([]byte(got), &n))
				}
				if int64(n) < acked[k].Load() {
					t.Errorf("seed %d: %s is %d, and %d was acknowledged", seed, key, n, acked[k].Load())
				}
			}
		}
		for i := range 1500 {
			if got := text(t, b, fmt.Sprintf("index/still/%04d", i)); got != fmt.Sprint(i) {
				t.Fatalf("seed %d: object %d is %q", seed, i, got)
			}
		}
		if left := text(t, a, Index.stateKey()); !strings.Contains(left, `"moved"`) {
			t.Error(left)
		}
	}
}

// A write that was on its way when the index moved is not acknowledged, wherever it was stopped.
func TestFrozenWriter(t *testing.T) {
	for _, where := range []string{"before", "after"} {
		t.Run(where, func(t *testing.T) {
			a, b := new(memory), new(memory)
			put(t, a, "index/t", "1")
			frozen := &hooked{Backend: a}
			move := func(op, key string) error {
				if key == "index/t" && op != "" {
					frozen.before, frozen.after = nil, nil
					_, err := (&Mover{Kind: Index, From: a, To: b}).Run(t.Context())
					return err
				}
				return nil
			}
			if where == "before" {
				frozen.before = move
			} else {
				frozen.after = move
			}
			s := Index.New(frozen, b, "x:1")
			n, err := count(t.Context(), s, "index/t")
			if !errdefs.IsUnavailable(err) {
				t.Errorf("revision %d was acknowledged: %v", n, err)
			}
			n, err = count(t.Context(), s, "index/t")
			check(t, err)
			if got := text(t, b, "index/t"); got != fmt.Sprint(n) {
				t.Errorf("acknowledged %d, and the new storage has %s", n, got)
			}
		})
	}
}

// A write that began before the move, and ended while it copies, is in its journal: the copy may have passed its key.
func TestWriteIntoCopy(t *testing.T) {
	a, b := new(memory), new(memory)
	put(t, a, "index/t", "1")
	slow := &hooked{Backend: a}
	stopped := errors.New("stopped")
	slow.before = func(_, key string) error {
		if key != "index/t" {
			return nil
		}
		slow.before = nil
		// It has copied and verified all when it is stopped.
		from := &hooked{Backend: a, before: func(_, key string) error {
			if st, err := Index.readState(t.Context(), a); key == Index.stateKey() && err == nil && st.Phase == copying {
				return stopped
			}
			return nil
		}}
		if _, err := (&Mover{Kind: Index, From: from, To: b}).Run(t.Context()); !errors.Is(err, stopped) {
			t.Error(err)
		}
		return nil
	}
	s := Index.New(slow, b, "x:1")
	n, err := count(t.Context(), s, "index/t")
	if n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if got := text(t, b, "index/t"); got != "1" {
		t.Fatalf("this tests nothing: it was copied as %s", got)
	}
	m := &Mover{Kind: Index, From: a, To: b}
	check(t, m.begin(t.Context())) // the copy and the verification are over
	check(t, m.follow(t.Context()))
	check(t, m.finish(t.Context()))
	if got := text(t, b, "index/t"); got != "2" {
		t.Errorf("the new storage has %s", got)
	}
}

// Who is not told where the index moves keeps it from moving, and does not start when it has.
func TestUntold(t *testing.T) {
	a, b, c := new(memory), new(memory), new(memory)
	put(t, a, "index/t", "1")
	ctx := t.Context()
	plain := Index.New(a, nil, "plain:7490")
	check(t, plain.Join(ctx))
	told := Index.New(a, b, "told:7490")
	check(t, told.Join(ctx))
	_, err := (&Mover{Kind: Index, From: a, To: b}).Run(ctx)
	var untold *UntoldError
	if !errors.As(err, &untold) || len(untold.Members) != 1 || !errdefs.IsFailedPrecondition(err) ||
		!strings.Contains(err.Error(), "plain:7490~") {
		t.Fatal(err)
	}
	if _, err := count(ctx, plain, "index/t"); err != nil {
		t.Error(err)
	}
	check(t, Index.New(a, nil, "another:7490").Close()) // never joined: nothing to leave
	check(t, plain.Close())
	_, err = (&Mover{Kind: Index, From: a, To: b}).Run(ctx)
	check(t, err)

	for name, s := range map[string]*Storage{
		"the old storage": Index.New(a, nil, "x:1"), "another next": Index.New(a, c, "x:2"),
	} {
		_, err := s.Stat(ctx, "index/t")
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Index.New(b, nil, "x:3").Stat(ctx, "index/t"); err != nil {
		t.Error(err)
	}
	// The next move is not made without who came with the last one.
	if _, err := (&Mover{Kind: Index, From: b, To: c}).Run(ctx); !errors.As(err, &untold) || !slices.ContainsFunc(untold.Members,
		func(m Member) bool { return m.Name == told.self.Name }) {
		t.Errorf("moved on without %s: %v", told.self.Name, err)
	}
	var gone []string
	for _, m := range untold.Members {
		gone = append(gone, m.Name)
	}
	_, err = (&Mover{Kind: Index, From: b, To: c, Gone: gone}).Run(ctx)
	check(t, err)
	if _, err := Index.New(a, b, "x:4").Stat(ctx, "index/t"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("an index uses what was moved from: %v", err)
	}
}

// An index that starts while the Mover looks who is there is seen, or sees the move.
func TestStartsMeanwhile(t *testing.T) {
	a, b := new(memory), new(memory)
	ctx := t.Context()
	from := &hooked{Backend: a}
	late := Index.New(a, nil, "late:1")
	from.before = func(_, key string) error {
		if key == Index.stateKey() {
			from.before = nil
			return late.Join(ctx)
		}
		return nil
	}
	var untold *UntoldError
	if _, err := (&Mover{Kind: Index, From: from, To: b}).Run(ctx); !errors.As(err, &untold) {
		t.Error(err)
	}
	check(t, Index.New(a, nil, "again:1").Join(ctx)) // what was begun is taken back
}

func TestGiveUp(t *testing.T) {
	a, b := new(memory), new(memory)
	ctx := t.Context()
	for i := range 2500 {
		put(t, a, fmt.Sprintf("index/%04d", i), "x")
	}
	s := Index.New(a, b, "x:1")
	stopped := errors.New("stopped")
	m := &Mover{Kind: Index, From: a, To: &hooked{Backend: b, before: func(_, key string) error {
		if key == "index/1500" {
			return stopped
		}
		return nil
	}}}
	if _, err := m.Run(ctx); !errors.Is(err, stopped) {
		t.Fatal(err)
	}
	check(t, s.Delete(ctx, "index/0003"))
	if _, err := (&Mover{Kind: Index, From: a, To: new(memory)}).Run(ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("it moves to two places: %v", err)
	}
	check(t, Index.GiveUp(ctx, a))
	check(t, Index.New(a, nil, "x:2").Close())
	if err := Index.New(b, nil, "x:3").Join(ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("an index uses half of one: %v", err)
	}
	put(t, s, "index/0000", "y")
	done, err := (&Mover{Kind: Index, From: a, To: b}).Run(ctx) // what was copied is used
	if err != nil || done.Copied > 1500 || done.Phase != moved {
		t.Fatal(done, err)
	}
	if text(t, b, "index/0003") != "none" || text(t, b, "index/0000") != "y" {
		t.Error("what was changed after the move was given up was not copied")
	}
	if err := Index.GiveUp(ctx, a); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
	if again, err := (&Mover{Kind: Index, From: a, To: b}).Run(ctx); err != nil || again.Phase != moved {
		t.Error(again, err)
	}
	full := new(memory)
	put(t, full, "index/x", "x")
	if _, err := (&Mover{Kind: Index, From: b, To: full, Gone: nil}).Run(ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("it moves over another index: %v", err)
	}
}

// While the last objects are copied writes wait, and reads do not.
func TestClosed(t *testing.T) {
	a, b := new(memory), new(memory)
	ctx := t.Context()
	put(t, a, "index/t", "1")
	s := Index.New(a, b, "x:1")
	check(t, s.Join(ctx))
	wrote := make(chan error, 1)
	from := &hooked{Backend: a}
	closing := false
	from.after = func(_, key string) error {
		if st, err := Index.readState(ctx, a); key == Index.stateKey() && err == nil && st.Phase == closed && !closing {
			closing = true
			go func() {
				_, err := count(ctx, s, "index/t")
				wrote <- err
			}()
			if text(t, s, "index/t") != "1" {
				t.Error("reads wait, too")
			}
		}
		return nil
	}
	_, err := (&Mover{Kind: Index, From: from, To: b}).Run(ctx)
	check(t, err)
	if !closing {
		t.Fatal("it was never closed")
	}
	check(t, <-wrote)
	if text(t, b, "index/t") != "2" || text(t, a, "index/t") != "1" {
		t.Errorf("new %s, old %s", text(t, b, "index/t"), text(t, a, "index/t"))
	}
	// One that is killed then leaves it closed, and the next one only finishes.
	ended, cancel := context.WithCancel(ctx)
	cancel()
	c := new(memory)
	check(t, s.Close())
	m := &Mover{Kind: Index, From: b, To: c}
	check(t, m.begin(ctx))
	check(t, m.advance(ctx, state{Format: format, ID: m.state.ID, Phase: closed, Epoch: 2, To: "c"}))
	if _, err := Index.New(b, c, "x:2").WriteIf(ended, "index/t", nil, ""); err == nil {
		t.Error("written while closed")
	}
	put(t, c, "index/only", "x") // which verifying would find
	var gone []string
	var untold *UntoldError
	if errors.As(m.told(ctx), &untold) {
		for _, u := range untold.Members {
			gone = append(gone, u.Name)
		}
	}
	_, err = (&Mover{Kind: Index, From: b, To: c, Gone: gone}).Run(ctx)
	check(t, err)
	if text(t, c, "index/only") != "x" {
		t.Error("all is verified while writes wait")
	}
}

// Of the journal only epochs are taken that have ended: in the present one an object may be written after its key was.
func TestEpochs(t *testing.T) {
	a, b := new(memory), new(memory)
	ctx := t.Context()
	put(t, a, "index/t", "1")
	from := &hooked{Backend: a}
	m := &Mover{Kind: Index, From: from, To: b}
	check(t, m.begin(ctx))
	check(t, m.copy(ctx))
	put(t, a, Index.journal(m.state, 1)+"index/u", "\n")
	put(t, a, "index/u", "1")
	from.after = func(_, key string) error {
		if key == Index.stateKey() {
			put(t, a, Index.journal(m.state, 2)+"index/t", "\n") // and the index pauses
		}
		return nil
	}
	check(t, m.follow(ctx))
	if m.done.Followed != 1 || text(t, b, "index/u") != "1" {
		t.Errorf("%+v, and what was written in the epoch before is %s", m.done, text(t, b, "index/u"))
	}
	put(t, a, "index/t", "2")
	check(t, m.finish(ctx))
	if text(t, b, "index/t") != "2" {
		t.Error("a write after its note is lost")
	}
}
