package swarm

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
)

// How long queues here may be.
const (
	// queueTime: beyond PeerConfig.UpQueue pieces, as many more are admitted as
	// leave in this time, so that fast uplinks do not run dry between two
	// requests.
	queueTime = 4 * time.Millisecond
	// maxWait: no piece is admitted that would have to wait longer than this for
	// its first block, so that a requester need not take a queue for a stall.
	maxWait = 500 * time.Millisecond
	// uploadIdle is how long an admitted piece keeps its place while its
	// requester asks for no more of it.
	uploadIdle = time.Second
	// driverTime is how much is given to the driver at once.
	driverTime = 2 * time.Millisecond
	// stuckAfter: blocks that the driver has had for longer wait for their
	// receiver, not for our uplink, and do not hold others up.
	stuckAfter = 50 * time.Millisecond

	// ownBlobs is for how many pieces of a connection there is room because nothing else of
	// their blobs waits: containerd downloads three at once.
	ownBlobs = 4

	// maxUploads bounds the admitted pieces in any case.
	maxUploads = 256

	guessedRate = 100 << 20 // bytes per second, before anything was measured
	maxRetry    = 2 * time.Second
)

// uplink is the part of the Peer that all uploads share: pieces in the order of
// their admission. Of each blob the first that has a request waiting is served first, so
// that pieces are finished, and spread further, one after the other. Blobs share the uplink
// alike, however many peers ask for each: of one that has few places here, as those of
// another are taken again as soon as they are free, there is always room for a piece, so
// that no blob stands still.
//
// Its methods keep the books of uploads, also those of their links and connections
// (outbox); admit, retryAt and next decide.
type uplink struct {
	uploads []*upload
	pending int   // blocks requested and not given to the driver
	left    int64 // bytes of admitted pieces that were not given to the driver, requested or not
	active  int   // blocks in the driver
	meter   meter
	limit   bucket
	due     time.Duration // when to look at the queue again
	retry   time.Duration // when the next refused requester may come back
	given   int64         // what the blob was given that was served last, at that time; see blob.given
}

// upload is a piece on its way to one peer.
type upload struct {
	l      *link
	b      *blob
	i      int
	any    bool
	size   int
	sent   int // bytes given to the driver
	asked  int // bytes requested
	queue  []span
	driver int // blocks in the driver
	last   time.Duration
	dead   bool
}

type span struct{ off, n int }

// over reports whether all of the piece has left.
func (u *upload) over() bool { return u.sent >= u.size && len(u.queue) == 0 && u.driver == 0 }

// idle reports whether its requester has asked for nothing for too long.
func (u *upload) idle(now time.Duration) bool {
	return len(u.queue) == 0 && u.driver == 0 && now-u.last > uploadIdle
}

// left returns how many bytes were not given to the driver.
func (u *upload) left() int { return max(0, u.size-u.sent) }

// outbox is what a connection's peer is sent. It belongs to the conn; uplink changes it.
type outbox struct {
	requests int           // of the peer, waiting here
	inDriver int           // blocks given to the driver and not sent
	sending  []*upload     // what they belong to, in order
	gave     time.Duration // when the driver last took one up
	refused  time.Duration // until then the peer was told to wait
}

// stuck reports whether the peer takes nothing of what the driver has for it.
func (o *outbox) stuck(now time.Duration) bool { return o.inDriver > 0 && now-o.gave >= stuckAfter }

// rate returns the measured or guessed bandwidth of the uplink, in bytes per
// second.
func (k *uplink) rate() float64 {
	r := k.meter.rate
	if r == 0 {
		r = guessedRate
	}
	if k.limit.rate > 0 {
		r = min(r, k.limit.rate)
	}
	return max(r, 1024)
}

// driverMax returns how many blocks the driver gets at once.
func (k *uplink) driverMax() int {
	return min(max(2, int(k.rate()*driverTime.Seconds())/piece.MaxBlock), 8)
}

// load is what replies carry.
func (k *uplink) load() uint16 { return uint16(min(k.pending, 1<<16-1)) }

