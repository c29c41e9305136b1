package seeding

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is a swarm.Node of a test: which blobs are joined, and of which peers take.
type node struct {
	mu      sync.Mutex
	joined  []int
	taken   map[int]bool
	closing time.Duration // how long it takes to close a blob
	refuse  error         // what Join returns
}

func (n *node) Join(_ context.Context, id piece.ID, o swarm.JoinOptions) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refuse != nil || o.Want {
		return errors.Join(n.refuse, errors.New("not joined"))
	}
	n.joined = append(n.joined, number(id))
	return nil
}

func (n *node) Leave(id piece.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.joined = slices.DeleteFunc(n.joined, func(i int) bool { return i == number(id) })
}

func (n *node) LeaveNow(ctx context.Context, id piece.ID) {
	select {
	case <-time.After(n.closing):
		n.Leave(id)
	case <-ctx.Done():
	}
}

func (n *node) Status(id piece.ID) (swarm.BlobStatus, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	st := swarm.BlobStatus{}
	if n.taken[number(id)] {
		st.Useful = 1
	}
	return st, slices.Contains(n.joined, number(id))
}

// set changes the node or its owner.
func (n *node) set(f func()) { n.mu.Lock(); defer n.mu.Unlock(); f() }

// blob is the i-th blob of a test, of 100 bytes.
func blob(i int) piece.ID {
	return piece.ID{Alg: piece.SHA256, Sum: piece.Sum{byte(i), byte(i >> 8)}, Size: 100}
}

func number(id piece.ID) int { return int(id.Sum[0]) + int(id.Sum[1])<<8 }

// owner is an agent or origin of a test, with a Seeder that runs until the test ends.
type owner struct {
	t      *testing.T
	node   *node
	seeder *Seeder

	mu     sync.Mutex
	whole  []int
	busy   map[int]bool
	told   []string
	finds  int
	finder func() // called by Find, if not nil
	locked func() // called by Announce, if not nil
}

func (o *owner) Whole() iter.Seq[piece.ID] {
	return func(yield func(piece.ID) bool) {
		for _, i := range o.whole {
			if !yield(blob(i)) {
				return
			}
		}
	}
}

func (o *owner) Here(id piece.ID) bool { return slices.Contains(o.whole, number(id)) }

func (o *owner) tell(format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.told = append(o.told, fmt.Sprintf(format, args...))
}

// start makes the owner of some whole blobs. Its Seeder runs when begin is called.
func start(t *testing.T, whole ...int) (o *owner, begin func()) {
	o = &owner{t: t, node: &node{taken: map[int]bool{}}, whole: whole, busy: map[int]bool{}}
	o.seeder = New(Config{
		Store: o,
		Announce: func(_ context.Context, id piece.ID, together int) {
			if o.locked != nil {
				o.locked()
			}
			if together == math.MaxInt {
				o.tell("had %d", number(id))
			} else {
				o.tell("got %d of %d", number(id), together)
			}
		},
		Gone: func(id piece.ID) { o.tell("lost %d", number(id)) },
		Find: func(_ context.Context, id piece.ID) (bool, error) {
			o.mu.Lock()
			o.finds++
			f := o.finder
			o.mu.Unlock()
			if f != nil {
				f()
			}
			return o.Here(id), nil
		},
		Busy: func(id piece.ID) (busy bool) {
			o.node.set(func() { busy = o.busy[number(id)] })
			return busy
		},
	})
	return o, func() {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { o.seeder.Run(ctx, o.node); close(done) }()
		t.Cleanup(func() { cancel(); <-done })
		synctest.Wait()
	}
}

// expect checks which blobs are joined.
func (o *owner) expect(when string, joined ...int) {
	o.t.Helper()
	synctest.Wait()
	o.node.mu.Lock()
	defer o.node.mu.Unlock()
	got := slices.Sorted(slices.Values(o.node.joined))
	if !slices.Equal(got, joined) || o.seeder.Len() > len(joined) {
		o.t.Errorf("%s: joined %v, and %d are counted; want %v", when, got, o.seeder.Len(), joined)
	}
}

