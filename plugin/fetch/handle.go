package fetch

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/log"

	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

// A handle is the opening of a fetch's blob. Its goroutine does what may block, on the
// disk and with the swarm, in the order in which the Machine said it, and watches how the
// blob grows.
type handle struct {
	fs      *Fetches
	id      piece.ID
	opening Opening
	after   <-chan struct{} // closed when what was opened before is closed; nil: nothing was
	ready   chan struct{}   // closed when blob or err is set
	blob    Blob
	err     error
	ended   chan struct{}
	status  atomic.Pointer[Status] // as last published by Run's goroutine

	told atomic.Bool // Run's goroutine will look

	// What the Machine knows, if it knows; Run's goroutine's.
	looked bool
	seen   Progress

	mu   sync.Mutex
	jobs []func(*handle)
	wake chan struct{} // 1-buffered: there are jobs

	// Owned by the goroutine.
	done <-chan error // of the swarm's part
	join uint64       // the last ActJoin, which done is of
	over bool
}

func newHandle(fs *Fetches, a ActOpen) *handle {
	return &handle{fs: fs, id: a.ID, opening: a.Opening, ready: make(chan struct{}), ended: make(chan struct{}), wake: make(chan struct{}, 1)}
}

// do has the goroutine call f, after what it was told to do before.
func (h *handle) do(f func(*handle)) {
	h.mu.Lock()
	h.jobs = append(h.jobs, f)
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// run opens the blob and serves it until it is closed.
func (h *handle) run(ctx context.Context) {
	defer h.fs.do(func(context.Context) { h.fs.closed(h) })
	defer close(h.ended)
	if h.after != nil {
		<-h.after
	}
	h.blob, h.err = h.fs.blobs.OpenBlob(ctx, h.id)
	close(h.ready)
	if h.err != nil {
		h.fs.tell(EvOpenFailed{ID: h.id, Opening: h.opening, Err: h.err})
	}
	for !h.over {
		var changed <-chan struct{}
		if h.blob != nil {
			changed = h.blob.Changed() // before looking, so that nothing is missed
			h.changed()
		}
		select {
		case <-changed:
		case err := <-h.done:
			h.swarmDone(ctx, err)
		case <-h.wake:
			h.mu.Lock()
			jobs := h.jobs
			h.jobs = nil
			h.mu.Unlock()
			for _, f := range jobs {
				f(h)
			}
		}
	}
}

// changed has the Machine told what there is of the blob.
func (h *handle) changed() {
	if !h.told.Swap(true) {
		h.fs.do(func(ctx context.Context) {
			h.told.Store(false)
			h.fs.look(ctx, time.Now(), h)
			h.fs.publish(h)
		})
	}
}

// progress returns what there is of the blob, from memory, once it is open.
func (h *handle) progress() (p Progress, ok bool) {
	select {
	case <-h.ready:
	default:
		return p, false
	}
	if h.err != nil {
		return p, false
	}
	have, last := h.blob.Have(), h.id.Pieces()-1
	p = Progress{
		Verified: int64(have.Count()) * h.id.Length(), Prefix: min(h.id.Offset(have.Prefix()), h.id.Size),
		Full: have.Full(), Whole: h.fs.blobs.Whole(h.id),
	}
	if have.Has(last) {
		p.Verified += int64(h.id.PieceSize(last)) - h.id.Length()
	}
	return p, true
}

func (h *handle) log(ctx context.Context) *log.Entry {
	return log.G(ctx).WithField("digest", h.id.Digest())
}

func (h *handle) complete(ctx context.Context) {
	err := h.blob.Complete(ctx)
	if err != nil && ctx.Err() == nil && !errors.Is(err, piece.ErrMismatch) {
		h.log(ctx).WithError(err).Warn("cannot complete a blob")
	}
	h.fs.tell(EvCompleted{ID: h.id, Opening: h.opening, Err: err})
}

// empty forgets what there is of the blob. If that fails, its client will find it false.
func (h *handle) empty(ctx context.Context) {
	err := h.blob.Empty()
	if err != nil && ctx.Err() == nil {
		h.log(ctx).WithError(err).Warn("cannot forget what was false of a blob")
	}
	h.changed()
	h.fs.tell(EvEmptied{ID: h.id, Opening: h.opening, Err: err})
}

func (h *handle) joins(ctx context.Context, p Peers, a ActJoin) {
	h.join = a.Join
	if err := p.Join(ctx, h.id, a.As); err != nil {
		if h.done != nil { // what was joined before is not wanted any more
			h.leave(p)
		}
		h.swarmDone(ctx, err)
		return
	}
	h.done = p.Done(h.id) // anew: what was joined before may have ended meanwhile
}

func (h *handle) swarmDone(ctx context.Context, err error) {
	h.done = nil
	if err != nil && ctx.Err() == nil && !errors.Is(err, swarm.ErrStopped) && !errors.Is(err, swarm.ErrLeft) {
		h.log(ctx).WithError(err).Warn("the swarm cannot deliver a blob")
	}
	h.fs.tell(EvSwarmDone{ID: h.id, Join: h.join, Err: err})
}

// leave returns when the swarm has closed the blob, so that its space can be given back.
func (h *handle) leave(p Peers) {
	h.done = nil
	ctx, cancel := context.WithTimeout(context.Background(), closeWithin)
	defer cancel()
	p.LeaveNow(ctx, h.id)
}

func (h *handle) keep(p Peers) {
	if h.fs.cfg.Keep == nil {
		h.leave(p)
		return
	}
	h.done = nil
	h.fs.cfg.Keep(h.id)
}

// giveUp keeps what the handle still has to do, and the swarm with it, from waiting for room
// for a blob that nobody waits for. It may be called while all that goes on.
func (h *handle) giveUp() {
	select {
	case <-h.ready:
		if h.blob != nil {
			h.blob.GiveUp()
		}
	default:
	}
}

// close gives the blob up, and if drop, the space of a part that is of no more use.
func (h *handle) close(drop bool) {
	h.over = true
	if h.blob == nil {
		return
	}
	ctx := context.Background()
	if drop {
		if err := h.blob.Drop(); err != nil {
			h.log(ctx).WithError(err).Warn("cannot drop a part of a blob")
		}
	}
	if err := h.blob.Close(); err != nil {
		h.log(ctx).WithError(err).Warn("cannot close a blob")
	}
}
