package tracker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// What a tracker has not heard yet of a blob.
const (
	dirtyAnnounce uint8 = 1 << iota
	dirtyWant
	dirtyProgress
)

// link is the stream to one tracker. All fields but name and wake are guarded by
// Client.mu.
type link struct {
	name   string
	wake   chan struct{} // 1-buffered: there is something to send
	up     bool          // Welcome has come, and the stream has not ended
	offers bool          // the tracker answers offers
	status TrackerStatus

	dirty  map[piece.ID]uint8
	urgent []piece.ID // keys of dirty, in the order of being marked
	bulk   []piece.ID // keys of dirty too: what is offered before it is announced
	extra  []func(*trackerpb.FromAgent)
	done   []*trackerpb.LeaseDone

	offered  [][]piece.ID // of each offer without an answer, oldest first
	accepted []piece.ID   // keys of dirty too: what was offered and is wanted

	enough     map[piece.ID]time.Time // not to be announced before
	enoughNext time.Time              // no entry is earlier
}

func newLink(name string) *link {
	return &link{
		name:   name,
		wake:   make(chan struct{}, 1),
		status: TrackerStatus{Addr: name, Since: time.Now()},
	}
}

func (l *link) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// markDirty makes the tracker hear of a blob. Nothing is kept while the stream
// is down: all is announced anew when it is up.
func (l *link) markDirty(id piece.ID, bits uint8) {
	if !l.up || bits == 0 {
		return
	}
	if l.dirty[id] == 0 {
		l.urgent = append(l.urgent, id)
	}
	l.dirty[id] |= bits
	l.signal()
}

// hurry makes the tracker hear of what the node has of a blob before anything that
// is not urgent.
func (l *link) hurry(id piece.ID) {
	if !l.up {
		return
	}
	l.urgent = append(l.urgent, id) // twice does no harm
	l.dirty[id] |= dirtyAnnounce
	l.signal()
}

func (l *link) markDone(m *trackerpb.LeaseDone) {
	if l.up {
		l.done = append(l.done, m)
		l.signal()
	}
}

func (l *link) push(f func(*trackerpb.FromAgent)) {
	if l.up {
		l.extra = append(l.extra, f)
		l.signal()
	}
}

// runLink keeps a stream up until ctx is done.
func (c *Client) runLink(ctx context.Context, l *link) {
	pause := backoffMin
	for {
		welcomed, err := c.session(ctx, l)
		if ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		l.status.Err = err
		st := l.status
		if f := c.cfg.OnStatus; f != nil {
			c.emit(func() { f(st) })
		}
		c.mu.Unlock()
		if welcomed {
			pause = backoffMin
		}
		wait := pause/2 + rand.N(pause/2) // so that a cluster does not come back at once
		switch status.Code(err) {
		case codes.FailedPrecondition, codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated:
			wait = backoffRefused
		case codes.Aborted, codes.ResourceExhausted: // another agent of the same name; the tracker is full
			wait = backoffMax/2 + rand.N(backoffMax/2)
		}
		pause = min(pause*2, backoffMax)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// session makes one stream and serves it until it breaks.
func (c *Client) session(ctx context.Context, l *link) (welcomed bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	creds := insecure.NewCredentials()
	if c.cfg.TLS != nil {
		creds = credentials.NewTLS(c.cfg.TLS)
	}
	conn, err := grpc.NewClient("passthrough:///"+l.name,
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return c.cfg.Dial(ctx, addr) }),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: time.Minute, MaxDelay: time.Minute}, MinConnectTimeout: connectTimeout}),
		grpc.WithIdleTimeout(0),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return false, fmt.Errorf("tracker %s: %w", l.name, err)
	}
	defer conn.Close()
	watchdog := time.AfterFunc(connectTimeout, func() { cancel(errors.New("no answer")) })
	defer watchdog.Stop()
	fail := func(err error) error {
		if cause := context.Cause(ctx); cause != nil {
			err = status.Error(codes.Unavailable, cause.Error())
		}
		return fmt.Errorf("tracker %s: %w", l.name, err)
	}
	stream, err := trackerpb.NewTrackerClient(conn).Connect(ctx)
	if err != nil {
		return false, fail(err)
	}
	hello := c.cfg.hello()
	hello.Blobs = c.announceable(l)
	// An error of Send is EOF; Recv has the reason.
	_ = stream.Send(&trackerpb.FromAgent{Hello: hello})
	m, err := stream.Recv()
	if err != nil {
		return false, fail(err)
	}
	if m.Welcome.GetVersion() != trackerpb.Version {
		return false, fail(status.Errorf(codes.FailedPrecondition, "protocol version %d in Welcome, not %d", m.Welcome.GetVersion(), trackerpb.Version))
	}
	watchdog.Reset(silenceTimeout)
	c.linkUp(l, m.Welcome)
	defer c.linkDown(l)

	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil) // before Wait
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-l.wake:
			}
			for {
				out := c.collect(l)
				if out == nil {
					break
				}
				if err := stream.Send(out); err != nil {
					return // Recv fails as well
				}
			}
		}
	})
	for {
		c.receive(l, m)
		if m, err = stream.Recv(); err != nil {
			return true, fail(err)
		}
		watchdog.Reset(silenceTimeout)
	}
}

