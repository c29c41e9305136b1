package origind

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/origind/ringstate"
)

// What an earlier release wrote beside an object is understood, and replaced when there is something to say.
func TestBesideFormat1(t *testing.T) {
	text := func(a *at) []byte {
		home := fmt.Sprintf(`{"backend": "main", "key": %q, "namespaces": ["team/b", "team/a"], "written": true}`, a.place.Key)
		return fmt.Appendf(nil, `{"digest": %q, "size": %d, "homes": [%s]}`, a.d, len(a.data), home)
	}
	old := func(a *at, by string) *record.Record {
		r, err := record.FromV1(text(a), a.d, by)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for _, tt := range []struct {
		name   string
		do     ringstate.BackendDo
		rec    func(a *at) *record.Record
		beside func(a *at) *record.Record
		kept   bool // it is not replaced
		gone   bool
	}{
		{"stat", ringstate.Stat, unknown, func(a *at) *record.Record { return old(a, besideBy) }, true, false},
		{"stat, of the same record", ringstate.Stat, func(a *at) *record.Record { return old(a, "a") },
			func(a *at) *record.Record { return old(a, "a") }, true, false},
		{"note", ringstate.Note, pushedA, func(a *at) *record.Record { return all(old(a, "a"), pushedA(a)) }, false, false},
		{"write", ringstate.Write, pushedA, func(a *at) *record.Record { return all(old(a, "a"), pushedA(a)) }, false, false},
		{"erase", ringstate.Erase, removedA, func(a *at) *record.Record { return all(old(a, "a"), removedA(a)) }, false, false},
		{"erase from all", ringstate.Erase, func(a *at) *record.Record { return all(pushedA(a), a.removal("", 20)) },
			func(a *at) *record.Record { return a.removal("", 20) }, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newAt(t, new(fetchertest.Memory))
			a.has(a.place, string(a.data))
			a.beside(text(a))
			_, beside, err := a.o.do(t.Context(), tt.do, tt.rec(a), a.place)
			want := tt.beside(a)
			if want.Size = 0; err == nil && beside != nil {
				want.Size = beside.Size
			}
			if err != nil || !same(beside, want) {
				t.Fatalf("%v; beside it %s, want %s", err, show(beside), show(want))
			}
			switch {
			case tt.gone:
				if a.object(a.place) || a.record() != nil {
					t.Error("it is still there")
				}
			case tt.kept:
				if strings.Contains(a.traced(), "write") {
					t.Error("it was replaced")
				}
			case !same(a.record(), want) || !a.object(a.place):
				t.Errorf("beside it %s", show(a.record()))
			}
		})
	}
}

// A record that cannot be read blocks nothing, and nothing that it may have said is lost: the object stays until
// it is deleted from all namespaces.
func TestBesideDamaged(t *testing.T) {
	for name, text := range map[string]func(a *at) string{
		"empty":         func(*at) string { return "" },
		"no JSON":       func(*at) string { return "\x00\x00\x00\x00" },
		"not an object": func(*at) string { return "null" },
		"cut": func(a *at) string {
			b, _ := pushedB(a).JSON()
			return string(b[:len(b)-3])
		},
		"of another blob": func(a *at) string {
			b, _ := pushedB(a).JSON()
			return strings.ReplaceAll(string(b), a.d.Encoded()[:8], "00000000")
		},
		"fields of which nothing is known": func(a *at) string { return `{"format": 2, "digest": "` + string(a.d) + `", "pins": 1}` },
		"too long":                         func(*at) string { return strings.Repeat(" ", record.MaxRecord) + "{}" },
	} {
		t.Run(name, func(t *testing.T) {
			a := newAt(t, new(fetchertest.Memory))
			do := func(do ringstate.BackendDo, rec *record.Record) (bool, *record.Record) {
				t.Helper()
				found, beside, err := a.o.do(t.Context(), do, rec, a.place)
				if err != nil {
					t.Fatal(err)
				}
				return found, beside
			}
			a.has(a.place, string(a.data))
			a.beside([]byte(text(a)))
			written := record.At(time.Now())

			// Somebody who deletes it from all namespaces is later than whatever it said.
			found, beside := do(ringstate.Stat, unknown(a))
			if h := beside.Home(a.place); !found || h == nil || h.More < written-1<<26 || beside.Check() != nil {
				t.Fatalf("found %t, beside it %s", found, show(beside))
			}
			// A push is noted, and there may be others.
			do(ringstate.Note, pushedA(a))
			found, beside = do(ringstate.Stat, pushedA(a))
			if !found || !beside.Covers(pushedA(a)) || !same(beside, a.record()) {
				t.Fatalf("found %t, beside it %s", found, show(beside))
			}
			// So a deletion from all that are known is none.
			a.beside([]byte(text(a)))
			_, beside = do(ringstate.Erase, removedA(a))
			if !a.object(a.place) || beside.Home(a.place).More == 0 {
				t.Fatalf("it was erased; beside it %s", show(beside))
			}
			a.beside([]byte(text(a)))
			_, beside = do(ringstate.Stat, pushedA(a))
			do(ringstate.Erase, all(pushedA(a), beside, a.removal("", beside.Latest()+1)))
			if a.object(a.place) || a.record() != nil {
				t.Errorf("after a deletion from all, beside it %s", show(a.record()))
			}
			// Without its object, and its size, there is nothing to keep.
			a.beside([]byte(text(a)))
			if _, beside = do(ringstate.Stat, unknown(a)); len(beside.Homes) > 0 || beside.Check() != nil {
				t.Errorf("of no object: %s", show(beside))
			}
		})
	}
}

