package origind

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/semaphore"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/swarm/piece"
)

const (
	// verifiedBytes bounds the pieces that are in memory for readers: 16 of the longest ones.
	verifiedBytes = 128 << 20
	// takeWithin is for how long a reader that takes nothing keeps its pieces in memory while others wait for room.
	takeWithin = time.Second
	// takeChunk is how many bytes a reader takes at once: a buffer of that size is what each one has for itself.
	takeChunk = 64 << 10
)

// errWrong: a piece is wrong here, and does not count any more; whom it concerns is told.
var errWrong = fmt.Errorf("a piece is wrong on this origin's disk: %w", errdefs.ErrUnavailable)

// verified are pieces of blobs on their way to readers: each is read, and verified, before a byte of it goes to anybody.
//
// What was verified once is verified again when it is read again: disks spoil what they keep. So the bytes that were verified are in
// memory until they are sent. A piece is there once, however many read it at a time, and all together have a bound. Who needs room waits
// for it in turn; a reader that has taken nothing for a while has to make room then, and its piece is read anew when it goes on.
// So slow readers, however many, cost each other time and nobody else his turn.
//
// It costs 0.3 s of a processor for each GiB, and the copies to and from memory that sendfile would spare plain connections, 0.2 s;
// connections with TLS have those anyway (BenchmarkRead).
type verified struct {
	room    *semaphore.Weighted // bytes
	waiting atomic.Int64        // who waits for room
	chunks  sync.Pool
	pools   [8]sync.Pool // of buffers of piece.MinLength << i bytes

	mu sync.Mutex
	m  map[pieceKey]*loaded
}

// pieceKey names the bytes of a piece: by its place, and by the states of the hash before and after it, as long as these are
// not proved to be the blob's.
type pieceKey struct {
	id   piece.ID
	i    int
	ends string
}

// loaded is a piece in memory, or one that is being read.
type loaded struct {
	key   pieceKey
	refs  int // verified.mu
	sums  *piece.Sums
	ready chan struct{} // closed when it is there, or err says why not
	buf   *[]byte       // of as many bytes as it has room for
	data  []byte
	err   error
}

func newVerified(bytes int64) *verified {
	v := &verified{room: semaphore.NewWeighted(bytes), m: map[pieceKey]*loaded{}}
	v.chunks.New = func() any { b := make([]byte, takeChunk); return &b }
	return v
}

// send gives take n bytes of a blob from off on, in parts. The pieces that they are in have to count. It returns how many bytes
// were taken; errWrong: the next one is in a piece that is wrong.
func (v *verified) send(ctx context.Context, b *content.Blob, off, n int64, take func([]byte) error) (taken int64, err error) {
	chunk := v.chunks.Get().(*[]byte)
	defer v.chunks.Put(chunk)
	r := &reading{v: v}
	defer r.drop()
	id := b.ID()
	for taken < n {
		at := off + taken
		i := int(at / id.Length())
		l, err := r.piece(ctx, b, i, id.Offset(i+1) < off+n)
		if err != nil {
			return taken, err
		}
		m := copy((*chunk)[:min(n-taken, takeChunk)], l.data[at-id.Offset(i):])
		r.rest()
		err = take((*chunk)[:m])
		r.goOn()
		if err != nil {
			return taken, err
		}
		taken += int64(m)
	}
	return taken, nil
}

// reading is what one reader has in memory.
type reading struct {
	v *verified

	mu      sync.Mutex
	held    []*loaded   // the piece that is being sent, and perhaps the next one
	resting bool        // it waits for its client
	timer   *time.Timer // runs when it has rested for takeWithin
}

// piece returns a piece, and reads the next one with it if that is wanted, too, and there is room at once.
func (r *reading) piece(ctx context.Context, b *content.Blob, i int, next bool) (*loaded, error) {
	for _, l := range r.held { // it does not rest
		if l.key.i == i {
			return l, nil
		}
	}
	r.drop() // before it waits for room
	held, err := r.v.get(ctx, b, i, next)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.held = held
	r.mu.Unlock()
	return held[0], nil
}

// rest begins to wait for the client. What is held may be taken away until goOn.
func (r *reading) rest() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.resting = true
	if r.timer == nil {
		r.timer = time.AfterFunc(takeWithin, r.tooLong)
	} else {
		r.timer.Reset(takeWithin)
	}
}

func (r *reading) goOn() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.resting = false
	r.timer.Stop()
}

func (r *reading) tooLong() {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !r.resting || r.held == nil:
	case r.v.waiting.Load() == 0:
		r.timer.Reset(takeWithin)
	default:
		r.v.drop(r.held)
		r.held = nil
	}
}

// drop gives up what is held.
func (r *reading) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.v.drop(r.held)
	r.held = nil
}

