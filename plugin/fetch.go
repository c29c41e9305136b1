package plugin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// blob is a blob on disk, whole or in part. Its state is shared by all handles
// of one digest.
type blob interface {
	Have() *piece.Bits
	Prefix() int64
	Changed() <-chan struct{} // closed at the next change of Have or completeness
	// ReadAt reads bytes of pieces that Have has.
	ReadAt(p []byte, off int64) (int, error)
	Complete(context.Context) error
	Append(off int64) (appender, error)
	Publish(context.Context) error
	Drop() error
	Close() error
}

// appender writes what containerd downloads.
type appender interface {
	Write(p []byte) (int, error)
	Finish(context.Context) error
	Close() error
}

// blobs is where blobs are.
type blobs interface {
	// Whole reports from memory whether all of the blob is there.
	Whole(id piece.ID) bool
	// Committed reports from memory whether containerd has the blob.
	Committed(id piece.ID) bool
	// AdoptIngest takes over what stock containerd wrote under the ref before.
	AdoptIngest(ctx context.Context, ref string, id piece.ID) error
	// OpenBlob opens the blob, or makes an empty part of it.
	OpenBlob(ctx context.Context, id piece.ID) (blob, error)
}

// peers is the swarm.
type peers interface {
	// Join takes part in the blob's swarm, or changes how. onDone is called once,
	// with nil when the blob is whole, or why it cannot be had; not after Leave.
	Join(ctx context.Context, id piece.ID, how joinAs, onDone func(error)) error
	Leave(id piece.ID)
	AddPeers(id piece.ID, p []swarm.PeerInfo)
	Share(id piece.ID, share uint16)
	// Proven says that the joined blob was completed by containerd's writing.
	Proven(id piece.ID)
	Status(id piece.ID) (swarm.BlobStatus, bool)
}

// joinAs says how a blob's swarm is joined: to take (in the order of priority,
// lower first) or only to give.
type joinAs struct {
	want     bool
	priority int
}

// finder is the trackers. Its answers arrive at fetches.verdict and peersFound.
type finder interface {
	// Want asks; the verdicts that answer it carry ask.
	Want(id piece.ID, waiting bool, ask uint64)
	Unwant(id piece.ID)
	Partial(id piece.ID)
	Gone(id piece.ID)
	LeaseProgress(id piece.ID, bytes int64)
	LeaseDone(id piece.ID, err error)
}

var (
	errNotWritten = errors.New("containerd did not download the whole blob")
	errNoWaiter   = fmt.Errorf("no client waits for the blob any more: %w", context.Canceled)
)

// fetchConfig is what fetches need to know of a Config.
type fetchConfig struct {
	AuthorizeBlob bool
	Find          time.Duration // to find out whether anybody could have a blob
	Stall         time.Duration // without a verified byte
	Prefetch      time.Duration // how long a blob that nobody opened is fetched on
	MaxPrefetch   int           // blobs fetched that nobody opened yet
	OnAnswer      func(outcome, time.Duration)
	OnRegistry    func(bytes int)
	// Keep is told of a whole blob that is joined, for as long as it is worth it.
	// Nil: such a blob is left.
	Keep func(id piece.ID)
}

// fetches holds the fetches under way, one a blob. Its methods may be called by
// any goroutine, and none but run blocks.
type fetches struct {
	cfg   fetchConfig
	ctx   context.Context // of every fetch's goroutine
	blobs blobs
	wg    sync.WaitGroup

	mu       sync.Mutex
	live     map[piece.ID]*fetch
	peers    peers  // nil until the swarm is up
	finder   finder // nil until the trackers' client is up, and if there are none
	up       bool   // connect was called
	draining bool
	asks     uint64 // Wants so far, of all fetches
	// noRange holds blobs of which a session was told to continue at N > 0 and
	// brought nothing: the registry may not serve ranges (DESIGN 6.8).
	noRange *lru.Cache[piece.ID, struct{}]
	// distrusted holds blobs of which what containerd downloaded contradicted what
	// the swarm had delivered, before either was proven. Until the blob is here,
	// it comes from the registry alone.
	distrusted *lru.Cache[piece.ID, struct{}]
}