// So is one that is of a blob of another size: no digest has two.
func TestBesideSize(t *testing.T) {
	a := newAt(t, new(fetchertest.Memory))
	a.has(a.place, string(a.data))
	wrong := pushedB(a)
	wrong.Size++
	a.told(wrong)
	_, beside, err := a.o.do(t.Context(), ringstate.Stat, pushedA(a), a.place)
	if err != nil || beside.Size != int64(len(a.data)) || beside.Home(a.place).More == 0 {
		t.Errorf("%v; beside it %d bytes, %s", err, beside.Size, show(beside))
	}
}

// A record of a later release is left alone.
func TestBesideLater(t *testing.T) {
	a := newAt(t, new(fetchertest.Memory))
	a.has(a.place, string(a.data))
	text := `{"format": 3, "digest": "` + string(a.d) + `"}`
	a.beside([]byte(text))
	for _, do := range []ringstate.BackendDo{ringstate.Stat, ringstate.Write, ringstate.Note, ringstate.Erase} {
		rec := pushedA(a)
		if do == ringstate.Erase {
			rec = removedA(a)
		}
		_, _, err := a.o.do(t.Context(), do, rec, a.place)
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "main") || !strings.Contains(err.Error(), recordKey(a.d)) {
			t.Errorf("%d: %v", do, err)
		}
	}
	if _, err := a.o.alive(t.Context(), removedA(a), a.place); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("alive: %v", err)
	}
	rc, _, err := a.real.Open(t.Context(), recordKey(a.d), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if got, _ := io.ReadAll(rc); string(got) != text || !a.object(a.place) {
		t.Errorf("it is now %q", got)
	}
}

// What was deleted is only served if somebody pushed it again.
func TestAlive(t *testing.T) {
	for _, tt := range []struct {
		name   string
		rec    func(a *at) *record.Record
		beside func(a *at) []*record.Record
		caps   *fetcher.Capabilities
		want   bool
		trace  string
	}{
		{"nothing is known", func(*at) *record.Record { return nil }, nil, nil, true, ""},
		{"nothing was removed", unknown, nil, nil, true, ""},
		{"it lives", func(a *at) *record.Record { return all(removedA(a), pushedA(a), a.push(a.place, "team/b", 15)) }, nil, nil, true, ""},
		{"no record", removedA, nil, nil, false, "open records"},
		{"to be erased", removedA, besideA, nil, false, "open records"},
		{"another namespace has it", removedA, besideB, nil, true, "open records"},
		{"pushed again", removedA, func(a *at) []*record.Record {
			return []*record.Record{a.push(a.place, "team/a", 30)}
		}, nil, true, "open records"},
		{"under another key", removedA, func(a *at) []*record.Record {
			return []*record.Record{a.push(a.other, "team/b", 30)}
		}, nil, false, "open records"},
		{"it lives in another backend", func(a *at) *record.Record {
			return all(removedA(a), a.push(record.Place{Backend: "b", Key: a.place.Key}, "team/b", 15))
		}, nil, nil, false, "open records"},
		{"somebody else's", func(a *at) *record.Record { return a.removal("team/a", 20) }, nil, new(fetcher.Capabilities), true, ""},
		{"it was ours", removedA, nil, new(fetcher.Capabilities), false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newAt(t, new(fetchertest.Memory))
			if tt.beside != nil {
				a.told(tt.beside(a)...)
			}
			if tt.caps != nil {
				a.o.backends = stores{"main": able{a.backend, *tt.caps}}
			}
			got, err := a.o.alive(t.Context(), tt.rec(a), a.place)
			if trace := a.traced(); got != tt.want || err != nil || trace != tt.trace {
				t.Errorf("%t, %v by %q; want %t by %q", got, err, trace, tt.want, tt.trace)
			}
		})
	}
	a := newAt(t, new(fetchertest.Memory))
	a.backend.Fail = func(fetchertest.Op, string) error { return errDown }
	if got, err := a.o.alive(t.Context(), removedA(a), a.place); got || !errdefs.IsUnavailable(err) {
		t.Errorf("without an answer: %t, %v", got, err)
	}
}

