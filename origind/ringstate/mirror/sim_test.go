package mirror

import (
	"bytes"
	"flag"
	"testing"
	"time"
)

var (
	seeds   = flag.Int("mirror.seeds", 100, "how many seeds of chaos are run")
	first   = flag.Uint64("mirror.seed", 0, "the first of them")
	verbose = flag.Bool("mirror.story", false, "tell what machines did before a failure")
)

func (w *world) finished() bool {
	for _, c := range w.clients {
		if !c.done {
			return false
		}
	}
	return true
}

// finish waits for all clients, and then for a day and an hour, after which nothing is left.
func (w *world) finish() {
	w.t.Helper()
	if !w.run(20*time.Minute, w.finished) {
		for _, c := range w.clients {
			if !c.done {
				w.fail("the push of %s to %s hangs", c.d, c.id)
			}
		}
	}
	for _, c := range w.clients {
		if w.serves(c) == 0 && !c.giveUp && !w.lostDisks() {
			w.fail("nobody serves %s", c.d)
		}
	}
	w.run(26*time.Hour, func() bool { return false })
	for _, n := range w.nodes {
		if len(n.ups)+len(n.files) > 0 {
			w.fail("%s keeps %d uploads and %d files", n.Name, len(n.ups), len(n.files))
		}
	}
}

func (w *world) lostDisks() bool {
	lost := 0
	for _, n := range w.nodes {
		if !n.wiped.IsZero() {
			lost++
		}
	}
	return lost >= w.min
}

// serves counts the members that have a client's blob.
func (w *world) serves(c *client) (n int) {
	for _, o := range w.nodes {
		if b, ok := o.blobs[c.d]; ok && bytes.Equal(b, c.content) {
			n++
		}
	}
	return n
}

// TestChaos pushes under faults of all kinds; the invariants are checked in the world.
func TestChaos(t *testing.T) {
	for seed := *first; seed < *first+uint64(*seeds); seed++ {
		one := chaos(t, seed)
		if seed%16 == 0 && one != chaos(t, seed) {
			t.Fatalf("seed %d: two runs differ", seed)
		}
	}
}

func chaos(t *testing.T, seed uint64) uint64 {
	w := newWorld(t, seed, 2+int(seed%4), 2+int(seed/4%2))
	w.min = min(w.min, len(w.nodes))
	r := w.rng
	w.loss = []float64{0, 0.0005, 0.004}[r.IntN(3)]
	w.broken = []float64{0, 0.1}[r.IntN(2)]
	w.chance, w.crashes = []float64{0, 0.002, 0.01}[r.IntN(3)], 1+r.IntN(4)
	w.reset = r.IntN(3) > 0
	if r.IntN(3) == 0 {
		w.slow[w.nodes[r.IntN(len(w.nodes))].Name] = w.between(10, 200)
	}
	for range 1 + r.IntN(3) {
		c := w.push(1+r.IntN(90), w.nodes[r.IntN(len(w.nodes))])
		c.hint = r.IntN(2) == 0
		c.chunk = 1 + r.IntN(len(c.content))
		c.pause = w.between(0, []int{1, 10, 3000}[r.IntN(3)])
		c.giveUp = r.IntN(8) == 0
		c.fickle = []float64{0, 0.1, 0.5}[r.IntN(3)]
		if r.IntN(4) == 0 && !c.giveUp {
			c.twin = &client{w: w, content: c.content, d: c.d, chunk: c.chunk, anew: 1}
			w.clients = append(w.clients, c.twin)
		}
	}
	for range r.IntN(6) {
		w.fault()
	}
	w.after(2*time.Minute, func() { w.loss, w.broken, w.chance = 0, 0, 0 })
	w.finish()
	return w.trace
}

// fault has something go wrong soon.
func (w *world) fault() {
	n, o := w.nodes[w.rng.IntN(len(w.nodes))], w.nodes[w.rng.IntN(len(w.nodes))]
	kind, d := w.rng.IntN(7), w.between(100, 40000)
	w.after(w.between(0, 5000), func() {
		switch kind {
		case 0:
			n.power(d)
		case 1:
			if d < 10*time.Second {
				n.wipe(d)
			}
		case 2, 3:
			w.note("%s freezes for %v", n.Name, d)
			n.thaw = w.now.Add(d)
		case 4:
			n.do(n.makeRoom)
		default:
			w.note("no link %v for %v", link(n, o), d)
			w.cut[link(n, o)] = true
			w.after(d, func() { delete(w.cut, link(n, o)) })
		}
	})
}

// makeRoom has all go that is idle, however short a time.
func (n *node) makeRoom() {
	for _, l := range n.locals() {
		if _, ok := l.u.Idle(); ok {
			n.step(l, EvMakeRoom{})
		}
	}
}

