package fetch

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/log"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Blobs is where blobs are.
type Blobs interface {
	// Whole reports from memory whether all of the blob is there.
	Whole(id piece.ID) bool
	// OpenBlob opens the blob, or makes an empty part of it.
	OpenBlob(ctx context.Context, id piece.ID) (Blob, error)
}

// Blob is a blob on disk, whole or in part. Its state is shared by all handles
// of one digest.
type Blob interface {
	Have() *piece.Bits
	Prefix() int64
	Changed() <-chan struct{} // closed at the next change of Have or completeness
	// ReadAt reads bytes of pieces that Have has.
	ReadAt(p []byte, off int64) (int, error)
	Complete(context.Context) error
	// Empty forgets what there is, unless all of it is here, and proven.
	Empty() error
	// Append returns a writer that waits for room on a full disk until ctx is done.
	Append(ctx context.Context, off int64) (Appender, error)
	Publish(context.Context) error
	Drop() error
	// GiveUp ends what waits for room for the blob, until it is opened again.
	GiveUp()
	Close() error
}

// Appender writes what a session downloads.
type Appender interface {
	Write(p []byte) (int, error)
	Finish(context.Context) error
	Close() error
}

// Peers is the swarm: a swarm.Node.
type Peers interface {
	// Join takes part in the blob's swarm, or changes how.
	Join(ctx context.Context, id piece.ID, how swarm.JoinOptions) error
	// Done gives one value, for a blob that is joined: nil when it is whole, or why it
	// cannot be had.
	Done(id piece.ID) <-chan error
	// LeaveNow leaves a blob, and returns when it is closed, or ctx is done.
	LeaveNow(ctx context.Context, id piece.ID)
	AddPeers(id piece.ID, p []swarm.PeerInfo)
	Share(id piece.ID, share uint16)
	// Proven says that the joined blob was completed by a session's writing.
	Proven(id piece.ID)
	Status(id piece.ID) (swarm.BlobStatus, bool)
}

// Finder is the trackers: a tracker.Client. Its methods do not block, and its answers
// arrive at Fetches.Verdict, PeersFound, ShareTold and UpstreamTold.
type Finder interface {
	// Want asks; the verdicts that answer it carry its Tag.
	Want(id piece.ID, w tracker.Want)
	Unwant(id piece.ID)
	Announce(id piece.ID, s tracker.State)
	LeaseProgress(id piece.ID, bytes int64, registry string)
	LeaseDone(id piece.ID, err error)
}

// Config is what Fetches need to know.
type Config struct {
	Rules
	OnAnswer   func(Outcome, time.Duration) // nil: nobody counts
	OnRegistry func(bytes int)              // brought by a session; nil: nobody counts
	// Keep is told of a whole blob that is joined, for as long as it is worth it.
	// Nil: such a blob is left.
	Keep func(id piece.ID)
}

// Fetches is the shell around a Machine; see the package comment.
type Fetches struct {
	cfg      Config
	blobs    Blobs
	sessions atomic.Uint64           // opened so far
	network  atomic.Pointer[network] // nil until Connect
	mail     mailbox
	stopped  chan struct{} // closed when no session is answered any more
	wg       sync.WaitGroup

	mu      sync.Mutex
	handles map[piece.ID]*handle // of the fetches there are

	// Owned by Run's goroutine.
	machine *Machine
	open    map[SessionID]*Session
	closing map[piece.ID]*handle // closed, maybe not yet to the end
}

type network struct {
	peers  Peers
	finder Finder // nil: there are no trackers
}

// New returns Fetches that do nothing until Run.
func New(cfg Config, b Blobs) *Fetches {
	if cfg.OnAnswer == nil {
		cfg.OnAnswer = func(Outcome, time.Duration) {}
	}
	if cfg.OnRegistry == nil {
		cfg.OnRegistry = func(int) {}
	}
	return &Fetches{
		cfg: cfg, blobs: b, mail: mailbox{wake: make(chan struct{}, 1)}, stopped: make(chan struct{}), handles: map[piece.ID]*handle{},
		machine: NewMachine(cfg.Rules), open: map[SessionID]*Session{}, closing: map[piece.ID]*handle{},
	}
}