// announceable returns how many blobs a tracker would be told of now.
func (c *Client) announceable(l *link) (n uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, b := range c.blobs {
		if b.state != StateGone && slices.Contains(c.owners(id), l) {
			n++
		}
	}
	return n
}

// linkUp announces everything to a tracker that is there (again).
func (c *Client) linkUp(l *link, w *trackerpb.Welcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.links[l.name] != l {
		return // no longer one of ours
	}
	l.up, l.offers = true, w.Features&trackerpb.FeatureOffers != 0
	l.status = TrackerStatus{
		Addr: l.name, Connected: true, Since: time.Now(),
		Age: time.Duration(w.AgeMs) * time.Millisecond, Software: w.Software,
	}
	l.dirty = map[piece.ID]uint8{}
	l.enough, l.enoughNext = map[piece.ID]time.Time{}, time.Time{}
	l.urgent, l.bulk, l.offered, l.accepted = nil, nil, nil, nil
	l.extra, l.done = nil, nil
	for id, b := range c.blobs {
		owners := c.owners(id)
		i := slices.Index(owners, l)
		if i < 0 {
			continue
		}
		switch {
		case b.want != nil || b.lease != nil:
			l.markDirty(id, dirtyProgress)
			if b.state != StateGone {
				l.markDirty(id, dirtyAnnounce)
			}
			if b.want == nil {
				break
			}
			c.ask(b, l, answerTimeout)
			if i == 0 && len(owners) == 2 {
				owners[1].markDirty(id, dirtyWant) // it may no longer grant
			}
		case b.state != StateGone:
			l.dirty[id] = dirtyAnnounce
			l.bulk = append(l.bulk, id)
		}
	}
	l.signal()
	c.kick()
	if f := c.cfg.OnStatus; f != nil {
		st := l.status
		c.emit(func() { f(st) })
	}
}

func (c *Client) linkDown(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l.up = false
	l.status.Connected, l.status.Since = false, time.Now()
	l.dirty, l.enough, l.extra, l.done = nil, nil, nil, nil
	l.urgent, l.bulk, l.offered, l.accepted = nil, nil, nil, nil
	maps.DeleteFunc(c.asked, func(_ uint64, by *link) bool { return by == l })
	for _, b := range c.wanted {
		owners := c.owners(b.id)
		i := slices.Index(owners, l)
		if i < 0 {
			continue
		}
		delete(b.want.answers, l)
		for node := range b.want.told {
			b.want.forget(node, i)
		}
		if i == 0 && len(owners) == 2 && b.want.Waiting {
			c.ask(b, owners[1], answerTimeout) // it may grant now
		}
		c.merge(b, time.Now())
	}
	c.kick()
}

// collect makes the next message to a tracker, or nil.
func (c *Client) collect(l *link) *trackerpb.FromAgent {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(l.urgent) == 0 && len(l.bulk) == 0 && len(l.accepted) == 0 && len(l.extra) == 0 && len(l.done) == 0 {
		return nil
	}
	m := &trackerpb.FromAgent{}
	n := 0
	for len(l.done) > 0 && n < trackerpb.MaxBatch/4 {
		m.Done = append(m.Done, l.done[0])
		l.done = l.done[1:]
		n++
	}
	for len(l.extra) > 0 && n < trackerpb.MaxBatch/4 {
		l.extra[0](m)
		l.extra = l.extra[1:]
		n++
		if len(m.Results) > 0 { // which may have many blobs
			return m
		}
	}
	if len(l.done) > 0 { // before what was announced after it
		return m
	}
	take := func(queue []piece.ID, room int) []piece.ID {
		for len(queue) > 0 && n+4 <= room { // at most four elements per blob
			n += c.describe(l, queue[0], m)
			queue = queue[1:]
		}
		return queue
	}
	l.urgent = take(l.urgent, trackerpb.MaxBatch)
	if n == 0 {
		// By itself, and what is announced in not too large batches, so that neither
		// the tracker nor what is urgent meanwhile has to wait for it long.
		l.urgent = nil
		switch {
		case len(l.accepted) > 0:
			l.accepted = take(l.accepted, trackerpb.MaxBatch/2)
		case l.offers:
			c.offer(l, m)
		default:
			l.bulk = take(l.bulk, trackerpb.MaxBatch/2)
		}
	}
	return m
}

