package ringstate

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// Each of these is a history in which an earlier draft lost something, or promised what was
// not so. The oracle looks on; each is played with several seeds, and so with other delays.
func TestHistories(t *testing.T) {
	for _, h := range []struct {
		name    string
		members string
		play    func(w *world)
	}{
		{"written, deleted while the backend is away, pushed again elsewhere", "a b c", deletedWhileAway},
		{"an eraser that sleeps before its deletion", "a b c", sleepingEraser},
		{"both copies lost for good", "a b c d e", bothLost},
		{"DNS drops two of three", "a b c", dnsDrops},
		{"the primary dies, the client repeats its PUT at the mirror", "a b c", repeatedPut},
		{"a deletion by a clock that is ahead, and a push by one that is not", "a b c", clocks},
		{"a clock that is days ahead", "a b c", daysAhead},
		{"a push by such a clock that nobody remembers", "a b c", daysAheadForgotten},
		{"frozen for so long that others would be gone", "a b c", frozenForLong},
		{"two drains at once", "a b c d", twoDrains},
		{"drained down to the last owners", "a b c", lastOwners},
		{"one bad piece each", "a b c", badPieces},
		{"a disk of several at each", "a b c", disksOfSeveral},
		{"frozen while a blob is deleted", "a b c", frozenThroughDeletion},
		{"a cold read where the deletion was missed", "a b c", coldRead},
		{"a partition of eight days", "a b c d", eightDays},
		{"one empty, one says no, one restarts", "a b c", emptyNoRestart},
		{"one broken link", "a b c", brokenLink},
		{"a list edited at one member", "a b c d", editedList},
		{"pushes by members that are no owners", "a=x b=y c=z d=x e=y", notOwners},
		{"namespaces whose holders lose their disks in turn", "a b c", forgottenNamespace},
		{"a push to a member that is about to leave", "a b c d", pushWhileLeaving},
		{"the backend away while all restart", "a b c", writtenOnce},
		{"an erasure that takes its time", "a b c d e", slowErasure},
		{"a backend that is another one at one member", "a b c", otherBackend},
		{"cut off from the ring, and not from the backend", "a b c", cutOffWriter},
		{"pushes right behind deletions", "a b c", rightBehind},
		{"a deletion in half of a ring", "a b c d", halfDeletion},
		{"views that change while answers are on their way", "a b c d e", changingViews},
		{"who had left comes back while another is cut off", "a b c", backElsewhere},
		{"who joins when all logs are trimmed", "a b c", trimmedLogs},
		{"away for longer than logs are kept", "a b c", awayForLong},
		{"an eraser that loses its disk", "a b c", eraserLost},
		{"erasers that restart before they could", "a b c", erasersRestart},
		{"an erasure that its eraser does not survive", "a b c", orphanErasure},
		{"holders that have just started", "a b c d e", startingHolders},
		{"a removal that nobody else has heard of", "a b c", lonelyEraser},
		{"a mirror that fetches, and keeps nothing that is not pinned", "a b c", hastyMirror},
		{"one copy's member is forgotten, and the other one's does not answer", "a b c d e", forgottenHalf},
		{"a disk is taken away as soon as somebody says that the ring is whole", "a b c d e", lostWhenWhole},
		{"one of two that are gone is forgotten", "a b c d", goneAndForgotten},
		{"two that were taken out are told of each other that they may be back", "a b c d", readmittedElsewhere},
		{"pushes and deletions where a member was taken out", "a b c d", takenOut},
	} {
		t.Run(h.name, func(t *testing.T) {
			n := uint64(1)
			if *seeds > 0 {
				n = 10
			}
			for seed := range n {
				w := newWorld(t, seed, h.members, Config{Standby: time.Minute, Exchange: time.Minute, Gone: 3 * time.Minute})
				if *trace {
					w.trace = &strings.Builder{}
				}
				w.begin()
				w.whole()
				h.play(w)
			}
		})
	}
}