// What cannot be done is said.
func TestObjectsRefused(t *testing.T) {
	readOnly, noDelete := fetcher.Capabilities{Delete: true}, fetcher.Capabilities{Write: true, CompareAndSwap: true}
	for _, tt := range []struct {
		name  string
		do    ringstate.BackendDo
		place func(p *record.Place)
		caps  *fetcher.Capabilities
		want  func(error) bool
	}{
		{"kept", ringstate.Stat, func(p *record.Place) { p.Key = "" }, nil, errdefs.IsInvalidArgument},
		{"not configured", ringstate.Stat, func(p *record.Place) { p.Backend = "old" }, nil, errdefs.IsFailedPrecondition},
		{"not configured", ringstate.Erase, func(p *record.Place) { p.Backend = "old" }, nil, errdefs.IsFailedPrecondition},
		{"read only", ringstate.Write, nil, &readOnly, errdefs.IsFailedPrecondition},
		{"read only", ringstate.Note, nil, &readOnly, errdefs.IsFailedPrecondition},
		{"no deletions", ringstate.Erase, nil, &noDelete, errdefs.IsNotImplemented},
		{"who knows what", 9, nil, nil, errdefs.IsInvalidArgument},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newAt(t, new(fetchertest.Memory))
			if tt.place != nil {
				tt.place(&a.place)
			}
			if tt.caps != nil {
				a.o.backends = stores{"main": able{a.backend, *tt.caps}}
			}
			rec := pushedA(a)
			if tt.do == ringstate.Erase {
				rec = removedA(a)
			}
			_, _, err := a.o.do(t.Context(), tt.do, rec, a.place)
			if !tt.want(err) {
				t.Errorf("got %v", err)
			}
			if trace := a.traced(); trace != "" {
				t.Errorf("asked for %q all the same", trace)
			}
		})
	}
	// Who cannot write has no records, and can have its objects removed.
	a := newAt(t, new(fetchertest.Memory))
	a.has(a.place, string(a.data))
	a.o.backends = stores{"main": able{a.backend, readOnly}}
	_, _, err := a.o.do(t.Context(), ringstate.Erase, removedA(a), a.place)
	if err != nil || a.traced() != "delete blobs" || a.object(a.place) {
		t.Errorf("erasing where nothing can be written: %v", err)
	}
}

// hanging is a backend that does not answer some requests.
type hanging struct {
	fetcher.Backend
	key string // prefix of those that hang
}

