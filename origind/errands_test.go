package origind

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/origind/ringstate"
	"github.com/capelin-io/capelin/swarm/piece"
)

// answers is a client of the trackers, of a test: what it is told, in order.
type answers struct {
	offline
	mu   sync.Mutex
	told []string
}

func (a *answers) tell(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.told = append(a.told, fmt.Sprintf(format, args...))
}

// all returns what it was told so far.
func (a *answers) all() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.told)
}

func (a *answers) NotHere(piece.ID)                     { a.tell("not here") }
func (a *answers) Announce(_ piece.ID, s tracker.State) { a.tell("state %v", s) }
func (a *answers) AnnounceComplete(_ piece.ID, h *[32]byte) {
	a.tell("complete %t", h != nil)
}

func (a *answers) Result(r *trackerpb.CommandResult) {
	a.tell("result %d bytes, %d missing, error: %t", r.GetBytes(), len(r.GetBlobs()), r.GetError() != "")
}

// onlyMember is a ring of one that finds nothing out.
type onlyMember struct{ reads string }

func (onlyMember) serving() bool           { return true }
func (onlyMember) peers() []ringstate.Peer { return nil }
func (onlyMember) where(context.Context, digest.Digest, bool) (ringstate.ActFound, error) {
	return ringstate.ActFound{Where: ringstate.Backend}, nil
}
func (o onlyMember) reader(context.Context, digest.Digest) (string, error)         { return o.reads, nil }
func (onlyMember) found(context.Context, digest.Digest, int64, record.Place) error { return nil }

// newAsked makes errands over some backends, and an origin's parts below them.
func newAsked(t *testing.T, s stores) (*errands, *answers) {
	a, h, ts := &answers{}, newHoldings(t), newTasks(t)
	f := newFinder(LookupConfig{Budget: config.Duration(testBudget), Negative: config.Duration(testNegative)}, s, h.ledger, pushedAgain{}, ts)
	sd := newSeeder(h, nil, func(piece.ID) bool { return false })
	sd.trackers = a
	cold := &coldReads{
		cfg:   ColdConfig{Max: 20, Attempts: 1, Grace: config.Duration(testGrace)},
		blobs: h, ring: onlyMember{}, objects: f, peers: sd,
		metrics: newMetrics(prometheus.NewRegistry()), tasks: ts, m: map[piece.ID]*coldRead{},
	}
	e := newErrands(&locator{blobs: h, cold: cold, finder: f, ring: onlyMember{}}, sd, ts)
	e.trackers = a
	return e, a
}

// A tracker that asks is told what the origin can deliver: what is here, what is being read,
// what a backend has; and of everything else that it is not here.
func TestLookupAnswers(t *testing.T) {
	data, _ := testBlob(100_000, 1)
	id := idOf(t, data)
	larger := id
	larger.Size++
	cold := []string{fmt.Sprintf("state %v", tracker.StatePartial)}
	for _, tt := range []struct {
		name   string
		here   bool
		stores func(t *testing.T) stores
		id     piece.ID
		want   []string
		opens  int64
	}{
		{"it is here", true, nil, id, []string{"complete true"}, 0},
		{"it is here, with another size", true, nil, larger, []string{"not here"}, 0},
		{"a backend has it", false, func(t *testing.T) stores {
			mem := &fetchertest.Memory{}
			put(t, mem, "", data)
			gate := newGated(mem)
			return stores{"mem": gate}
		}, id, append(cold, cold...), 1},
		{"a backend has it, with another size", false, func(t *testing.T) stores {
			mem := &fetchertest.Memory{}
			put(t, mem, "", data)
			return stores{"mem": mem}
		}, larger, []string{"not here"}, 0},
		{"nobody has it", false, func(*testing.T) stores { return stores{"mem": &fetchertest.Memory{}} }, id, []string{"not here"}, 0},
		{"another member reads it", false, func(t *testing.T) stores {
			mem := &fetchertest.Memory{}
			put(t, mem, "", data)
			return stores{"mem": mem, "reader": nil}
		}, id, []string{"not here"}, 0},
		{"a backend is down", false, func(*testing.T) stores { return stores{"mem": refusing(errDown)} }, id, []string{"not here"}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := stores{}
				if tt.stores != nil {
					s = tt.stores(t)
				}
				e, a := newAsked(t, s)
				if _, ok := s["reader"]; ok {
					delete(s, "reader")
					e.ring = onlyMember{reads: "reader"}
				}
				if tt.here {
					e.blobs.keep(t, data, lives("kept", "", false))
				}
				e.Lookup(tt.id)
				synctest.Wait()
				if told := a.all(); !slices.Equal(told, tt.want) {
					t.Errorf("told %q, want %q", told, tt.want)
				}
				whole, err := e.wanted(t.Context(), tt.id) // a peer asks
				if want := tt.here && tt.id == id; whole != want || err != nil {
					t.Errorf("a peer is told that it is here: %t, %v; want %t", whole, err, want)
				}
				if n := int64(e.cold.count()); n != tt.opens {
					t.Errorf("%d blobs are being read, want %d", n, tt.opens)
				}
			})
		})
	}
}