func bubble(t *testing.T, f func(t *testing.T)) { synctest.Test(t, f) }

// What is there is announced once at the start, and what comes and goes when it does.
func TestAnnounces(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, begin := start(t, 1, 2)
		o.seeder.Added(blob(1)) // the store tells of it at the start, too
		o.seeder.Gone(blob(9))
		begin()
		o.seeder.Added(blob(3))
		synctest.Wait()
		o.seeder.Added(blob(4))
		o.seeder.Added(blob(5))
		synctest.Wait()
		o.seeder.Gone(blob(4))
		want := "lost 9, had 1, had 2, got 3 of 1, got 4 of 2, got 5 of 2, lost 4"
		if got := strings.Join(o.told, ", "); got != want {
			t.Errorf("told %s\nwant %s", got, want)
		}
	})
}

// A store tells of a blob that went when it is gone, and by then it may be here again, and
// announced: then it is announced once more.
func TestGoneComesLate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, begin := start(t, 1)
		begin()
		o.seeder.Added(blob(1))
		synctest.Wait()
		o.seeder.Gone(blob(1))
		synctest.Wait()
		want := "had 1, got 1 of 1, lost 1, got 1 of 1"
		if got := strings.Join(o.told, ", "); got != want {
			t.Errorf("told %s\nwant %s", got, want)
		}
	})
}

// Peers do not wait for what is announced, of which each may wait for a lock; nor does what
// is idle.
func TestPeersDoNotWaitForAnnouncements(t *testing.T) {
	for _, tt := range []struct {
		name  string
		whole []int
		added int
	}{
		{"at the start", []int{1, 2, 3}, 0},
		{"of what has come", []int{2}, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				o, begin := start(t, tt.whole...)
				release := make(chan struct{})
				if tt.added == 0 {
					o.locked = func() { <-release }
				}
				begin()
				if tt.added != 0 {
					o.locked = func() { <-release }
					o.seeder.Added(blob(tt.added))
					synctest.Wait()
				}
				o.seeder.Wanted(blob(2))
				o.expect("a peer wants one while another's announcement waits", 2)
				time.Sleep(3 * IdleAfter)
				o.expect("it is idle")
				close(release)
			})
		})
	}
}

// A blob is opened when a peer wants it, even before there is a swarm, and closed when
// for a while no peer takes anything of it; then the next peer has it opened again.
func TestOpensAndLeaves(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, begin := start(t, 1, 2)
		o.seeder.Wanted(blob(1))
		begin()
		o.expect("wanted before there was a swarm", 1)
		o.seeder.Wanted(blob(2))
		o.seeder.Wanted(blob(3))
		o.expect("two are here, one is not", 1, 2)
		o.node.set(func() { o.node.taken[2] = true })
		time.Sleep(IdleAfter + time.Second)
		o.expect("idle for less than twice the time", 1, 2)
		time.Sleep(IdleAfter)
		o.expect("idle for longer", 2)
		time.Sleep(10 * IdleAfter)
		o.expect("a peer takes of it", 2)
		o.node.set(func() { delete(o.node.taken, 2) })
		time.Sleep(2 * IdleAfter)
		o.expect("nobody takes of it any more")
		o.seeder.Wanted(blob(1))
		o.expect("wanted again", 1)
		o.seeder.Gone(blob(1))
		o.expect("gone")
	})
}

