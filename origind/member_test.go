package origind

import (
	"context"
	"errors"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/origind/ringstate"
	"github.com/capelin-io/capelin/swarm/piece"
)

// At a start each blob is pinned if its record says so; what nobody acknowledged, and what was removed, is not shown, and goes.
func TestLoad(t *testing.T) {
	data, d := testBlob(100_000, 1)
	key, _ := fetcher.BlobKey(d)
	removed := func(h record.Home) *record.Record {
		return &record.Record{Digest: d, Size: 100_000, Homes: []record.Home{h}, Removed: record.Stamps{"": 9}}
	}
	for _, tt := range []struct {
		name   string
		homes  []record.Home
		record *record.Record // instead
		cached bool           // it is evictable before
		is     content.Presence
		read   string
	}{
		{name: "pushed, and still to be written", homes: []record.Home{lives("down", key, false)}, is: content.Pinned, read: "ok"},
		{name: "kept for good", homes: []record.Home{lives("kept", "", false)}, is: content.Pinned, read: "ok"},
		{name: "kept for good, and evictable", homes: []record.Home{lives("kept", "", false)}, cached: true, is: content.Pinned, read: "ok"},
		{name: "still to be written, and evictable", homes: []record.Home{lives("down", key, false)}, cached: true,
			is: content.Pinned, read: "ok"},
		{name: "seen at its backend, pinned until it is seen again", homes: []record.Home{lives("down", key, true)},
			is: content.Pinned, read: "ok"},
		{name: "seen at its backend, and evictable", homes: []record.Home{lives("down", key, true)}, cached: true,
			is: content.Cached, read: "ok"},
		{name: "one of two homes has it", homes: []record.Home{lives("a", key, true), lives("down", key, false)}, cached: true,
			is: content.Pinned, read: "ok"},
		{name: "never acknowledged", is: content.Cached, read: "ok"},
		{name: "removed", record: removed(lives("kept", "", false)), is: content.Absent, read: "not_found"},
		{name: "removed, and evictable", record: removed(lives("kept", "", false)), cached: true, is: content.Absent, read: "not_found"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig(t, t.TempDir(), stores{"a": &fetchertest.Memory{}, "down": refusing(errDown)})
			store, err := content.Open(t.Context(), content.Config{Root: cfg.Root, FreeFloor: -1})
			if err != nil {
				t.Fatal(err)
			}
			l, err := openLedger(cfg.Root, "origin")
			if err != nil {
				t.Fatal(err)
			}
			h := &holdings{store, l}
			h.keep(t, data, tt.homes...)
			if tt.record != nil {
				err = h.record(tt.record)
			}
			if tt.cached {
				err = errors.Join(err, store.Unpin(t.Context(), d))
			}
			if err := errors.Join(err, l.close(), store.Close()); err != nil {
				t.Fatal(err)
			}
			s, ctx := newServer(t, cfg)
			if p := s.store.PresenceOf(d); p != tt.is {
				t.Errorf("it is %v, want %v", p, tt.is)
			}
			if tt.read == "not_found" { // a backend that does not answer is no answer
				delete(s.homes.Backends.(stores), "down")
			}
			at, err := s.locator.locate(ctx, origin.Ref{Digest: d}, false)
			if class(err) != tt.read || err == nil && at.place != nil {
				t.Errorf("reading it: %+v, %v; want %s", at, err, tt.read)
			}
		})
	}
}

// upload brings a blob's bytes here, as an upload does before the ring is asked.
func (s *server) upload(t *testing.T, data []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(data)
	s.member.imports(d)
	sums := piece.NewSums(idOf(t, data))
	if err := piece.NewHasher(sums).Write(sums, data); err != nil {
		t.Fatal(err)
	}
	if err := s.store.Import(t.Context(), uploadedFile(t, s, data), sums); err != nil {
		t.Fatal(err)
	}
	return d
}

// A push that its client has given up is not made when it is found at last: the blob may have been deleted since.
func TestLatePush(t *testing.T) {
	s, ctx := newServer(t, testConfig(t, t.TempDir(), nil))
	data, _ := testBlob(1000, 1)
	d := s.upload(t, data)
	late, cancel := context.WithDeadline(ctx, time.Now().Add(-time.Second))
	defer cancel()
	if _, _, err := s.acknowledge(late, d, "any/app", nil); err == nil {
		t.Error("it was acknowledged")
	}
	if err := s.member.look(ctx, func(*ringstate.Ring) {}); err != nil { // whatever was asked for is done
		t.Fatal(err)
	}
	if e, err := s.blobs.ledger.get(d); e != nil || err != nil {
		t.Errorf("it was made: %+v, %v", e, err)
	}
	if _, _, err := s.acknowledge(ctx, d, "any/app", nil); err != nil {
		t.Error(err)
	}
}

