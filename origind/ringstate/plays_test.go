package ringstate

import (
	"fmt"
	"slices"
	"time"
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
			if ok, _ := n.ring.Proof(); ok {
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
	w.run(3 * time.Second) // until all have heard of it
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
		ok, _ := n.ring.Proof()
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
		if ok, _ := n.ring.Proof(); ok {
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

// disksOfSeveral: each member loses the one of its disks that has a blob, and what it keeps of it is on the others. So nobody has it, and
// nobody says that it is nowhere, or that it is pinned; and when one of them has it again, all have.
func disksOfSeveral(w *world) {
	w.mustPush("a", kept, team)
	w.whole()
	d := digestOf(kept)
	for _, n := range w.nodes {
		n.disk.bytes[d].gone = true
	}
	w.mustRead("a", kept, no503) // the rings are not even told yet
	for _, n := range w.nodes {
		q := &Replica{Digest: d, View: n.ring.view, Record: n.disk.recs[d].Record}
		if a, _ := n.ring.pins(q, n.local(d)); a == nil || a.Code == CodePinned {
			w.fatalf("%s says %+v of what it has not", n.name, a)
		}
	}
	for _, n := range w.nodes {
		n.step(EvBad{d, []int{0}})
		if ok, _ := n.ring.Proof(); ok {
			w.fatalf("%s says whole, and has nothing", n.name)
		}
	}
	w.run(time.Minute)
	for _, n := range w.nodes {
		w.mustRead(n.name, kept, no503)
		w.nextID++
		var found ActFound
		n.calls[w.nextID] = func(a Action) { found = a.(ActFound) }
		n.step(&EvLookup{ID: w.nextID, Digest: d, Local: n.local(d), Hop: true})
		if found.Where != Backend || len(found.Missing) == 0 {
			w.fatalf("whom a member sends to %s hears %+v", n.name, found)
		}
	}
	w.node("b").disk.bytes[d].gone, w.node("b").disk.bytes[d].bad = false, nil
	w.node("b").step(EvBad{Digest: d})
	for _, name := range []string{"a", "c"} {
		w.node(name).step(EvBad{d, []int{0}}) // it is tried again
	}
	w.whole()
	for _, n := range w.nodes {
		w.mustRead(n.name, kept, ok200)
		if n.disk.bytes[d].gone {
			w.fatalf("%s has it not", n.name)
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