// mailbox is what Run's goroutine is to do, in order.
type mailbox struct {
	wake chan struct{} // 1-buffered

	mu     sync.Mutex
	closed bool
	notes  []note
}

// note is called by Run's goroutine with Run's context.
type note func(ctx context.Context)

func (b *mailbox) put(n note) {
	b.mu.Lock()
	if !b.closed {
		b.notes = append(b.notes, n)
	}
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// take returns the notes, and none come any more if last.
func (b *mailbox) take(spare []note, last bool) []note {
	clear(spare)
	b.mu.Lock()
	defer b.mu.Unlock()
	notes := b.notes
	b.notes, b.closed = spare[:0], last
	return notes
}

// do has Run's goroutine call n, unless it has ended. Nothing waits for that.
func (fs *Fetches) do(n note) { fs.mail.put(n) }

// tell has the Machine take an event in.
func (fs *Fetches) tell(ev Event) { fs.do(func(ctx context.Context) { fs.step(ctx, ev) }) }

// Run serves the fetches until ctx is done, and returns nil when all that it started has
// ended. Sessions that wait then are told so. It may be called once.
func (fs *Fetches) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var armed time.Time // what timer is set to
	var spare []note
	for running := true; running; {
		select {
		case <-fs.mail.wake:
		case <-timer.C:
			armed = time.Time{}
		case <-ctx.Done():
			running = false
		}
		notes := fs.mail.take(spare, !running)
		for _, n := range notes {
			n(ctx)
		}
		spare = notes
		if due := fs.machine.Deadline(); !due.IsZero() && !time.Now().Before(due) {
			fs.step(ctx, EvTick{})
		}
		if due := fs.machine.Deadline(); !due.IsZero() && !due.Equal(armed) {
			armed = due
			timer.Reset(time.Until(due))
		}
	}
	fs.step(ctx, EvStopping{})
	close(fs.stopped)
	fs.wg.Wait()
	return nil
}

// step has the Machine take an event in, after what there is on disk of what it is about, and
// publishes what came of it.
func (fs *Fetches) step(ctx context.Context, ev Event) {
	now := time.Now() // one for all of it: what falls due meanwhile waits for the next tick
	about := fs.about(now, ev)
	for _, id := range about {
		if h := fs.handle(id); h != nil {
			fs.look(ctx, now, h)
		}
	}
	fs.take(ctx, now, ev)
	for _, id := range about {
		if h := fs.handle(id); h != nil {
			fs.publish(h)
		}
	}
}

// about returns the blobs that an event is about.
func (fs *Fetches) about(now time.Time, ev Event) []piece.ID {
	if _, ok := ev.(EvTick); ok { // there are many, and few that have to do with it
		return fs.machine.Due(now)
	}
	if id := ev.blob(); id != (piece.ID{}) {
		return []piece.ID{id}
	}
	var ids []piece.ID
	for _, h := range fs.all() {
		ids = append(ids, h.id)
	}
	return ids
}

// look tells the Machine what there is of a blob, if that has changed.
func (fs *Fetches) look(ctx context.Context, now time.Time, h *handle) {
	if p, ok := h.progress(); ok && (!h.looked || h.seen != p) {
		h.looked, h.seen = true, p
		fs.take(ctx, now, EvProgress{ID: h.id, Opening: h.opening, Progress: p})
	}
}

func (fs *Fetches) take(ctx context.Context, now time.Time, ev Event) {
	for _, a := range fs.machine.Step(now, ev) {
		fs.perform(ctx, a)
	}
}

func (fs *Fetches) publish(h *handle) {
	if st, ok := fs.machine.Status(h.id); ok && st.opening == h.opening {
		h.status.Store(&st)
	}
}