func newFetches(ctx context.Context, cfg fetchConfig, b blobs) *fetches {
	remember := func() *lru.Cache[piece.ID, struct{}] {
		c, err := lru.New[piece.ID, struct{}](1024)
		if err != nil {
			panic(err) // only for a size of 0
		}
		return c
	}
	if cfg.OnAnswer == nil {
		cfg.OnAnswer = func(outcome, time.Duration) {}
	}
	if cfg.OnRegistry == nil {
		cfg.OnRegistry = func(int) {}
	}
	return &fetches{cfg: cfg, ctx: ctx, blobs: b, live: map[piece.ID]*fetch{}, noRange: remember(), distrusted: remember()}
}

// connect gives the fetches a swarm and trackers (nil: none), those under way
// included.
func (fs *fetches) connect(p peers, f finder) {
	fs.mu.Lock()
	fs.peers, fs.finder, fs.up = p, f, true
	fs.mu.Unlock()
	fs.kickAll()
}

// drain answers every session that waits, now and from now on.
func (fs *fetches) drain() {
	fs.mu.Lock()
	fs.draining = true
	fs.mu.Unlock()
	fs.kickAll()
}

func (fs *fetches) kickAll() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, f := range fs.live {
		f.kick()
	}
}

// wait returns when every fetch has ended; fs.ctx must be done.
func (fs *fetches) wait() { fs.wg.Wait() }

func (fs *fetches) env() (peers, finder, bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.peers, fs.finder, fs.draining
}

// acquire returns the blob's fetch, which lives at least until release.
func (fs *fetches) acquire(id piece.ID) *fetch {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f := fs.get(id)
	f.refs++
	return f
}

// get returns the blob's fetch, started if need be. fs.mu is held.
func (fs *fetches) get(id piece.ID) *fetch {
	f := fs.live[id]
	if f == nil {
		f = &fetch{id: id, fs: fs, ready: make(chan struct{}), kicked: make(chan struct{}, 1), started: time.Now()}
		fs.live[id] = f
		fs.wg.Go(f.run)
	}
	return f
}

// prefetch starts or prolongs the fetch of a blob that containerd is expected to
// open soon. It takes from the swarm only.
// It reports false if too much is fetched already.
func (fs *fetches) prefetch(id piece.ID, priority int) bool {
	if fs.blobs.Whole(id) {
		return true
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f := fs.live[id]
	if f == nil {
		if fs.peers == nil || fs.finder == nil || fs.draining || fs.prefetching() >= fs.cfg.MaxPrefetch {
			return false
		}
		f = fs.get(id)
	}
	f.mu.Lock()
	f.prefetchUntil = time.Now().Add(fs.cfg.Prefetch)
	f.priority = priority
	f.mu.Unlock()
	f.kick()
	return true
}

// prolong keeps a prefetch that is under way from being abandoned.
func (fs *fetches) prolong(id piece.ID) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.live[id]; f != nil {
		f.mu.Lock()
		if !f.prefetchUntil.IsZero() {
			f.prefetchUntil = time.Now().Add(fs.cfg.Prefetch)
		}
		f.mu.Unlock()
	}
}

func (fs *fetches) count() int {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return len(fs.live)
}

func (fs *fetches) prefetching() (n int) {
	for _, f := range fs.live {
		if f.refs == 0 {
			n++
		}
	}
	return n
}

// open reports whether a session has the blob open.
func (fs *fetches) open(id piece.ID) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f := fs.live[id]
	return f != nil && f.refs > 0
}

// lookup returns the blob's fetch if there is one.
func (fs *fetches) lookup(id piece.ID) *fetch {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.live[id]
}

// verdict tells what the trackers found out for the Want that was called with ask.
func (fs *fetches) verdict(id piece.ID, ask uint64, v verdict) {
	f := fs.lookup(id)
	if f == nil {
		if _, finder, _ := fs.env(); v == verdictLease && finder != nil {
			finder.LeaseDone(id, errNoWaiter)
		}
		return
	}
	f.mu.Lock()
	// An answer to an earlier Want crossed with this one: «nobody», said while no
	// session waited, would send one to the registry that was about to get a source.
	// Trackers answer each Want, a lease that stands included.
	if ask == f.ask {
		f.verdict = v
		f.lease = v == verdictLease // it moves on if it was not taken
	}
	f.mu.Unlock()
	f.kick()
}

