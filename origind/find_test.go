package origind

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/origind/record"
)

// newTasks returns tasks that end with the test.
func newTasks(t testing.TB) *tasks {
	ctx, cancel := context.WithCancel(context.Background())
	ts := &tasks{ctx: ctx}
	t.Cleanup(func() { cancel(); ts.wg.Wait() })
	return ts
}

// recorded is what is kept of blobs, of a test.
type recorded map[digest.Digest]*record.Entry

func (r recorded) get(d digest.Digest) (*record.Entry, error) {
	if r[d] != nil && r[d].Record.Size < 0 {
		return nil, fmt.Errorf("damaged: %w", errdefs.ErrDataLoss)
	}
	return r[d], nil
}

// pushedAgain are the objects that are there since a push of which nothing is known here.
type pushedAgain map[record.Place]error

func (p pushedAgain) alive(_ context.Context, _ *record.Record, at record.Place) (bool, error) {
	err, ok := p[at]
	return ok && err == nil, err
}

const (
	testBudget   = time.Second
	testNegative = 10 * time.Second
)

func testFinder(t testing.TB, s stores, r recorded) *finder {
	return newFinder(LookupConfig{
		Budget: config.Duration(testBudget), Repository: config.Duration(5 * testBudget), Negative: config.Duration(testNegative),
	}, s, r, pushedAgain{}, newTasks(t))
}

// slowStat is a backend that takes its time to look, unless whoever asks goes away.
func slowStat(b fetcher.Backend, latency time.Duration) *fetchertest.Slow {
	return &fetchertest.Slow{Backend: b, Latency: latency}
}

func refusing(err error) *fetchertest.Faulty {
	return &fetchertest.Faulty{Backend: &fetchertest.Memory{}, Fail: func(fetchertest.Op, string) error { return err }}
}

// What is certainly nowhere is "not found"; whatever cannot be known is "unavailable", or
// lost data; and one who has the blob is believed, whatever the others say.
func TestFindVerdicts(t *testing.T) {
	data, d := testBlob(1000, 1)
	key, _ := fetcher.BlobKey(d)
	full := &fetchertest.Memory{}
	put(t, full, "", data)
	empty := &fetchertest.Memory{}
	unsized := &sizeless{full}
	hub := byRepository{&fetchertest.Memory{}}
	put(t, hub, "hub/app", data)
	living := func(size int64, backend, key string) *record.Record {
		return &record.Record{Digest: d, Size: size, Homes: []record.Home{lives(backend, key, true)}}
	}
	removed := func(backend string) *record.Record {
		r := living(1000, backend, key)
		r.Removed = record.Stamps{"": 9}
		return r
	}
	for _, tt := range []struct {
		name   string
		stores stores
		record *record.Record
		ns     string
		want   string // class, or the backend where it is
	}{
		{"one has it", stores{"full": full, "empty": empty}, nil, "", "full"},
		{"nobody has it", stores{"empty": empty, "other": &fetchertest.Memory{}}, nil, "", "not_found"},
		{"there are no backends", stores{}, nil, "", "not_found"},
		{"one is down", stores{"empty": empty, "down": refusing(errDown)}, nil, "", "unavailable"},
		{"one refuses", stores{"empty": empty, "closed": refusing(errdefs.ErrPermissionDenied)}, nil, "", "unavailable"},
		{"one is down, one has it", stores{"full": full, "down": refusing(errDown)}, nil, "", "full"},
		{"a registry is not asked for a digest alone", stores{"hub": byRepository{full}}, nil, "", "not_found"},
		{"a registry is asked for a repository's", stores{"hub": hub, "empty": empty}, nil, "hub/app", "hub"},
		{"another repository does not have it", stores{"hub": hub}, nil, "hub/other", "not_found"},
		{"the record names the object in a registry", stores{"hub": byRepository{full}},
			living(1000, "hub", key), "", "hub"},
		{"the record names a backend that is gone", stores{"empty": empty},
			living(1000, "gone", key), "", "not_found"},
		{"the record says another size", stores{"full": full}, living(999, "gone", key), "", "data_loss"},
		{"the record is damaged, nobody has it", stores{"empty": empty}, living(-1, "gone", key), "", "data_loss"},
		{"the record is damaged, one has it", stores{"full": full}, living(-1, "gone", key), "", "full"},
		{"the backend does not know the size", stores{"dark": unsized}, nil, "", "unavailable"},
		{"the backend does not know the size, the record does", stores{"dark": unsized},
			living(1000, "dark", key), "", "dark"},
		{"what is kept here is in no backend", stores{"empty": empty},
			living(1000, "empty", ""), "", "not_found"},
		{"it was deleted, and is still to be erased", stores{"full": full}, removed("full"), "", "not_found"},
		{"it was deleted, and pushed again elsewhere", stores{"again": full}, removed("again"), "", "again"},
		{"it was deleted, and whether it was pushed again cannot be known", stores{"dark": full}, removed("dark"), "", "unavailable"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := testFinder(t, tt.stores, recorded{})
				if tt.record != nil {
					f.ledger = recorded{d: {Record: tt.record}}
				}
				f.alive = pushedAgain{{Backend: "again", Key: key}: nil, {Backend: "dark", Key: key}: errDown}
				at, err := f.find(t.Context(), origin.Ref{Namespace: tt.ns, Digest: d})
				got := at.name
				if err != nil {
					got = class(err)
				} else if at.id.Size != 1000 || at.namespace != tt.ns || tt.ns == "" && at.key != key {
					t.Errorf("found %+v", at)
				}
				if got != tt.want {
					t.Errorf("got %s (%v), want %s", got, err, tt.want)
				}
			})
		})
	}
}

