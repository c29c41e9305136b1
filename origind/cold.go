package origind

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/swarm/piece"
)

// coldReads are blobs that are being read from a backend: each once, in order,
// from where an earlier read has stopped, however many want it. Readers follow the
// growing prefix; so do peers of the swarm.
type coldReads struct {
	cfg     ColdConfig
	blobs   *holdings
	ring    foundKeeper
	objects badObjects
	peers   offers
	metrics *metrics
	tasks   *tasks // the reads

	mu sync.Mutex
	m  map[piece.ID]*coldRead
	n  int // those of m that read a backend
}

// foundKeeper keeps where a read has found a blob: a member.
type foundKeeper interface {
	found(ctx context.Context, d digest.Digest, size int64, at record.Place) error
}

// badObjects is told what is wrong with backends' objects: a finder, for cold reads.
type badObjects interface {
	// condemn: an object is not the blob that its name says.
	condemn(p place, err error)
	// vanished: a blob is not where it was found.
	vanished(d digest.Digest)
}

// offers is the origin's part in the swarm, for cold reads: a seeder. None of it blocks,
// but for arriving.
type offers interface {
	arriving(ctx context.Context, id piece.ID) // its first byte is to come
	complete(id piece.ID, sumsHash *[32]byte)  // it is whole, and visible
	arrived(id piece.ID)                       // its read has ended well
	gone(id piece.ID)                          // its read has failed
	// Taken reports whether a peer takes something of it, or may yet.
	Taken(id piece.ID) bool
}

// coldRead is one of them.
type coldRead struct {
	place
	from   *donors                                      // that it is read from, instead of a backend; or nil
	whole  func(ctx context.Context, c *coldRead) error // what to do when all of it is here
	cancel context.CancelCauseFunc
	opened chan struct{} // closed when the backend delivers, or it is known that it does not
	done   chan struct{} // closed at the end; err is set then
	err    error         // nil: the blob is complete

	blob     *content.Blob
	delivers bool // the backend does; set before opened is closed

	// coldReads.mu guards:
	refs    int       // those who read, and the read itself: the last one closes blob
	last    time.Time // somebody wanted it
	deleted bool      // no record is to be made of it
	ending  bool      // what it came to is being announced
}

var (
	errAbandoned = fmt.Errorf("nobody wants it any more: %w", errdefs.ErrUnavailable)
	errDeleted   = fmt.Errorf("it was deleted: %w", errdefs.ErrNotFound)
)

// Pauses between attempts at a backend.
const (
	coldPauseMin = 100 * time.Millisecond
	coldPauseMax = 5 * time.Second
)

// swarmInterest is for how long a blob is wanted because a peer or a tracker has
// asked for it: until the peer has connected.
const swarmInterest = 20 * time.Second

// join begins to read a blob, or joins those for whom it is read. It returns when
// the backend delivers; whoever joined calls release.
func (cs *coldReads) join(ctx context.Context, at place) (c *coldRead, release func(), err error) {
	c, err = cs.enter(at, 0)
	if err != nil {
		return nil, nil, err
	}
	release = sync.OnceFunc(func() { cs.leave(c) })
	select {
	case <-c.opened:
	case <-ctx.Done():
		release()
		return nil, nil, fmt.Errorf("waiting for %s from %s: %w", at.id, c.source(), ctx.Err())
	}
	if !c.delivers {
		release()
		return nil, nil, c.err // set before opened was closed
	}
	return c, release, nil
}

// want begins to read a blob, which is wanted for so long, although nobody has
// joined.
func (cs *coldReads) want(at place, d time.Duration) error {
	c, err := cs.enter(at, d)
	if err == nil {
		cs.leave(c)
	}
	return err
}

func (cs *coldReads) enter(at place, d time.Duration) (*coldRead, error) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.m[at.id]
	if c == nil {
		if cs.n >= cs.cfg.Max {
			return nil, fmt.Errorf("%d blobs are being read from backends already (cold.max): %w", cs.n, errdefs.ErrUnavailable)
		}
		cs.n++
		c = cs.begin(&coldRead{place: at, whole: cs.complete})
	}
	c.refs++
	if until := time.Now().Add(d); until.After(c.last) {
		c.last = until
	}
	return c, nil
}

// begin begins to read a blob. cs.mu is held.
func (cs *coldReads) begin(c *coldRead) *coldRead {
	c.opened, c.done, c.refs = make(chan struct{}), make(chan struct{}), 1
	ctx, cancel := context.WithCancelCause(cs.tasks.ctx)
	c.cancel = cancel
	cs.m[c.id] = c
	cs.tasks.run(func(context.Context) { cs.run(ctx, c) })
	return c
}

// leave gives a reference up.
func (cs *coldReads) leave(c *coldRead) {
	cs.mu.Lock()
	c.refs--
	last := c.refs == 0
	if now := time.Now(); now.After(c.last) {
		c.last = now
	}
	cs.mu.Unlock()
	if last && c.blob != nil {
		c.blob.Close()
	}
}