// offer puts into m the next of what l is to be offered. What is not complete is
// announced without being asked for.
func (c *Client) offer(l *link, m *trackerpb.FromAgent) {
	now := time.Now()
	o := &trackerpb.Offer{}
	var ids []piece.ID
	for n := 0; len(l.bulk) > 0 && n < trackerpb.MaxBatch; l.bulk = l.bulk[1:] {
		id := l.bulk[0]
		b := c.blobs[id]
		if b != nil && b.state == StateComplete && l.dirty[id] == dirtyAnnounce && now.After(l.enough[id]) && slices.Contains(c.owners(id), l) {
			delete(l.dirty, id)
			delete(l.enough, id)
			o.Add(id, b.hash)
			ids = append(ids, id)
			n++
			continue
		}
		if n+4 > trackerpb.MaxBatch { // at most four elements per blob
			break
		}
		n += c.describe(l, id, m)
	}
	if len(ids) > 0 {
		m.Offers = append(m.Offers, o)
		l.offered = append(l.offered, ids)
	}
}

// answered takes in what l says to its oldest offer.
func (c *Client) answered(l *link, a *trackerpb.Accept, now time.Time) {
	if len(l.offered) == 0 {
		return
	}
	ids := l.offered[0]
	l.offered = l.offered[1:]
	for i, id := range ids {
		switch {
		case a.Has(i):
			l.dirty[id] |= dirtyAnnounce
			l.accepted = append(l.accepted, id)
		case c.blobs[id] != nil:
			c.notBefore(l, id, now.Add(time.Duration(a.AgainMs)*time.Millisecond))
		}
	}
	l.signal()
}

// notBefore notes until when l does not want to hear that the node has a blob.
func (c *Client) notBefore(l *link, id piece.ID, at time.Time) {
	l.enough[id] = at
	l.enoughNext = earlier(l.enoughNext, at)
	c.kick()
}

// describe puts into m what l has not heard of a blob.
func (c *Client) describe(l *link, id piece.ID, m *trackerpb.FromAgent) (n int) {
	bits := l.dirty[id]
	delete(l.dirty, id)
	b := c.blobs[id]
	owners := c.owners(id)
	if b == nil || !slices.Contains(owners, l) {
		b = &blob{id: id}
	}
	if bits&dirtyAnnounce != 0 && (b.state != StateComplete || time.Now().After(l.enough[id])) {
		delete(l.enough, id)
		n++
		if b.state == StateComplete {
			v := m.Inventory
			if len(v) == 0 || !v[len(v)-1].Add(id, b.hash) {
				one := &trackerpb.Inventory{}
				one.Add(id, b.hash)
				m.Inventory = append(v, one)
				n++
			}
		} else {
			m.Announces = append(m.Announces, &trackerpb.Announce{Blob: trackerpb.FromID(id), State: trackerpb.State(b.state)})
		}
	}
	if bits&dirtyProgress != 0 && b.lease != nil && b.lease.sent >= 0 {
		m.Progress = append(m.Progress, &trackerpb.LeaseProgress{Blob: trackerpb.FromID(id), Bytes: b.lease.sent})
		n++
	}
	if bits&dirtyWant != 0 {
		n++
		if b.want == nil {
			m.Unwants = append(m.Unwants, trackerpb.FromID(id))
		} else if a := b.want.answers[l]; a != nil {
			m.Wants = append(m.Wants, &trackerpb.Want{
				Blob:    trackerpb.FromID(id),
				Waiting: b.want.Waiting && !b.want.lease && b.lease == nil,
				Grant:   c.grants(b, l, owners, time.Now()),
				Seq:     a.seq,
			})
		}
	}
	return n
}

