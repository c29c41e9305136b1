package ringstate

import (
	"maps"
	"slices"

	digest "github.com/opencontainers/go-digest"
)

func sorted[K ~string, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// gives are the blobs that are to be given, by who is to have them: those with fewer
// copies first.
type gives struct {
	queues [maxMembers][classes][]digest.Digest
	now    [maxMembers]int // how many are being given
	active []*giving
}

// givesAtOnce are fewer than the asks that a member has under way: each of these may wait for its answer. What is not
// urgent has half of them.
const givesAtOnce = 128

// askAgain is how long after an ask a member that was fetching the blob is asked again, at least.
const askAgain = 5e8

// classes of blobs by their copies; the last has all that have more.
const classes = 4

// giving is a blob that is being given to a member.
type giving struct {
	digest digest.Digest
	to     *member
	due    int64 // when it is asked again; 0: it is being asked
	pause  int64
}

func (g *gives) clear() { *g = gives{} }

// copies returns how many members that are not down have a blob, as far as is confirmed.
func (r *Ring) copies(b *blob) int { return 1 + count(b.confirmed&r.lives&^r.me.bit()) }

// urgent reports whether a blob has too few copies.
func (r *Ring) urgent(b *blob) bool { return r.copies(b) < r.cfg.MinReplicas }

// queue has a blob be given to all who lack it. If it has too few copies and its owners
// are down, others are to have it meanwhile.
func (r *Ring) queue(digest digest.Digest, b *blob) {
	if r.urgent(b) && b.owners&^r.lives != 0 {
		need := r.cfg.MinReplicas - r.copies(b) - count(b.lacks&r.lives)
		for _, m := range r.candidates(string(digest)) {
			if need > 0 && (b.confirmed|b.lacks)&m.bit() == 0 {
				b.lacks |= m.bit()
				need--
			}
		}
	}
	for _, m := range r.slots {
		if b.lacks&m.bit() != 0 {
			class := min(r.copies(b), classes) - 1
			r.give.queues[m.slot][class] = append(r.give.queues[m.slot][class], digest)
		}
	}
}

// lacks notes that members are to have a blob.
func (r *Ring) lacks(digest digest.Digest, b *blob, slots uint64) {
	slots &^= r.me.bit() | b.confirmed | b.lacks
	if slots != 0 {
		b.lacks |= slots
		r.queue(digest, b)
	}
}

// giveOn gives what may be given now.
func (r *Ring) giveOn() {
	x := &r.blobs
	for len(x.delayed) > 0 && x.delayed[0].due <= r.now {
		digest := x.delayed[0].digest
		x.delayed = x.delayed[1:]
		if b := x.get(digest); b != nil && int(spread(digest)[0]) < x.placed && (b.mine || b.owners&r.me.bit() == 0) {
			r.lacks(digest, b, b.owners)
		}
	}
	if !r.me.listed() || r.starting || r.now-r.changed < int64(r.cfg.Calm) {
		return
	}
	for _, g := range slices.Clone(r.give.active) {
		if g.due != 0 && g.due <= r.now {
			r.send(g)
		}
	}
	for m := range r.others() {
		if r.hears(m) && m.status != nil && !m.status.Starting {
			r.giveTo(m)
		}
	}
}

func (r *Ring) giveTo(m *member) {
	q := &r.give.queues[m.slot]
	for class := range q {
		for len(q[class]) > 0 && r.give.now[m.slot] < 4*r.cfg.Parallel && len(r.give.active) < givesAtOnce {
			digest := q[class][0]
			b := r.blobs.get(digest)
			full := r.give.now[m.slot] >= r.cfg.Parallel || len(r.give.active) >= givesAtOnce/2
			if b != nil && b.lacks&m.bit() != 0 && !r.urgent(b) && full {
				break
			}
			q[class] = q[class][1:]
			if b == nil || b.lacks&m.bit() == 0 || r.gives(digest, m) {
				continue
			}
			g := &giving{digest: digest, to: m}
			r.give.active = append(r.give.active, g)
			r.give.now[m.slot]++
			r.send(g)
		}
	}
}

func (r *Ring) gives(digest digest.Digest, m *member) bool {
	return slices.ContainsFunc(r.give.active, func(g *giving) bool { return g.digest == digest && g.to == m })
}

func (r *Ring) endGive(g *giving) {
	if i := slices.Index(r.give.active, g); i >= 0 {
		r.give.active = slices.Delete(r.give.active, i, i+1)
		r.give.now[g.to.slot]--
	}
}

// send asks a member to have a blob.
func (r *Ring) send(g *giving) {
	b := r.blobs.get(g.digest)
	if b != nil && b.owners&g.to.bit() == 0 && !r.urgent(b) {
		b.lacks &^= g.to.bit() // it was to have it as long as there were too few
	}
	if b == nil || b.lacks&g.to.bit() == 0 {
		r.endGive(g)
		return
	}
	g.due = 0
	q := &Replica{Digest: g.digest, View: r.view, Sources: []string{r.cfg.Name}, Urgent: r.urgent(b)}
	for _, m := range r.slots {
		if m != g.to && b.confirmed&r.lives&m.bit() != 0 {
			q.Sources = append(q.Sources, m.name)
		}
	}
	epoch, sent := r.epoch, r.now
	r.ask(g.to, q, func(a Answer, local []Local) {
		c, _ := a.(*Replied)
		if c != nil && c.Record != nil {
			r.merge(local[0], c.Record)
		}
		if r.epoch != epoch || !slices.Contains(r.give.active, g) {
			return
		}
		switch {
		case c != nil && c.Code == CodePinned && c.Record != nil:
			r.confirm(g.digest, g.to, c, epoch, local[0])
		case c != nil && c.Code == CodeWritten:
			r.backendHas(g.digest, g.to)
		}
		b := r.blobs.get(g.digest)
		if b == nil || b.lacks&g.to.bit() == 0 {
			r.endGive(g)
			r.giveTo(g.to)
			return
		}
		if c != nil && c.Code == CodeTaking {
			if g.due = sent + askAgain; g.due <= r.now { // the answer has waited for it as long as it may
				r.send(g)
			}
			return
		}
		g.pause = min(2*g.pause+askAgain, 10e9)
		g.due = r.now + g.pause
	})
}

// confirm notes that a member said, in this epoch, that it has a blob pinned with a record
// that has all that ours has.
func (r *Ring) confirm(digest digest.Digest, m *member, c *Replied, epoch uint32, l Local) {
	b := r.blobs.get(digest)
	if b == nil || r.epoch != epoch || b.owners&m.bit() != 0 && !c.Owner {
		return
	}
	if rec := r.local(digest, l).Record; rec == nil || c.Record == nil || !c.Record.Covers(rec) {
		return
	}
	r.count(digest, b, -1)
	b.confirmed |= m.bit()
	b.lacks &^= m.bit()
	r.count(digest, b, 1)
	r.release(digest)
}

// release unpins a blob of which this member is no owner, if its owners have it: each
// said so, in the view that is still this one's, and they are as many as there have to be.
func (r *Ring) release(digest digest.Digest) {
	r.seen()
	b := r.blobs.get(digest)
	if b == nil || int(spread(digest)[0]) >= r.blobs.placed || !r.me.listed() {
		return
	}
	enough := b.owners&^b.confirmed == 0 && min(r.cfg.Replicas, count(b.owners)) >= r.cfg.MinReplicas
	open := slices.ContainsFunc(r.puts, func(p *put) bool { return p.digest == digest })
	if b.owners&r.me.bit() != 0 || !enough || open {
		return
	}
	r.leave(digest, b)
	r.unpin(digest)
}

func (r *Ring) unpin(digest digest.Digest) {
	r.do(ActUnpin{digest})
}
