package ringstate

import (
	"slices"
	"time"
)

// Histories of removals, and of what is not known of them.

// A page of a log that has no entry any more says where to go on, or nobody new would ever have read it.
func trimmedLogs(w *world) {
	w.keepLogs(time.Minute)
	w.mustPush("a", kept, team)
	w.mustRemove("b", kept, team)
	w.until(10*time.Minute, "empty logs", func() bool {
		return !slices.ContainsFunc(w.nodes, func(n *node) bool { return n.disk.first == 1 || len(n.disk.log) > 0 })
	})
	d := w.join("d")
	w.until(time.Minute, "it to be a member", func() bool { return d.ring.me.mode == Up })
	w.end()
}

// keepLogs has entries of deletion logs be kept for so long only.
func (w *world) keepLogs(d time.Duration) {
	w.cfg.LogKeep = d
	w.restart()
	w.whole()
}

// restart has all members restart at once.
func (w *world) restart() {
	for _, n := range w.nodes {
		n.stop()
	}
	for _, n := range w.nodes {
		n.start()
	}
}

// What a member has not read is kept for it.
func awayForLong(w *world) {
	w.keepLogs(time.Minute)
	w.mustPush("a", kept, team)
	w.mustPush("a", 3, team)
	w.mustRemove("a", 3, team)
	w.run(20 * time.Second)
	w.node("c").stop()
	w.run(20 * time.Second)
	w.mustRemove("a", kept, team)
	w.run(10 * time.Minute)
	w.node("c").start()
	w.run(20 * time.Second)
	w.mustRead("c", kept, no404)
	w.end()
}

// As many erase as lose their disks, and one more.
func eraserLost(w *world) {
	w.mustPush("a", stored, team)
	w.whole()
	w.store.away = true
	w.mustRemove("a", stored, team)
	w.loseDisk("a")
	w.node("a").start()
	w.run(20 * time.Second)
	w.end()
}

func erasersRestart(w *world) {
	w.mustPush("a", stored, team)
	w.whole()
	w.store.away = true
	w.mustRemove("a", stored, team)
	w.restart()
	w.run(20 * time.Second)
	w.end()
}

// The requests of who was killed may still be on their way, and nobody may count on what they may take away.
func orphanErasure(w *world) {
	blobs := []int{1, 2, 4, 5, 7, 8, 10, 11}
	for _, i := range blobs {
		w.mustPush("a", i, team)
	}
	w.whole()
	w.stall = 30 * time.Second
	for _, i := range blobs {
		w.mustRemove("a", i, team)
	}
	w.run(45 * time.Second) // the removals lie beside the objects, which are about to be deleted
	w.stall = 0
	w.restart()
	w.run(3 * time.Second)
	for _, i := range blobs {
		w.mustPush("b", i, team)
	}
	w.run(time.Minute) // the oracle looks at what is erased
	w.end()
}

// Who does not know yet what was deleted does not say no.
func startingHolders(w *world) {
	w.mustPush("a", kept, team)
	w.whole()
	holders := w.pinned(kept)
	for range 10 {
		for _, name := range holders {
			w.node(name).stop()
			w.node(name).start()
		}
		for range 10 {
			for _, n := range w.nodes {
				n.read(kept, func(answer) {}) // the oracle looks
			}
			w.run(5 * time.Millisecond)
		}
		w.run(10 * time.Second)
	}
	w.end()
}

// Clocks do not follow one that is so wrong, but what is done to a blob has a stamp above all that is known of it.
func daysAhead(w *world) {
	w.node("a").skew = 100 * time.Hour
	for _, i := range []int{kept, stored} {
		w.mustPush("a", i, team)
		w.run(10 * time.Second)
		w.mustRemove("b", i, team)
		w.run(10 * time.Second) // until it is erased
		w.mustRead("a", i, no404)
		w.mustPush("c", i, team)
		w.mustRead("a", i, ok200)
		w.mustRemove("a", i, team)
		w.mustPush("b", i, team)
	}
	w.end()
}

// A push to another namespace sees the object and the record beside it, and does not know that it is about to be erased.
func lonelyEraser(w *world) {
	w.mustPush("a", stored, team)
	w.whole()
	w.stall = 20 * time.Second
	w.node("a").remove(stored, team, func(bool) {})
	w.partition("a")
	w.run(25 * time.Second)
	w.mustPush("b", stored, "team/b")
	w.run(time.Minute) // the oracle looks at what is erased
	w.stall = 0
	w.end()
}

// The push is known beside the object only, and its stamp is later than those that anybody makes by now.
func daysAheadForgotten(w *world) {
	w.node("a").skew = 100 * time.Hour
	w.mustPush("a", stored, team)
	w.whole()
	w.node("a").skew = 0
	w.loseInTurn()
	w.mustRemove("b", stored, team)
	w.run(20 * time.Second)
	w.mustRead("c", stored, no404)
	w.end()
}

// Who was frozen has heard nobody, which says nothing of them.
func frozenForLong(w *world) {
	w.mustPush("a", kept, team)
	w.whole()
	w.node("a").freeze()
	w.run(5 * time.Minute)
	w.node("a").thaw()
	w.run(2 * time.Second)
	for _, n := range w.nodes {
		for _, l := range n.ring.lost {
			if l.Name != "a" {
				w.fatalf("%s misses %s, which was there all the time", n.name, l.Name)
			}
		}
	}
	w.end()
}
