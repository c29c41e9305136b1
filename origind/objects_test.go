package origind

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/fetcher/file"
	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/origind/ringstate"
	"github.com/capelin-io/capelin/swarm/piece"
)

// noSwap is a backend that cannot compare and swap.
type noSwap struct{ fetcher.Backend }

func (noSwap) Capabilities() fetcher.Capabilities {
	return fetcher.Capabilities{Write: true, List: true, Delete: true}
}

func (noSwap) WriteIf(context.Context, string, []byte, string) (fetcher.Info, error) {
	return fetcher.Info{}, errdefs.ErrNotImplemented
}

// able is a backend that can do less than it could.
type able struct {
	fetcher.Backend
	caps fetcher.Capabilities
}

func (a able) Capabilities() fetcher.Capabilities { return a.caps }

// remembered is what is remembered of objects.
type remembered struct {
	bad       error
	forgotten atomic.Int64
}

func (k *remembered) condemned(digest.Digest, string, string) error { return k.bad }
func (k *remembered) forget(digest.Digest)                          { k.forgotten.Add(1) }

type noMetrics struct{ bytes int64 }

func (m *noMetrics) wrote(n int64, _ time.Duration) { m.bytes += n }

// at is a backend with one blob's objects, and a member that has the blob.
type at struct {
	t       testing.TB
	data    []byte
	d       digest.Digest
	store   *content.Store
	place   record.Place
	other   record.Place // of the same blob, in the same backend
	real    fetcher.Backend
	backend *fetchertest.Faulty // what the members see
	mu      sync.Mutex
	trace   []string
	known   remembered
	o       *objects
}

func newAt(t testing.TB, b fetcher.Backend) *at {
	t.Helper()
	a := &at{t: t, real: b}
	a.data, a.d = testBlob(100_000, 1)
	key, err := fetcher.BlobKey(a.d)
	if err != nil {
		t.Fatal(err)
	}
	a.place, a.other = record.Place{Backend: "main", Key: key}, record.Place{Backend: "main", Key: "other/" + key}
	root := t.TempDir()
	if a.store, err = content.Open(context.Background(), content.Config{Root: root, FreeFloor: -1}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.store.Close() })
	id := idOf(t, a.data)
	sums := piece.NewSums(id)
	if err := piece.NewHasher(sums).Write(sums, a.data); err != nil {
		t.Fatal(err)
	}
	pushed := filepath.Join(root, "pushed")
	if err := errors.Join(os.WriteFile(pushed, a.data, 0o600), a.store.Import(context.Background(), pushed, sums)); err != nil {
		t.Fatal(err)
	}
	a.backend = &fetchertest.Faulty{Backend: b, Fail: a.saw}
	a.o = a.member()
	return a
}

// member is one more member that has the blob.
func (a *at) member() *objects {
	return &objects{backends: stores{"main": a.backend}, blobs: a.store, known: &a.known, metrics: new(noMetrics)}
}

// saw notes a request.
func (a *at) saw(op fetchertest.Op, key string) error {
	kind, _, _ := strings.Cut(key, "/")
	a.mu.Lock()
	defer a.mu.Unlock()
	a.trace = append(a.trace, string(op)+" "+kind)
	return nil
}

func (a *at) traced() string {
	defer func() { a.trace = nil }()
	return strings.Join(a.trace, ", ")
}

// push is the record of a push to a place.
func (a *at) push(p record.Place, namespace string, s record.Stamp) *record.Record {
	return record.Pushed(a.d, int64(len(a.data)), p, namespace, "a", s)
}

func (a *at) removal(namespace string, s record.Stamp) *record.Record {
	return record.Removed(a.d, namespace, s)
}

// has puts the blob's object somewhere.
func (a *at) has(p record.Place, text string) {
	a.t.Helper()
	if _, err := a.real.Write(context.Background(), p.Key, int64(len(text)), strings.NewReader(text)); err != nil {
		a.t.Fatal(err)
	}
}

// beside puts something where the record belongs.
func (a *at) beside(text []byte) {
	a.t.Helper()
	a.has(record.Place{Key: recordKey(a.d)}, string(text))
}

// told puts a record beside the objects.
func (a *at) told(recs ...*record.Record) {
	a.t.Helper()
	text, err := all(recs...).JSON()
	if err != nil {
		a.t.Fatal(err)
	}
	a.beside(text)
}

// object reports whether the blob's object is somewhere.
func (a *at) object(p record.Place) bool {
	_, err := a.real.Stat(context.Background(), p.Key)
	return err == nil
}

