package swarm

import "time"

const (
	minDepth = 2  // blocks outstanding on a connection to begin with
	maxDepth = 64 // and at most

	// slowFactor: a peer whose pieces take so many times as long as those of all is
	// slow. It gets one request at a time, which takes no place in the window: a few
	// slow neighbours would fill that, and leave the others idle.
	slowFactor = 2

	giveUpAfter = 12 * time.Second // a connection that has stalled and is silent is closed
	snubFor     = 4 * time.Second  // a stalled peer is asked again then

	// patienceFor is how long stalls are found later after one that was none.
	patienceFor = 30 * time.Second
	maxPatience = 2
)

// pipe is what we have asked of a connection's peer, and how it answers. It belongs to the
// conn. Its methods decide how much may be asked of the peer, and when it has stalled; the
// Peer counts every block in owe and settle and tells of every answer. What chooseAmong
// looks at in every neighbour comes first, together with conn.far in 64 bytes.
type pipe struct {
	outstanding int           // blocks requested here and not arrived, AnyPiece included
	depth       int           // how many blocks may be outstanding
	part        int           // attempts whose blocks are not all requested
	claimed     uint64        // the round of pump in which a blob could use more of it,
	claimant    *blob         // and which; those after it stay away
	busy        time.Duration // not asked before
	snubbed     time.Duration // until then it is asked nothing, unless it answers; 0: it is not

	queue     int           // the last reported load, when, without our own
	queueAt   time.Duration //
	took      time.Duration // how long its pieces take, smoothed; 0: none has come
	rtt       time.Duration // round trip; 0: not known
	attempts  []*attempt    // in order of their beginning
	withdrawn int           // blocks that may still come although we took the request back
	owed      time.Duration // since when it owes us something and was silent
	stalls    int           // in a row
}

func newPipe(rtt time.Duration) pipe { return pipe{depth: minDepth, owed: never, rtt: rtt} }

// owe counts a block that was requested; settle, k that were answered or withdrawn.
func (q *pipe) owe(now time.Duration) {
	if q.outstanding == 0 {
		q.owed = now
	}
	q.outstanding++
}

func (q *pipe) settle(k int) { q.outstanding -= k }

// full reports whether no further block may be requested.
func (q *pipe) full() bool { return q.outstanding >= q.depth }

// freeAt is when the peer may be asked something: it told us to wait, or has stalled.
func (q *pipe) freeAt() time.Duration { return max(q.busy, q.snubbed) }

// slow reports whether its pieces take much longer than the median of all.
func (q *pipe) slow(median time.Duration) bool { return q.took > slowFactor*median }

// measured notes how long a piece has taken.
func (q *pipe) measured(d time.Duration) {
	if q.took == 0 {
		q.took = d
	}
	q.took += (d - q.took) / 2
}

// load estimates how many blocks wait at the peer: those that were reported, less what
// has gone at rate blocks per second since, and ours.
func (q *pipe) load(now time.Duration, rate float64) float64 {
	others := float64(q.queue)
	if others > 0 {
		others = max(0, others-(now-q.queueAt).Seconds()*rate)
	}
	return others + float64(q.outstanding)
}

// answered notes that the peer has answered something.
func (q *pipe) answered(now time.Duration) { q.owed, q.stalls, q.snubbed = now, 0, 0 }

// reported adapts depth to the queue that the peer reported with a block: more when our
// requests leave its uplink without work, fewer while others wait there.
func (q *pipe) reported(queue int, now time.Duration) {
	others := max(0, queue-q.outstanding)
	switch {
	case queue == 0:
		q.depth = min(q.depth+max(1, q.depth/4), maxDepth)
	case others > 0 && q.depth > minDepth:
		q.depth--
	}
	q.queue, q.queueAt = others, now
}

// refused notes that the peer is busy, with queue blocks, and is not to be asked for so long.
func (q *pipe) refused(queue int, retry, now time.Duration) {
	q.busy = now + retry
	q.queue, q.queueAt = queue, now
	if q.depth > minDepth {
		q.depth--
	}
}

// overdue reports whether the peer owes us something and has been silent for too long:
// for limit, and longer after each stall in a row.
func (q *pipe) overdue(now, limit time.Duration) bool {
	limit = min(limit<<min(q.stalls, 3), max(limit, giveUpAfter))
	return q.outstanding > 0 && now-q.owed >= limit
}

// stalled leaves the peer alone for a while.
func (q *pipe) stalled(now time.Duration) {
	q.stalls++
	q.depth = 1
	q.snub(now + snubFor)
}

// snub leaves the peer alone until then, or until it answers.
func (q *pipe) snub(until time.Duration) { q.snubbed = max(q.snubbed, until) }

// hopeless reports whether a peer that has stalled, and from which nothing was heard for
// silence since, is to be given up.
func (q *pipe) hopeless(silence time.Duration) bool {
	return q.outstanding == 0 && q.stalls > 0 && silence > giveUpAfter
}

// claim notes in a round of pump that b could use more of the peer; taken reports whether
// a blob before b has.
func (q *pipe) claim(round uint64, b *blob)      { q.claimed, q.claimant = round, b }
func (q *pipe) taken(round uint64, b *blob) bool { return q.claimed == round && q.claimant != b }

// patience is how much longer than usual stalls take to be found: twice for each block that
// came after all, for a while. It belongs to the Peer.
type patience struct {
	doublings int
	until     time.Duration // then one is taken back
}

// rewarded notes that a block came from a peer that had been taken for dead.
func (t *patience) rewarded(now time.Duration) {
	t.doublings, t.until = min(t.doublings+1, maxPatience), now+patienceFor
}

// fade takes a doubling back when its time has come.
func (t *patience) fade(now time.Duration) {
	if t.doublings > 0 && now >= t.until {
		t.doublings, t.until = t.doublings-1, now+patienceFor
	}
}

func (t *patience) stretch(d time.Duration) time.Duration { return d << t.doublings }
