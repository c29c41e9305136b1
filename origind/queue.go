package origind

import (
	"container/heap"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"
)

// queue has blobs written to their backends, those first that are due first. What is
// in it is what is pinned and whose record says so; so it survives restarts without a
// file of its own. A blob that could not be written is due again after a pause that
// doubles.
type queue struct {
	cfg  QueueConfig
	work func(ctx context.Context, d digest.Digest) error // writes one
	kick chan struct{}                                    // 1-buffered: due may be earlier now

	mu    sync.Mutex
	items map[digest.Digest]*queued
	due   dueHeap // those that no worker has
}

// queued is a blob to be written.
type queued struct {
	d     digest.Digest
	since time.Time
	due   time.Time
	pause backoff.ExponentialBackOff
	index int // in due; -1: a worker has it
	again bool
	wait  []chan error // who wants to know how it went
}

func newQueue(cfg QueueConfig, work func(ctx context.Context, d digest.Digest) error) *queue {
	return &queue{cfg: cfg, work: work, kick: make(chan struct{}, 1), items: map[digest.Digest]*queued{}}
}

// newQueued returns a blob that is due now. Its pauses are between half of what they are
// configured to be and all of it.
func (q *queue) newQueued(d digest.Digest) *queued {
	now := time.Now()
	return &queued{d: d, since: now, due: now, pause: backoff.ExponentialBackOff{
		InitialInterval: min(q.cfg.Backoff.D(), q.cfg.Max.D()) * 3 / 4, MaxInterval: q.cfg.Max.D() * 3 / 4,
		Multiplier: 2, RandomizationFactor: 1. / 3,
	}}
}

// add queues a blob, to be written now.
func (q *queue) add(d digest.Digest) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.enqueue(d)
}

// remember is add for one that may be in the queue already.
func (q *queue) remember(d digest.Digest) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.items[d] == nil {
		q.enqueue(d)
	}
}

// enqueue is add with q.mu held.
func (q *queue) enqueue(d digest.Digest) *queued {
	it := q.items[d]
	switch {
	case it == nil:
		it = q.newQueued(d)
		q.items[d] = it
		heap.Push(&q.due, it)
	case it.index < 0:
		it.again = true // its record may have changed since the worker read it
	default:
		it.due = time.Now()
		it.pause.Reset()
		heap.Fix(&q.due, it.index)
	}
	q.wake()
	return it
}

// remove takes a blob out that needs no writing any more.
func (q *queue) remove(d digest.Digest) {
	q.mu.Lock()
	defer q.mu.Unlock()
	it := q.items[d]
	if it == nil || it.index < 0 { // the worker finds out
		return
	}
	heap.Remove(&q.due, it.index)
	delete(q.items, d)
	it.tell(nil)
}

// wait queues a blob and waits until it was written, or an attempt has failed.
func (q *queue) wait(ctx context.Context, d digest.Digest) error {
	done := make(chan error, 1)
	q.mu.Lock()
	it := q.enqueue(d)
	it.wait = append(it.wait, done)
	q.mu.Unlock()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("waiting until the backend has %s: %w", d, ctx.Err())
	}
}

// tell tells who waits. q.mu is held.
func (it *queued) tell(err error) {
	for _, c := range it.wait {
		c <- err
	}
	it.wait = nil
}

func (q *queue) wake() {
	select {
	case q.kick <- struct{}{}:
	default:
	}
}

// length returns how many blobs wait or are being written, and since when the
// oldest does.
func (q *queue) length() (n int, oldest time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, it := range q.items {
		if oldest.IsZero() || it.since.Before(oldest) {
			oldest = it.since
		}
	}
	return len(q.items), oldest
}

// run writes until ctx is done, and waits for what is being written.
func (q *queue) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, q.cfg.Workers)
	for {
		select { // a worker first: what none has can be removed, or overtaken
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		it := q.next(ctx)
		if it == nil {
			return
		}
		wg.Go(func() {
			err := q.work(ctx, it.d)
			<-slots
			q.done(it, err)
			if err != nil && ctx.Err() == nil {
				log.G(ctx).WithError(err).WithField("digest", it.d).Warn("cannot write a blob to its backend, trying again")
			}
		})
	}
}

// next waits until a blob is due, and takes it; nil when ctx is done.
func (q *queue) next(ctx context.Context) *queued {
	for {
		it, due := q.pop(time.Now())
		if it != nil {
			return it
		}
		var timer <-chan time.Time
		if !due.IsZero() {
			timer = time.After(time.Until(due))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-q.kick:
		case <-timer:
		}
	}
}

// pop takes the blob that is due first; if none is, it returns when one will be.
func (q *queue) pop(now time.Time) (it *queued, next time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.due) == 0 {
		return nil, time.Time{}
	}
	if it := q.due[0]; it.due.After(now) {
		return nil, it.due
	}
	return heap.Pop(&q.due).(*queued), time.Time{}
}

// done ends a worker's turn.
func (q *queue) done(it *queued, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	it.due = time.Now()
	switch {
	case err == nil && !it.again:
		delete(q.items, it.d)
		it.tell(nil)
		return
	case err == nil:
		it.pause.Reset()
	default:
		it.tell(fmt.Errorf("%s is kept here, but its backend does not have it yet: %w: %w", it.d, err, errdefs.ErrUnavailable))
		it.due = it.due.Add(it.pause.NextBackOff())
	}
	it.again = false
	heap.Push(&q.due, it)
	q.wake()
}

// dueHeap orders by due.
type dueHeap []*queued

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *dueHeap) Push(x any) {
	it := x.(*queued)
	it.index = len(*h)
	*h = append(*h, it)
}
func (h *dueHeap) Pop() any {
	old := *h
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	it.index = -1
	return it
}