// Trackers' questions are bounded; one that is being looked into is not looked into twice.
func TestLookupIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		count := &fetchertest.Counting{Backend: slowStat(&fetchertest.Memory{}, testBudget/2)}
		e, a := newAsked(t, stores{"mem": count})
		ids := make([]piece.ID, maxAsked+5)
		for i := range ids {
			ids[i] = piece.ID{Alg: piece.SHA256, Sum: piece.Sum{byte(i), byte(i >> 8)}, Size: 1}
			e.Lookup(ids[i])
			if i < maxAsked {
				e.Lookup(ids[i])
			}
		}
		if n := len(a.all()); n != 5 {
			t.Errorf("%d were answered at once, want the 5 that are too many", n)
		}
		time.Sleep(testBudget)
		synctest.Wait()
		if n, told := count.Stats(), len(a.all()); n != maxAsked || told != maxAsked+5 || len(e.asked) != 0 {
			t.Errorf("%d were looked for, %d answered, %d are left; want %d, %d and none",
				n, told, len(e.asked), maxAsked, maxAsked+5)
		}
	})
}

// losing loses a blob at the moment when it is announced as whole, and its store said so
// before.
type losing struct {
	*answers
	lose func()
}

func (l losing) AnnounceComplete(id piece.ID, h *[32]byte) {
	l.lose()
	l.answers.AnnounceComplete(id, h)
}

// A blob that goes while it is announced does not stay announced.
func TestGoneWhileAnnounced(t *testing.T) {
	data, d := testBlob(100_000, 1)
	h, a := newHoldings(t), &answers{}
	key, _ := fetcher.BlobKey(d)
	h.keep(t, data, lives("a", key, true))
	if err := h.store.Unpin(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	sd := newSeeder(h, nil, nil)
	sd.trackers = losing{a, func() {
		if freed := h.store.MakeRoom(t.Context(), 1); freed == 0 {
			t.Error("the blob was not evicted")
		}
		sd.BlobGone(idOf(t, data))
	}}
	sd.check(t.Context(), idOf(t, data))
	gone := fmt.Sprintf("state %v", tracker.StateGone)
	if want := []string{gone, "complete true", gone}; !slices.Equal(a.all(), want) {
		t.Errorf("told %q, want %q", a.all(), want)
	}
	a.told = nil
	sd.check(t.Context(), idOf(t, data))
	if len(a.all()) != 0 {
		t.Errorf("told %q of what is not here", a.all())
	}
}

// What is being read is promised without asking the backend again, and is read for as long
// as somebody asks.
func TestLookupOfWhatIsBeingRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data, _ := testBlob(100_000, 1)
		mem := &fetchertest.Memory{}
		put(t, mem, "", data)
		count := &fetchertest.Counting{Backend: newGated(mem)}
		e, a := newAsked(t, stores{"mem": count})
		for range 5 {
			e.Lookup(idOf(t, data))
			time.Sleep(swarmInterest)
		}
		synctest.Wait()
		told, want := a.all(), fmt.Sprintf("state %v", tracker.StatePartial)
		if other := slices.ContainsFunc(told, func(s string) bool { return s != want }); other || len(told) != 6 || count.Stats() != 1 {
			t.Errorf("told %q after %d looks at the backend, want %q at the beginning and for each question", told, count.Stats(), want)
		}
	})
}

// justStarted is a ring that may have missed deletions.
type justStarted struct{ onlyMember }

func (justStarted) serving() bool { return false }

// Whoever may have missed a deletion gives a blob to nobody, whichever way it is asked.
func TestNotServing(t *testing.T) {
	e, told := newAsked(t, nil)
	data, _ := testBlob(1000, 1)
	e.blobs.keep(t, data)
	id := idOf(t, data)
	for _, tt := range []struct {
		ring ringLooks
		want bool
	}{{justStarted{}, false}, {onlyMember{}, true}} {
		e.ring = tt.ring
		if is, err := e.wanted(t.Context(), id); is != tt.want || err != nil {
			t.Errorf("a peer: %t, %v", is, err)
		}
		if _, is, err := e.here(digest.Digest(id.Digest())); is != tt.want || err != nil {
			t.Errorf("a client: %t, %v", is, err)
		}
	}
	if all := told.all(); len(all) != 0 {
		t.Errorf("trackers were told %q", all)
	}
}