// peersFound tells of peers that the trackers named.
func (fs *fetches) peersFound(id piece.ID, p []swarm.PeerInfo) {
	f := fs.lookup(id)
	if f == nil {
		return
	}
	f.mu.Lock()
	// Kept because the blob may not have been joined yet; bounded, since a
	// tracker names a few dozen.
	if f.found = append(f.found, p...); len(f.found) > 200 {
		f.found = f.found[len(f.found)-200:]
	}
	f.mu.Unlock()
	f.kick()
}

// shareTold tells what of a blob this node is to bring into its zone.
func (fs *fetches) shareTold(id piece.ID, share uint16) {
	f := fs.lookup(id)
	if f == nil {
		return
	}
	f.mu.Lock()
	f.share, f.shareDue = share, true
	f.mu.Unlock()
	f.kick()
}

// whole tells that a blob is complete on disk, by whatever way.
func (fs *fetches) whole(id piece.ID) {
	if f := fs.lookup(id); f != nil {
		f.mu.Lock()
		f.complete = true
		f.mu.Unlock()
		f.kick()
	}
}

// A fetch is what happens to one blob while sessions want it: they wait for the
// swarm, or write what containerd downloads, and a prefetch may be ahead of
// them. Its goroutine alone opens the blob, joins the swarm, asks the trackers
// and answers sessions; everybody else changes the fields under mu and kicks it.
type fetch struct {
	id      piece.ID
	fs      *fetches
	started time.Time
	refs    int // sessions; guarded by fs.mu

	ready   chan struct{} // closed when blob or openErr is set
	blob    blob
	openErr error

	kicked chan struct{} // 1-buffered

	spreadAt time.Time // when the peers had together all that is missing here, last; the goroutine's

	mu            sync.Mutex
	waiting       []*waiter
	writers       int // sessions that were sent to the registry and have not ended
	prefetchUntil time.Time
	priority      int
	complete      bool
	failed        error // of the disk: every session of this fetch fails
	noSwarm       bool  // the swarm gave up on the blob
	verified      int64 // bytes
	progress      time.Time
	registry      int64 // bytes that containerd wrote
	verdict       verdict
	lease         bool // granted, and not given to a session yet
	leaseHeld     bool // a session has it
	asked         time.Time
	ask           uint64           // of the last Want; only answers to that count
	reask         bool             // the trackers' answer is used up
	found         []swarm.PeerInfo // named by trackers and not handed to the swarm yet
	share         uint16           // of what comes into the zone, as a tracker said
	shareDue      bool             // the swarm was not told

	// Owned by the goroutine.
	joined   bool
	joinedAs joinAs
	wants    wanted
	partial  bool // announced
	proven   bool // the swarm was told that the blob is whole
	done     chan error
}

// wanted is what the trackers were told last.
type wanted int

const (
	wantNothing wanted = iota
	wantSome           // peers
	wantWaiting        // peers, or a lease
)

type waiter struct {
	since      time.Time
	authorized bool        // the registry has said that the blob may be had
	answer     chan answer // 1-buffered
}

type answer struct {
	offset int64
	lease  bool
	err    error
}

func (f *fetch) log() *log.Entry {
	return log.G(f.fs.ctx).WithField("digest", f.id.Digest())
}

func (f *fetch) kick() {
	select {
	case f.kicked <- struct{}{}:
	default:
	}
}

func (f *fetch) release() {
	f.fs.mu.Lock()
	f.refs--
	f.fs.mu.Unlock()
	f.kick()
}

