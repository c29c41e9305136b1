package ringstate

import (
	"slices"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/origind/record"
)

// receiver is a member that is asked to have blobs, which it takes when a test says so.
type receiver struct {
	*node
	t       *testing.T
	replies map[uint64]Answer // to asks, by their number
	takes   []digest.Digest
	asks    []ActAsk // to have blobs
}

func newReceiver(t *testing.T, cfg Config) *receiver {
	w := newWorld(t, 1, "a b c", cfg).begin()
	w.whole()
	return &receiver{w.node("b"), t, map[uint64]Answer{}, nil, nil}
}

func (r *receiver) step(ev Event) {
	for _, a := range slices.Clone(r.ring.Step(r.instant(), ev)) {
		switch a := a.(type) {
		case ActReply:
			if _, ok := r.replies[a.ID]; ok {
				r.t.Errorf("ask %d is answered twice", a.ID)
			}
			r.replies[a.ID] = a.Answer
		case ActTake:
			r.takes = append(r.takes, a.Digest)
		case ActAsk:
			if _, ok := a.Ask.(*Replica); ok {
				r.asks = append(r.asks, a)
			}
		default:
			r.do(a)
		}
	}
}

// ask has a member ask for blob i.
func (r *receiver) ask(id uint64, from string, i int, q Replica) {
	d := digestOf(i)
	q.Digest, q.View, q.Sources = d, r.ring.view, []string{from}
	q.Record = record.Pushed(d, 1000, placeOf(i), team, from, 1)
	r.step(&EvAsked{From: from, Incarnation: r.w.node(from).disk.inc, ID: id, Ask: &q, Local: []Local{r.local(d)}})
}

// taken has a take of blob i end.
func (r *receiver) taken(i int, ev EvTaken) {
	d := digestOf(i)
	if !ev.Failed {
		r.has(d)
	}
	ev.Digest, ev.Local = d, r.local(d)
	r.step(&ev)
}

// passes lets time pass for this member alone.
func (r *receiver) passes(d time.Duration) {
	r.w.now += d
	r.step(EvTick{})
}

// code is how ask id was answered, -1: not yet, -2: not at all.
func (r *receiver) code(id uint64) int {
	switch a, ok := r.replies[id]; {
	case !ok:
		return -1
	case a == nil:
		return -2
	default:
		return int(a.(*Replied).Code)
	}
}

func (r *receiver) wants(id uint64, want int) {
	r.t.Helper()
	if got := r.code(id); got != want {
		r.t.Errorf("ask %d: got %d, want %d", id, got, want)
	}
}

const waits = -1

// Who is asked to have a blob answers when it is there, and says what is so then.
func TestAnswerWaits(t *testing.T) {
	for _, tt := range []struct {
		name  string
		then  func(r *receiver)
		want  int
		owner bool
	}{
		{"it is taken", func(r *receiver) { r.taken(kept, EvTaken{}) }, int(CodePinned), true},
		{"it cannot be taken", func(r *receiver) { r.taken(kept, EvTaken{Failed: true}) }, int(CodeLater), false},
		{"the disk is full", func(r *receiver) { r.taken(kept, EvTaken{Failed: true, Full: true}) }, int(CodeFull), false},
		{"it is here otherwise, and may go", func(r *receiver) {
			r.has(digestOf(kept))
			r.taken(kept, EvTaken{Failed: true})
		}, int(CodeLater), false},
		{"it was removed", func(r *receiver) {
			e := record.Deletion{Digest: digestOf(kept), Stamp: 9}
			r.step(&EvAsked{From: "c", Incarnation: r.w.node("c").disk.inc, ID: 2, Ask: Deleted{Entry: e}, Local: []Local{r.local(e.Digest)}})
			r.taken(kept, EvTaken{})
		}, int(CodeRemoved), false},
		{"the view is another one", func(r *receiver) {
			r.calls[9] = func(Action) {}
			r.step(EvMember{9, "c", Remove})
			r.taken(kept, EvTaken{})
		}, int(CodePinned), false},
		{"it leaves", func(r *receiver) {
			r.ring.setMode(Draining)
			r.taken(kept, EvTaken{})
		}, int(CodeLater), false},
		{"who asks is none any more", func(r *receiver) {
			r.calls[9] = func(Action) {}
			r.step(EvMember{9, "a", Remove})
			r.taken(kept, EvTaken{})
		}, -2, false},
		{"it takes longer", func(r *receiver) { r.passes(waitFor) }, int(CodeTaking), false},
		{"it takes nearly as long", func(r *receiver) { r.passes(waitFor - time.Millisecond) }, waits, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newReceiver(t, Config{})
			r.ask(1, "a", kept, Replica{})
			r.wants(1, waits)
			if at := r.ring.Deadline(); at > r.w.now+waitFor {
				t.Errorf("it wants to know the time in %v", at-r.w.now)
			}
			tt.then(r)
			r.wants(1, tt.want)
			if a, ok := r.replies[1].(*Replied); ok && (a.Owner != tt.owner || a.Code == CodePinned && a.Record == nil) {
				t.Errorf("it says %+v", a)
			}
			if n := len(r.ring.waiters); tt.want != waits && n != 0 {
				t.Errorf("%d wait", n)
			}
		})
	}
}

