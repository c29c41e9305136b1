package ringstate

import (
	"fmt"
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
	answer := func() uint64 {
		for id, a := range r.asks { // those that are no Replica do not take this for an answer
			l := n.local(digestOf(kept))
			n.step(&EvAnswered{ID: id, Incarnation: a.inc, Answer: &Replied{CodePinned, true, l.Record}, Local: []Local{l}})
		}
		return r.blobs.get(digestOf(kept)).confirmed
	}
	r.void()
	for r.blobs.placing() {
		n.step(EvTick{})
	}
	if got := answer(); got != 0 {
		t.Errorf("an answer of another epoch confirms %b", got)
	}
	n.push(kept, team, func(bool) {})
	if got := answer(); got == 0 {
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
	w.oracle.lost = append(w.oracle.lost, lostDisk{w.now, n.disk.bytes})
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

func deletedWhileAway(w *world) {
	w.mustPush("a", stored, team)
	w.whole()
	w.store.away = true
	w.mustRemove("a", stored, team)
	w.mustRead("b", stored, no503)
	w.mustPush("c", stored, team)
	w.run(time.Duration(w.rng.Int64N(int64(30 * time.Second))))
	w.store.away = false
	w.whole()
	w.mustRead("b", stored, ok200)
	w.end()
}

func sleepingEraser(w *world) {
	w.mustPush("a", stored, team)
	w.whole()
	w.store.away = true
	w.mustRemove("a", stored, team)
	w.run(2 * time.Second)
	w.store.away = false
	w.until(time.Minute, "the eraser to begin", func() bool {
		e := w.node("a").ring.erases[digestOf(stored)]
		return e == nil || e.busy
	})
	w.node("a").freeze()
	w.mustPush("b", stored, team)
	w.run(5 * time.Minute)
	w.node("a").thaw()
	w.run(time.Minute)
	w.mustRead("c", stored, ok200)
	w.end()
}

func bothLost(w *world) {
	var holders []string
	w.node("a").push(kept, team, func(ok bool) {
		holders = w.pinned(kept)
		for _, name := range holders {
			w.loseDisk(name)
		}
	})
	w.run(30 * time.Second)
	if len(holders) < 2 {
		w.fatalf("acknowledged with copies at %v", holders)
	}
	for range 60 {
		w.run(20 * time.Second)
		for _, n := range w.nodes {
			if n.ring == nil {
				continue
			}
			if ok, _, _ := n.ring.Proof(); ok {
				w.fatalf("%s says that the ring is whole", n.name)
			}
			w.mustRead(n.name, kept, no503)
		}
	}
	for _, n := range w.nodes {
		if n.ring != nil {
			for _, name := range holders {
				w.tell(n.name, name, Forget)
			}
			break
		}
	}
	w.until(10*time.Minute, "a whole ring without them", w.oracle0)
	for _, n := range w.nodes {
		if n.ring != nil {
			w.mustRead(n.name, kept, no404)
		}
	}
}

// oracle0 reports whether some member says that the ring is whole.
func (w *world) oracle0() bool {
	return slices.ContainsFunc(w.nodes, func(n *node) bool {
		if !n.up() {
			return false
		}
		ok, _, _ := n.ring.Proof()
		return ok
	})
}

func dnsDrops(w *world) {
	view := w.node("a").ring.view
	w.mustPush("a", kept, team)
	for _, n := range w.nodes {
		n.step(EvListed{[]string{"a"}})
	}
	w.run(time.Minute)
	for _, n := range w.nodes {
		if n.ring.view != view {
			w.fatalf("%s has another view", n.name)
		}
	}
	w.end()
}

func repeatedPut(w *world) {
	a, b := w.node("a"), w.node("b")
	got := false
	a.push(kept, team, func(ok bool) { got = ok })
	w.run(time.Duration(w.rng.Int64N(int64(40 * time.Millisecond))))
	w.loseDisk("a") // what it has not synced, or all of it
	if got {
		w.oracle.lost = w.oracle.lost[:1]
	}
	w.mustPush("b", kept, team)
	w.loseDisk("b")
	w.oracle.lost = w.oracle.lost[1:] // of the copies that were promised, this is the first
	a.start()
	b.start()
	w.run(time.Minute)
	w.mustRead("c", kept, ok200)
}

func clocks(w *world) {
	w.node("a").skew, w.node("b").skew, w.node("c").skew = 30*time.Minute, 0, -30*time.Minute
	w.mustPush("a", kept, team)
	w.mustRemove("c", kept, team)
	w.run(2 * time.Minute)
	w.mustRead("a", kept, no404)
	w.mustRemove("a", kept, team)
	w.mustPush("c", kept, team)
	w.run(2 * time.Minute)
	w.mustRead("b", kept, ok200)
	// Also when those who push were away while it was deleted.
	w.partition("c")
	w.run(20 * time.Second)
	w.mustRemove("a", kept, team)
	w.partition()
	w.mustPush("c", kept, team)
	w.run(2 * time.Minute)
	w.mustRead("a", kept, ok200)
	w.end()
}

func twoDrains(w *world) {
	for i := range 30 {
		w.mustPush(w.nodes[i%4].name, 3*i, team)
	}
	w.whole()
	w.drainAt("a")
	w.drainAt("b")
	w.drainAt("c")
	w.run(5 * time.Minute)
	for i := range 30 {
		if n := len(w.pinned(3 * i)); n < 2 {
			w.fatalf("blob %d has %d copies", 3*i, n)
		}
	}
	for _, n := range w.nodes {
		w.do(n.name, func(id uint64) Event { return EvDrain{id, false} })
	}
	w.end()
}

func lastOwners(w *world) {
	w.mustPush("a", kept, team)
	if !w.drainAt("a") {
		w.fatalf("the first of three is refused to drain")
	}
	w.run(20 * time.Second)
	if w.drainAt("b") || w.tell("c", "b", Remove) {
		w.fatalf("the second of three may leave, with min_replicas 2")
	}
	w.until(10*time.Minute, "a drained member", func() bool { return w.node("a").ring.me.mode == Drained })
	w.run(5 * time.Second)
	w.node("a").stop()
	w.until(10*time.Minute, "it to be no member any more", func() bool { return !w.node("b").ring.find("a").listed() })
	w.until(10*time.Minute, "two members that are whole", w.oracle0)
	if lost := w.node("b").ring.lost; slices.ContainsFunc(lost, w.node("b").ring.isLost) {
		w.fatalf("it is missed: %v", lost)
	}
	w.mustRead("b", kept, ok200)
	w.node("a").start() // drained as it was
	w.run(time.Minute)
	if a := w.node("b").ring.find("a"); !a.listed() || a.owner() {
		w.fatalf("who has left and is back is to be a member, and no owner")
	}
	w.node("a").stop()
	if w.run(5 * time.Second); !w.tell("b", "a", Remove) {
		w.fatalf("a drained member may not be removed")
	}
	w.node("a").wipe()
	w.node("a").start()
	w.run(time.Minute)
	if w.node("b").ring.find("a").listed() {
		w.fatalf("who was removed is a member again by itself")
	}
	w.tell("b", "a", Readmit)
	w.end()
}

func badPieces(w *world) {
	w.mustPush("a", kept, team)
	w.whole()
	for i, name := range w.pinned(kept)[:2] {
		n := w.node(name)
		n.disk.bytes[digestOf(kept)].bad = []int{3 + 4*i}
		n.step(EvBad{digestOf(kept), []int{3 + 4*i}})
		if ok, _, _ := n.ring.Proof(); ok {
			w.fatalf("whole with bad pieces")
		}
	}
	w.whole()
	for _, name := range w.pinned(kept) {
		if b := w.node(name).disk.bytes[digestOf(kept)]; len(b.bad) > 0 {
			w.fatalf("%s has still bad pieces", name)
		}
	}
	w.end()
}

func frozenThroughDeletion(w *world) {
	w.store.away = true
	w.mustPush("a", stored, team)
	w.run(time.Minute)
	a := w.node("a")
	if w.rng.IntN(2) == 0 {
		a.freeze()
	} else {
		a.stop()
	}
	w.run(15 * time.Second)
	w.mustRemove("b", stored, team)
	w.store.away = false
	if a.frozen {
		a.thaw()
	} else {
		a.start()
	}
	w.readAt("a", stored) // the oracle looks whether it is served, or written
	w.run(time.Minute)
	w.mustRead("a", stored, no404)
	w.end()
}

func coldRead(w *world) {
	w.mustPush("a", stored, team)
	w.whole()
	w.partition("c")
	w.run(15 * time.Second)
	w.mustRemove("a", stored, team)
	w.readAt("c", stored)
	w.run(time.Duration(w.rng.Int64N(int64(time.Minute))))
	w.readAt("c", stored)
	w.partition()
	w.run(30 * time.Second)
	w.mustRead("c", stored, no404)
	w.end()
}

func eightDays(w *world) {
	w.cfg.Probe, w.cfg.Ask, w.cfg.Down, w.cfg.Gone = 5*time.Minute, 10*time.Minute, 30*time.Minute, 24*time.Hour
	w.cfg.Exchange, w.cfg.Calm, w.cfg.Standby, w.cfg.Push = 2*time.Hour, 10*time.Minute, 2*time.Hour, time.Hour
	for _, n := range w.nodes {
		n.stop()
		n.start()
	}
	w.run(2 * time.Hour)
	for i := range 12 {
		w.mustPush("a", i, team)
	}
	w.run(3 * time.Hour)
	for day := range 8 {
		side := []string{"a", "b"}
		if day%2 == 0 {
			side = []string{"a", "b", "c"}
		}
		w.partition(side...)
		w.store.away = day%3 == 0
		w.run(time.Hour)
		for i := range 12 {
			n := w.nodes[(day+i)%4]
			switch i % 4 {
			case 0:
				n.remove(i, team, func(bool) {})
			case 1:
				n.push(i, fmt.Sprint("team/", day%2), func(bool) {})
			}
			n.read(i, func(answer) {})
		}
		w.run(23 * time.Hour)
	}
	w.partition()
	w.store.away = false
	w.until(100*time.Hour, "a ring that is whole", func() bool { return w.settled() && w.oracle.proof() })
	w.run(3 * time.Hour)
	w.oracle.quiet()
}

func emptyNoRestart(w *world) {
	w.mustPush("a", kept, team)
	w.whole()
	holders := w.pinned(kept)
	w.loseDisk(holders[0])
	w.node(holders[0]).start()
	w.node(holders[1]).stop()
	w.mustRead(holders[2], kept, ok200)
	// The third has it as well, as an owner: as if it did not.
	delete(w.node(holders[2]).disk.bytes, digestOf(kept))
	for range 30 {
		for _, name := range []string{holders[0], holders[2]} {
			if got := w.readAt(name, kept); got == no404 {
				w.fatalf("%s says 404", name)
			}
		}
		w.run(time.Second)
	}
}

func brokenLink(w *world) {
	w.cutOff("a", "b", true)
	w.run(5 * time.Minute)
	w.mustPush("a", kept, team)
	w.mustPush("b", stored, team)
	for range 5 {
		if !w.wait("a deletion", func(done func(bool)) {
			w.node("a").remove(kept, team, func(ok bool) {
				w.node("b").read(kept, func(answer) {}) // the oracle looks whether who is up has heard of it, by whatever way
				done(ok)
			})
		}) {
			w.fatalf("a deletion was refused")
		}
		w.mustPush("b", kept, team)
	}
	w.run(time.Minute)
	for _, n := range w.nodes {
		if n.ring.view != w.nodes[0].ring.view {
			w.fatalf("%s has another view", n.name)
		}
		w.mustRead(n.name, kept, ok200)
	}
	w.cutOff("a", "b", false)
	w.end()
}

func editedList(w *world) {
	w.mustPush("a", kept, team)
	e := w.join("e") // its list names the four
	w.node("b").step(EvListed{[]string{"a", "b", "e"}})
	w.run(time.Minute)
	for _, n := range w.nodes {
		if n.ring.view != e.ring.view || len(n.ring.owners) != 5 {
			w.fatalf("%s has another view, of %d owners", n.name, len(n.ring.owners))
		}
	}
	w.end()
}

// join starts a new member, whose list has those of before.
func (w *world) join(name string) *node {
	n := &node{w: w, name: name, store: w.store}
	w.nodes = append(w.nodes, n)
	n.wipe()
	n.start()
	return n
}

// The mirror has fetched the blob, sees it in the backend at once, and unpins it. It is to have it until the primary has asked it
// once more, or no push would ever be confirmed.
func hastyMirror(w *world) {
	w.grace, w.bare = 0, true
	for i := range 12 {
		began := w.now
		w.mustPush(w.nodes[i%3].name, i, team)
		if took := w.now - began; took > 5*time.Second {
			w.fatalf("a push took %v", took)
		}
		w.run(time.Duration(w.rng.Int64N(int64(3 * time.Second))))
	}
	w.end()
}

func notOwners(w *world) {
	for i := range 60 {
		w.mustPush(w.nodes[i%5].name, i, team)
	}
	w.end()
	for i := range 60 {
		if n := len(w.pinned(i)); i%3 == 0 && n != 3 {
			w.fatalf("blob %d has %d copies", i, n)
		}
	}
}

// What a backend has is pinned nowhere, so those who know that a namespace has it may lose
// their disks one after the other while the ring is whole all the time.
func forgottenNamespace(w *world) {
	w.mustPush("a", stored, team)
	w.whole()
	w.loseInTurn()
	w.mustPush("b", stored, "team/b")
	w.whole()
	w.mustRemove("c", stored, "team/b")
	w.whole()
	w.mustRead("a", stored, ok200)
	w.mustPush("b", stored, "team/b")
	w.loseInTurn()
	w.mustRemove("c", stored, team)
	w.whole()
	w.mustRead("a", stored, ok200)
	w.mustRemove("c", stored, "team/b")
	w.end()
}

// loseInTurn has each member lose its disk, one when the ring has healed from the one before.
func (w *world) loseInTurn() {
	for _, n := range w.nodes {
		w.whole()
		w.loseDisk(n.name)
		n.start()
		w.run(20 * time.Second)
		w.whole()
		w.oracle.lost = nil
	}
}

func pushWhileLeaving(w *world) {
	w.drainAt("a")
	w.until(5*time.Minute, "a drained member", func() bool { return w.node("a").ring.me.mode == Drained })
	w.run(5 * time.Second)
	w.node("a").push(kept, team, func(ok bool) {
		others := slices.DeleteFunc(w.pinned(kept), func(name string) bool { return name == "a" })
		if ok && len(others) < 2 {
			w.fatalf("acknowledged with copies at %v and a member that leaves", others)
		}
		w.node("a").stop()
		w.node("a").wipe()
	})
	w.run(30 * time.Second)
	w.mustRead("b", kept, ok200)
}

func slowErasure(w *world) {
	for _, i := range []int{1, 2, 4, 5, 7, 8, 10, 11} {
		w.mustPush("a", i, team)
	}
	w.whole()
	w.stall = 40 * time.Second
	for _, i := range []int{1, 2, 4, 5, 7, 8, 10, 11} {
		w.mustRemove("a", i, team)
		w.run(2 * time.Second)
		w.mustPush(w.nodes[1+i%4].name, i, team)
	}
	w.end()
}

func otherBackend(w *world) {
	w.node("c").store = newBackend()
	for i := range 12 {
		w.mustPush("a", i, team)
	}
	w.run(5 * time.Minute)
	for _, n := range w.nodes {
		for i := range 12 {
			if b := n.disk.bytes[digestOf(i)]; i%3 > 0 && b != nil && !b.pinned && !n.store.objects[string(digestOf(i))] {
				w.fatalf("%s unpinned %d, which its backend has not", n.name, i)
			}
		}
	}
}

func cutOffWriter(w *world) {
	w.store.away = true
	w.mustPush("a", stored, team)
	w.partition("a")
	w.run(15 * time.Second)
	w.mustRemove("b", stored, team)
	w.store.away = false
	w.run(10 * time.Minute) // the oracle looks whether it is written
	w.end()
}

// If half of four could delete, the other half could acknowledge a push after that with a stamp of before.
func halfDeletion(w *world) {
	w.mustPush("a", kept, team)
	w.run(20 * time.Second)
	w.partition("a", "b")
	w.run(20 * time.Second)
	if w.removeAt("a", kept, team) {
		w.fatalf("half of a ring has deleted")
	}
	w.end()
}

func rightBehind(w *world) {
	w.loss, w.slow = 0.2, 3*time.Second
	for i := range 30 {
		w.pushTo("b", kept, team)
		if w.removeAt(w.nodes[i%3].name, kept, team) {
			w.pushTo("b", kept, team)
			w.run(10 * time.Second) // the oracle looks whether somebody unpins it
		}
	}
	w.loss = 0
	w.end()
}

func changingViews(w *world) {
	for i := range 60 {
		w.mustPush(w.nodes[i%5].name, 3*i, team)
	}
	w.whole()
	w.slow = 3 * time.Second
	for i := range 120 {
		n := w.nodes[w.rng.IntN(5)]
		w.do(n.name, func(id uint64) Event { return EvDrain{id, i%3 > 0} })
		w.run(time.Duration(w.rng.Int64N(int64(6 * time.Second)))) // the oracle looks at who unpins
	}
	w.slow = 20 * time.Millisecond
	for _, n := range w.nodes {
		w.do(n.name, func(id uint64) Event { return EvDrain{id, false} })
	}
	w.end()
}

// Who is cut off does not know that a member is back, and has what was pushed since.
func backElsewhere(w *world) {
	w.drainAt("c")
	w.until(5*time.Minute, "a drained member", func() bool { return w.node("c").ring.me.mode == Drained })
	w.run(5 * time.Second)
	w.node("c").stop()
	w.node("c").wipe()
	w.until(10*time.Minute, "it to be no member any more", func() bool { return !w.node("a").ring.find("c").listed() })
	w.partition("a")
	w.node("c").start()
	w.until(time.Minute, "it to be back", func() bool { return w.node("c").ring.me.mode == Up })
	w.mustPush("b", kept, team)
	w.mustRead("a", kept, no503)
	w.run(5 * time.Minute)
	w.mustRead("a", kept, no503)
	w.end()
}

func writtenOnce(w *world) {
	n := 0
	for round, primary := range []string{"", "a"} { // who does not come back for a while
		w.store.away = true
		for i := 60 * round; i < 60*(round+1); i++ {
			if i%3 != 0 {
				n++
				w.mustPush(w.nodes[i%2].name, i, team)
			}
		}
		w.restart()
		if primary != "" {
			w.node(primary).stop()
		}
		w.run(time.Minute)
		w.store.away = false
		w.run(2 * time.Minute)
		w.end()
	}
	if w.store.writes != n {
		w.fatalf("invariant 7: %d blobs were written %d times", n, w.store.writes)
	}
}