// What makes room at its leader goes from its mirrors at once. The leader may have restarted: then they find out.
func TestMakesRoom(t *testing.T) {
	for seed := range uint64(20) {
		w := newWorld(t, seed, 3, 2)
		c := w.push(20, w.nodes[0])
		c.chunk, c.pause = 10, 24*time.Hour // it does not come back
		at := func() (n int) {
			for _, o := range w.nodes {
				n += len(o.files)
			}
			return n
		}
		if !w.run(time.Minute, func() bool { return at() == 2 && c.high == 10 }) {
			w.fail("the upload is at %d members", at())
		}
		w.run(time.Minute, func() bool { return false })
		within := time.Second
		if seed%2 == 1 {
			w.nodes[0].crash(time.Second)
			w.run(20*time.Second, func() bool { return false })
			within = idle + time.Minute
		}
		w.nodes[0].makeRoom()
		done := w.run(within, func() bool {
			for _, o := range w.nodes[1:] {
				if seed%2 == 1 {
					o.makeRoom()
				}
			}
			return at() == 0
		})
		if !done {
			w.fail("the upload is still at %d members", at())
		}
	}
}

// Without a fault nothing is sent twice, and there are as many copies as are wanted.
func TestCalm(t *testing.T) {
	for seed := *first; seed < *first+uint64(*seeds); seed++ {
		w := newWorld(t, seed, 3+int(seed%3), 1+int(seed%3))
		w.calm = true
		c := w.push(1+w.rng.IntN(100), w.nodes[0])
		c.hint = w.rng.IntN(2) == 0
		c.chunk = 1 + w.rng.IntN(len(c.content))
		w.finish()
		if c.resent != 0 || c.anew != 1 {
			w.fail("%d uploads, %d bytes sent again", c.anew, c.resent)
		}
		if n := w.serves(c); n != w.min {
			w.fail("%d copies", n)
		}
		if most := (w.min - 1) * (2 + len(c.content)); w.asked > most {
			w.fail("%d requests to mirrors, not %d at most", w.asked, most)
		}
	}
}

// A client's bytes do not wait for mirrors that stand still, and its commit waits for others.
func TestSlowMirror(t *testing.T) {
	w := newWorld(t, 1, 5, 3)
	c := w.push(100, w.nodes[0])
	w.after(30*time.Millisecond, func() {
		for _, n := range w.nodes[1:3] {
			n.thaw = w.now.Add(time.Minute)
		}
	})
	w.finish()
	if took := c.end.Sub(time.Unix(1e9, 0)); took > time.Second {
		w.fail("the bytes took %v", took)
	}
	if took := c.answered.Sub(c.end); took > 3*stall {
		w.fail("the commit took %v", took)
	}
}

// The mirror has committed, and the leader dies before its own copy is synced. The client
// repeats PUT, at the mirror: one copy is not enough.
func TestRepeatedAtMirror(t *testing.T) {
	for seed := range uint64(10) {
		w := newWorld(t, seed, 3, 2)
		c := w.push(20, w.nodes[0])
		w.slowSync = map[string]time.Duration{"a": 500 * time.Millisecond}
		mirrored := func() bool { return w.serves(c) == 1 }
		if !w.run(time.Minute, mirrored) || w.nodes[0].blobs[c.d] != nil {
			w.fail("the mirror was to be first")
		}
		w.nodes[0].power(5 * time.Second)
		w.finish()
		if n := w.serves(c); n < 2 || c.anew > 1 {
			w.fail("%d copies, %d uploads", n, c.anew)
		}
	}
}

// What is sent again after the primary died is what was under way, and what no mirror had.
func TestPrimaryDies(t *testing.T) {
	for seed := *first; seed < *first+uint64(*seeds); seed++ {
		w := newWorld(t, seed, 4+int(seed%2), 2+int(seed%2))
		w.calm = true
		c := w.push(100, w.nodes[0])
		c.chunk = 1 + w.rng.IntN(100)
		wipe, atAll := w.rng.IntN(2) == 0, w.between(0, 1500)
		lag := 0
		w.after(atAll, func() {
			if c.id == "" || c.done {
				return
			}
			lead := w.nodes[0].ups[c.id]
			for _, n := range w.nodes[1:] {
				if l := n.ups[c.id]; l != nil {
					lag = max(lag, len(w.nodes[0].bytes(lead))-len(n.bytes(l)))
				}
			}
			if wipe {
				w.nodes[0].wipe(time.Hour)
			} else {
				w.nodes[0].crash(time.Hour)
			}
		})
		w.finish()
		if c.resent > window+lag {
			w.fail("%d bytes are sent again; %d can be under way, and a mirror lacked %d", c.resent, window, lag)
		}
		if c.anew > 1 && atAll > 100*time.Millisecond {
			w.fail("the upload began anew")
		}
	}
}