// open returns the blob, once it is open. It stays open until release.
func (f *fetch) open(ctx context.Context) (blob, error) {
	select {
	case <-f.ready:
		return f.blob, f.openErr
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// await returns where containerd is to continue, at f.id.Size if everything is
// there. A session that gets another offset is a writer until endWriting. One that
// is authorized is not sent to the registry only to be.
func (f *fetch) await(ctx context.Context, authorized bool) (answer, error) {
	w := &waiter{since: time.Now(), authorized: authorized, answer: make(chan answer, 1)}
	f.mu.Lock()
	f.waiting = append(f.waiting, w)
	f.mu.Unlock()
	f.kick()
	select {
	case a := <-w.answer:
		return a, a.err
	case <-ctx.Done():
	case <-f.fs.ctx.Done():
	}
	f.mu.Lock()
	if i := slices.Index(f.waiting, w); i >= 0 {
		f.waiting = slices.Delete(f.waiting, i, i+1)
	}
	f.mu.Unlock()
	f.kick()
	select {
	case a := <-w.answer: // it crossed the end
		if a.err == nil && a.offset < f.id.Size {
			f.endWriting(a.lease, false, context.Canceled)
		}
	default:
	}
	f.fs.cfg.OnAnswer(outcomeGone, time.Since(w.since))
	if ctx.Err() == nil {
		return answer{}, fmt.Errorf("the agent stops: %w", errdefs.ErrUnavailable)
	}
	return answer{}, ctx.Err()
}

// writeAtZero makes a session a writer that did not wait.
func (f *fetch) writeAtZero() {
	f.mu.Lock()
	f.writers++
	f.mu.Unlock()
	f.kick()
}

// wrote counts n bytes that a session stored, the last of which is at offset
// total.
func (f *fetch) wrote(n int, total int64) {
	f.fs.cfg.OnRegistry(n)
	f.mu.Lock()
	f.registry += int64(n)
	f.mu.Unlock()
	if _, finder, _ := f.fs.env(); finder != nil {
		finder.LeaseProgress(f.id, total)
	}
}

// endWriting ends a session's writing: err is nil if the blob is whole now.
// wrote says whether the session brought anything.
func (f *fetch) endWriting(lease, wrote bool, err error) {
	f.mu.Lock()
	f.writers--
	if err == nil {
		f.complete = true
	}
	if lease {
		f.leaseHeld = false
		f.verdict, f.reask = verdictUnknown, true
	}
	last := f.writers == 0
	f.mu.Unlock()
	// Trackers hear of every download, since it makes this node a source.
	if _, finder, _ := f.fs.env(); finder != nil && (lease || wrote && (last || err == nil)) {
		finder.LeaseDone(f.id, err)
	}
	f.kick()
}

// fail makes every session of the fetch fail: the disk cannot take the blob.
func (f *fetch) fail(err error) {
	f.mu.Lock()
	if f.failed == nil {
		f.failed = err
	}
	f.mu.Unlock()
	f.kick()
}

// run owns the fetch until nobody wants it.
func (f *fetch) run() {
	ctx := f.fs.ctx
	f.blob, f.openErr = f.fs.blobs.OpenBlob(ctx, f.id)
	close(f.ready)
	if f.openErr != nil {
		f.fail(f.openErr)
	}
	for {
		f.serve(ctx)
		f.leave()
		f.drop()
		f.fs.mu.Lock()
		if ctx.Err() != nil || !f.wantedLocked() {
			delete(f.fs.live, f.id)
			f.fs.mu.Unlock()
			break
		}
		f.fs.mu.Unlock()
	}
	if f.blob == nil {
		return
	}
	if err := f.blob.Close(); err != nil {
		f.log().WithError(err).Warn("cannot close a blob")
	}
}

// drop gives space back: of a blob that the disk could not take, before anybody
// retries, and of a part of a blob that is now here by another way.
func (f *fetch) drop() {
	if f.blob == nil {
		return
	}
	f.mu.Lock()
	failed, complete := f.failed, f.complete
	f.mu.Unlock()
	if complete && f.blob.Have().Full() || !complete && failed == nil {
		return
	}
	if err := f.blob.Drop(); err != nil {
		f.log().WithError(err).Warn("cannot drop a part of a blob")
	}
}

// wantedLocked reports whether the fetch has a reason to go on. fs.mu is held.
func (f *fetch) wantedLocked() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refs > 0 || f.failed == nil && !f.complete && time.Now().Before(f.prefetchUntil)
}

// serve decides and acts until the fetch is no longer wanted.
func (f *fetch) serve(ctx context.Context) {
	f.mu.Lock()
	f.verdict, f.asked = verdictUnknown, time.Time{}
	f.mu.Unlock()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var changed <-chan struct{}
		if f.blob != nil {
			changed = f.blob.Changed() // before looking, so that nothing is missed
		}
		wait, ok := f.step(ctx)
		if !ok {
			return
		}
		timer.Reset(wait)
		select {
		case <-f.kicked:
		case <-changed:
		case err := <-f.done:
			f.swarmDone(ctx, err)
		case <-timer.C:
		case <-ctx.Done():
			return
		}
	}
}

