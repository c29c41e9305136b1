package ringstate

import (
	"bytes"
	"slices"

	digest "github.com/opencontainers/go-digest"
)

// compare is the exchange with one other owner: sums of all, then of the buckets that
// differ, then what is in the sub-buckets that differ. Whoever compares learns what the other
// has of what is here; the other compares on its own account.
type compare struct {
	at      int64 // when it was last begun; 0: never
	running bool
	began   Order // when it was begun
	done    Order // when the last that was finished was begun; 0: none in this epoch
	pause   int64 // until the next one, as long as something here is short
	more    bool  // it has shown that the other has something
	differ  int   // how many buckets and sub-buckets differed
	buckets []uint8
	subs    []uint16
}

// compareSoon is the pause before the next comparison when one has failed, or has shown that copies arrive: who was given them
// knows only by comparing that others have them, too. It doubles with each that shows nothing new, and is longer when much differs: that
// costs something.
const compareSoon = 5e9

// How much one ask is about, at most: some 80 KB of sums.
const (
	bucketsAtOnce = 16
	subsAtOnce    = 256
)

// compareOn compares with those with whom it is time to.
func (r *Ring) compareOn() {
	if !r.me.owner() || r.starting || r.blobs.placed < len(r.blobs.buckets) || r.now-r.changed < int64(r.cfg.Calm) {
		return
	}
	var lost Order // what was compared before the last loss proves nothing of it
	for _, l := range r.lost {
		lost = max(lost, l.At)
	}
	for _, m := range r.owners {
		c := &m.compared
		again := int64(r.cfg.Exchange)
		switch {
		case c.done <= lost: // never, in this epoch, among them
			again = compareSoon
		case c.at <= r.blobs.news:
			again = min(again, compareSoon)
		case r.under() > 0:
			again = min(again, max(c.pause, compareSoon))
		}
		if m == r.me || c.running || !r.hears(m) || c.at != 0 && r.now-c.at < again {
			continue
		}
		*c = compare{at: r.now, running: true, began: r.turn(), done: c.done, pause: c.pause}
		r.compareTop(m)
	}
}

// exchanged returns when this member last compared with that owner with whom it did so
// least lately; 0 if it has not with all.
func (r *Ring) exchanged() Order {
	least := r.order
	for _, m := range r.owners {
		if m != r.me {
			least = min(least, m.compared.done)
		}
	}
	if !r.me.owner() {
		return r.order
	}
	return least
}

// compareAsk asks m; f is called if m answers in this epoch.
func (r *Ring) compareAsk(m *member, q Compare, f func(*Compared)) {
	epoch := r.epoch
	q.View = r.view
	r.ask(m, q, func(a Answer, _ []Local) {
		if r.epoch != epoch {
			return
		}
		c, ok := a.(*Compared)
		if !ok || !c.OK {
			m.compared.running = false
			return
		}
		f(c)
	})
}

func (r *Ring) compareTop(m *member) {
	r.compareAsk(m, Compare{}, func(c *Compared) {
		if len(c.Sums) != 256 {
			m.compared.running = false
			return
		}
		ours := r.sumsWith(m)
		for i, s := range c.Sums {
			switch {
			case ours[i].N == 0:
			case s == ours[i] || s.N == 0:
				r.compareWith(m, uint8(i), func(digest.Digest, *blob) (has, known bool) { return s.N != 0, true })
			default:
				m.compared.buckets = append(m.compared.buckets, uint8(i))
			}
		}
		m.compared.differ = len(m.compared.buckets)
		r.compareBuckets(m)
	})
}

func (r *Ring) compareBuckets(m *member) {
	todo := m.compared.buckets
	if len(todo) == 0 {
		r.compareSubs(m)
		return
	}
	todo = todo[:min(len(todo), bucketsAtOnce)]
	r.compareAsk(m, Compare{Buckets: todo}, func(c *Compared) {
		if len(c.Sums) != 256*len(todo) {
			m.compared.running = false
			return
		}
		m.compared.buckets = m.compared.buckets[len(todo):]
		for i, at := range todo {
			theirs, ours := c.Sums[256*i:], r.subSums(m, at)
			r.compareWith(m, at, func(digest digest.Digest, _ *blob) (has, known bool) {
				sub := spread(digest)[1]
				return theirs[sub].N != 0, theirs[sub] == ours[sub] || theirs[sub].N == 0
			})
			for sub := range ours {
				if ours[sub].N != 0 && theirs[sub].N != 0 && ours[sub] != theirs[sub] {
					m.compared.subs = append(m.compared.subs, uint16(at)<<8|uint16(sub))
					m.compared.differ++
				}
			}
		}
		r.compareBuckets(m)
	})
}

