package ringstate

import (
	"time"

	digest "github.com/opencontainers/go-digest"
)

// Of two copies one is on a disk that was forgotten, and the other one's member does not answer. It is not nowhere: nothing was lost but
// one disk, and who has the other copy will be back.
func forgottenHalf(w *world) {
	var holders []string
	w.node("a").push(kept, team, func(ok bool) {
		if holders = w.pinned(kept); ok && len(holders) == 2 {
			w.partition(holders...)
			w.loseDisk(holders[1])
			w.cut[[2]string{holders[0], holders[1]}] = true
		}
	})
	w.run(30 * time.Second)
	if len(holders) != 2 {
		w.end() // with other delays three have it
		return
	}
	for _, n := range w.nodes {
		if n.ring != nil && n.name != holders[0] {
			w.tell(n.name, holders[1], Forget)
			w.mustRead(n.name, kept, no503)
			break
		}
	}
	for range 20 {
		w.run(time.Second)
		for _, n := range w.nodes {
			if n.ring != nil && n.name != holders[0] {
				w.mustRead(n.name, kept, no503)
			}
		}
	}
	w.partition()
	w.run(10 * time.Second)
	for _, n := range w.nodes {
		if n.ring != nil {
			w.mustRead(n.name, kept, ok200)
		}
	}
	w.until(10*time.Minute, "a whole ring without the one that was forgotten", w.oracle0)
}

// Nobody confirms anything to a member that was taken out. Clients hear so at once, and not when they have waited for as long as there is.
func takenOut(w *world) {
	w.mustPush("d", kept, team)
	w.whole()
	w.node("d").has(digestOf(kept)) // cached, if it is no owner
	d := w.node("d")
	w.cutOff("d", "b", true)
	w.cutOff("d", "c", true)
	w.run(w.cfg.Down)
	if !w.tell("a", "d", Remove) {
		w.fatalf("one of four may not be taken out")
	}
	began, ended := w.now, time.Duration(-1)
	d.push(stored, team, func(ok bool) {
		if ok {
			w.fatalf("acknowledged by nobody")
		}
		ended = w.now
	})
	if d.ring.me.listed() {
		w.until(10*time.Second, "d to hear of it", func() bool { return !d.ring.me.listed() })
	}
	w.run(2 * w.cfg.Probe)
	if ended < 0 {
		w.fatalf("a push that nobody will confirm is still waited for, %v after that", w.now-began)
	}
	for _, f := range []func(done func(bool)){
		func(done func(bool)) { d.push(stored, team, done) }, func(done func(bool)) { d.remove(kept, team, done) },
	} {
		at := w.now
		if w.wait("an answer", f) {
			w.fatalf("a member that was taken out acknowledges something")
		}
		if took := w.now - at; took > time.Second {
			w.fatalf("it took %v to say so", took)
		}
	}
	if got := w.readAt("d", kept); got != ok200 {
		w.fatalf("it does not find what others have: %d", got)
	}
	// Of what it has it is not asked any more; and who is sent there by somebody who does not know that yet does not hear 404.
	if !d.local(digestOf(kept)).Have {
		w.fatalf("it has nothing")
	}
	var found ActFound
	w.nextID++
	d.calls[w.nextID] = func(a Action) { found = a.(ActFound) }
	d.step(&EvLookup{ID: w.nextID, Digest: digestOf(kept), Local: d.local(digestOf(kept)), Hop: true})
	if found.Where != Unavailable {
		w.fatalf("who is sent to it hears %+v", found)
	}
	w.nextID++
	d.calls[w.nextID] = func(a Action) {
		if h := a.(ActReply).Answer.(Has); h.Yes || !h.Unsure {
			w.fatalf("it says that it has it: %+v", h)
		}
	}
	d.step(&EvAsked{
		From: "a", Incarnation: w.node("a").disk.inc, ID: w.nextID, Ask: Have{digestOf(kept)},
		Local: d.locals([]digest.Digest{digestOf(kept)}),
	})
	w.partition()
	w.tell("a", "d", Readmit)
	w.mustPush("b", stored, team)
	w.end()
}

// Whoever hears that the ring is whole takes the next disk away, of the member that said so or of another one: one disk is lost since
// then, and time heals that, without an operator.
func lostWhenWhole(w *world) {
	w.mustPush("a", kept, team)
	w.whole()
	somebody := func(what string, is func(n *node) bool) (found *node) {
		for end := w.now + 5*time.Minute; ; w.run(20 * time.Millisecond) {
			for _, n := range w.nodes {
				if is(n) {
					return n
				}
			}
			if w.now > end {
				w.until(0, what, func() bool { return false })
			}
		}
	}
	for i := range 6 {
		n := somebody("a ring that is whole", func(n *node) bool { ok, _ := n.ring.Proof(); return ok })
		if i%2 == 0 {
			n = w.nodes[w.rng.IntN(5)]
		}
		w.loseDisk(n.name)
		w.oracle.lost = w.oracle.lost[len(w.oracle.lost)-1:]
		n.start()
		somebody("a member that has heard of the loss", func(o *node) bool { return o != n && len(o.ring.lost) > 0 })
		w.run(2 * time.Second) // until all have
	}
	w.end()
}

// Half of the ring is cut off for so long that it is gone, and takes pushes. One of it is forgotten; what the other one has is not nowhere.
func goneAndForgotten(w *world) {
	w.whole()
	w.partition("b", "d")
	w.run(w.cfg.Gone + time.Minute)
	w.mustPush("d", kept, team)
	if !w.tell("c", "b", Forget) {
		w.fatalf("one that is gone may not be forgotten")
	}
	for range 60 {
		w.run(time.Second)
		for _, name := range []string{"a", "c"} {
			if ok, _ := w.node(name).ring.Proof(); ok {
				w.fatalf("%s says that the ring is whole", name)
			}
			w.mustRead(name, kept, no503)
		}
	}
	w.partition()
	w.run(20 * time.Second)
	w.mustRead("a", kept, ok200)
	w.tell("a", "b", Readmit)
	w.end()
}

// Whoever was taken out is told that others may be members again. All hear of that: there are not two rings that know half of each other.
func readmittedElsewhere(w *world) {
	for _, out := range []string{"c", "d"} {
		w.whole()
		if !w.tell("a", out, Remove) {
			w.fatalf("%s may not be taken out", out)
		}
	}
	w.run(5 * time.Second)
	w.tell("c", "d", Readmit)
	w.tell("d", "c", Readmit)
	w.run(10 * time.Second)
	for _, n := range w.nodes {
		if n.ring.view != w.node("a").ring.view || n.ring.size() != 4 {
			w.fatalf("%s sees %d members, and not what a sees", n.name, n.ring.size())
		}
	}
	w.mustPush("c", kept, team)
	w.end()
}