// swarmDone is called when the swarm ended its work on the blob.
func (f *fetch) swarmDone(ctx context.Context, err error) {
	f.done = nil
	f.joined = false
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err == nil:
		f.complete, f.joined, f.proven = true, true, true
	case errdefs.IsResourceExhausted(err):
		if f.failed == nil {
			f.failed = err
		}
	case errors.Is(err, swarm.ErrStopped), errors.Is(err, swarm.ErrLeft):
	default:
		f.noSwarm = true
		f.log().WithError(err).Warn("the swarm cannot deliver a blob")
	}
}

// step looks once and does what follows; it returns how long time alone changes
// nothing, and false when the fetch is not wanted any more.
func (f *fetch) step(ctx context.Context) (time.Duration, bool) {
	f.look(ctx)
	peers, finder, draining := f.fs.env()

	f.fs.mu.Lock()
	goOn := f.wantedLocked()
	f.fs.mu.Unlock()

	trusted := !f.fs.distrusted.Contains(f.id)
	f.mu.Lock()
	waiters := len(f.waiting)
	prefetch := time.Until(f.prefetchUntil)
	done := f.complete || f.failed != nil
	swarmWanted := trusted && !done && !draining && !f.noSwarm && (waiters > 0 || prefetch > 0 && f.writers == 0)
	swarmUseful := swarmWanted || f.writers > 0 && !done
	leaseHeld := f.leaseHeld
	priority := f.priority
	if waiters == 0 {
		priority += 1 << 16 // behind everything that somebody waits for
	}
	reask := f.reask
	f.reask = false
	verified := f.verified
	f.mu.Unlock()
	if !goOn {
		return 0, false
	}

	// The swarm: joined to take, or only to give what containerd writes.
	as := joinAs{want: swarmWanted, priority: priority}
	if peers != nil && f.blob != nil && swarmUseful && (!f.joined || as != f.joinedAs) {
		f.join(ctx, peers, as)
	}
	if peers != nil && f.joined && done && !f.proven {
		f.mu.Lock()
		f.proven = f.complete
		f.mu.Unlock()
		if f.proven {
			peers.Proven(f.id)
		}
	}
	if peers != nil && f.joined {
		f.mu.Lock()
		found, share, shareDue := f.found, f.share, f.shareDue
		f.found, f.shareDue = nil, false
		f.mu.Unlock()
		if len(found) > 0 {
			peers.AddPeers(f.id, found)
		}
		if shareDue {
			peers.Share(f.id, share)
		}
	}

	// The trackers.
	if finder != nil {
		want := wantNothing
		if swarmWanted {
			want = wantSome
			if waiters > 0 {
				want = wantWaiting
			}
		}
		// A holder that takes back its want would lose the lease.
		if leaseHeld && want == wantNothing {
			want = f.wants
		}
		f.tell(finder, want, reask)
		if verified > 0 && !f.partial && f.joined && !done {
			f.partial = true
			finder.Partial(f.id)
		}
	}
	wait := f.answer(peers, finder, draining)
	if prefetch > 0 {
		wait = min(wait, prefetch)
	}
	return wait, true
}

func (f *fetch) join(ctx context.Context, peers peers, as joinAs) {
	f.joinedAs = as
	if f.done == nil {
		f.done = make(chan error, 1)
	}
	done := f.done
	err := peers.Join(ctx, f.id, as, func(err error) {
		select {
		case done <- err:
		default:
		}
	})
	if err != nil {
		if ctx.Err() == nil {
			f.log().WithError(err).Warn("cannot join a blob's swarm")
		}
		f.mu.Lock()
		f.noSwarm = true
		f.mu.Unlock()
		return
	}
	if !f.joined {
		f.mu.Lock()
		f.shareDue = f.shareDue || f.share != 0
		f.mu.Unlock()
	}
	f.joined = true
}