// admit decides whether another piece, of the requester's or (any) our own choice, may
// wait here for the peer of l, beside queue others at moderate speed.
func (k *uplink) admit(l *link, any bool, queue int) bool {
	n, own := len(k.uploads), 0 // of this connection
	for _, o := range l.c.swarms.links {
		own += len(o.uploads)
	}
	switch {
	case n >= maxUploads:
		return false
	case n == own, k.pending == 0 && k.active < k.driverMax():
		return true // nobody else waits, or the uplink is running dry
	case own < ownBlobs && n < maxUploads/2 && k.stands(l.blob):
		return true
	}
	wait := float64(k.left) / k.rate()
	switch {
	case n >= queue && wait > queueTime.Seconds(), wait > maxWait.Seconds():
		return false
	case any && l.c.far && slices.ContainsFunc(k.uploads, func(u *upload) bool { return !u.l.c.far }):
		return false // what our own zone gets, others can have from there
	case own >= (n+1)/2+1:
		return false // leave room for others
	case any && n > len(l.uploads) && slices.ContainsFunc(l.uploads, func(u *upload) bool { return u.any && u.sent == 0 }):
		return false // one at a time for each, as long as others wait
	}
	return true
}

// stands reports whether nothing of b waits here, though its turn would come soon.
func (k *uplink) stands(b *blob) bool {
	others := 0
	for j, u := range k.uploads {
		if u.b == b {
			return false
		}
		if !slices.ContainsFunc(k.uploads[:j], func(o *upload) bool { return o.b == u.b }) {
			others++
		}
	}
	return others == 1 || float64((others+1)*piece.MaxBlock) <= k.rate()*maxWait.Seconds()
}

// retryAt returns when a refused requester of a piece of size bytes is to come back: when
// half of what waits has gone, and not together with the others that were refused.
func (k *uplink) retryAt(o *outbox, size int, now time.Duration) time.Duration {
	if o.refused <= now {
		r := k.rate()
		at := now + time.Duration(float64(k.left)/4/r*1e9)
		at = min(max(at, k.retry), now+maxRetry)
		k.retry = at + time.Duration(float64(size)/4/r*1e9)
		o.refused = at
	}
	return o.refused
}

// add puts a piece that was admitted at the end of the queue.
func (k *uplink) add(u *upload) {
	u.b = u.l.blob
	if u.b != nil && !slices.ContainsFunc(k.uploads, func(o *upload) bool { return o.b == u.b }) {
		u.b.given = max(u.b.given, k.given) // what it did not ask for meanwhile is not owed to it
	}
	u.l.uploads = append(u.l.uploads, u)
	k.uploads = append(k.uploads, u)
	k.left += int64(u.size)
}

// request has a block of u wait.
func (k *uplink) request(u *upload, s span, now time.Duration) {
	u.asked += s.n
	u.last = now
	u.queue = append(u.queue, s)
	u.l.c.out.requests++
	k.pending++
}

// next returns the upload of which the driver gets a block now, among the connections
// given; nil: none, since the driver has enough, or their peers take nothing.
func (k *uplink) next(conns []*conn, now time.Duration) *upload {
	limit := k.driverMax()
	if k.active >= limit {
		stuck := 0 // a receiver that takes nothing does not hold the others up
		for _, c := range conns {
			if c.out.stuck(now) {
				stuck += c.out.inDriver
			}
		}
		if k.active-stuck >= limit {
			return nil
		}
	}
	var best *upload
	for _, u := range k.uploads {
		if o := &u.l.c.out; len(u.queue) == 0 || o.inDriver >= limit || o.stuck(now) {
			continue
		}
		if best == nil || u.b != best.b && u.b.given < best.b.given {
			best = u
		}
	}
	return best
}