func (r *Ring) compareSubs(m *member) {
	todo := m.compared.subs
	if len(todo) == 0 {
		c := &m.compared
		c.running, c.done = false, c.began
		c.pause = 2 * max(c.pause, compareSoon)
		if c.more || r.under() == 0 {
			c.pause = compareSoon
		}
		c.pause = min(c.pause+compareSoon*int64(c.differ/64), int64(r.cfg.Exchange))
		return
	}
	todo = todo[:min(len(todo), subsAtOnce)]
	r.compareAsk(m, Compare{Subs: todo}, func(c *Compared) {
		if len(c.Items) != len(todo) {
			m.compared.running = false
			return
		}
		m.compared.subs = m.compared.subs[len(todo):]
		for i, at := range todo {
			theirs := map[Item]bool{}
			for _, item := range c.Items[i] {
				theirs[item] = true
			}
			r.compareWith(m, uint8(at>>8), func(digest digest.Digest, b *blob) (has, known bool) {
				return theirs[b.item], spread(digest)[1] == uint8(at)
			})
		}
		r.compareSubs(m)
	})
}

// compareWith notes what an owner has of a bucket, as far as is known. That is mostly what was known before.
func (r *Ring) compareWith(m *member, bucket uint8, what func(digest digest.Digest, b *blob) (has, known bool)) {
	var has, hasNot []digest.Digest
	r.shared(m, bucket, func(digest digest.Digest, b *blob) {
		switch yes, known := what(digest, b); {
		case !known || yes && b.confirmed&m.bit() != 0:
		case yes:
			has = append(has, digest)
		case b.confirmed&m.bit() != 0 || b.lacks&m.bit() == 0:
			hasNot = append(hasNot, digest)
		}
	})
	for _, digest := range has {
		r.same(m, digest, r.blobs.get(digest), true)
	}
	slices.Sort(hasNot) // they are given in that order
	for _, digest := range hasNot {
		r.same(m, digest, r.blobs.get(digest), false)
	}
}

// same notes whether an owner has the same as this one.
func (r *Ring) same(m *member, digest digest.Digest, b *blob, has bool) {
	if has == (b.confirmed&m.bit() != 0) {
		if !has {
			r.lacks(digest, b, m.bit())
		}
		return
	}
	r.count(digest, b, -1)
	if has {
		m.compared.more = true
		b.confirmed |= m.bit()
		b.lacks &^= m.bit()
	} else {
		b.confirmed &^= m.bit()
	}
	r.count(digest, b, 1)
	if !has {
		r.lacks(digest, b, m.bit())
	}
}

// shared calls f for the blobs of a bucket of which both are owners, in any order.
func (r *Ring) shared(m *member, bucket uint8, f func(digest digest.Digest, b *blob)) {
	both := r.me.bit() | m.bit()
	for digest, b := range r.blobs.buckets[bucket] {
		if b.owners&both == both {
			f(digest, b)
		}
	}
}

func (r *Ring) subSums(m *member, bucket uint8) (sums [256]Sum) {
	r.shared(m, bucket, func(digest digest.Digest, b *blob) { sums[spread(digest)[1]].add(b.item, 1) })
	return sums
}

// compared answers Compare.
func (r *Ring) compared(m *member, q Compare) *Compared {
	a := &Compared{OK: q.View == r.view && r.blobs.placed == len(r.blobs.buckets) && !r.starting}
	if !a.OK || len(q.Buckets) > bucketsAtOnce || len(q.Subs) > subsAtOnce {
		return &Compared{}
	}
	switch {
	case q.Subs != nil:
		for _, at := range q.Subs {
			var items []Item
			r.shared(m, uint8(at>>8), func(digest digest.Digest, b *blob) {
				if spread(digest)[1] == uint8(at) {
					items = append(items, b.item)
				}
			})
			slices.SortFunc(items, func(a, b Item) int { return bytes.Compare(a[:], b[:]) })
			a.Items = append(a.Items, items)
		}
	case q.Buckets != nil:
		for _, at := range q.Buckets {
			sums := r.subSums(m, at)
			a.Sums = append(a.Sums, sums[:]...)
		}
	default:
		a.Sums = slices.Clone(r.sumsWith(m)[:])
	}
	return a
}