// wanted extends the life of a blob that is being read, and reports whether it
// is.
func (cs *coldReads) wanted(id piece.ID, d time.Duration) bool {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.m[id]
	if c == nil {
		return false
	}
	if until := time.Now().Add(d); until.After(c.last) {
		c.last = until
	}
	return true
}

// promise calls announce, which must not block, if a blob is being read and what it
// came to has not been announced yet.
func (cs *coldReads) promise(id piece.ID, announce func()) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if c := cs.m[id]; c != nil && !c.ending {
		announce()
	}
}

// stop ends the reading of a blob that is deleted, and sees to it that it is not announced afterwards.
func (cs *coldReads) stop(d digest.Digest) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for id, c := range cs.m {
		if id.Digest() == string(d) {
			c.deleted = true
			c.cancel(errDeleted)
		}
	}
}

// find returns where a blob is being read from.
func (cs *coldReads) find(d digest.Digest) (place, bool) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for id, c := range cs.m {
		if id.Digest() == string(d) && !c.deleted {
			return c.place, true
		}
	}
	return place{}, false
}

// prefix returns how much of a blob has arrived, or will soon because it is being
// read: what is far beyond that is better read elsewhere.
func (cs *coldReads) prefix(id piece.ID) int64 {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.m[id]
	if c == nil {
		return 0
	}
	select {
	case <-c.opened:
		if c.delivers {
			return c.blob.Prefix()
		}
	default:
	}
	return 0
}

// count returns how many blobs are being read from backends.
func (cs *coldReads) count() int {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return cs.n
}

// run reads a blob until it is complete, hopeless, or unwanted.
func (cs *coldReads) run(ctx context.Context, c *coldRead) {
	watched := make(chan struct{})
	wctx, stop := context.WithCancel(ctx)
	go func() {
		defer close(watched)
		cs.watch(wctx, c)
	}()
	err := cs.fetch(ctx, c)
	stop()
	<-watched
	cs.mu.Lock()
	c.ending = true
	cs.mu.Unlock()
	if err == nil {
		err = c.whole(ctx, c)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		err = fmt.Errorf("reading %s from %s: %w", c.key, c.source(), err)
		if !errors.Is(err, errAbandoned) && ctx.Err() == nil {
			log.G(ctx).WithError(err).WithField("digest", c.id.Digest()).Warn("cannot read a blob")
		}
		cs.peers.gone(c.id)
	}
	cs.mu.Lock()
	delete(cs.m, c.id)
	if c.from == nil {
		cs.n--
	}
	cs.mu.Unlock()
	if err == nil {
		cs.peers.arrived(c.id)
	}
	c.err = err
	c.open(err == nil)
	close(c.done)
	c.cancel(nil)
	cs.leave(c)
}

// open tells those who wait whether the backend delivers, the first time. Only the
// read itself calls it.
func (c *coldRead) open(delivers bool) {
	select {
	case <-c.opened:
	default:
		c.delivers = delivers
		close(c.opened)
	}
}