// take gives the next block of u to the driver.
func (k *uplink) take(u *upload, now time.Duration) span {
	s, o := u.queue[0], &u.l.c.out
	if u.b != nil {
		k.given = u.b.given
		u.b.given += int64(s.n)
	}
	u.queue = u.queue[1:]
	o.requests--
	k.pending--
	k.left -= int64(min(s.n, u.left()))
	u.sent += s.n
	u.driver++
	u.last = now
	if o.inDriver == 0 {
		o.gave = now
	}
	o.inDriver++
	o.sending = append(o.sending, u)
	if k.active == 0 {
		k.meter.start(now)
	}
	k.active++
	k.limit.take(s.n)
	return s
}

// sent says that the oldest block of o, of n bytes, has left. It returns what it was of.
func (k *uplink) sent(o *outbox, n int, now time.Duration) *upload {
	u := o.sending[0]
	o.sending = o.sending[1:]
	o.inDriver--
	o.gave = now
	u.driver--
	k.meter.add(n, now)
	k.returned(1, now)
	return u
}

// drop forgets the blocks of a connection that has ended.
func (k *uplink) drop(o *outbox, now time.Duration) {
	k.returned(o.inDriver, now)
	o.inDriver = 0
}

func (k *uplink) returned(blocks int, now time.Duration) {
	if k.active -= blocks; k.active == 0 {
		k.meter.stop(now)
	}
}

// remove takes a piece out of the queue, sent or not. It reports whether it was there.
func (k *uplink) remove(u *upload) bool {
	if u.dead {
		return false
	}
	u.dead = true
	u.l.c.out.requests -= len(u.queue)
	k.pending -= len(u.queue)
	u.queue = nil
	k.left -= int64(u.left())
	same := func(o *upload) bool { return o == u }
	k.uploads = slices.DeleteFunc(k.uploads, same)
	u.l.uploads = slices.DeleteFunc(u.l.uploads, same)
	return true
}

// sendCounts is how often each piece of a blob was sent, or is being. It belongs to the
// blob: a seeder that chooses sends what it has sent least, of that one of the first. So what
// the swarm has when its only seeder goes away is the blob's beginning, and of use: whoever
// fetches the rest from elsewhere begins at the first gap. Where there are more seeders they
// would all send the same, and each chooses among all.
type sendCounts struct {
	times   []uint32 // nil before the first
	front   int      // all before it were sent
	foreign int      // pieces that somebody had before they were sent here
}

const (
	// The first probes pieces are chosen among so many: two seeders that both send the first ones,
	// equally fast, could not be told from one.
	probes     = 64
	amongFirst = 16
	// manySources is after how many pieces of others' a seeder is not the only one. Who comes
	// back with what it had, or writes what it downloads itself, is like one.
	manySources = 4
)

// elsewhere notes that somebody has piece i of n, who may have it from here or not.
func (s *sendCounts) elsewhere(n, i int) {
	s.make(n)
	if s.times[i] == 0 {
		s.times[i] = 1
		s.foreign++
	}
}

// first returns from where on pieces of n are chosen.
func (s *sendCounts) first(n int, rng *rand.Rand) int {
	if s.foreign >= manySources {
		return rng.IntN(n)
	}
	s.make(n)
	for s.front < n && s.times[s.front] > 0 {
		s.front++
	}
	if s.front < probes {
		return (s.front + rng.IntN(amongFirst)) % n
	}
	return s.front % n
}

// add counts a piece of n; takeBack, that nothing of it was sent.
func (s *sendCounts) add(n, i int) {
	s.make(n)
	s.times[i]++
}

func (s *sendCounts) takeBack(i int) {
	if s.times[i] > 0 {
		s.times[i]--
		s.front = min(s.front, i)
	}
}

// least returns the piece of n that was sent least often, of those that ok allows, the first
// from start on, or -1.
func (s *sendCounts) least(n, start int, ok func(i int) bool) int {
	s.make(n)
	best, least := -1, ^uint32(0)
	for k := range n {
		i := start + k
		if i >= n {
			i -= n
		}
		if t := s.times[i]; t < least && ok(i) {
			if best, least = i, t; t == 0 {
				break
			}
		}
	}
	return best
}

func (s *sendCounts) make(n int) {
	if s.times == nil {
		s.times = make([]uint32, n)
	}
}