// look reads the blob's progress, and completes it once every piece is there.
func (f *fetch) look(ctx context.Context) {
	if f.blob == nil {
		return
	}
	f.mu.Lock()
	complete := f.complete
	f.mu.Unlock()
	if complete || f.fs.blobs.Whole(f.id) {
		f.mu.Lock()
		f.complete, f.verified = true, f.id.Size
		f.mu.Unlock()
		return
	}
	have := f.blob.Have()
	verified := int64(have.Count()) * f.id.Length()
	if have.Has(f.id.Pieces() - 1) {
		verified += int64(f.id.PieceSize(f.id.Pieces()-1)) - f.id.Length()
	}
	f.mu.Lock()
	if verified > f.verified {
		f.progress = time.Now()
	}
	f.verified = verified
	f.mu.Unlock()
	if !have.Full() {
		return
	}
	err := f.blob.Complete(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err == nil:
		f.complete = true
	case errdefs.IsResourceExhausted(err) && f.failed == nil:
		f.failed = err
	case ctx.Err() == nil && !errors.Is(err, piece.ErrMismatch):
		f.log().WithError(err).Warn("cannot complete a blob")
	}
}

// tell asks the trackers for what is wanted now, again if their answer is used up.
func (f *fetch) tell(finder finder, want wanted, again bool) {
	if want == f.wants && (!again || want == wantNothing) {
		return
	}
	if want == wantNothing {
		finder.Unwant(f.id)
	} else {
		f.fs.mu.Lock()
		f.fs.asks++
		ask := f.fs.asks
		f.fs.mu.Unlock()
		f.mu.Lock()
		f.ask = ask
		// What was said to somebody who was not waiting may change: a waiting
		// one can be granted a lease.
		if f.verdict != verdictSources {
			f.verdict = verdictUnknown
		}
		f.asked = time.Now()
		f.mu.Unlock()
		finder.Want(f.id, want == wantWaiting, ask)
	}
	f.wants = want
}