// However long it takes, a blob is fetched once for all who ask, and they are told.
func TestAskedAgain(t *testing.T) {
	r := newReceiver(t, Config{})
	r.ask(1, "a", kept, Replica{})
	r.passes(waitFor)
	r.wants(1, int(CodeTaking))
	r.ask(2, "a", kept, Replica{})
	r.ask(3, "c", kept, Replica{Urgent: true})
	r.taken(kept, EvTaken{})
	r.wants(2, int(CodePinned))
	r.wants(3, int(CodePinned))
	if len(r.takes) != 1 {
		t.Errorf("it was taken %d times", len(r.takes))
	}
	r.ring.wait = 0
	r.ask(4, "a", 3, Replica{})
	r.wants(4, int(CodeTaking))
}

// What there are no places for waits for one, but for pushes: others may have some. What is urgent has more of them.
func TestTakesInTurn(t *testing.T) {
	r := newReceiver(t, Config{Parallel: 2})
	for i := range 4 {
		r.ask(uint64(i), "a", 3*i, Replica{})
	}
	r.ask(4, "a", 12, Replica{Urgent: true})
	if want := []digest.Digest{digestOf(0), digestOf(3), digestOf(12)}; !slices.Equal(r.takes, want) {
		t.Fatalf("it takes %v, want %v", r.takes, want)
	}
	r.taken(0, EvTaken{})
	if len(r.takes) != 3 { // with the urgent one there are as many as may be
		t.Errorf("it takes %v", r.takes[3:])
	}
	r.taken(3, EvTaken{Failed: true})
	r.taken(12, EvTaken{})
	if want := []digest.Digest{digestOf(6), digestOf(9)}; !slices.Equal(r.takes[3:], want) {
		t.Errorf("then it takes %v, want %v", r.takes[3:], want)
	}
	for i := range 6 {
		r.ask(uint64(10+i), "c", 3*(10+i), Replica{Put: true})
	}
	r.ask(20, "c", 60, Replica{Put: true})
	r.wants(20, int(CodeLater))
	r.ask(21, "c", 63, Replica{})
	r.ask(22, "c", 66, Replica{Urgent: true})
	r.step(EvFull{true})
	taken := len(r.takes)
	for i := range 6 {
		r.taken(3*(10+i), EvTaken{})
	}
	if len(r.takes) != taken {
		t.Errorf("it takes %v although it is full", r.takes[taken:])
	}
	r.passes(waitFor)
	r.wants(21, int(CodeTaking)) // it is asked again
	for i := range 6 {
		r.ask(uint64(30+i), "c", 3*(30+i), Replica{})
		r.wants(uint64(30+i), int(CodeFull))
	}
}

// A member that was fetching a blob for as long as it may wait is asked again at once, one that does not wait in half a second.
func TestAsksAgain(t *testing.T) {
	r := newReceiver(t, Config{Probe: 100 * time.Millisecond})
	d := digestOf(kept)
	r.w.mustPush("b", kept, team)
	r.w.whole()
	b, c := r.ring.blobs.get(d), r.ring.find("c")
	b.confirmed &^= c.bit()
	r.ring.lacks(d, b, c.bit())
	answer := func() {
		ev := &EvAnswered{ID: r.asks[len(r.asks)-1].ID, Incarnation: c.inc, Answer: &Replied{Code: CodeTaking}}
		r.step(ev)
	}
	r.passes(100 * time.Millisecond)
	for range 5 {
		r.passes(waitFor)
		asked := len(r.asks)
		if answer(); len(r.asks) != asked+1 {
			t.Fatalf("after %d asks there are %d when that is answered", asked, len(r.asks))
		}
	}
	for range 5 {
		asked, began := len(r.asks), r.w.now
		r.passes(10 * time.Millisecond)
		for answer(); len(r.asks) == asked; {
			r.passes(10 * time.Millisecond)
		}
		if took := r.w.now - began; took < 500*time.Millisecond || took > 700*time.Millisecond {
			t.Errorf("it was asked again after %v", took)
		}
	}
}

