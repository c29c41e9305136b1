package ringstate

import (
	"slices"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// oracle knows what clients were promised, and checks that it is kept. Its numbers are
// those of the invariants in the package comment.
type oracle struct {
	w     *world
	blobs map[digest.Digest]map[string]*history // by digest and namespace
	order []digest.Digest
	// lost is how many disks were lost since the ring was last whole, as it is in truth.
	lost []lostDisk
}

type lostDisk struct {
	at    time.Duration
	bytes map[digest.Digest]*held
	// out is the member that an operator has taken out, with its disk, and that may be let in again with it; nil: the disk is no more.
	out *node
}

// never is when what has no known outcome ends.
const never = time.Duration(1<<63 - 1)

// history is what clients did with a blob in a namespace.
type history struct{ ops []*op }

type op struct {
	push       bool
	start, end time.Duration
	acked      bool
	// vain: a deletion which a push of before may survive, whose clock was wrong by more than record.MaxLead, if nobody remembers that push
	// but the backend, which did not answer. The package comment says so.
	vain bool
}

func (o *oracle) init(w *world) { o.w, o.blobs = w, map[digest.Digest]map[string]*history{} }

func (o *oracle) begin(d digest.Digest, namespace string, push bool) *op {
	if o.blobs[d] == nil {
		o.blobs[d] = map[string]*history{}
		o.order = append(o.order, d)
	}
	h := o.blobs[d][namespace]
	if h == nil {
		h = &history{}
		o.blobs[d][namespace] = h
	}
	p := &op{push: push, start: o.w.now, end: never}
	h.ops = append(h.ops, p)
	return p
}

func (o *oracle) end(p *op) { p.end, p.acked = o.w.now, true }

// fail notes that an operation was not acknowledged; nothing if it was not even begun.
func (o *oracle) fail(p *op, nothing bool) {
	if nothing {
		p.end, p.acked = p.start, false
		p.start = -1 // before everything
		p.end = -1
	}
}

// must reports whether a blob must be readable: a push was acknowledged, and no deletion
// may have come after it.
func (o *oracle) must(d digest.Digest) bool {
	for _, h := range o.blobs[d] {
		for _, p := range h.ops {
			if !p.push || !p.acked {
				continue
			}
			ok := true
			for _, q := range h.ops {
				ok = ok && (q.push || q.end < p.start)
			}
			if ok {
				return true
			}
		}
	}
	return false
}

// mustNot reports whether a blob must be gone at a time: everywhere a deletion was
// acknowledged by then, and no push may have come after it.
func (o *oracle) mustNot(d digest.Digest, at time.Duration) bool {
	for _, h := range o.blobs[d] {
		gone := false
		for _, p := range h.ops {
			if p.push || !p.acked || p.end > at || p.vain {
				continue
			}
			ok := true
			for _, q := range h.ops {
				ok = ok && (!q.push || q.end < p.start)
			}
			gone = gone || ok
		}
		if !gone {
			return false
		}
	}
	return len(o.blobs[d]) > 0
}

// copies counts the disks that have a blob pinned, up to MinReplicas, those lost after a time included. by is whoever counts: nobody
// counts with members that were taken out, as soon as he has heard of that.
func (o *oracle) copies(d digest.Digest, since time.Duration, by *node) (n int) {
	counts := func(m *node) bool {
		seen := by.ring.find(m.name)
		return seen == nil || !seen.out()
	}
	for _, m := range o.w.nodes {
		if b := m.disk.bytes[d]; b != nil && b.pinned && counts(m) {
			if n++; n == o.w.cfg.MinReplicas {
				return n
			}
		}
	}
	for _, l := range o.lost {
		if b := l.bytes[d]; l.at >= since && b != nil && b.pinned && (l.out == nil || !counts(l.out)) {
			n++
		}
	}
	return n
}

func (o *oracle) inBackend(d digest.Digest) bool {
	return o.w.store.objects[string(d)] || slices.ContainsFunc(o.w.nodes, func(m *node) bool {
		return m.store != o.w.store && m.store.objects[string(d)]
	})
}

// within reports whether so few disks were lost that nothing may be.
func (o *oracle) within() bool { return len(o.lost) < o.w.cfg.MinReplicas }

// unpinned is invariants 1 and 2: who unpins has seen it in its backend, or owners have it.
func (o *oracle) unpinned(n *node, d digest.Digest) {
	if !o.must(d) || !o.within() {
		return
	}
	if n.store.objects[string(d)] {
		return
	}
	if got := o.copies(d, 0, n); got < o.w.cfg.MinReplicas {
		o.w.fatalf("invariant 2: %s unpinned %s, of which there are %d copies then", n.name, short(d), got)
	}
}

// erased is invariant 1 again: an erasure after which there is nothing any more.
func (o *oracle) erased(d digest.Digest, by *node) {
	if o.must(d) && o.within() && !o.inBackend(d) && by.ring != nil && o.copies(d, 0, by) < o.w.cfg.MinReplicas {
		o.w.fatalf("invariant 1: %s was erased, and nobody has it", short(d))
	}
}

// absent is invariant 3.
func (o *oracle) absent(d digest.Digest, at string, began time.Duration) {
	if o.mustBefore(d, began) && o.within() {
		o.w.fatalf("invariant 3: %s says 404 for %s", at, short(d))
	}
}

// mustBefore is must, by what was acknowledged before a time.
func (o *oracle) mustBefore(d digest.Digest, at time.Duration) bool {
	for _, h := range o.blobs[d] {
		for _, p := range h.ops {
			if p.push && p.acked && p.end > at {
				return false
			}
		}
	}
	return o.must(d)
}

// served is invariant 6: what was deleted is not served.
func (o *oracle) served(d digest.Digest, unread bool, began time.Duration, by string) {
	if o.mustNot(d, began) && !unread {
		o.w.fatalf("invariant 6: %s serves %s, which was deleted", by, short(d))
	}
}

// backend is invariant 6: what was deleted is not written again.
func (o *oracle) backend(n *node, a ActBackend) {
	if a.Do == Write && o.mustNot(a.Digest, o.w.now) {
		o.w.fatalf("invariant 6: %s writes %s, which was deleted", n.name, short(a.Digest))
	}
}

// proof is invariant 8: whoever says that the ring is whole is right, by what was so a
// moment ago.
func (o *oracle) proof() (whole bool) {
	for _, n := range o.w.nodes {
		if !n.up() {
			continue
		}
		ok, _ := n.ring.Proof()
		if !ok {
			continue
		}
		whole = true
		for _, d := range o.order {
			if !o.inBackend(d) && o.copies(d, o.w.now-15*time.Second, n) < o.w.cfg.MinReplicas && o.must(d) {
				o.w.fatalf("invariant 8: %s says that the ring is whole, and of %s there are %d copies",
					n.name, short(d), o.copies(d, o.w.now-15*time.Second, n))
			}
		}
		break
	}
	return whole
}

// quiet is invariant 5, and the rest of 1 and 6: after a while without faults everything is
// where it should be, and only there.
func (o *oracle) quiet() {
	w := o.w
	var first *node
	for _, n := range w.nodes {
		if !n.up() || !n.ring.me.listed() {
			continue
		}
		if first == nil {
			first = n
		}
		if n.ring.view != first.ring.view {
			w.fatalf("invariant 5: %s and %s have different views", n.name, first.name)
		}
	}
	for _, d := range o.order {
		stored := w.store.objects[string(d)]
		must, not := o.must(d), o.mustNot(d, w.now)
		live := must
		for _, n := range w.nodes {
			b := n.disk.bytes[d]
			if !n.up() || !n.ring.me.listed() {
				continue
			}
			pinned := b != nil && b.pinned
			rec := n.disk.recs[d].Record
			live = live || pinned
			owner := n.ring.ownersOf(string(d))&n.ring.me.bit() != 0
			switch {
			case not && pinned:
				w.fatalf("invariant 6: %s has %s pinned, which was deleted", n.name, short(d))
			case pinned && !owner:
				w.fatalf("invariant 5: %s has %s pinned, and is no owner", n.name, short(d))
			case pinned && stored && len(rec.Homes) == 1 && rec.Homes[0].Key != "":
				w.fatalf("invariant 5: %s has %s pinned, which is in the backend", n.name, short(d))
			case !pinned && owner && must && !stored && o.within():
				w.fatalf("invariant 5: %s owns %s, and has it not", n.name, short(d))
			}
		}
		if not && stored {
			w.fatalf("invariant 6: %s is in the backend, and was deleted", short(d))
		}
	}
}