// What a fetch or a cold read needs stays open, and in sight: if it found the blob whole,
// it neither hands it over nor leaves it.
func TestBusyBlobsStayJoined(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(o *owner) // of the fetch
		shut func(o *owner) // what closes the blob after it
	}{
		{"handed over", func(o *owner) { o.seeder.Keep(blob(2)) }, func(*owner) { time.Sleep(2 * IdleAfter) }},
		{"found whole, then idle", func(*owner) {}, func(*owner) { time.Sleep(2 * IdleAfter) }},
		{"found whole, then room is needed", func(*owner) {}, func(o *owner) { o.unlend(100, 2) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				o, begin := start(t, 2)
				begin()
				o.seeder.Wanted(blob(2))
				o.expect("wanted", 2)
				o.node.set(func() { o.busy[2] = true })
				o.unlend(100, 2)
				o.expect("room is needed", 2)
				time.Sleep(3 * IdleAfter)
				o.expect("somebody else needs it", 2)
				o.node.set(func() { o.busy[2] = false })
				tt.end(o)
				o.expect("it was needed a moment ago", 2)
				tt.shut(o)
				o.expect("nobody needs it")
			})
		})
	}
}

// unlend asks for the space of some blobs.
func (o *owner) unlend(need int64, blobs ...int) {
	var ids []piece.ID
	for _, i := range blobs {
		ids = append(ids, blob(i))
	}
	o.seeder.Unlend(o.t.Context(), ids, need)
}

// When room is needed, those are closed that are asked for; not more than are needed, those
// last that peers take something of, and Unlend returns when they are closed.
func TestClosesForRoom(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, begin := start(t, 1, 2, 4, 6, 8)
		o.unlend(1, 2) // there is no swarm yet
		begin()
		for _, i := range o.whole {
			o.seeder.Wanted(blob(i))
			synctest.Wait()
		}
		o.node.set(func() { o.node.taken[4] = true })
		o.node.closing = 10 * time.Millisecond
		before := time.Now()
		o.unlend(101, 2, 4, 6, 7, 8)
		if took := time.Since(before); took != 2*o.node.closing {
			t.Errorf("closing two took %v, want until they are closed", took)
		}
		o.expect("101 bytes are needed", 1, 4, 8)
		o.unlend(101, 2, 4, 6, 8)
		o.expect("more than idle ones have", 1)
		o.seeder.Wanted(blob(2))
		o.expect("wanted again", 1, 2)
		o.node.set(func() { o.node.closing = time.Hour }) // a swarm that does not answer
		before = time.Now()
		o.unlend(1000, 1, 2)
		if took := time.Since(before); took != closeWithin {
			t.Errorf("waited %v for a swarm that closes nothing, want %v", took, closeWithin)
		}
	})
}

// What peers ask for is bounded, and looked for once at a time, whoever asks.
func TestWantedIsBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, begin := start(t)
		release := make(chan struct{})
		o.finder = func() { <-release }
		begin()
		for i := range MaxWanted + 10 {
			o.seeder.Wanted(blob(i))
			o.seeder.Wanted(blob(i))
		}
		synctest.Wait()
		if o.finds != MaxWanted {
			t.Errorf("%d look-ups, want %d", o.finds, MaxWanted)
		}
		close(release)
		synctest.Wait()
		o.seeder.Wanted(blob(0))
		synctest.Wait()
		if o.finds != MaxWanted+1 {
			t.Errorf("%d look-ups after the end of the others, want one more", o.finds)
		}
	})
}

// A blob that cannot be opened is not counted, and may be wanted again.
func TestRefusedBlobIsNotCounted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, begin := start(t, 1)
		begin()
		o.node.set(func() { o.node.refuse = errors.New("too many open files") })
		o.seeder.Wanted(blob(1))
		o.expect("it cannot be opened")
		o.node.set(func() { o.node.refuse = nil })
		o.seeder.Wanted(blob(1))
		o.expect("now it can", 1)
	})
}

// Run waits for what it has started.
func TestRunWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, _ := start(t, 1)
		release := make(chan struct{})
		o.finder = func() { <-release }
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { o.seeder.Run(ctx, o.node); close(done) }()
		synctest.Wait()
		o.seeder.Wanted(blob(1))
		synctest.Wait()
		cancel()
		synctest.Wait()
		select {
		case <-done:
			t.Error("Run returned while a blob was being looked for")
		default:
		}
		close(release)
		<-done
	})
}
