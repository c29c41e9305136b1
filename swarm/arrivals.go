package swarm

import "time"

const (
	// starveAfter is how long no piece of a download may come before further peers are tried.
	starveAfter = 2 * time.Second
	// turnAfter is about how long a download may go without a block, since those before it take
	// what peers give, before it has its turn.
	turnAfter = 2 * time.Second
)

// arrivals is when pieces of a blob came. It belongs to the blob, and decides when its
// download looks for more peers, and when it has a turn before others.
type arrivals struct {
	began  time.Duration // when it was last begun to be wanted
	last   time.Duration // a piece was stored, by whatever way,
	some   bool          // if one was
	looked time.Duration // more peers were looked for, since none gave anything
	fed    time.Duration // a block came from a peer
	turn   time.Duration // so long after that it is to have a turn; 0: not known yet
}

// hungry reports whether the download is to have a turn, since others take everything, and
// starved, whether it had none for as long again. Jitter is about a duration: not all nodes
// of a swarm have their turn at once.
func (a *arrivals) hungry(now time.Duration, jitter func(time.Duration) time.Duration) (hungry, starved bool) {
	since := now - max(a.began, a.fed)
	if since < turnAfter/2 {
		return false, false
	}
	if a.turn == 0 {
		a.turn = jitter(turnAfter)
	}
	return since >= a.turn, since >= 2*a.turn
}

// stored notes that a piece was.
func (a *arrivals) stored(now time.Duration) { a.last, a.some = now, true }

// starving reports whether more peers are to be looked for, now and then once in a while,
// since the source may just be slow. idle says that nothing is on its way.
func (a *arrivals) starving(now time.Duration, idle bool) bool {
	if !idle || now-max(a.last, a.began, a.looked) <= starveAfter {
		return false
	}
	a.looked = now
	return true
}

// maxRechecks bounds the pieces of a blob that others can make us read again within
// recheckEvery, which is also how often they can for one piece: anybody can say that
// one is bad.
const (
	maxRechecks  = 32
	recheckEvery = time.Minute
)

// rechecks is when pieces of a blob were read again. It belongs to the blob.
type rechecks struct{ at map[int]time.Duration }

// allow reports whether piece i is to be read again, and notes that.
func (r *rechecks) allow(i int, now time.Duration) bool {
	recent := func(at time.Duration) bool { return now-at < recheckEvery }
	if at, ok := r.at[i]; ok && recent(at) {
		return false
	}
	if len(r.at) >= maxRechecks {
		for j, at := range r.at {
			if !recent(at) {
				delete(r.at, j)
			}
		}
		if len(r.at) >= maxRechecks {
			return false
		}
	}
	if r.at == nil {
		r.at = make(map[int]time.Duration)
	}
	r.at[i] = now
	return true
}

// forget says that piece i is another copy now, or gone.
func (r *rechecks) forget(i int) { delete(r.at, i) }