// What was asked before the view changed, and changed back, confirms nothing.
func TestOldAnswer(t *testing.T) {
	w := newWorld(t, 1, "a b c d", Config{}).begin()
	w.whole()
	w.slow = time.Second
	n := w.node("a")
	n.push(kept, team, func(bool) {})
	r := n.ring
	answer := func(owner bool) uint64 {
		for id, a := range r.asks { // those that are no Replica do not take this for an answer
			l := n.local(digestOf(kept))
			n.step(&EvAnswered{ID: id, Incarnation: a.inc, Answer: &Replied{CodePinned, owner, l.Record}, Local: []Local{l}})
		}
		return r.blobs.get(digestOf(kept)).confirmed
	}
	r.void()
	for r.blobs.placing() {
		n.step(EvTick{})
	}
	if got := answer(true); got != 0 {
		t.Errorf("an answer of another epoch confirms %b", got)
	}
	n.push(kept, team, func(bool) {})
	if got := answer(false); got != 0 {
		t.Errorf("an answer of who is no owner in its own view confirms %b", got)
	}
	n.push(kept, team, func(bool) {})
	if got := answer(true); got == 0 {
		t.Error("an answer of this one confirms nothing")
	}
}

// Who was given copies learns soon that the others have them, too, whenever the next exchange may be.
func TestComparesSoon(t *testing.T) {
	w := newWorld(t, 1, "a b c", Config{Exchange: 10 * time.Hour}).begin()
	w.whole()
	for i := range 20 {
		w.mustPush("a", 3*i, team) // no backend has them
	}
	w.until(time.Minute, "a ring that is whole after pushes", func() bool { return w.settled() && w.oracle.proof() })
	w.loseDisk("c")
	w.node("c").start()
	w.until(2*time.Minute, "a ring that is whole after a disk was lost", func() bool { return w.settled() && w.oracle.proof() })
	w.end()
}

// Another machine has the name of a member for a while, so that others take that member's disk for lost. When it has gone, all compare
// again soon, the member too, for which nothing has changed.
func TestNameTwice(t *testing.T) {
	for _, restarts := range []bool{false, true} {
		w := newWorld(t, 1, "a b c", Config{Exchange: 10 * time.Hour}).begin()
		w.whole()
		for i := range 20 {
			w.mustPush("a", 3*i, team) // no backend has them
		}
		w.until(time.Minute, "a ring that is whole after pushes", func() bool { return w.settled() && w.oracle.proof() })
		b := w.node("b")
		inc := b.disk.inc
		b.disk.inc++ // is what others hear from
		w.run(16 * time.Second)
		b.disk.inc = inc
		if restarts {
			b.stop()
			b.start()
		}
		w.until(2*time.Minute, "a ring that is whole when the other machine is gone", w.oracle.proof)
		w.end()
	}
}

// Who took a push dies before it has given the blob to its owners. Only those who got it as it was pushed know of it, and soon compare,
// although they have long had something that they cannot give to anybody.
func TestPusherDies(t *testing.T) {
	for i := range 30 {
		w := newWorld(t, uint64(i), "a b c d e", Config{Exchange: time.Hour}).begin()
		w.whole()
		w.mustPush("a", 300, team)
		w.node("e").stop()
		w.run(14 * time.Minute) // before e is gone
		name := w.nodes[i%4].name
		w.mustPush(name, 3*i, team)
		w.node(name).stop()
		w.run(15 * time.Second)
		if got := w.pinned(3 * i); len(slices.DeleteFunc(got, func(n string) bool { return n == name })) < 2 {
			t.Errorf("blob %d, pushed at %s, is pinned at %v only", 3*i, name, got)
		}
	}
}