// get returns a piece in memory, perhaps with the next one. They are to be dropped.
func (v *verified) get(ctx context.Context, b *content.Blob, i int, next bool) ([]*loaded, error) {
	l, ours, err := v.enter(ctx, b, i, v.wait)
	if err != nil {
		return nil, err
	}
	all := []*loaded{l}
	if ours {
		if next { // hashing two at once takes little more time than one
			m, also, err := v.enter(ctx, b, i+1, v.try)
			if err == nil && also {
				all = append(all, m)
			} else if err == nil {
				v.drop([]*loaded{m})
			}
		}
		v.load(b, all)
		if len(all) == 2 && all[1].err != nil {
			v.drop(all[1:])
			all = all[:1]
		}
	}
	select {
	case <-l.ready:
		err = l.err
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		v.drop(all)
		return nil, err
	}
	return all, nil
}

var errNoRoom = errors.New("no room at once")

func (v *verified) try(_ context.Context, n int64) error {
	if !v.room.TryAcquire(n) {
		return errNoRoom
	}
	return nil
}

// wait waits for room.
func (v *verified) wait(ctx context.Context, n int64) error {
	if v.room.TryAcquire(n) {
		return nil
	}
	v.waiting.Add(1)
	defer v.waiting.Add(-1)
	return v.room.Acquire(ctx, n)
}

// enter returns a piece that somebody reads, or one that is to be loaded by the caller: that is ours.
func (v *verified) enter(
	ctx context.Context, b *content.Blob, i int, room func(context.Context, int64) error,
) (l *loaded, ours bool, err error) {
	id := b.ID()
	sums, proven := b.Sums()
	key := pieceKey{id: id, i: i}
	if !proven {
		key.ends = string(sums.Range(max(0, i-1), min(i+1, 2)))
	}
	if l := v.join(key); l != nil {
		return l, false, nil
	}
	buf, n := v.buffer(id.PieceSize(i))
	if err := room(ctx, n); err != nil {
		return nil, false, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if l := v.m[key]; l != nil { // by now
		l.refs++
		v.room.Release(n)
		return l, false, nil
	}
	l = &loaded{key: key, refs: 1, sums: sums, ready: make(chan struct{})}
	l.buf = buf()
	l.data = (*l.buf)[:id.PieceSize(i)]
	v.m[key] = l
	return l, true, nil
}

func (v *verified) join(key pieceKey) *loaded {
	v.mu.Lock()
	defer v.mu.Unlock()
	l := v.m[key]
	if l != nil {
		l.refs++
	}
	return l
}

// drop gives pieces up. The last one of a piece's readers frees its room.
func (v *verified) drop(all []*loaded) {
	for _, l := range all {
		v.mu.Lock()
		l.refs--
		last := l.refs == 0
		if last && v.m[l.key] == l {
			delete(v.m, l.key)
		}
		v.mu.Unlock()
		if last {
			n := int64(cap(*l.buf))
			if p := v.pool(cap(*l.buf)); p != nil {
				p.Put(l.buf)
			}
			v.room.Release(n)
		}
	}
}

// buffer returns what makes room for so many bytes, and how many it will be.
func (v *verified) buffer(size int) (get func() *[]byte, n int64) {
	if size <= piece.MinLength/2 {
		return func() *[]byte { b := make([]byte, size); return &b }, int64(size)
	}
	n = int64(max(piece.MinLength, 1<<bits.Len(uint(size-1))))
	return func() *[]byte {
		if b, ok := v.pool(int(n)).Get().(*[]byte); ok {
			return b
		}
		b := make([]byte, n)
		return &b
	}, n
}

// pool returns where buffers of so many bytes are kept, or nil.
func (v *verified) pool(size int) *sync.Pool {
	if size < piece.MinLength {
		return nil
	}
	return &v.pools[bits.TrailingZeros(uint(size/piece.MinLength))]
}

// load reads and verifies pieces.
func (v *verified) load(b *content.Blob, all []*loaded) {
	claims := make([]*piece.Claim, len(all))
	for k, l := range all {
		if _, l.err = b.ReadAt(l.data, b.ID().Offset(l.key.i)); l.err == nil {
			claims[k] = piece.NewClaim(l.sums, l.key.i, l.data)
		}
	}
	if len(claims) == 2 && claims[0] != nil && claims[1] != nil {
		piece.VerifyBoth(claims[0], claims[1])
	}
	for k, l := range all {
		if l.err == nil {
			l.err = claims[k].Verify()
		}
		if l.err != nil {
			l.err = v.again(b, l)
		}
		if l.err != nil {
			v.mu.Lock()
			delete(v.m, l.key) // who comes now reads it anew
			v.mu.Unlock()
		}
		close(l.ready)
	}
}

// again has the store look at a piece that was not what it should be, which tells whom it concerns, and reads it once more if
// the store finds it right.
func (v *verified) again(b *content.Blob, l *loaded) error {
	i := l.key.i
	err := b.Recheck(i)
	if err == nil {
		if _, err = b.ReadAt(l.data, b.ID().Offset(i)); err == nil {
			err = l.sums.Verify(i, l.data)
		}
	}
	switch {
	case err == nil, errors.Is(err, piece.ErrInvalid), errors.Is(err, content.ErrClosed), errors.Is(err, content.ErrDropped):
		return err
	}
	return fmt.Errorf("%w: %w", errWrong, err)
}
