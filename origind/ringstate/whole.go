package ringstate

import (
	"fmt"
	"slices"
)

// Proof reports whether each blob that was acknowledged has its copies at all its owners, MinReplicas at least, and all have noted that;
// if not, why. Whoever hears that it is so may take a disk away: it is the first that is lost since.
func (r *Ring) Proof() (whole bool, why []string) {
	ok, _, why := r.proof()
	if ok && !r.noted() {
		why = append(why, "not everybody has noted yet that it is")
	}
	return len(why) == 0, why
}

// noted reports whether nothing is left of the time before the ring was last whole. As all members say the same of losses when that is
// proved, they have all noted it.
func (r *Ring) noted() bool {
	return len(r.lost) == 0 && r.whole.At != 0 && r.safe() == r.cfg.MinReplicas
}

// proof is the proof of that: everybody who is not gone has said so, under one view, of the same losses, after comparing later than those;
// and they are so few that nothing can have been only there.
func (r *Ring) proof() (whole bool, at Order, why []string) {
	add := func(format string, args ...any) { why = append(why, fmt.Sprintf(format, args...)) }
	if n := min(r.cfg.Replicas, len(r.owners)); n < r.cfg.MinReplicas {
		add("there are %d owners of the %d that min_replicas asks for", n, r.cfg.MinReplicas)
	}
	var latest Order
	missed, away := 0, 0 // away: those that were forgotten, too
	for _, l := range r.lost {
		latest = max(latest, l.At)
		if r.isLost(l) {
			missed++
		}
		if r.isAway(l) {
			away++
		}
	}
	if missed > 0 && away >= r.cfg.MinReplicas { // what one of them alone has left may be back
		for _, l := range r.lost {
			if r.isLost(l) {
				add("what %s had may have been nowhere else: have it back, or say `capelin origin ring forget %s`", l.Name, l.Name)
			}
		}
	}
	at = r.order
	for m := range r.listed() {
		if m.gone {
			continue
		}
		s := m.status
		if m == r.me {
			s = r.Status()
		}
		switch {
		case m != r.me && (s == nil || !r.hears(m) || r.now-m.statusAt >= int64(r.cfg.Down)):
			add("%s does not answer", m.name)
			continue
		case s.Starting:
			add("%s is starting", m.name)
		case s.View != r.view:
			add("%s has another view of the ring", m.name)
		case !slices.Equal(s.Lost, r.lost):
			add("%s does not know of the same losses", m.name)
		case s.Under > 0:
			add("%d blobs at %s are not known to be where they should be", s.Under, m.name)
		case s.Exchanged <= latest:
			add("%s has not compared with all others yet", m.name)
		}
		at = min(at, s.Order)
	}
	return len(why) == 0, at, why
}

// prove publishes that the ring is whole, if that changes anything.
func (r *Ring) prove() {
	if r.noted() {
		return
	}
	if ok, at, _ := r.proof(); ok && at > r.whole.At {
		r.setWhole(Whole{at, r.cfg.MinReplicas})
	}
}

// setWhole takes in that the ring was whole: what was lost before does not matter any more.
func (r *Ring) setWhole(w Whole) {
	r.whole, r.lowest = w, r.cfg.MinReplicas
	r.lost = slices.DeleteFunc(r.lost, func(l Lost) bool { return l.At <= w.At })
	r.dirty = true
}