// answer answers the sessions whose waiting is over and returns how long time
// alone changes nothing for the others.
func (f *fetch) answer(peers peers, finder finder, draining bool) time.Duration {
	const poll = 250 * time.Millisecond // for peers that come and go without a word
	const idle = time.Hour

	f.mu.Lock()
	ask := peers != nil && f.joined && len(f.waiting) > 0 && !f.complete && f.verdict != verdictSources
	f.mu.Unlock()
	var reachable, spread bool
	if ask { // otherwise peers decide nothing, and the swarm has better things to do
		if st, ok := peers.Status(f.id); ok {
			reachable = st.Useful > 0 || st.Known > 0
			// What the one that went away had just sent is not announced yet.
			if st.Missing == 0 || f.spreadAt.IsZero() {
				f.spreadAt = time.Now()
			}
			spread = time.Since(f.spreadAt) < leasePatience
		}
	} else {
		f.spreadAt = time.Time{} // patience begins anew when next there is something to decide
	}
	f.fs.mu.Lock()
	up := f.fs.up
	f.fs.mu.Unlock()
	distrusted := f.fs.distrusted.Contains(f.id)
	noRange := distrusted || f.fs.noRange.Contains(f.id)
	var prefix int64
	if f.blob != nil {
		prefix = f.blob.Prefix()
	}

	f.mu.Lock()
	s := situation{
		size: f.id.Size, prefix: prefix, complete: f.complete,
		now: time.Now(), asked: f.asked, progress: f.progress,
		verdict: f.verdict, peers: reachable && !f.noSwarm, spread: spread, draining: draining,
		noRange: noRange,
		find:    f.fs.cfg.Find, stall: f.fs.cfg.Stall,
	}
	switch {
	case finder == nil && up:
		s.verdict = verdictUnreachable
	case f.wants == wantSome && s.verdict != verdictSources && s.verdict != verdictLease:
		// A session has begun to wait since step looked, and the trackers have
		// not heard of it: what they said of a prefetch is no answer to it.
		s.verdict = verdictUnknown
	case distrusted, f.noSwarm && s.verdict == verdictSources:
		s.verdict, s.peers = verdictNobody, false
	}
	wait := idle
	var ended []func()
	rest := f.waiting[:0]
	for _, w := range f.waiting {
		if f.failed != nil && !f.complete {
			w.answer <- answer{err: f.failed}
			ended = append(ended, func() { f.fs.cfg.OnAnswer(outcomeFailed, time.Since(w.since)) })
			continue
		}
		s.since, s.writing = w.since, f.writers > 0
		s.authorizeBlob = f.fs.cfg.AuthorizeBlob && !w.authorized
		s.lease = f.lease && !f.leaseHeld
		d := decide(s)
		if !d.answer {
			rest = append(rest, w)
			wait = min(wait, d.wait, poll)
			continue
		}
		if d.lease {
			f.lease, f.leaseHeld = false, true
		}
		if d.offset < f.id.Size {
			f.writers++
		}
		w.answer <- answer{offset: d.offset, lease: d.lease}
		ended = append(ended, func() {
			f.log().WithFields(log.Fields{"why": d.why, "offset": d.offset, "waited": s.now.Sub(w.since), "verdict": s.verdict.String()}).Debug("session answered")
			f.fs.cfg.OnAnswer(d.why, s.now.Sub(w.since))
		})
	}
	clear(f.waiting[len(rest):])
	f.waiting = rest
	// A lease that came too late goes back.
	giveBack := f.lease && !f.leaseHeld && len(rest) == 0
	if giveBack {
		f.lease, f.verdict, f.reask = false, verdictUnknown, true
	}
	whole := f.complete
	again := len(ended) > 0 || giveBack
	f.mu.Unlock()

	for _, fn := range ended {
		fn()
	}
	if giveBack && finder != nil {
		var err error
		if !whole {
			err = errNoWaiter
		}
		finder.LeaseDone(f.id, err)
	}
	if again {
		return 0 // what is wanted has changed
	}
	return wait
}

// leave ends the fetch's part in the swarm. A blob that is whole is seeded on.
func (f *fetch) leave() {
	peers, finder, _ := f.fs.env()
	f.mu.Lock()
	complete := f.complete
	f.noSwarm = false
	f.mu.Unlock()
	switch {
	case !f.joined || peers == nil:
	case complete && f.fs.cfg.Keep != nil:
		f.fs.cfg.Keep(f.id)
	default:
		peers.Leave(f.id)
	}
	f.joined, f.proven, f.done = false, false, nil
	if finder != nil {
		f.tell(finder, wantNothing, false)
		if f.partial && !complete {
			finder.Gone(f.id)
		}
	}
	f.wants, f.partial = wantNothing, false
}

// fetchStatus is what people see of a fetch.
type fetchStatus struct {
	ID       piece.ID
	Started  time.Time
	Verified int64
	Progress time.Time // zero: none since it started
	Waiting  int
	Writing  int
	Prefetch bool
	Lease    bool
	Verdict  verdict
	Registry int64
	Swarm    swarm.BlobStatus
}

func (fs *fetches) status() []fetchStatus {
	fs.mu.Lock()
	peers := fs.peers
	live := make([]*fetch, 0, len(fs.live))
	refs := make([]int, 0, len(fs.live))
	for _, f := range fs.live {
		live = append(live, f)
		refs = append(refs, f.refs)
	}
	fs.mu.Unlock()
	out := make([]fetchStatus, 0, len(live))
	for i, f := range live {
		st := f.status()
		st.Prefetch = refs[i] == 0
		if peers != nil {
			st.Swarm, _ = peers.Status(f.id)
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b fetchStatus) int { return a.Started.Compare(b.Started) })
	return out
}

func (f *fetch) status() fetchStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fetchStatus{
		ID: f.id, Started: f.started, Verified: f.verified, Progress: f.progress, Waiting: len(f.waiting), Writing: f.writers,
		Lease: f.leaseHeld, Verdict: f.verdict, Registry: f.registry,
	}
}
