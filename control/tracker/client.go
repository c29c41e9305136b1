package tracker

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/capelin-io/capelin/control/ring"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Timing; control/PROTOCOL.md, "Timing".
const (
	answerTimeout    = 150 * time.Millisecond // for a Verdict after a Want, before the second tracker is asked to grant
	busyTimeout      = 5 * time.Second        // for one of a tracker that is connected, if no other has anything better to say
	secondTimeout    = 40 * time.Millisecond  // for the second tracker, asked again because the first gave none
	silenceTimeout   = 12 * time.Second       // nothing received: the tracker is dead
	connectTimeout   = 5 * time.Second        // from dialling to Welcome
	lookupTimeout    = 2 * time.Second
	progressInterval = time.Second
	resolveInterval  = 30 * time.Second
	backoffMin       = 100 * time.Millisecond
	backoffMax       = 2 * time.Second
	backoffRefused   = 10 * time.Second // wrong cluster or version: somebody must change something
)

// Client is a node's connection to its trackers; see the package comment.
type Client struct {
	cfg Config
	h   Handler

	timer  chan struct{} // 1-buffered: a deadline may be nearer now
	events chan struct{} // 1-buffered: queue is not empty

	mu     sync.Mutex // nothing blocks while it is held
	blobs  map[piece.ID]*blob
	wanted map[piece.ID]*blob // those of blobs with a want
	leased map[piece.ID]*blob // those of blobs with a lease
	names  []string           // of all links
	links  map[string]*link
	seq    uint32
	queue  []func()         // calls of the Handler
	asked  map[uint64]*link // by whom, by the ids of Commands that have no last result yet
}

// blob is what the node has and wants of one blob.
type blob struct {
	id    piece.ID
	state State
	hash  *[32]byte
	want  *want
	lease *lease
}

type want struct {
	Want
	asked   uint32 // Client.seq when Want was called last, and when that was
	at      time.Time
	lease   bool // the verdict was Lease, and it is not done
	answers map[*link]*answer
	verdict Verdict // the last one told
	told    map[string]toldPeer
	shares  [2]uint16 // by tracker
}

// toldPeer is who said what of a peer; bit i stands for the blob's i-th tracker.
type toldPeer struct{ known, complete, source uint8 }

// answer is what one tracker said, or pending.
type answer struct {
	seq   uint32      // of the Want that it answers
	kind  VerdictKind // 0: pending
	until time.Time   // pending: when the tracker is given up; Wait: when another answer is due
}

type lease struct {
	bytes, sent int64
	at          time.Time // of the last report; zero: none yet
}

// New returns a client that does nothing until Run.
func New(cfg Config, h Handler) *Client {
	if cfg.Dial == nil {
		var d net.Dialer
		cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
	}
	if cfg.LookupHost == nil {
		cfg.LookupHost = net.DefaultResolver.LookupHost
	}
	return &Client{
		cfg:    cfg,
		h:      h,
		timer:  make(chan struct{}, 1),
		events: make(chan struct{}, 1),
		blobs:  map[piece.ID]*blob{},
		wanted: map[piece.ID]*blob{},
		leased: map[piece.ID]*blob{},
		links:  map[string]*link{},
		asked:  map[uint64]*link{},
	}
}

// Run keeps the streams up until ctx is done; it returns nil then, after every
// goroutine has ended, or at once an error if the configuration is wrong. It may
// be called once.
func (c *Client) Run(ctx context.Context) error {
	if err := c.cfg.Check(); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { c.runEvents(ctx) })
	wg.Go(func() { c.runTimer(ctx) })
	c.runTrackers(ctx)
	return nil
}

// runTrackers finds trackers and runs a link to each.
func (c *Client) runTrackers(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	cancels := map[string]context.CancelFunc{}
	defer func() {
		for _, cancel := range cancels {
			cancel()
		}
	}()
	found := map[string][]string{} // by dns+ name: what the last look-up that succeeded gave
	for {
		missing, dynamic := false, false
		var names []string
		for _, t := range c.cfg.Trackers {
			name, ok := strings.CutPrefix(t, "dns+")
			if !ok {
				names = append(names, t)
				continue
			}
			dynamic = true
			if addrs, err := lookupTracker(ctx, name, c.cfg.LookupHost); err == nil && len(addrs) > 0 {
				found[t] = addrs
			}
			missing = missing || len(found[t]) == 0
			names = append(names, found[t]...)
		}
		slices.Sort(names)
		names = slices.Compact(names)
		for name, cancel := range cancels {
			if !slices.Contains(names, name) {
				cancel()
				delete(cancels, name)
			}
		}
		for _, l := range c.setNames(names) {
			lctx, cancel := context.WithCancel(ctx)
			cancels[l.name] = cancel
			wg.Go(func() { c.runLink(lctx, l) })
		}
		var again <-chan time.Time
		switch {
		case missing:
			again = time.After(backoffMax)
		case dynamic:
			again = time.After(resolveInterval)
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
		}
	}
}

