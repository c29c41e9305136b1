package ringstate

import (
	"flag"
	"fmt"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

var (
	seeds = flag.Int("ring.seeds", 0, "how many seeds of an hour TestChaos runs (make ring-sim)")
	from  = flag.Uint64("ring.from", 0, "the first of them")
	trace = flag.Bool("ring.trace", false, "print what happened before a failure")
)

// chaos is one seed: clients and faults for a time, then quiet.
type chaos struct {
	*world
	blobs  int
	faults time.Duration // until then there are some
	wiped  time.Duration // when a disk was last lost
}

func runChaos(t testing.TB, seed uint64, length time.Duration, blobs int) *world {
	cfg := Config{Members: nil, LogKeep: 20 * time.Minute, Gone: 3 * time.Minute, Exchange: 2 * time.Minute, Standby: time.Minute}
	zones := []string{"a b c", "a=x b=x c=y d=y", "a=x b=y c=z d=x e=y", "a b c d e"}
	w := newWorld(t, seed, zones[seed%4], cfg)
	if *trace {
		w.trace = &strings.Builder{}
	}
	c := &chaos{world: w, blobs: blobs, faults: length}
	// What is kept for LogKeep needs clocks that are not wrong by more.
	wrong := 5 * time.Minute
	if w.rng.IntN(2) == 0 {
		wrong, w.cfg.LogKeep = 100*time.Hour, 7*24*time.Hour
	}
	w.wrong = wrong
	for _, n := range w.nodes {
		n.old = w.rng.IntN(5) == 0
		if w.rng.IntN(3) == 0 {
			n.skew = time.Duration(w.rng.Int64N(int64(2*wrong))) - wrong
		} else {
			n.skew = time.Duration(w.rng.Int64N(int64(4*time.Second))) - 2*time.Second
		}
	}
	w.begin()
	w.crashes = 20_000
	w.loss = float64(w.rng.IntN(4)) / 100
	c.clients()
	c.break1()
	c.watch()
	w.run(length)
	c.heal()
	w.after(10*time.Minute, c.forget)
	w.until(30*time.Minute, "a ring that is whole", func() bool { return w.settled() && w.oracle.proof() })
	w.run(5*time.Minute + 2*cfg.Exchange)
	w.until(30*time.Minute, "a ring that is whole again", func() bool { return w.settled() && w.oracle.proof() })
	w.oracle.quiet()
	if *trace {
		t.Log("\n" + w.trace.String())
	}
	return w
}

// settled reports whether nothing is to be done for any backend.
func (w *world) settled() bool {
	for _, n := range w.nodes {
		if n.up() && (len(n.ring.erases) > 0 || len(n.ring.works) > 0 || n.ring.busy > 0 || n.ring.starting) {
			return false
		}
	}
	return true
}

func (c *chaos) pick() *node { return c.nodes[c.rng.IntN(len(c.nodes))] }

// clients push, push again, delete and read.
func (c *chaos) clients() {
	if c.now >= c.faults {
		return
	}
	i, ns := c.rng.IntN(c.blobs), fmt.Sprintf("team/%d", c.rng.IntN(2))
	n := c.pick()
	switch k := c.rng.IntN(20); {
	case k < 8:
		tries := 1 + c.rng.IntN(3)
		var again func(n *node)
		again = func(n *node) {
			n.push(i, ns, func(ok bool) {
				if tries--; !ok && tries > 0 {
					c.after(time.Second, func() { again(c.pick()) })
				}
			})
		}
		again(n)
	case k < 11:
		n.remove(i, ns, func(ok bool) {})
	default:
		n.read(i, func(answer) {})
	}
	c.after(time.Duration(c.rng.Int64N(int64(2*time.Second))), c.clients)
}

// watch looks at what members claim.
func (c *chaos) watch() {
	if whole := c.oracle.proof(); whole && c.now-c.wiped > 20*time.Second {
		c.oracle.lost = nil
	}
	c.after(5*time.Second, c.watch)
}

// break1 has something fail, and be repaired some time later.
func (c *chaos) break1() {
	if c.now >= c.faults {
		return
	}
	n, away := c.pick(), c.rng.Int64N(int64(90*time.Second))
	if c.rng.IntN(6) == 0 {
		away *= 5
	}
	back := func(f func()) { c.after(time.Duration(away), f) }
	switch c.rng.IntN(13) {
	case 0, 1:
		if n.ring != nil {
			n.stop()
			back(func() { c.restart(n) })
		}
	case 2:
		if n.up() {
			n.freeze()
			back(func() {
				if n.frozen {
					n.thaw()
				}
			})
		}
	case 3:
		c.partition(n.name, c.pick().name)
		back(func() { c.partition() })
	case 4:
		c.partition(n.name)
		back(func() { c.partition() })
	case 5:
		m := c.pick()
		c.cut[[2]string{n.name, m.name}] = true
		back(func() { delete(c.cut, [2]string{n.name, m.name}) })
	case 6:
		m := c.pick()
		c.cutOff(n.name, m.name, true)
		back(func() { c.cutOff(n.name, m.name, false) })
	case 7:
		c.store.away = true
		back(func() { c.store.away = false })
	case 8:
		c.wipe(n)
	case 9:
		if n.up() {
			n.disk.full = true
			n.step(EvFull{true})
			back(func() { c.room(n) })
		}
	case 10:
		c.leave(n)
	case 11:
		if c.rng.IntN(3) == 0 {
			for _, m := range c.nodes {
				if m.ring != nil {
					m.stop()
				}
				c.after(time.Duration(c.rng.Int64N(int64(20*time.Second))), func() { c.restart(m) })
			}
		} else {
			n.skew += time.Duration(c.rng.Int64N(int64(time.Minute))) - 30*time.Second
		}
	case 12:
		c.takeOut(n, c.pick())
	}
	c.after(time.Duration(c.rng.Int64N(int64(2*time.Minute))), c.break1)
}

func (c *chaos) restart(n *node) {
	if n.ring == nil {
		n.start()
	}
}

func (c *chaos) room(n *node) {
	n.disk.full = false
	if n.up() {
		n.step(EvFull{false})
	}
}

// wipe has a member lose its disk, unless too many have been lost already.
func (c *chaos) wipe(n *node) {
	if len(c.oracle.lost)+1 >= c.cfg.MinReplicas || n.ring == nil {
		return
	}
	n.stop()
	c.logf("%s loses its disk", n.name)
	c.oracle.lost = append(c.oracle.lost, lostDisk{at: c.now, bytes: n.disk.bytes})
	c.wiped = c.now
	n.wipe()
	c.after(time.Duration(c.rng.Int64N(int64(time.Minute))), func() { c.restart(n) })
}

// takeOut has an operator say of a member that it is none any more, whatever it has, or that it will never be back, and later that it is
// one all the same. Until all is whole without it that is the loss of a disk.
func (c *chaos) takeOut(n, at *node) {
	if len(c.oracle.lost)+1 >= c.cfg.MinReplicas || n == at || !at.up() || n.out {
		return
	}
	do := []MemberDo{Remove, Forget}[c.rng.IntN(2)]
	listed := func() bool { o := at.ring.find(n.name); return o == nil || o.listed() }
	was := listed()
	c.nextID++
	at.calls[c.nextID] = func(Action) {}
	at.step(EvMember{c.nextID, n.name, do})
	if at.ring == nil || !was || listed() {
		return // refused; or it is alive, and was not to be forgotten
	}
	c.logf("%s is taken out (%v), says %s", n.name, do, at.name)
	n.out = true
	c.oracle.lost = append(c.oracle.lost, lostDisk{c.now, n.disk.bytes, n})
	c.wiped = c.now
	var back func()
	back = func() {
		if m := c.pick(); m.up() && m != n && c.readmit(m, n) {
			return
		}
		c.after(time.Second, back)
	}
	c.after(time.Duration(c.rng.Int64N(int64(5*time.Minute))), back)
}

// leave drains a member, which comes back with a new disk, or changes its mind.
func (c *chaos) leave(n *node) {
	if !n.up() {
		return
	}
	c.nextID++
	ok := false
	n.calls[c.nextID] = func(a Action) { ok = a.(ActDone).OK }
	n.step(EvDrain{c.nextID, true})
	c.logf("%s drains: %v", n.name, ok)
	if !ok {
		return
	}
	inc, mind := n.disk.inc, c.rng.IntN(3) == 0
	limit := c.now + 5*time.Minute
	var look func()
	look = func() {
		switch {
		case n.disk.inc != inc:
		case mind && c.rng.IntN(20) == 0 || c.now > limit:
			c.undrain(n)
		case n.up() && n.ring.me.mode == Drained && c.known(n):
			n.stop()
			n.wipe()
			c.logf("%s has left", n.name)
			c.after(time.Duration(c.rng.Int64N(int64(2*time.Minute))), func() { c.restart(n) })
		default:
			c.after(time.Second, look)
		}
	}
	look()
}

// known reports whether somebody knows that n is drained, as drain --wait waits for.
func (c *chaos) known(n *node) bool {
	for _, m := range c.nodes {
		if m != n && m.up() {
			if o := m.ring.find(n.name); o != nil && o.mode != Drained {
				return false
			}
		}
	}
	return true
}

func (c *chaos) undrain(n *node) {
	if !n.up() {
		c.after(time.Second, func() { c.undrain(n) })
		return
	}
	c.nextID++
	n.calls[c.nextID] = func(Action) {}
	n.step(EvDrain{c.nextID, false})
}

// heal ends all faults.
func (c *chaos) heal() {
	c.logf("quiet")
	c.loss, c.crashes = 0, 0
	c.partition()
	c.store.away = false
	for _, n := range c.nodes {
		if n.frozen {
			n.thaw()
		}
		c.restart(n)
		c.room(n)
		if n.ring.me.mode >= Draining {
			c.undrain(n)
		}
	}
	for _, n := range c.nodes {
		for _, m := range c.nodes {
			if m.up() && n != m && m.ring.find(n.name) != nil && !m.ring.find(n.name).listed() {
				c.readmit(m, n)
			}
		}
	}
}

// forget has an operator say that disks which are missed will not be back: those of members that had left, or that
// were replaced while nobody who knows so is still there.
func (c *chaos) forget() {
	for _, n := range c.nodes {
		for _, l := range n.ring.lost {
			if n.ring.isLost(l) {
				c.nextID++
				n.calls[c.nextID] = func(Action) {}
				n.step(EvMember{c.nextID, l.Name, Forget})
			}
		}
	}
}

// readmit has a member that has left, or was taken out, be one again, and reports whether m has done that.
func (c *chaos) readmit(m, n *node) (ok bool) {
	c.nextID++
	m.calls[c.nextID] = func(a Action) { ok = a.(ActDone).OK }
	m.step(EvMember{c.nextID, n.name, Readmit})
	if ok {
		n.out = false
	}
	return ok
}

// TestChaos breaks rings in all ways, and checks what the package comment promises.
func TestChaos(t *testing.T) {
	n, length, blobs := 6, 6*time.Minute, 40
	if *seeds > 0 {
		old := debug.SetGCPercent(400)
		t.Cleanup(func() { debug.SetGCPercent(old) })
		n, length, blobs = *seeds, time.Hour, 2000
	}
	for seed := range uint64(n) {
		t.Run(fmt.Sprint(*from+seed), func(t *testing.T) {
			if *seeds > 0 {
				t.Parallel()
			}
			runChaos(t, *from+seed, length, blobs)
		})
	}
}