// A ring of one is an origin as it was before.
func TestAlone(t *testing.T) {
	w := newWorld(t, 1, "a", Config{MinReplicas: 1, Replicas: 1}).begin()
	w.run(time.Minute)
	w.mustPush("a", kept, team)
	w.mustPush("a", stored, team)
	w.whole()
	w.mustRead("a", stored, ok200)
	w.node("a").stop()
	w.node("a").start()
	w.whole()
	w.mustRemove("a", kept, team)
	w.mustRemove("a", stored, team)
	w.mustRead("a", kept, no404)
	w.end()
}

// whole waits until the ring is proved to be whole, and everything is where it should be.
func (w *world) whole() {
	w.t.Helper()
	w.run(15 * time.Second) // until all have heard of what was just done
	w.until(20*time.Minute, "a ring that is whole", func() bool { return w.settled() && w.oracle.proof() })
}

func (w *world) wait(what string, start func(done func(bool))) bool {
	w.t.Helper()
	over, ok := false, false
	start(func(r bool) { over, ok = true, r })
	w.until(2*w.cfg.Push+2*time.Minute, what, func() bool { return over })
	return ok
}

func (w *world) pushTo(name string, i int, ns string) bool {
	w.t.Helper()
	return w.wait("a push", func(done func(bool)) { w.node(name).push(i, ns, done) })
}

func (w *world) removeAt(name string, i int, ns string) bool {
	w.t.Helper()
	return w.wait("a deletion", func(done func(bool)) { w.node(name).remove(i, ns, done) })
}

func (w *world) readAt(name string, i int) (got answer) {
	w.t.Helper()
	w.wait("a read", func(done func(bool)) { w.node(name).read(i, func(a answer) { got = a; done(true) }) })
	return got
}

// mustPush fails the test if the push is not acknowledged.
func (w *world) mustPush(name string, i int, ns string) {
	w.t.Helper()
	if !w.pushTo(name, i, ns) {
		w.fatalf("the push at %s was refused", name)
	}
}

func (w *world) mustRemove(name string, i int, ns string) {
	w.t.Helper()
	if !w.removeAt(name, i, ns) {
		w.fatalf("the deletion at %s was refused", name)
	}
}

func (w *world) mustRead(name string, i int, want answer) {
	w.t.Helper()
	if got := w.readAt(name, i); got != want {
		w.fatalf("reading at %s: got %d, want %d", name, got, want)
	}
}

// do has an operator do something at a member.
func (w *world) do(name string, ev func(id uint64) Event) (done ActDone) {
	w.nextID++
	n := w.node(name)
	n.calls[w.nextID] = func(a Action) { done = a.(ActDone) }
	n.step(ev(w.nextID))
	return done
}

func (w *world) drainAt(name string) bool {
	return w.do(name, func(id uint64) Event { return EvDrain{id, true} }).OK
}

func (w *world) tell(at, name string, do MemberDo) bool {
	return w.do(at, func(id uint64) Event { return EvMember{id, name, do} }).OK
}

// loseDisk stops a member, and has it lose its disk.
func (w *world) loseDisk(name string) {
	n := w.node(name)
	if n.ring != nil {
		n.stop()
	}
	w.oracle.lost = append(w.oracle.lost, lostDisk{at: w.now, bytes: n.disk.bytes})
	n.wipe()
}

func (w *world) pinned(i int) (names []string) {
	for _, n := range w.nodes {
		if b := n.disk.bytes[digestOf(i)]; b != nil && b.pinned {
			names = append(names, n.name)
		}
	}
	return names
}

// end ends a history: it heals, and everything is to be right.
func (w *world) end() {
	w.t.Helper()
	w.partition()
	w.store.away = false
	for _, n := range w.nodes {
		if n.frozen {
			n.thaw()
		}
		if n.ring == nil {
			n.start()
		}
	}
	w.whole()
	w.run(3 * time.Minute)
	w.whole()
	w.oracle.quiet()
}

const (
	kept   = 0 // a blob that no backend has
	stored = 1 // one that a backend gets
	team   = "team/a"
)