// setNames changes the ring, moves what belongs to other trackers now, and
// returns the links that are new.
func (c *Client) setNames(names []string) (added []*link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Equal(names, c.names) {
		return nil
	}
	before := map[piece.ID][]*link{}
	for id := range c.blobs {
		before[id] = c.owners(id)
	}
	for name, l := range c.links {
		if !slices.Contains(names, name) {
			delete(c.links, name)
			l.up = false
		}
	}
	for _, name := range names {
		if c.links[name] == nil {
			l := newLink(name)
			c.links[name] = l
			added = append(added, l)
		}
	}
	c.names = names
	for id, b := range c.blobs {
		after := c.owners(id)
		if slices.Equal(before[id], after) {
			continue
		}
		for _, l := range before[id] {
			if !slices.Contains(after, l) {
				l.markDirty(id, dirtyAnnounce|dirtyWant)
				if b.lease != nil {
					l.markDone(&trackerpb.LeaseDone{Blob: trackerpb.FromID(id), Outcome: trackerpb.Outcome_OUTCOME_CANCELLED})
				}
				if b.want != nil {
					delete(b.want.answers, l)
				}
			}
		}
		for _, l := range after {
			if !slices.Contains(before[id], l) {
				l.markDirty(id, dirtyAnnounce|dirtyProgress)
			}
			if b.want != nil {
				c.ask(b, l, answerTimeout)
			}
		}
		if b.want != nil {
			clear(b.want.told) // its bits are positions among the owners
			c.merge(b, time.Now())
		}
	}
	c.kick()
	return added
}

// owners returns the two trackers of a blob, the one that grants leases first.
func (c *Client) owners(id piece.ID) []*link {
	top := ring.Top(c.names, id.Digest(), 2)
	links := make([]*link, len(top))
	for i, name := range top {
		links[i] = c.links[name]
	}
	return links
}

// mark makes the two trackers hear of what changed.
func (c *Client) mark(b *blob, bits uint8) {
	for _, l := range c.owners(b.id) {
		l.markDirty(b.id, bits)
	}
	if b.state == StateGone && b.want == nil && b.lease == nil {
		delete(c.blobs, b.id)
	}
}

func (c *Client) blob(id piece.ID) *blob {
	b := c.blobs[id]
	if b == nil {
		b = &blob{id: id}
		c.blobs[id] = b
	}
	return b
}

func (c *Client) kick() {
	select {
	case c.timer <- struct{}{}:
	default:
	}
}

// emit queues a call of the Handler.
func (c *Client) emit(f func()) {
	c.queue = append(c.queue, f)
	select {
	case c.events <- struct{}{}:
	default:
	}
}

func (c *Client) runEvents(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.events:
		}
		c.mu.Lock()
		queue := c.queue
		c.queue = nil
		c.mu.Unlock()
		for _, f := range queue {
			f()
		}
	}
}

// Announce says what the node has of a blob. It is remembered until another
// state, or StateGone, is announced. IDs must be valid.
func (c *Client) Announce(id piece.ID, s State) { c.announce(id, s, nil) }

// AnnounceComplete is Announce(id, StateComplete) with piece.Sums.Hash of the
// proven list, or nil if it is not known.
func (c *Client) AnnounceComplete(id piece.ID, sumsHash *[32]byte) {
	c.announce(id, StateComplete, sumsHash)
}

func (c *Client) announce(id piece.ID, s State, hash *[32]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.blob(id)
	if s == StateComplete && hash == nil {
		hash = b.hash
	}
	if b.state == s && s != StateGone && (b.hash == hash || b.hash != nil && hash != nil && *b.hash == *hash) {
		return
	}
	b.state, b.hash = s, nil
	if s == StateComplete && hash != nil {
		h := *hash
		b.hash = &h
	}
	c.mark(b, dirtyAnnounce)
}

// Want asks for a blob: who has it, and what to expect. A Verdict follows, each
// time that it is called. Wanting it again replaces how it is wanted.
func (c *Client) Want(id piece.ID, w Want) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.blob(id)
	if b.want == nil {
		b.want = &want{answers: map[*link]*answer{}, told: map[string]toldPeer{}}
		c.wanted[id] = b
	}
	c.seq++
	b.want.Want, b.want.asked, b.want.at = w, c.seq, time.Now()
	b.want.lease = false
	b.want.verdict = Verdict{}
	for _, l := range c.owners(id) {
		c.ask(b, l, answerTimeout)
	}
	c.merge(b, time.Now())
	c.kick()
}