func (h *hanging) hang(ctx context.Context, key string) error {
	if strings.HasPrefix(key, h.key) {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (h *hanging) Stat(ctx context.Context, key string) (fetcher.Info, error) {
	if err := h.hang(ctx, key); err != nil {
		return fetcher.Info{}, err
	}
	return h.Backend.Stat(ctx, key)
}

func (h *hanging) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	if err := h.hang(ctx, key); err != nil {
		return nil, fetcher.Info{}, err
	}
	return h.Backend.Open(ctx, key, off, n)
}

func (h *hanging) WriteIf(ctx context.Context, key string, data []byte, version string) (fetcher.Info, error) {
	if err := h.hang(ctx, key); err != nil {
		return fetcher.Info{}, err
	}
	return h.Backend.WriteIf(ctx, key, data, version)
}

func (h *hanging) Delete(ctx context.Context, key string) error {
	if err := h.hang(ctx, key); err != nil {
		return err
	}
	return h.Backend.Delete(ctx, key)
}

// Write takes half of what there is, and then nothing.
func (h *hanging) Write(ctx context.Context, key string, size int64, r io.Reader) (fetcher.Info, error) {
	if strings.HasPrefix(key, h.key) {
		if _, err := io.CopyN(io.Discard, r, size/2); err != nil {
			return fetcher.Info{}, err
		}
	}
	if err := h.hang(ctx, key); err != nil {
		return fetcher.Info{}, err
	}
	return h.Backend.Write(ctx, key, size, r)
}

// dripping is a backend that takes 10,000 bytes in just less than stallLimit.
type dripping struct{ fetcher.Backend }

func (d dripping) Write(ctx context.Context, key string, size int64, r io.Reader) (fetcher.Info, error) {
	return d.Backend.Write(ctx, key, size, drip{r})
}

type drip struct{ r io.Reader }

func (d drip) Read(p []byte) (int, error) {
	time.Sleep(stallLimit - time.Second)
	return d.r.Read(p[:min(len(p), 10_000)])
}

// A backend that hangs is given up; one that is slow is not.
func TestObjectsHang(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   ringstate.BackendDo
		key  string
		want time.Duration
	}{
		{"stat", ringstate.Stat, "blobs", requestLimit},
		{"stat, record", ringstate.Stat, "records", requestLimit},
		{"write", ringstate.Write, "blobs", stallLimit},
		{"write, record", ringstate.Write, "records", requestLimit},
		{"note", ringstate.Note, "records", requestLimit},
		{"erase", ringstate.Erase, "blobs", requestLimit},
		{"erase, record", ringstate.Erase, "records", requestLimit},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAt(t, new(fetchertest.Memory))
				a.has(a.place, string(a.data))
				a.o.backends = stores{"main": &hanging{a.backend, tt.key}}
				rec := pushedA(a)
				if tt.do == ringstate.Erase {
					rec = removedA(a)
				}
				start := time.Now()
				_, _, err := a.o.do(t.Context(), tt.do, rec, a.place)
				if took := time.Since(start); !errdefs.IsUnavailable(err) || took != tt.want {
					t.Errorf("after %v: %v; want %v", took, err, tt.want)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if _, _, err := a.o.do(ctx, tt.do, rec, a.place); errdefs.IsUnavailable(err) || ctx.Err() == nil {
					t.Errorf("when the caller gives up: %v", err)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		a := newAt(t, new(fetchertest.Memory))
		a.o.backends = stores{"main": dripping{a.backend}}
		start := time.Now()
		_, _, err := a.o.do(t.Context(), ringstate.Write, pushedA(a), a.place)
		if took := time.Since(start); err != nil || took < stallLimit {
			t.Errorf("slowly, in %v: %v", took, err)
		}
	})
}

// In a backend whose versions are checksums, that come back with the bytes, a record is never again what it was: a push and
// its removal and the same push are three, because their stamps are. So whoever has read one of them overwrites no later one. What several
// members say at once is all in it.
func TestBesideChecksums(t *testing.T) {
	a := newAt(t, &fetchertest.Memory{Checksums: true})
	s := &recordBeside{a.real, a.d, a.place}
	ctx := t.Context()
	seen := map[string]bool{}
	var first besideWas
	for stamp := record.Stamp(10); stamp < 100; stamp += 10 {
		push := a.push(a.place, "team/a", stamp)
		if _, err := s.merged(ctx, push); err != nil {
			t.Fatal(err)
		}
		if _, err := s.removed(ctx, all(push, a.removal("team/a", stamp+5))); err != nil {
			t.Fatal(err)
		}
		was, err := s.read(ctx, push)
		if err != nil || seen[was.version] {
			t.Errorf("at %d: %v, seen: %v: %s", stamp, err, seen[was.version], was.as)
		}
		seen[was.version] = true
		if first.version == "" {
			first = was
		}
	}
	if err := s.put(ctx, a.push(a.place, "team/b", 200), first); !errdefs.IsConflict(err) {
		t.Errorf("a stale record was written: %v", err)
	}

	want, err := s.read(ctx, a.push(a.place, "team/a", 1))
	if err != nil {
		t.Fatal(err)
	}
	whole := want.record
	var wg sync.WaitGroup
	for i := range 8 {
		push := a.push(a.place, fmt.Sprint("team/", i), record.Stamp(1000+i))
		whole = record.Merge(whole, push)
		wg.Go(func() {
			for {
				_, err := s.merged(ctx, push)
				if err == nil {
					return
				}
				if !errdefs.IsUnavailable(err) {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if got := a.record(); !same(got, whole) {
		t.Errorf("beside it is %s, want %s", show(got), show(whole))
	}
}
