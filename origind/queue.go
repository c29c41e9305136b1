package origind

import (
	"bytes"
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/swarm/piece"
)

// queue writes blobs to their backends. What is in it is what is pinned and whose
// record says so; so it survives restarts without a file of its own. A blob that
// could not be written is tried again after a pause that doubles.
type queue struct {
	s       *server
	workers int
	min     time.Duration // pauses
	max     time.Duration
	kick    chan struct{} // 1-buffered: due may be earlier now

	mu    sync.Mutex
	items map[digest.Digest]*queued
	due   dueHeap // those that no worker has
}

// queued is a blob to be written.
type queued struct {
	d     digest.Digest
	since time.Time
	due   time.Time
	pause time.Duration
	index int // in due; -1: a worker has it
	again bool
	wait  []chan error // who wants to know how it went
}

func newQueue(s *server, cfg QueueConfig) *queue {
	return &queue{
		s: s, workers: cfg.Workers, min: cfg.Backoff.D(), max: cfg.Max.D(),
		kick: make(chan struct{}, 1), items: map[digest.Digest]*queued{},
	}
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
	now := time.Now()
	switch {
	case it == nil:
		it = &queued{d: d, since: now, due: now}
		q.items[d] = it
		heap.Push(&q.due, it)
	case it.index < 0:
		it.again = true // its record may have changed since the worker read it
	default:
		it.due, it.pause = now, 0
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

// run writes until ctx is done.
func (q *queue) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, q.workers)
	for {
		it, next := q.pop(time.Now())
		if it == nil {
			var timer <-chan time.Time
			if !next.IsZero() {
				timer = time.After(time.Until(next))
			}
			select {
			case <-ctx.Done():
				return
			case <-q.kick:
			case <-timer:
			}
			continue
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			q.done(it, ctx.Err())
			return
		}
		wg.Go(func() {
			err := q.write(ctx, it.d)
			<-slots
			q.done(it, err)
			if err != nil && ctx.Err() == nil {
				log.G(ctx).WithError(err).WithField("digest", it.d).Warn("cannot write a blob to its backend, trying again")
			}
		})
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
	switch {
	case err == nil && !it.again:
		delete(q.items, it.d)
		it.tell(nil)
		return
	case err == nil:
		it.pause = 0
	default:
		it.tell(fmt.Errorf("%s is kept here, but its backend does not have it yet: %w: %w", it.d, err, errdefs.ErrUnavailable))
		it.pause = min(max(2*it.pause, q.min), q.max)
	}
	it.again = false
	it.due = time.Now()
	if it.pause > 0 {
		it.due = it.due.Add(it.pause/2 + rand.N(it.pause/2+1))
	}
	heap.Push(&q.due, it)
	q.wake()
}

// write brings a blob to every home that does not have it.
func (q *queue) write(ctx context.Context, d digest.Digest) error {
	r, err := q.s.records.get(d)
	if err != nil || r == nil {
		return err
	}
	var errs []error
	for _, h := range r.Homes {
		if h.pending() {
			errs = append(errs, q.writeTo(ctx, r, h))
		}
	}
	return errors.Join(errs...)
}

// writeTo brings a blob, and then its record, to one home.
func (q *queue) writeTo(ctx context.Context, r *record, h home) error {
	b, _ := q.s.backends.Get(h.Backend)
	if b == nil {
		return fmt.Errorf("backend %q of %s is not configured any more", h.Backend, r.Digest)
	}
	id, err := piece.ParseID(string(r.Digest), r.Size)
	if err != nil {
		return err
	}
	blob, err := q.s.store.Blob(ctx, id, false)
	if err != nil {
		return err
	}
	defer blob.Close()
	return q.s.written(ctx, r.Digest, h, q.copy(ctx, b, r, h, blob))
}

// copy writes a blob to a backend that does not have it, and then its record.
func (q *queue) copy(ctx context.Context, b fetcher.Backend, r *record, h home, blob *content.Blob) error {
	if !q.there(ctx, b, r, h) {
		start := time.Now()
		if _, err := b.Write(ctx, h.Key, r.Size, newChecked(blob)); err != nil {
			return err
		}
		q.s.metrics.wrote(r.Size, time.Since(start))
	}
	told := *r
	told.Homes = []home{h}
	told.Homes[0].Written = true
	text, err := json.Marshal(&told)
	if err != nil {
		return err
	}
	_, err = b.Write(ctx, recordKey(r.Digest), int64(len(text)), bytes.NewReader(text))
	return err
}

// there reports whether the backend has the blob already, from another push, or
// from another origin.
func (q *queue) there(ctx context.Context, b fetcher.Backend, r *record, h home) bool {
	if q.s.finder.condemned(r.Digest, h.Backend, h.Key) != nil {
		return false // what is there is to be replaced
	}
	info, err := b.Stat(ctx, h.Key)
	return err == nil && info.Size == r.Size
}

// checked reads a blob of ours and verifies its digest on the way. If the disk has
// spoiled it, the last bytes are withheld, so that no backend takes it for whole.
type checked struct {
	b   *content.Blob
	h   hash.Hash
	off int64
}

func newChecked(b *content.Blob) *checked {
	return &checked{b: b, h: digest.Digest(b.ID().Digest()).Algorithm().Hash()}
}

func (c *checked) Read(p []byte) (int, error) {
	id := c.b.ID()
	if c.off == id.Size {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), id.Size-c.off)]
	n, err := c.b.ReadAt(p, c.off)
	if err != nil {
		return 0, err
	}
	c.h.Write(p[:n])
	c.off += int64(n)
	if d := digest.Digest(id.Digest()); c.off == id.Size && digest.NewDigest(d.Algorithm(), c.h) != d {
		return 0, fmt.Errorf("%s on this origin's disk is not what its digest says: %w", d, errdefs.ErrDataLoss)
	}
	return n, nil
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