// perform does what the Machine says: at once, or, what may block and what must not
// overtake it, by the blob's own goroutine.
func (fs *Fetches) perform(ctx context.Context, a Action) {
	var peers Peers
	var finder Finder
	if n := fs.network.Load(); n != nil {
		peers, finder = n.peers, n.finder
	}
	switch a := a.(type) {
	case ActOpen:
		fs.opens(ctx, a)
	case ActComplete:
		fs.handle(a.ID).do(func(h *handle) { h.complete(ctx) })
	case ActEmpty:
		fs.handle(a.ID).do(func(h *handle) { h.empty(ctx) })
	case ActClose:
		fs.closes(a)
	case ActJoin:
		fs.handle(a.ID).do(func(h *handle) { h.joins(ctx, peers, a) })
	case ActLeave:
		fs.handle(a.ID).do(func(h *handle) { h.leave(peers) })
	case ActKeep:
		fs.handle(a.ID).do(func(h *handle) { h.keep(peers) })
	case ActAddPeers:
		fs.handle(a.ID).do(func(*handle) { peers.AddPeers(a.ID, a.Peers) })
	case ActShare:
		fs.handle(a.ID).do(func(*handle) { peers.Share(a.ID, a.Share) })
	case ActProven:
		fs.handle(a.ID).do(func(*handle) { peers.Proven(a.ID) })
	case ActSwarmStatus:
		fs.handle(a.ID).do(func(h *handle) {
			st, _ := peers.Status(a.ID)
			fs.tell(EvSwarmStatus{ID: a.ID, Opening: h.opening, Status: st})
		})
	case ActWant:
		finder.Want(a.ID, tracker.Want{Waiting: a.Waiting, Tag: a.Ask, Lost: a.Lost, Slow: a.Slow})
	case ActUnwant:
		finder.Unwant(a.ID)
	case ActAnnounce:
		finder.Announce(a.ID, a.State)
	case ActLeaseProgress:
		finder.LeaseProgress(a.ID, a.Bytes, a.Registry)
	case ActLeaseDone:
		finder.LeaseDone(a.ID, a.Err)
	case ActAnswer:
		fs.answers(ctx, a)
	}
}

func (fs *Fetches) opens(ctx context.Context, a ActOpen) {
	h := newHandle(fs, a)
	if before := fs.closing[a.ID]; before != nil {
		h.after = before.ended
	}
	fs.publish(h)
	fs.mu.Lock()
	fs.handles[a.ID] = h
	fs.mu.Unlock()
	fs.wg.Go(func() { h.run(ctx) })
}

func (fs *Fetches) closes(a ActClose) {
	h := fs.handle(a.ID)
	if st := *h.status.Load(); a.Err != nil {
		st.Failed = a.Err
		h.status.Store(&st)
	}
	h.giveUp()
	fs.mu.Lock()
	delete(fs.handles, a.ID)
	fs.mu.Unlock()
	fs.closing[a.ID] = h
	h.do(func(h *handle) { h.close(a.Drop) })
}

// closed forgets a handle that has ended.
func (fs *Fetches) closed(h *handle) {
	if fs.closing[h.id] == h {
		delete(fs.closing, h.id)
	}
}

func (fs *Fetches) answers(ctx context.Context, a ActAnswer) {
	if s := fs.open[a.Session]; s != nil && s.answer != nil {
		s.answer <- answer{a.Answer, a.Err}
		s.answer = nil
	}
	if l := log.G(ctx); l.Logger.IsLevelEnabled(log.DebugLevel) {
		l.WithFields(log.Fields{
			"digest": a.ID.Digest(), "why": a.Why, "offset": a.Answer.Offset, "waited": a.Waited, "verdict": a.Verdict.String(),
		}).Debug("session answered")
	}
	fs.cfg.OnAnswer(a.Why, a.Waited)
}

// Connect gives the fetches a swarm and trackers (nil: none), those under way
// included.
func (fs *Fetches) Connect(p Peers, f Finder) {
	fs.do(func(ctx context.Context) {
		fs.network.Store(&network{p, f})
		fs.step(ctx, EvConnected{Swarm: p != nil, Trackers: f != nil})
	})
}

// Drain answers every session that waits, now and from now on.
func (fs *Fetches) Drain() {
	fs.tell(EvDraining{})
}

// Config returns what New was given.
func (fs *Fetches) Config() Config { return fs.cfg }

// Prefetch starts or prolongs the fetch of a blob that containerd is expected to
// open soon, unless so many are under way. It takes from the swarm only.
func (fs *Fetches) Prefetch(id piece.ID, priority int) {
	if !fs.blobs.Whole(id) {
		fs.tell(EvPrefetch{ID: id, Priority: priority})
	}
}

// Prolong keeps a prefetch that is under way from being abandoned.
func (fs *Fetches) Prolong(id piece.ID) { fs.tell(EvProlong{id}) }