// Unwant ends a Want. It does not end a lease: LeaseDone does.
func (c *Client) Unwant(id piece.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.blobs[id]
	if b == nil || b.want == nil {
		return
	}
	b.want = nil
	delete(c.wanted, id)
	c.mark(b, dirtyWant)
}

// LeaseProgress says how many bytes of a blob have come from upstream so far;
// the first call, which may be with 0, that the download has started. It is for
// every download that containerd makes, with or without a lease, so that
// trackers know who is a source. Reports are sent at most once a second.
func (c *Client) LeaseProgress(id piece.ID, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.blob(id)
	if b.lease == nil {
		b.lease = &lease{sent: -1}
		c.leased[id] = b
	}
	b.lease.bytes = min(max(b.lease.bytes, bytes), id.Size)
	if b.lease.at.IsZero() || time.Since(b.lease.at) >= progressInterval {
		c.sendProgress(b)
	} else {
		c.kick()
	}
}

func (c *Client) sendProgress(b *blob) {
	b.lease.at = time.Now()
	b.lease.sent = b.lease.bytes
	c.mark(b, dirtyProgress)
}

// LeaseDone ends a lease, or a download without one: err is nil if the whole
// blob is there and verified (announce it as well), wraps context.Canceled if
// the pull was given up, and else is why upstream failed.
func (c *Client) LeaseDone(id piece.ID, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := &trackerpb.LeaseDone{Blob: trackerpb.FromID(id), Outcome: trackerpb.Outcome_OUTCOME_COMPLETE}
	switch {
	case errors.Is(err, context.Canceled):
		m.Outcome = trackerpb.Outcome_OUTCOME_CANCELLED
	case err != nil:
		m.Outcome = trackerpb.Outcome_OUTCOME_FAILED
		m.Error = printable(err.Error(), trackerpb.MaxError)
	}
	for _, l := range c.owners(id) {
		l.markDone(m)
	}
	b := c.blobs[id]
	if b == nil {
		return
	}
	alone := b.lease != nil && b.want != nil && !b.want.lease
	if b.lease != nil {
		b.lease = nil
		delete(c.leased, id)
	}
	if alone && b.want.Waiting {
		// Somebody else waits on this node; trackers were not told so while it was
		// fetching anyhow.
		for _, l := range c.owners(id) {
			c.ask(b, l, answerTimeout)
		}
	}
	if b.want != nil {
		b.want.lease = false
		for _, a := range b.want.answers {
			if a.kind == Lease { // the tracker says what comes next
				*a = answer{seq: a.seq, until: time.Now().Add(answerTimeout)}
			}
		}
		c.kick()
	}
	c.mark(b, 0)
}

// Disproved says that the list of sums with this hash, which a tracker named,
// is not the blob's.
func (c *Client) Disproved(id piece.ID, hash [32]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.owners(id) {
		l.push(func(m *trackerpb.FromAgent) {
			m.Disproved = append(m.Disproved, &trackerpb.Disproved{Blob: trackerpb.FromID(id), SumsHash: hash[:]})
		})
	}
}

// NotHere answers a Handler's Lookup: this node neither has the blob nor can get
// it, now.
func (c *Client) NotHere(id piece.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.owners(id) { // the one that did not ask ignores it
		l.push(func(m *trackerpb.FromAgent) { m.NotHere = append(m.NotHere, trackerpb.FromID(id)) })
	}
}

// Result answers a Command. It goes to the tracker that asked, if the stream on
// which that was lives; otherwise nobody waits for it. Texts are cut to what the
// protocol allows. r must have at most trackerpb.MaxBatch/2 blobs, and is the
// Client's from now on.
func (c *Client) Result(r *trackerpb.CommandResult) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.asked[r.Id]
	if l == nil {
		return
	}
	if !r.Running {
		delete(c.asked, r.Id)
	}
	r.Error = printable(r.Error, trackerpb.MaxError)
	l.push(func(m *trackerpb.FromAgent) { m.Results = append(m.Results, r) })
}

// Status returns the state of each stream, ordered by address.
func (c *Client) Status() []TrackerStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]TrackerStatus, 0, len(c.names))
	for _, name := range c.names {
		all = append(all, c.links[name].status)
	}
	return all
}

// printable cuts s to n bytes and removes what CheckBatch would refuse.
func printable(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "")
	}
	return s
}

// Remembered returns of how many blobs the client remembers something.
func (c *Client) Remembered() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.blobs)
}