// What is removed while it is pushed again is not taken from under the push.
func TestRemovedWhilePushed(t *testing.T) {
	s, ctx := newServer(t, testConfig(t, t.TempDir(), nil))
	data, _ := testBlob(1000, 1)
	d := s.upload(t, data)
	if _, _, err := s.acknowledge(ctx, d, "any/app", nil); err != nil {
		t.Fatal(err)
	}
	s.upload(t, data)
	if err := s.delete(ctx, origin.Ref{Digest: d}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.locator.locate(ctx, origin.Ref{Digest: d}, false); !errdefs.IsNotFound(err) {
		t.Errorf("what was removed is read: %v", err)
	}
	if info, _, err := s.acknowledge(ctx, d, "any/app", nil); err != nil || info.Size != 1000 {
		t.Fatalf("%+v, %v", info, err)
	}
	if at, err := s.locator.locate(ctx, origin.Ref{Digest: d}, false); err != nil || at.place != nil {
		t.Errorf("reading it: %+v, %v", at, err)
	}
}

// Each goes once, when its time has come for the last time.
func TestDelays(t *testing.T) {
	var q delays
	q.add("a", time.Hour)
	q.add("b", time.Hour)
	q.add("a", time.Hour)
	now := time.Now()
	if d, ok := q.next(now.Add(time.Minute)); ok {
		t.Errorf("%s goes early", d)
	}
	var went []digest.Digest
	for d, ok := q.next(now.Add(2 * time.Hour)); ok; d, ok = q.next(now.Add(2 * time.Hour)) {
		went = append(went, d)
	}
	if len(went) != 2 || went[0] != "b" || went[1] != "a" || len(q.has) != 0 {
		t.Errorf("%q went, %v are left", went, q.has)
	}
}

// What a backend has is evictable at once, unless more of it came in a push that nobody has acknowledged yet.
func TestWrittenIsLetGo(t *testing.T) {
	s, ctx := newServer(t, testConfig(t, t.TempDir(), stores{"mem": &fetchertest.Memory{}}))
	data, _ := testBlob(1000, 1)
	d := s.upload(t, data)
	s.upload(t, data)
	for _, want := range []content.Presence{content.Pinned, content.Cached} {
		if _, _, err := s.acknowledge(ctx, d, "mem/app", nil); err != nil {
			t.Fatal(err)
		}
		if err := s.member.written(ctx, d); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the ring does not need it any more", func() (ok bool) {
			err := s.member.look(ctx, func(r *ringstate.Ring) { ok = !r.Pinned(d) })
			return err == nil && ok
		})
		if err := s.member.look(ctx, func(*ringstate.Ring) {}); err != nil { // and what follows from that is done
			t.Fatal(err)
		}
		if p := s.store.PresenceOf(d); p != want {
			t.Errorf("it is %v, want %v", p, want)
		}
	}
	if n := len(s.member.fresh.has); n != 0 {
		t.Errorf("%d pushes are waited for", n)
	}
}

// What a release before the ring has deleted, or did not have pushed yet, does not come back with this one.
func TestEarlierDeletions(t *testing.T) {
	cfg := testConfig(t, t.TempDir(), nil)
	store, err := content.Open(t.Context(), content.Config{Root: cfg.Root, FreeFloor: -1})
	if err != nil {
		t.Fatal(err)
	}
	h := &holdings{store: store}
	var all []digest.Digest
	for i := range uint64(3) {
		data, _ := testBlob(1000, i)
		all = append(all, h.keep(t, data))
	}
	if err := errors.Join(store.Unpin(t.Context(), all[1]), store.Close()); err != nil {
		t.Fatal(err)
	}
	writeV1(t, filepath.Join(cfg.Root, recordsDir), &record.Entry{Record: &record.Record{
		Digest: all[0], Size: 1000, Homes: []record.Home{lives("kept", "", false)},
	}})
	for _, start := range []string{"the first start", "the next one"} {
		t.Run(start, func(t *testing.T) {
			s, ctx := newServer(t, cfg)
			for i, d := range all {
				_, err := s.locator.locate(ctx, origin.Ref{Digest: d}, false)
				if want := []string{"ok", "not_found", "not_found"}[i]; class(err) != want {
					t.Errorf("blob %d: %v, want %s", i, err, want)
				}
			}
			if n := len(s.store.Whole()); n != 1 {
				t.Errorf("%d blobs are here", n)
			}
		})
	}
}