// Abandon ends the fetch of a blob that no session has open, and reports false if
// one has.
func (fs *Fetches) Abandon(id piece.ID) bool {
	if fs.InUse(id) {
		return false
	}
	fs.tell(EvAbandon{id})
	return true
}

// GiveUp ends the fetches of blobs that no session has open, since their space is needed,
// and returns when they, and what ended before, are closed, or after a moment.
func (fs *Fetches) GiveUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, closeWithin)
	defer cancel()
	closing := make(chan []*handle, 1)
	fs.do(func(ctx context.Context) {
		for _, h := range fs.all() {
			fs.step(ctx, EvAbandon{h.id})
		}
		closing <- slices.Collect(maps.Values(fs.closing))
	})
	var all []*handle
	select {
	case all = <-closing:
	case <-fs.stopped:
	case <-ctx.Done():
	}
	for _, h := range all {
		select {
		case <-h.ended:
		case <-ctx.Done():
		}
	}
}

// closeWithin is for how long the swarm may take to close a blob: who waits for that may be
// whom it waits for, a piece for which there is no room.
const closeWithin = 250 * time.Millisecond

// Verdict tells what the trackers found out for the Want that had its tag.
func (fs *Fetches) Verdict(id piece.ID, v tracker.Verdict) {
	fs.tell(EvVerdict{ID: id, Ask: v.Tag, Verdict: v.Kind, Paced: v.Paced, Heard: v.Heard})
}

// SetLimit tells how much this node takes from the swarm, in bytes per second; 0: no limit. A
// swarm that is as fast as that is not slow.
func (fs *Fetches) SetLimit(rate int64) { fs.tell(EvLimit{rate}) }

// PeersFound tells of peers that the trackers named.
func (fs *Fetches) PeersFound(id piece.ID, p []swarm.PeerInfo) {
	fs.tell(EvPeersFound{ID: id, Peers: p})
}

// NoSource tells that the last source that the swarm knew of a blob has failed.
func (fs *Fetches) NoSource(id piece.ID) {
	if fs.Has(id) {
		fs.tell(EvNoSource{ID: id})
	}
}

// Doubt tells that what the swarm has stored of a blob may be false, or is no longer in doubt.
func (fs *Fetches) Doubt(id piece.ID, on bool) {
	if fs.Has(id) {
		fs.tell(EvDoubt{ID: id, On: on})
	}
}

// ShareTold tells what of a blob this node is to bring into its zone.
func (fs *Fetches) ShareTold(id piece.ID, share uint16) {
	fs.tell(EvShareTold{ID: id, Share: share})
}

// UpstreamTold tells where holders of leases have the blob from, or what became of that.
func (fs *Fetches) UpstreamTold(id piece.ID, u tracker.Upstream) {
	fs.tell(EvUpstream{ID: id, Upstream: u})
}

// Changed tells that there is something new of a blob on disk.
func (fs *Fetches) Changed(id piece.ID) {
	if h := fs.handle(id); h != nil {
		h.changed()
	}
}

// Has reports whether there is a fetch of the blob.
func (fs *Fetches) Has(id piece.ID) bool { return fs.handle(id) != nil }

// InUse reports whether a session has the blob open.
func (fs *Fetches) InUse(id piece.ID) bool {
	h := fs.handle(id)
	return h != nil && h.status.Load().Sessions > 0
}

// Len returns how many fetches there are.
func (fs *Fetches) Len() int {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return len(fs.handles)
}

// Follow returns what tells the state of the blob's fetch, beyond its end, or nil if
// there is none.
func (fs *Fetches) Follow(id piece.ID) func() Status {
	h := fs.handle(id)
	if h == nil {
		return nil
	}
	return func() Status { return *h.status.Load() }
}

// Status returns the state of each fetch, as last published, oldest first.
func (fs *Fetches) Status() []Status {
	all := fs.all()
	out := make([]Status, len(all))
	for i, h := range all {
		out[i] = *h.status.Load()
	}
	return out
}

func (fs *Fetches) handle(id piece.ID) *handle {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.handles[id]
}

// all returns the handles, the oldest first.
func (fs *Fetches) all() []*handle {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return slices.SortedFunc(maps.Values(fs.handles), func(a, b *handle) int { return cmp.Compare(a.opening, b.opening) })
}