// record returns what is beside the objects: nil, nothing.
func (a *at) record() *record.Record {
	a.t.Helper()
	rc, _, err := a.real.Open(context.Background(), recordKey(a.d), 0, -1)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		a.t.Fatal(err)
	}
	defer rc.Close()
	text, err := io.ReadAll(rc)
	if err != nil {
		a.t.Fatal(err)
	}
	r, err := record.Parse(text, a.d)
	if err != nil {
		a.t.Fatalf("%s: %v", text, err)
	}
	return r
}

// all merges records.
func all(recs ...*record.Record) (r *record.Record) {
	for _, o := range recs {
		r = record.Merge(r, o)
	}
	return r
}

func same(a, b *record.Record) bool {
	return a == nil && b == nil || a != nil && b != nil && record.Equal(a, b)
}

func show(r *record.Record) string {
	if r == nil {
		return "nothing"
	}
	return fmt.Sprintf("%v %+v", r.Removed, r.Homes)
}

// backendKinds are what objects can live in.
var backendKinds = map[string]func(t testing.TB) fetcher.Backend{
	"memory":  func(testing.TB) fetcher.Backend { return new(fetchertest.Memory) },
	"no swap": func(testing.TB) fetcher.Backend { return noSwap{new(fetchertest.Memory)} },
	"file": func(t testing.TB) fetcher.Backend {
		b, err := file.Open(file.Config{Path: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		return b
	},
}

// What is asked of a backend, in which order, and what is there then.
func TestObjects(t *testing.T) {
	const none, there = "", "there"
	for _, tt := range []struct {
		name   string
		do     ringstate.BackendDo
		object string                       // there before: nothing, or the blob
		bad    bool                         // and it is known to be wrong
		before func(a *at) []*record.Record // beside it
		rec    func(a *at) *record.Record   // what is known
		want   string                       // requests
		plain  string                       // without compare-and-swap, if it differs
		found  bool
		after  func(a *at) *record.Record // beside it
		gone   bool                       // the object
	}{
		{name: "stat, not there", do: ringstate.Stat, rec: pushedA, want: "stat blobs", gone: true},
		{name: "stat", do: ringstate.Stat, object: there, before: besideA, rec: pushedA, after: pushedA,
			want: "stat blobs, open records", found: true},
		{name: "stat, no record", do: ringstate.Stat, object: there, rec: pushedA, want: "stat blobs, open records", found: true},
		{name: "stat, too short", do: ringstate.Stat, object: "short", before: besideA, rec: pushedA, after: pushedA,
			want: "stat blobs, open records"},
		{name: "stat, condemned", do: ringstate.Stat, object: there, bad: true, before: besideA, rec: pushedA, after: pushedA,
			want: "stat blobs, open records"},
		{name: "stat, nothing is known", do: ringstate.Stat, object: there, before: besideA, rec: unknown, after: pushedA,
			want: "stat blobs, open records", found: true},
		{name: "stat, nothing is known, not there", do: ringstate.Stat, before: besideA, rec: unknown, after: pushedA,
			want: "stat blobs, open records", gone: true},

		{name: "write", do: ringstate.Write, rec: pushedA, after: pushedA, found: true,
			want: "write blobs, writeif records", plain: "write blobs, open records, write records"},
		{name: "write, there is a record", do: ringstate.Write, before: besideB, rec: pushedA, found: true,
			after: func(a *at) *record.Record { return all(pushedA(a), pushedB(a)) },
			want:  "write blobs, writeif records, open records, writeif records", plain: "write blobs, open records, write records"},
		{name: "write, the record knows it", do: ringstate.Write, before: besideA, rec: pushedA, after: pushedA, found: true,
			want: "write blobs, writeif records, open records", plain: "write blobs, open records"},
		{name: "write, something is there", do: ringstate.Write, object: "short", rec: pushedA, after: pushedA, found: true,
			want: "write blobs, writeif records", plain: "write blobs, open records, write records"},
		{name: "write, deleted meanwhile", do: ringstate.Write, rec: removedA, gone: true},

		{name: "note", do: ringstate.Note, object: there, rec: pushedA, after: pushedA,
			want: "open records, writeif records", plain: "open records, write records"},
		{name: "note, known", do: ringstate.Note, object: there, before: besideA, rec: pushedA, after: pushedA, want: "open records"},
		{name: "note, deleted meanwhile", do: ringstate.Note, object: there, before: besideA, rec: removedA, after: nil},

		{name: "erase", do: ringstate.Erase, object: there, before: besideA, rec: removedA, gone: true,
			want:  "open records, writeif records, delete blobs, delete records",
			plain: "open records, write records, delete blobs, delete records"},
		{name: "erase, begun before", do: ringstate.Erase, object: there, rec: removedA, gone: true,
			before: func(a *at) []*record.Record {
				return []*record.Record{{Digest: a.d, Size: int64(len(a.data))}, a.removal("team/a", 20)}
			},
			want: "open records, delete blobs, delete records"},
		{name: "erase, no record", do: ringstate.Erase, object: there, rec: removedA, gone: true, want: "open records, delete blobs"},
		{name: "erase, nothing but the removal is known", do: ringstate.Erase, object: there, before: besideA, gone: true,
			rec: func(a *at) *record.Record {
				return all(record.Pushed(a.d, 0, a.place, "team/a", "", record.V1), a.removal("team/a", 20))
			},
			want:  "open records, writeif records, delete blobs, delete records",
			plain: "open records, write records, delete blobs, delete records"},
		{name: "erase, another namespace has it", do: ringstate.Erase, object: there, before: besideB, rec: removedA,
			after: func(a *at) *record.Record { return all(removedA(a), pushedB(a)) },
			want:  "open records, writeif records", plain: "open records, write records"},
		{name: "erase, it was pushed again", do: ringstate.Erase, object: there, before: besideA,
			rec:   func(a *at) *record.Record { return all(removedA(a), a.push(a.place, "team/a", 30)) },
			after: func(a *at) *record.Record { return all(removedA(a), a.push(a.place, "team/a", 30)) },
			want:  "open records, writeif records", plain: "open records, write records"},
		{name: "erase, it lives under another key", do: ringstate.Erase, object: there, rec: removedA, gone: true,
			before: func(a *at) []*record.Record { return []*record.Record{pushedA(a), a.push(a.other, "team/b", 10)} },
			after:  func(a *at) *record.Record { return all(a.removal("team/a", 20), a.push(a.other, "team/b", 10)) },
			want:   "open records, writeif records, delete blobs", plain: "open records, write records, delete blobs"},
		{name: "erase, somebody has the backend by another name", do: ringstate.Erase, object: there, rec: removedA,
			before: func(a *at) []*record.Record {
				return []*record.Record{a.push(record.Place{Backend: "theirs", Key: a.place.Key}, "team/b", 10)}
			},
			after: func(a *at) *record.Record {
				return all(a.removal("team/a", 20), a.push(record.Place{Backend: "theirs", Key: a.place.Key}, "team/b", 10))
			},
			want: "open records, writeif records", plain: "open records, write records"},
	} {
		for kind, open := range backendKinds {
			t.Run(tt.name+"/"+kind, func(t *testing.T) {
				a := newAt(t, open(t))
				switch tt.object {
				case none:
				case there:
					a.has(a.place, string(a.data))
				default:
					a.has(a.place, tt.object)
				}
				var before *record.Record
				if tt.before != nil {
					before = all(tt.before(a)...)
					a.told(before)
				}
				if tt.bad {
					a.known.bad = errdefs.ErrDataLoss
				}
				found, beside, err := a.o.do(t.Context(), tt.do, tt.rec(a), a.place)
				if err != nil || found != tt.found {
					t.Errorf("found %t, %v; want %t", found, err, tt.found)
				}
				want := tt.want
				if tt.plain != "" && kind == "no swap" {
					want = tt.plain
				}
				if got := a.traced(); got != want {
					t.Errorf("requests: %q, want %q", got, want)
				}
				var after *record.Record
				if tt.after != nil {
					after = tt.after(a)
				} else if tt.do == ringstate.Note {
					after = before
				}
				if got := a.record(); !same(got, after) {
					t.Errorf("beside it: %s, want %s", show(got), show(after))
				}
				if tt.after != nil && !same(beside, inBackend(after, "main")) {
					t.Errorf("said to be beside it: %s, want %s", show(beside), show(after))
				}
				if beside != nil && slices.ContainsFunc(beside.Homes, func(h record.Home) bool { return h.Backend != "main" }) {
					t.Errorf("homes that nobody here can do anything about: %s", show(beside))
				}
				if there := a.object(a.place); there == tt.gone {
					t.Errorf("the object is there: %t", there)
				}
				if changed := tt.do == ringstate.Write && tt.found || tt.do == ringstate.Erase && tt.gone; changed != (a.known.forgotten.Load() > 0) {
					t.Errorf("what is remembered of it was forgotten %d times", a.known.forgotten.Load())
				}
			})
		}
	}
}

func pushedA(a *at) *record.Record  { return a.push(a.place, "team/a", 10) }
func pushedB(a *at) *record.Record  { return a.push(a.place, "team/b", 12) }
func removedA(a *at) *record.Record { return all(pushedA(a), a.removal("team/a", 20)) }
func unknown(a *at) *record.Record  { return &record.Record{Digest: a.d} }

func besideA(a *at) []*record.Record { return []*record.Record{pushedA(a)} }
func besideB(a *at) []*record.Record { return []*record.Record{pushedB(a)} }

// What is written is the blob.
func TestObjectsBytes(t *testing.T) {
	a := newAt(t, new(fetchertest.Memory))
	if _, _, err := a.o.do(t.Context(), ringstate.Write, pushedA(a), a.place); err != nil {
		t.Fatal(err)
	}
	rc, _, err := a.real.Open(t.Context(), a.place.Key, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if got, err := io.ReadAll(rc); err != nil || digest.FromBytes(got) != a.d || a.o.metrics.(*noMetrics).bytes != int64(len(a.data)) {
		t.Errorf("other bytes, or not counted: %v", err)
	}
}

// Bytes that the disk has spoiled do not come to a backend.
func TestObjectsSpoiled(t *testing.T) {
	a := newAt(t, new(fetchertest.Memory))
	err := filepath.WalkDir(a.store.Root(), func(path string, e os.DirEntry, err error) error {
		if err != nil || filepath.Base(path) != a.d.Encoded() {
			return err
		}
		return errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, append([]byte{a.data[0] ^ 1}, a.data[1:]...), 0o600))
	})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = a.o.do(t.Context(), ringstate.Write, pushedA(a), a.place)
	if !errdefs.IsDataLoss(err) || a.object(a.place) || a.record() != nil {
		t.Errorf("%v; the object is there: %t, its record: %s", err, a.object(a.place), show(a.record()))
	}
}

// Whatever fails, or seems to, and however often: it can be done again, and until then a record that says that the blob lives has
// its object, and an object that is to go has a record that says so.
func TestObjectsFaults(t *testing.T) {
	lost := errors.New("no answer")
	for kind, open := range backendKinds {
		for name, tt := range map[string]struct {
			do            ringstate.BackendDo
			before        func(a *at) []*record.Record
			rec           func(a *at) *record.Record
			after         func(a *at) *record.Record
			requests      int
			there, remain bool // the object before, and after
		}{
			"write": {do: ringstate.Write, rec: pushedA, after: pushedA, requests: 2, remain: true},
			"write again": {do: ringstate.Write, before: besideB, rec: pushedA, requests: 3, remain: true,
				after: func(a *at) *record.Record { return all(pushedA(a), pushedB(a)) }},
			"note": {do: ringstate.Note, before: besideB, rec: pushedA, requests: 2, there: true, remain: true,
				after: func(a *at) *record.Record { return all(pushedA(a), pushedB(a)) }},
			"erase": {do: ringstate.Erase, before: besideA, rec: removedA, requests: 4, there: true,
				after: func(*at) *record.Record { return nil }},
			"erase one of two": {do: ringstate.Erase, rec: removedA, requests: 3, there: true,
				before: func(a *at) []*record.Record { return []*record.Record{pushedA(a), a.push(a.other, "team/b", 10)} },
				after:  func(a *at) *record.Record { return all(a.removal("team/a", 20), a.push(a.other, "team/b", 10)) }},
		} {
			for at := range tt.requests {
				for _, done := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/%s/%d/%t", kind, name, at, done), func(t *testing.T) {
						a := newAt(t, open(t))
						if tt.there {
							a.has(a.place, string(a.data))
						}
						if tt.before != nil {
							a.told(tt.before(a)...)
						}
						n := -1
						fail := func(when bool) func(fetchertest.Op, string) error {
							return func(fetchertest.Op, string) error {
								if !when {
									n++ // asked first
								}
								if n == at && when == done {
									return lost
								}
								return nil
							}
						}
						a.backend.Fail, a.backend.FailAfter = fail(false), fail(true)
						_, _, err := a.o.do(t.Context(), tt.do, tt.rec(a), a.place)
						if err != nil && (!errors.Is(err, lost) || !strings.Contains(err.Error(), string(a.d)+" in backend main")) {
							t.Errorf("got %v", err)
						}
						if err == nil && !done {
							t.Errorf("request %d was never made", at)
						}
						rec := a.record()
						if tt.before == nil && rec != nil && !a.object(a.place) {
							t.Errorf("a record without its object")
						}
						if tt.do == ringstate.Erase && a.object(a.place) && (rec == nil || at > 1 && livesAt(rec, a.place.Key)) {
							t.Errorf("an object that is to go, and beside it %s", show(rec))
						}
						a.backend.Fail, a.backend.FailAfter = nil, nil
						if _, _, err := a.o.do(t.Context(), tt.do, tt.rec(a), a.place); err != nil {
							t.Errorf("again: %v", err)
						}
						if got := a.record(); !same(got, tt.after(a)) || a.object(a.place) != tt.remain {
							t.Errorf("at the end the object is there: %t, and beside it %s", a.object(a.place), show(got))
						}
					})
				}
			}
		}
	}
}