// sizeless is a backend that does not say how large its objects are.
type sizeless struct{ fetcher.Backend }

func (s *sizeless) Stat(ctx context.Context, key string) (fetcher.Info, error) {
	info, err := s.Backend.Stat(ctx, key)
	info.Size = -1
	return info, err
}

// A backend that does not answer makes the blob unavailable when the budget is over, which
// is longer for a repository; never "not found". What it says later is known then.
func TestFindBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, d := testBlob(1000, 1)
		slow := &fetchertest.Counting{Backend: slowStat(&fetchertest.Memory{}, 7*testBudget)}
		f := testFinder(t, stores{"empty": &fetchertest.Memory{}, "slow": slow}, nil)
		for _, ns := range []string{"", "slow/app"} {
			ref := origin.Ref{Namespace: ns, Digest: d}
			budget := testBudget
			if ns != "" {
				budget = 5 * testBudget
			}
			start := time.Now()
			_, err := f.find(t.Context(), ref)
			if took := time.Since(start); !errdefs.IsUnavailable(err) || errdefs.IsNotFound(err) || took != budget {
				t.Errorf("%s: %v after %v, want unavailable after %v", ref, err, took, budget)
			}
			time.Sleep(7*testBudget - budget)
			asked := slow.Stats()
			start = time.Now()
			if _, err = f.find(t.Context(), ref); !errdefs.IsNotFound(err) || time.Since(start) != 0 || slow.Stats() != asked {
				t.Errorf("%s: %v after %v, want the late answer at once", ref, err, time.Since(start))
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, other := testBlob(1000, 2)
		if _, err := f.find(ctx, origin.Ref{Digest: other}); !errdefs.IsUnavailable(err) {
			t.Errorf("who gives up is told %v", err)
		}
	})
}

// All who ask at once share one look-up; the first backend that has the blob ends it.
func TestFindIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data, _ := testBlob(1000, 1)
		mem := &fetchertest.Memory{}
		d := put(t, mem, "", data)
		count := &fetchertest.Counting{Backend: slowStat(mem, testBudget/2)}
		var ended atomic.Bool
		stuck := &statFunc{mem, func(ctx context.Context) error { <-ctx.Done(); ended.Store(true); return ctx.Err() }}
		f := testFinder(t, stores{"mem": count, "stuck": stuck}, nil)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if at, err := f.find(t.Context(), origin.Ref{Digest: d}); err != nil || at.name != "mem" {
					t.Errorf("found %q, %v", at.name, err)
				}
			})
		}
		wg.Wait()
		if n := count.Stats(); n != 1 || !ended.Load() {
			t.Errorf("%d look-ups, want one; the backend that does not answer is still asked: %t", n, !ended.Load())
		}
	})
}

// statFunc is a backend whose Stat is a function.
type statFunc struct {
	fetcher.Backend
	stat func(ctx context.Context) error
}

func (s *statFunc) Stat(ctx context.Context, _ string) (fetcher.Info, error) {
	return fetcher.Info{}, s.stat(ctx)
}

// "Not found" is remembered for as long as is configured, "found" for so long that a read
// follows a look-up, and everything else not at all. A push ends that, also if it came
// while somebody was looking; so does a blob that is not where it was found.
func TestFindRemembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data, d := testBlob(1000, 1)
		ref := origin.Ref{Digest: d}
		mem := &fetchertest.Memory{}
		var down atomic.Bool
		b := &fetchertest.Faulty{Backend: mem, Fail: func(fetchertest.Op, string) error {
			if down.Load() {
				return errDown
			}
			return nil
		}}
		count := &fetchertest.Counting{Backend: slowStat(b, time.Millisecond)}
		f := testFinder(t, stores{"mem": count}, nil)
		asks := func(when, want string, looks int64) {
			t.Helper()
			before := count.Stats()
			_, err := f.find(t.Context(), ref)
			if got := class(err); got != want || count.Stats()-before != looks {
				t.Errorf("%s: %s with %d look-ups, want %s with %d", when, got, count.Stats()-before, want, looks)
			}
		}
		asks("at first", "not_found", 1)
		time.Sleep(testNegative - time.Millisecond)
		asks("just before that is forgotten", "not_found", 0)
		time.Sleep(time.Millisecond)
		asks("when it is forgotten", "not_found", 1)
		f.pushed(d)
		asks("after a push", "not_found", 1)

		f.pushed(d)
		go func() { time.Sleep(time.Millisecond / 2); f.pushed(d) }()
		asks("a push during the look-up", "not_found", 1)
		asks("which is not remembered", "not_found", 1)

		down.Store(true)
		f.pushed(d)
		asks("down", "unavailable", 1)
		asks("down still", "unavailable", 1)
		down.Store(false)
		put(t, mem, "", data)
		asks("found", "ok", 1)
		asks("a read follows", "ok", 0)
		f.vanished(d)
		asks("it vanished", "ok", 1)
		time.Sleep(positiveFor)
		asks("long after", "ok", 1)
	})
}