// However many ask, only so many answers wait.
func TestWaitersAreBounded(t *testing.T) {
	r := newReceiver(t, Config{})
	for i := range uint64(waitersMax) {
		r.ask(i, "a", kept, Replica{})
	}
	r.ask(1000, "a", kept, Replica{})
	r.wants(1000, int(CodeTaking))
	for i := range uint64(4) {
		r.ask(1001+i, "a", 3+3*int(i), Replica{})
	}
	r.wants(1001, int(CodeTaking))
	r.wants(1004, int(CodeLater)) // there is no place
	r.taken(kept, EvTaken{})
	for i := range uint64(waitersMax) {
		r.wants(i, int(CodePinned))
	}
}

// Small blobs go as fast as they are taken: a member that has lost its disk has all of them back in seconds.
func TestManySmallBlobs(t *testing.T) {
	const blobs = 400
	w := newWorld(t, 1, "a b c", Config{}).begin()
	w.whole()
	for i := range blobs {
		w.node("a").push(3*i, team, func(bool) {})
	}
	w.until(5*time.Minute, "a ring that is whole after pushes", func() bool { return w.settled() && w.oracle.proof() })
	w.loseDisk("c")
	c := w.node("c")
	c.start()
	w.until(time.Minute, "the first one", func() bool { return c.ring.Blobs() > 0 })
	w.until(5*time.Second, "all of them", func() bool { return c.ring.Blobs() == blobs })
	w.end()
}

// Members of a release that answers at once get copies, and give them.
func TestOldMembers(t *testing.T) {
	for _, old := range []string{"a b", "c", "a b c"} {
		w := newWorld(t, 1, "a b c", Config{})
		for _, n := range w.nodes {
			n.old = strings.Contains(old, n.name)
		}
		w.begin()
		w.whole()
		for i := range 20 {
			w.mustPush("a", 3*i, team)
		}
		w.until(5*time.Minute, "a ring that is whole after pushes", func() bool { return w.settled() && w.oracle.proof() })
		w.loseDisk("c")
		w.node("c").start()
		w.until(time.Minute, "a ring that is whole after a disk was lost", func() bool { return w.settled() && w.oracle.proof() })
		w.end()
	}
}

// Gives do not take the place of what else is asked, however many are allowed at once.
func TestGivesAreBounded(t *testing.T) {
	for _, tt := range []struct{ min, most int }{{1, givesAtOnce / 2}, {3, givesAtOnce}} {
		w := newWorld(t, 1, "a b c d", Config{Parallel: 1000, Replicas: 4, MinReplicas: tt.min}).begin()
		w.whole()
		for i := range 300 {
			w.node("a").push(3*i, team, func(bool) {})
		}
		w.until(5*time.Minute, "a ring that is whole after pushes", func() bool { return w.settled() && w.oracle.proof() })
		for _, name := range []string{"c", "d"}[:max(tt.min-1, 1)] {
			w.loseDisk(name)
			w.node(name).start()
		}
		w.slow = 2 * time.Second
		most := 0
		for range 3000 {
			w.run(20 * time.Millisecond)
			most = max(most, len(w.node("a").ring.give.active))
		}
		if most != tt.most {
			t.Errorf("min_replicas %d: %d are given at once, want %d", tt.min, most, tt.most)
		}
	}
}

// A mirror that does not answer keeps a push waiting for two seconds: then another one is asked.
func TestFrozenMirror(t *testing.T) {
	w := newWorld(t, 1, "a b c", Config{}).begin()
	w.whole()
	mirror := w.node("a").ring.Mirrors(string(digestOf(kept)), 1, nil)[0]
	w.node(mirror).freeze()
	began := w.now
	w.mustPush("a", kept, team)
	if took := w.now - began; took < 2*time.Second || took > 3500*time.Millisecond {
		t.Errorf("it took %v", took)
	}
}

// One that is fetching what was pushed keeps others from having to.
func TestFetchingMirror(t *testing.T) {
	r := newReceiver(t, Config{})
	d := digestOf(kept)
	r.has(d)
	r.disk.bytes[d].pinned = true
	r.step(&EvPut{ID: 1, Digest: d, Size: 1000, Place: placeOf(kept), Namespace: team, Mirrors: []string{"c"}, Local: r.local(d)})
	for i := range 4 {
		r.passes(waitFor)
		if i > 0 {
			r.passes(waitFor)
		}
		r.asks = slices.DeleteFunc(r.asks, func(a ActAsk) bool { return !a.Ask.(*Replica).Put })
		ev := &EvAnswered{ID: r.asks[len(r.asks)-1].ID, Incarnation: r.ring.find("c").inc, Answer: &Replied{Code: CodeTaking}}
		r.step(ev)
	}
	if other := slices.IndexFunc(r.asks, func(a ActAsk) bool { return a.To != "c" }); other >= 0 || len(r.asks) < 3 {
		t.Errorf("it asks %+v", r.asks)
	}
}

// Who is no other member is not answered, and is told so.
func TestAsksItself(t *testing.T) {
	r := newReceiver(t, Config{})
	r.ask(1, "b", kept, Replica{})
	r.wants(1, -2)
}