// Members that change one record at once lose nothing.
func TestObjectsAtOnce(t *testing.T) {
	for _, kind := range []string{"memory", "file"} {
		t.Run(kind, func(t *testing.T) {
			a := newAt(t, backendKinds[kind](t))
			var wg sync.WaitGroup
			var want *record.Record
			for i := range besideTries {
				p := a.place
				if i%2 == 1 {
					p = a.other
				}
				do := []ringstate.BackendDo{ringstate.Write, ringstate.Note}[i/2%2]
				rec := a.push(p, fmt.Sprintf("team/%d", i), record.Stamp(10+i))
				want = all(want, rec)
				o := a.member()
				wg.Go(func() {
					if _, _, err := o.do(t.Context(), do, rec, p); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if got := a.record(); !same(got, want) {
				t.Errorf("beside it %s, want %s", show(got), show(want))
			}
		})
	}
}

// A push that comes between the look of an erasure and the removals keeps the object.
func TestErasePushBetween(t *testing.T) {
	a := newAt(t, new(fetchertest.Memory))
	a.has(a.place, string(a.data))
	a.told(pushedA(a))
	once := sync.OnceFunc(func() { a.told(pushedA(a), pushedB(a)) })
	a.backend.Fail = func(op fetchertest.Op, key string) error {
		if op == fetchertest.OpWriteIf {
			once()
		}
		return nil
	}
	_, beside, err := a.o.do(t.Context(), ringstate.Erase, removedA(a), a.place)
	if want := all(removedA(a), pushedB(a)); err != nil || !a.object(a.place) || !same(a.record(), want) || !same(beside, want) {
		t.Errorf("%v; the object is there: %t, beside it %s", err, a.object(a.place), show(a.record()))
	}
}

// A record that others change all the time keeps nobody for ever.
func TestBesideNeverOurs(t *testing.T) {
	a := newAt(t, new(fetchertest.Memory))
	n := 0
	a.backend.Fail = func(op fetchertest.Op, key string) error {
		if op == fetchertest.OpWriteIf {
			n++
			a.told(a.push(a.place, "team/b", record.Stamp(100+n)))
		}
		return nil
	}
	_, _, err := a.o.do(t.Context(), ringstate.Write, pushedA(a), a.place)
	if !errdefs.IsUnavailable(err) || n != besideTries+1 || !a.object(a.place) {
		t.Errorf("after %d tries: %v", n, err)
	}
}

// A Write that has begun before an Erase has ended when that begins: nothing comes after it.
func TestEraseAfterWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAt(t, new(fetchertest.Memory))
		reached, goOn := make(chan struct{}), make(chan struct{})
		a.backend.Fail = func(op fetchertest.Op, key string) error {
			if op == fetchertest.OpWrite {
				close(reached)
				<-goOn
			}
			return nil
		}
		var wg sync.WaitGroup
		run := func(do ringstate.BackendDo, rec *record.Record) {
			wg.Go(func() {
				if _, _, err := a.o.do(t.Context(), do, rec, a.place); err != nil {
					t.Error(err)
				}
			})
		}
		run(ringstate.Write, pushedA(a))
		<-reached
		run(ringstate.Erase, removedA(a))
		synctest.Wait()
		if _, _, err := a.o.do(t.Context(), ringstate.Stat, pushedA(a), a.place); err != nil { // waits for nobody
			t.Error(err)
		}
		close(goOn)
		wg.Wait()
		if a.object(a.place) || a.record() != nil {
			t.Errorf("the object is there: %t, beside it %s", a.object(a.place), show(a.record()))
		}
	})
}
