package ringstate

import (
	"slices"

	digest "github.com/opencontainers/go-digest"
)

// lookup is a read of what is not here.
type lookup struct {
	id      uint64
	digest  digest.Digest
	since   int64
	waiting uint64 // slots of those who have not answered
	unsure  uint64 // of those who cannot say no
	said    int    // how many have said no
}

// lookupFor is how long answers are waited for.
const lookupFor = 2e9

// readable reports whether what is here of a blob may be read: its bytes, unless it was removed.
func (r *Ring) readable(l Local) bool { return l.Have && (l.Record == nil || l.Record.Live()) }

// misses reports whether a blob should be here, and is not: a disk of this member has failed. It is one copy that cannot say no.
func (r *Ring) misses(digest digest.Digest, l Local) bool {
	return !l.Have && r.blobs.get(digest) != nil
}

// lookup says where a blob can be read.
//
// Here; at whoever says so first; or in the backend, which one member reads for all: the
// first of the owners that is up. If it is not there, either, it is nowhere only if so few
// disks did not answer, or are lost, that one copy of a blob that was acknowledged would
// have been among those that did. And so many have to have answered that one of them knows each member that has
// joined, or come back, while others were cut off: who joins has asked all but MinReplicas - 1.
func (r *Ring) lookup(ev *EvLookup) {
	l := r.local(ev.Digest, ev.Local)
	switch {
	case !r.serving():
		r.do(ActFound{ID: ev.ID, Missing: []string{r.cfg.Name}})
	case r.readable(l) && r.me.listed():
		r.do(ActFound{ID: ev.ID, Where: Here, Unread: r.stale != 0})
	case ev.Hop && r.readable(l): // whoever sends somebody here has not heard yet
		r.do(ActFound{ID: ev.ID, Missing: []string{r.cfg.Name}})
	case ev.Hop && r.misses(ev.Digest, l): // whoever sent the asker here will look elsewhere
		r.do(ActFound{ID: ev.ID, Where: Backend, Missing: []string{r.cfg.Name}, Unread: r.stale != 0})
	case ev.Hop:
		r.do(ActFound{ID: ev.ID, Where: Backend, Unread: r.stale != 0})
	default:
		q := &lookup{id: ev.ID, digest: ev.Digest, since: r.now}
		if r.misses(ev.Digest, l) {
			q.unsure = r.me.bit()
		}
		r.lookups = append(r.lookups, q)
		r.askHave(q)
	}
}

func (r *Ring) askHave(q *lookup) {
	for m := range r.others() {
		if r.lives&m.bit() == 0 { // nobody has heard of it for long
			q.unsure |= m.bit()
			continue
		}
		q.waiting |= m.bit()
		r.ask(m, Have{q.digest}, func(a Answer, _ []Local) {
			i := slices.Index(r.lookups, q)
			if i < 0 {
				return
			}
			h, ok := a.(Has)
			if ok && h.Yes {
				r.lookups = slices.Delete(r.lookups, i, i+1)
				r.do(ActFound{ID: q.id, Where: Elsewhere, Member: m.name, Unread: r.stale != 0})
				return
			}
			q.waiting &^= m.bit()
			if !ok || h.Unsure {
				q.unsure |= m.bit()
			} else {
				q.said++
			}
			if q.waiting == 0 {
				r.endLookup(q)
			}
		})
	}
	if q.waiting == 0 {
		r.endLookup(q)
	}
}

func (r *Ring) lookOn() {
	for _, q := range slices.Clone(r.lookups) {
		if r.now-q.since >= lookupFor {
			r.endLookup(q)
		}
	}
}

// endLookup sends whoever asks to the backend.
func (r *Ring) endLookup(q *lookup) {
	i := slices.Index(r.lookups, q)
	if i < 0 {
		return
	}
	r.lookups = slices.Delete(r.lookups, i, i+1)
	a := ActFound{ID: q.id, Where: Backend, Unread: r.stale != 0, Missing: r.absent(q.waiting|q.unsure, q.said)}
	owners := r.ownersOf(string(q.digest))
	for _, m := range r.ordered(string(q.digest)) {
		if owners&m.bit() != 0 && (m == r.me || r.hears(m)) {
			if m != r.me {
				a.Member = m.name
			}
			break
		}
	}
	r.do(a)
}

// absent returns the names because of which something that nobody who answered has may
// still be somewhere; none if it is nowhere. slots are of those who did not answer, said is how many did.
func (r *Ring) absent(slots uint64, said int) (names []string) {
	disks := 0
	for _, m := range r.members {
		if slots&m.bit() != 0 {
			disks++
			names = append(names, m.name)
		}
	}
	// Also what was forgotten: until all is proved to be whole without it, there may be one copy less of something.
	for _, l := range r.lost {
		if m := r.find(l.Name); r.isAway(l) && (m.inc != l.Incarnation || slots&m.bit() == 0) {
			disks++
			names = append(names, l.Name)
		}
	}
	switch {
	case r.starting && r.stale != 0 || said < r.cfg.MinReplicas-1 && len(names) == 0:
		return append(names, r.cfg.Name)
	case disks < r.safe() && said >= r.cfg.MinReplicas-1:
		return nil
	}
	return names
}

// safe is how many copies each acknowledged blob had at least since the ring was last whole.
func (r *Ring) safe() int {
	if r.whole.At == 0 {
		return 1
	}
	return min(r.whole.Min, r.lowest)
}