// A start that fails, or is given up, ends.
func TestStartGivenUp(t *testing.T) {
	cfg := testConfig(t, t.TempDir(), nil)
	store, err := content.Open(t.Context(), content.Config{Root: cfg.Root, FreeFloor: -1})
	if err != nil {
		t.Fatal(err)
	}
	l, err := openLedger(cfg.Root, "origin")
	if err != nil {
		t.Fatal(err)
	}
	data, _ := testBlob(1000, 1)
	(&holdings{store, l}).keep(t, data, lives("kept", "", false))
	if err := errors.Join(l.close(), store.Close()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = openServer(ctx, t.Context(), cfg, nil, "127.0.0.1:0", prometheus.NewRegistry())
	if !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
}

// Whoever was frozen does not serve what others may have deleted meanwhile, unless it is alone.
func TestFrozen(t *testing.T) {
	cfg := testConfig(t, t.TempDir(), nil)
	cfg.Ring.Members = []string{"origin=127.0.0.1:1", "b=127.0.0.1:1"}
	if s, _ := newServer(t, cfg); s.member.blind != 9*time.Second {
		t.Errorf("in a ring it goes by what it saw for %v", s.member.blind)
	}
	synctest.Test(t, func(t *testing.T) {
		for _, tt := range []struct {
			min    int
			frozen time.Duration
			want   bool
		}{{1, time.Hour, true}, {2, 8 * time.Second, true}, {2, 10 * time.Second, false}, {3, time.Hour, false}} {
			m := &member{}
			m.blind = blindFor(ringstate.Config{MinReplicas: tt.min}.WithDefaults())
			m.sight.Store(&sight{serving: true, at: time.Now()})
			time.Sleep(tt.frozen)
			if is := m.serving(); is != tt.want {
				t.Errorf("min_replicas %d, %v: %t", tt.min, tt.frozen, is)
			}
		}
	})
}

// slowAsks is a member that answers nothing but how it is.
type slowAsks struct{ now, most, probes atomic.Int64 }

func (s *slowAsks) ask(ctx context.Context, _ string, q ringstate.Ask) (uint64, ringstate.Answer, error) {
	if _, ok := q.(ringstate.Probe); ok {
		s.probes.Add(1)
		return 1, nil, errDown
	}
	s.most.Store(max(s.most.Load(), s.now.Add(1)))
	defer s.now.Add(-1)
	<-ctx.Done()
	return 0, nil, ctx.Err()
}

func (s *slowAsks) heard(origin.Asker) {}

// However many blobs are asked about, only so many asks are under way, and how the others are is known all the same.
func TestManyAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asks := &slowAsks{}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		m := &member{
			memberParts: memberParts{asks: asks, tasks: &tasks{ctx: ctx}},
			asking:      make(chan struct{}, asksAtOnce), kick: make(chan struct{}, 1),
		}
		for range 10 * asksAtOnce {
			m.ask(ringstate.ActAsk{To: "b", Ask: ringstate.Have{}})
		}
		m.ask(ringstate.ActAsk{To: "b", Ask: ringstate.Probe{}})
		synctest.Wait()
		if n := asks.now.Load(); n != asksAtOnce || asks.probes.Load() != 1 {
			t.Errorf("%d asks are under way, and %d of how it is", n, asks.probes.Load())
		}
		time.Sleep(2 * askTimeout)
		synctest.Wait()
		if n := asks.most.Load(); len(m.turns) != 10*asksAtOnce+1 || n != asksAtOnce {
			t.Errorf("%d have ended; at most %d were under way", len(m.turns), n)
		}
	})
}

// A blob that was only read here, and of which nobody knows a push, can be deleted: with what the member knows of its size.
func TestDeletedAfterRead(t *testing.T) {
	mem := &fetchertest.Memory{}
	s, ctx := newServer(t, testConfig(t, t.TempDir(), stores{"mem": mem}))
	data, _ := testBlob(100_000, 1)
	d := put(t, mem, "mem/app", data)
	at, err := s.locator.locate(ctx, origin.Ref{Digest: d}, false)
	if err != nil {
		t.Fatal(err)
	}
	c, release, err := s.cold.join(ctx, *at.place)
	if err == nil {
		err = c.wait(ctx)
		release()
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := s.delete(ctx, origin.Ref{Digest: d}); err != nil {
		t.Errorf("deleting it: %v", err)
	}
	e, err := s.blobs.ledger.get(d)
	if err != nil || e == nil || e.Record.Size != int64(len(data)) || len(e.Record.Removed) == 0 || visible(e) {
		t.Errorf("what is kept: %+v, %v", e, err)
	}
	eventually(t, "the backend has it no more", func() bool { return !has(mem, d) })
}