// watch ends the read when nobody has wanted the blob for a while.
func (cs *coldReads) watch(ctx context.Context, c *coldRead) {
	t := time.NewTicker(max(cs.cfg.Grace.D()/5, time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		taken := cs.peers.Taken(c.id)
		now := time.Now()
		cs.mu.Lock()
		if c.refs > 1 || taken {
			c.last = later(c.last, now)
		}
		over := now.Sub(c.last) > cs.cfg.Grace.D()
		cs.mu.Unlock()
		if over {
			c.cancel(errAbandoned)
			return
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// fetch brings all bytes here, with as many attempts as it takes, and proves
// them.
func (cs *coldReads) fetch(ctx context.Context, c *coldRead) error {
	blob, err := cs.blobs.store.Blob(ctx, c.id, true)
	if err != nil {
		return err
	}
	c.blob = blob // the last of the readers closes it
	if blob.Completed() {
		return nil
	}
	cs.peers.arriving(ctx, c.id)
	failures, again := 0, false
	pause := backoff.ExponentialBackOff{InitialInterval: coldPauseMin, MaxInterval: coldPauseMax, Multiplier: 2, RandomizationFactor: 0.5}
	for {
		from := blob.Prefix()
		at, err := cs.attempt(ctx, c)
		if err == nil || ctx.Err() != nil {
			return err
		}
		back, theirs := errors.AsType[*backendError](err)
		switch {
		case errors.Is(err, piece.ErrMismatch) && c.from != nil:
			prefix := blob.Prefix()
			if !c.from.blame(at, prefix) {
				return fmt.Errorf("nobody has the right bytes: %w: %w", err, errdefs.ErrUnavailable)
			}
			if prefix+c.id.Length() <= at { // more is gone than the piece: the last one did not end at the digest
				cs.offerAnew(ctx, c)
			}
			continue
		case errors.Is(err, piece.ErrMismatch) && from > 0 && !again:
			again = true // perhaps it was what an earlier read, or the disk, made of it
			continue
		case errors.Is(err, piece.ErrMismatch):
			err = fmt.Errorf("backend %s: %s is not %s: %w: %w", c.name, c.key, c.id, err, errdefs.ErrDataLoss)
			cs.objects.condemn(c.place, err)
			return err
		case !theirs:
			return err
		case errdefs.IsNotFound(back.err):
			cs.objects.vanished(digest.Digest(c.id.Digest()))
			return err
		case !errdefs.IsUnavailable(back.err) && !errors.Is(back.err, io.ErrUnexpectedEOF):
			return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
		}
		if blob.Prefix() > from {
			failures = 0
			pause.Reset()
		}
		if failures++; failures >= cs.cfg.Attempts {
			return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
		}
		select {
		case <-time.After(pause.NextBackOff()):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// backendError is an error of the backend, not of our disk.
type backendError struct{ err error }

func (e *backendError) Error() string { return e.err.Error() }
func (e *backendError) Unwrap() error { return e.err }

// chunk is how much is read at once, and chunks how many of them wait to be hashed
// and written, so that the backend never waits for that.
const (
	chunk  = 256 << 10
	chunks = 8
)

// offerAnew tells peers what is left of a blob after some of it turned out to be wrong.
func (cs *coldReads) offerAnew(ctx context.Context, c *coldRead) {
	cs.peers.gone(c.id)
	cs.peers.arriving(ctx, c.id)
}

// attempt reads the rest of the blob once. It returns how far it came.
func (cs *coldReads) attempt(ctx context.Context, c *coldRead) (at int64, err error) {
	if c.from != nil && c.from.adopt(ctx, c.blob) {
		cs.offerAnew(ctx, c)
	}
	a, err := c.blob.Append(ctx, c.blob.Prefix())
	if err != nil {
		return 0, err
	}
	defer a.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if a.Offset() < c.id.Size {
		r, info, err := c.backend.Open(ctx, c.key, a.Offset(), -1)
		if err != nil {
			return a.Offset(), &backendError{err}
		}
		got := func(int) {} // donors count by themselves
		if c.from == nil {
			cs.metrics.opened()
			got = cs.metrics.read
		}
		if info.Size >= 0 && info.Size != c.id.Size {
			r.Close()
			return a.Offset(), fmt.Errorf("it has %d bytes: %w", info.Size, piece.ErrMismatch)
		}
		c.open(true)
		size := min(chunk, c.id.Size-a.Offset()+1) // one more, to see its end
		if err := pump(ctx, cancel, a, r, size, got); err != nil {
			return a.Offset(), err
		}
	}
	if a.Offset() < c.id.Size {
		return a.Offset(), &backendError{fmt.Errorf("it ended at byte %d of %d: %w", a.Offset(), c.id.Size, io.ErrUnexpectedEOF)}
	}
	return a.Offset(), a.Finish(ctx)
}

// pump copies r to a, in chunks of at most size; another goroutine reads ahead, which has ended, and r is
// closed, when pump returns. got is told how many bytes have come.
func pump(ctx context.Context, cancel func(), a io.Writer, r io.ReadCloser, size int64, got func(int)) error {
	full, empty := make(chan []byte, chunks), make(chan []byte, chunks)
	for range chunks {
		empty <- nil // made when it is needed: most blobs are small
	}
	var rerr error
	go func() {
		defer close(full)
		defer r.Close()
		for rerr == nil {
			var buf []byte
			select {
			case buf = <-empty:
			case <-ctx.Done():
				rerr = ctx.Err()
				return
			}
			if buf == nil {
				buf = make([]byte, size)
			}
			var n int
			n, rerr = r.Read(buf[:size])
			full <- buf[:n] // never blocks: there are as many buffers as places
		}
	}()
	var werr error
	for buf := range full {
		if werr == nil {
			got(len(buf))
			if _, werr = a.Write(buf); werr != nil {
				cancel()
			}
		}
		empty <- buf
	}
	switch {
	case werr != nil:
		return werr
	case rerr != io.EOF:
		return &backendError{rerr}
	}
	return nil
}

// complete makes a blob that was read from a backend visible.
func (cs *coldReads) complete(ctx context.Context, c *coldRead) error {
	if err := cs.ring.found(ctx, digest.Digest(c.id.Digest()), c.id.Size, c.place.at()); err != nil {
		return err
	}
	return cs.announce(ctx, c)
}

// announce tells peers and trackers that a blob is whole.
func (cs *coldReads) announce(_ context.Context, c *coldRead) error {
	cs.mu.Lock()
	deleted := c.deleted
	cs.mu.Unlock()
	if deleted {
		return errDeleted
	}
	var hash *[32]byte
	if sums, proven := c.blob.Sums(); proven {
		h := sums.Hash()
		hash = &h
	}
	cs.peers.complete(c.id, hash)
	return nil
}