// receive takes a message from a tracker in.
func (c *Client) receive(l *link, m *trackerpb.ToAgent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range m.Sums {
		id, err := s.GetBlob().ID()
		if err != nil || c.wanted[id] == nil && c.blobs[id] == nil || len(s.Hash) != 32 {
			continue
		}
		hash := [32]byte(s.Hash)
		c.emit(func() { c.h.SumsHash(id, hash) })
	}
	for _, p := range m.Peers {
		id, err := p.GetBlob().ID()
		if err != nil {
			continue
		}
		b := c.wanted[id]
		i := slices.Index(c.owners(id), l)
		if b == nil || i < 0 {
			continue
		}
		var gone []string
		for _, node := range p.Gone {
			if b.want.forget(node, i) {
				gone = append(gone, node)
			}
		}
		if len(gone) > 0 {
			c.emit(func() { c.h.PeersGone(id, gone) })
		}
		peers := make([]Peer, 0, len(p.Peers))
		for _, q := range p.Peers {
			old := b.want.told[q.Node]
			if q.Node == c.cfg.Hello.Node || len(b.want.told) >= maxTold && old.known == 0 {
				continue
			}
			// What one tracker knows counts, though the other may not know it (yet):
			// only the one that granted a lease knows its holder at first.
			now := old
			now.set(i, q.Complete, q.Source)
			b.want.told[q.Node] = now
			q := &trackerpb.Peer{Node: q.Node, Addr: q.Addr, Zone: q.Zone, Role: q.Role, Complete: now.complete != 0, Source: now.source != 0}
			peers = append(peers, Peer{
				Node: q.Node, Addr: q.Addr, Zone: q.Zone, Role: wire.Role(q.Role),
				Complete: q.Complete, Source: q.Source,
			})
		}
		if len(peers) > 0 {
			c.emit(func() { c.h.Peers(id, peers) })
		}
		if p.Share != nil && i < len(b.want.shares) {
			// What a tracker said that is away holds until another says something.
			for k, o := range c.owners(id) {
				if k < len(b.want.shares) && !o.up {
					b.want.shares[k] = 0
				}
			}
			b.want.shares[i] = uint16(*p.Share)
			share := b.want.shares[0] | b.want.shares[1]
			c.emit(func() { c.h.Share(id, share) })
		}
	}
	now := time.Now()
	for _, v := range m.Verdicts {
		id, err := v.GetBlob().ID()
		if err != nil {
			continue
		}
		b := c.wanted[id]
		if b == nil && v.Kind == trackerpb.Verdict_KIND_LEASE {
			c.giveBack(id)
		}
		if b == nil || !slices.Contains(c.owners(id), l) {
			continue
		}
		if old := b.want.answers[l]; old == nil || old.seq != v.Seq {
			continue
		}
		a := &answer{seq: v.Seq}
		switch v.Kind {
		case trackerpb.Verdict_KIND_SOURCES:
			a.kind = Sources
		case trackerpb.Verdict_KIND_LEASE:
			a.kind = Lease
		case trackerpb.Verdict_KIND_NOBODY:
			a.kind = Nobody
		case trackerpb.Verdict_KIND_WAIT:
			a.kind = Wait
			a.until = now.Add(time.Duration(v.RetryMs) * time.Millisecond)
		default:
			continue
		}
		b.want.answers[l] = a
		c.merge(b, now)
		c.kick()
	}
	for _, e := range m.Enough {
		if e.GetBlobs().Check() != nil {
			continue
		}
		at := now.Add(time.Duration(e.AgainMs) * time.Millisecond)
		for i := range e.Blobs.Len() {
			if id := e.Blobs.ID(i); c.blobs[id] != nil {
				c.notBefore(l, id, at)
			}
		}
	}
	for _, a := range m.Accepts {
		c.answered(l, a, now)
	}
	for _, name := range m.Lookups {
		id, err := name.ID()
		if err != nil {
			continue
		}
		if b := c.blobs[id]; b != nil && b.state != StateGone {
			// It was refused once, or is still in the queue.
			delete(l.enough, id)
			l.hurry(id)
			continue
		}
		c.emit(func() { c.h.Lookup(id) })
	}
	for _, cmd := range m.Commands {
		if len(c.asked) >= maxCommands && c.asked[cmd.Id] == nil {
			l.push(func(m *trackerpb.FromAgent) {
				m.Results = append(m.Results, &trackerpb.CommandResult{Id: cmd.Id, Supported: true, Error: "too many commands are under way"})
			})
			continue
		}
		c.asked[cmd.Id] = l
		c.emit(func() { c.h.Command(cmd) })
	}
}

// set notes what the i-th tracker said of a peer.
func (p *toldPeer) set(i int, complete, source bool) {
	bit := uint8(1) << i
	p.known |= bit
	p.complete &^= bit
	p.source &^= bit
	if complete {
		p.complete |= bit
	}
	if source {
		p.source |= bit
	}
}

// forget takes back what the i-th tracker said of a peer, and reports whether
// nobody knows it any more.
func (w *want) forget(node string, i int) bool {
	p := w.told[node]
	if p.known == 0 {
		return false
	}
	p.set(i, false, false)
	p.known &^= 1 << i
	if p.known == 0 {
		delete(w.told, node)
		return true
	}
	w.told[node] = p
	return false
}

// maxCommands is how many commands may be under way at once.
const maxCommands = 256

// maxTold is how many peers of one blob are remembered; a tracker tells of far
// fewer.
const maxTold = 1000