// What nobody had is asked for again by whoever knows that it may have been pushed since, also while others ask.
func TestFindSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data, d := testBlob(1000, 1)
		ref := origin.Ref{Digest: d}
		mem := &fetchertest.Memory{}
		look := 10 * time.Millisecond
		count := &fetchertest.Counting{Backend: slowStat(mem, look)}
		f := testFinder(t, stores{"mem": count}, nil)
		if _, err := f.find(t.Context(), ref); !errdefs.IsNotFound(err) {
			t.Fatal(err)
		}
		now := time.Now()
		if _, err := f.findSince(t.Context(), ref, now); !errdefs.IsNotFound(err) || count.Stats() != 2 {
			t.Errorf("an answer of before: %v after %d looks, want 2", err, count.Stats())
		}
		if _, err := f.findSince(t.Context(), ref, now); !errdefs.IsNotFound(err) || count.Stats() != 2 {
			t.Errorf("an answer of since: %v after %d looks, want 2", err, count.Stats())
		}
		f.pushed(d)
		go func() { _, _ = f.find(t.Context(), ref) }()
		time.Sleep(look / 2)
		put(t, mem, "", data)
		if _, err := f.findSince(t.Context(), ref, time.Now()); err != nil || count.Stats() != 4 {
			t.Errorf("beside a look that began before: %v after %d looks, want 4", err, count.Stats())
		}
	})
}

// A bad object is not offered again, for ten minutes or until somebody pushes the blob;
// others that have the blob are.
func TestFindCondemned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data, _ := testBlob(1000, 1)
		bad, good := &fetchertest.Memory{}, &fetchertest.Memory{}
		d := put(t, bad, "", data)
		ref := origin.Ref{Digest: d}
		f := testFinder(t, stores{"bad": bad, "good": good}, nil)
		condemn := func() {
			t.Helper()
			at, err := f.find(t.Context(), ref)
			if err != nil || at.name != "bad" {
				t.Fatalf("found %q, %v", at.name, err)
			}
			f.condemn(at, fmt.Errorf("it is something else: %w", errdefs.ErrDataLoss))
			if _, err := f.find(t.Context(), ref); !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), "something else") {
				t.Errorf("after it was condemned: %v", err)
			}
		}
		condemn()
		time.Sleep(badFor)
		condemn()
		f.pushed(d) // the backend has the bad object still
		if _, err := f.find(t.Context(), ref); !errdefs.IsDataLoss(err) {
			t.Errorf("after a push: %v", err)
		}
		f.forget(d) // it was replaced
		condemn()
		put(t, good, "", data)
		if at, err := f.find(t.Context(), ref); err != nil || at.name != "good" {
			t.Errorf("another one that is good: found %q, %v", at.name, err)
		}
	})
}

// However many backends there are, so many are asked at once.
func TestFindIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, d := testBlob(1000, 1)
		var at, most atomic.Int32
		all := stores{}
		for i := range 3 * maxPerLookup {
			all[fmt.Sprint(i)] = &statFunc{&fetchertest.Memory{}, func(context.Context) error {
				most.Store(max(most.Load(), at.Add(1)))
				time.Sleep(testBudget / 10)
				at.Add(-1)
				return errdefs.ErrNotFound
			}}
		}
		f := testFinder(t, all, nil)
		if _, err := f.find(t.Context(), origin.Ref{Digest: d}); !errdefs.IsNotFound(err) {
			t.Errorf("got %v", err)
		}
		if n := most.Load(); n != maxPerLookup {
			t.Errorf("%d backends were asked at once, want %d", n, maxPerLookup)
		}
	})
}

// A look-up for which nobody waits any more ends.
func TestFindEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, d := testBlob(1000, 1)
		var took time.Duration
		start := time.Now()
		stuck := &statFunc{&fetchertest.Memory{}, func(ctx context.Context) error {
			<-ctx.Done()
			took = time.Since(start)
			return ctx.Err()
		}}
		f := testFinder(t, stores{"stuck": stuck}, nil)
		if _, err := f.find(t.Context(), origin.Ref{Digest: d}); !errdefs.IsUnavailable(err) || errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("got %v", err)
		}
		f.tasks.wg.Wait()
		if took != lookupLimit {
			t.Errorf("it ended after %v, want %v", took, lookupLimit)
		}
	})
}
