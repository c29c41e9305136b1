package plugin

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

// testBlob returns random bytes and their name.
func testBlob(t testing.TB, size int, seed byte) (piece.ID, []byte) {
	t.Helper()
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{seed, byte(size), byte(size >> 8)}).Read(data)
	id, err := piece.ParseID(fmt.Sprintf("sha256:%x", sha256.Sum256(data)), int64(size))
	if err != nil {
		t.Fatal(err)
	}
	return id, data
}

// fakeBlobs keeps blobs in memory.
type fakeBlobs struct {
	mu        sync.Mutex
	m         map[piece.ID]*fakeState
	openErr   error
	completes int
}

type fakeState struct {
	id       piece.ID
	have     *piece.Bits
	data     []byte
	done     bool // complete and durable
	visible  bool // containerd's
	dropped  int
	opened   int
	changed  chan struct{}
	writeErr error
}

func newFakeBlobs() *fakeBlobs { return &fakeBlobs{m: map[piece.ID]*fakeState{}} }

func (f *fakeBlobs) state(id piece.ID) *fakeState {
	st := f.m[id]
	if st == nil {
		st = &fakeState{id: id, have: piece.NewBits(id.Pieces()), data: make([]byte, id.Size), changed: make(chan struct{})}
		f.m[id] = st
	}
	return st
}

func (st *fakeState) notify() {
	close(st.changed)
	st.changed = make(chan struct{})
}

// deliver makes pieces appear, as the swarm would.
func (f *fakeBlobs) deliver(id piece.ID, data []byte, pieces ...int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := f.state(id)
	for _, i := range pieces {
		copy(st.data[id.Offset(i):], data[id.Offset(i):][:id.PieceSize(i)])
		st.have.Set(i)
	}
	st.notify()
}

func (f *fakeBlobs) get(id piece.ID) fakeState {
	f.mu.Lock()
	defer f.mu.Unlock()
	return *f.state(id)
}

func (f *fakeBlobs) Whole(id piece.ID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state(id).done
}

func (f *fakeBlobs) Committed(id piece.ID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state(id).visible
}

func (f *fakeBlobs) AdoptIngest(context.Context, string, piece.ID) error { return nil }

func (f *fakeBlobs) OpenBlob(_ context.Context, id piece.ID) (blob, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.openErr != nil {
		return nil, f.openErr
	}
	f.state(id).opened++
	return &fakeBlob{f, f.state(id)}, nil
}

type fakeBlob struct {
	f *fakeBlobs
	*fakeState
}

func (b *fakeBlob) Have() *piece.Bits {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	return b.have.Clone()
}

func (b *fakeBlob) ReadAt(p []byte, off int64) (int, error) {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	l := b.id.Length()
	for i := off / l; i*l < off+int64(len(p)); i++ {
		if !b.have.Has(int(i)) {
			return 0, fmt.Errorf("piece %d: %w", i, content.ErrIncomplete)
		}
	}
	return copy(p, b.data[off:]), nil
}

func (b *fakeBlob) Prefix() int64 {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	return min(b.id.Offset(b.have.Prefix()), b.id.Size)
}

func (b *fakeBlob) Changed() <-chan struct{} {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	return b.changed
}

func (b *fakeBlob) Complete(context.Context) error {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	if !b.have.Full() {
		return errors.New("incomplete")
	}
	b.f.completes++
	b.done = true
	return nil
}

func (b *fakeBlob) Publish(context.Context) error {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	if !b.done {
		return errors.New("publishing an incomplete blob")
	}
	b.visible = true
	return nil
}

func (b *fakeBlob) Drop() error {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	b.dropped++
	b.have = piece.NewBits(b.id.Pieces())
	return nil
}

func (b *fakeBlob) Close() error {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	b.opened--
	return nil
}

func (b *fakeBlob) Append(off int64) (appender, error) { return &fakeAppender{b, off}, nil }

type fakeAppender struct {
	b   *fakeBlob
	off int64
}

func (a *fakeAppender) Write(p []byte) (int, error) {
	a.b.f.mu.Lock()
	defer a.b.f.mu.Unlock()
	if a.b.writeErr != nil {
		return 0, a.b.writeErr
	}
	copy(a.b.data[a.off:], p)
	a.off += int64(len(p))
	for i := range a.b.id.Pieces() - 1 { // the last one is Finish's
		if a.b.id.Offset(i)+int64(a.b.id.PieceSize(i)) <= a.off && a.b.have.Prefix() >= i {
			a.b.have.Set(i)
		}
	}
	a.b.notify()
	return len(p), nil
}

func (a *fakeAppender) Finish(ctx context.Context) error {
	a.b.f.mu.Lock()
	ok := fmt.Sprintf("sha256:%x", sha256.Sum256(a.b.data)) == a.b.id.Digest()
	if ok {
		a.b.have.Set(a.b.id.Pieces() - 1)
	} else {
		a.b.have = piece.NewBits(a.b.id.Pieces())
	}
	a.b.f.mu.Unlock()
	if !ok {
		return fmt.Errorf("last piece: %w", piece.ErrMismatch)
	}
	return a.b.Complete(ctx)
}

func (a *fakeAppender) Close() error { return nil }

// fakePeers records joins, and says what a test lets it say.
type fakePeers struct {
	mu     sync.Mutex
	joined map[piece.ID]joinAs
	onDone map[piece.ID]func(error)
	useful map[piece.ID]int
	named  map[piece.ID][]swarm.PeerInfo
	shares map[piece.ID]uint16
	proven map[piece.ID]bool
	left   []piece.ID
}

func newFakePeers() *fakePeers {
	return &fakePeers{
		joined: map[piece.ID]joinAs{}, onDone: map[piece.ID]func(error){}, useful: map[piece.ID]int{},
		named: map[piece.ID][]swarm.PeerInfo{}, shares: map[piece.ID]uint16{}, proven: map[piece.ID]bool{},
	}
}

func (p *fakePeers) Join(_ context.Context, id piece.ID, as joinAs, onDone func(error)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.joined[id], p.onDone[id] = as, onDone
	return nil
}

func (p *fakePeers) Leave(id piece.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.joined, id)
	p.left = append(p.left, id)
}

func (p *fakePeers) AddPeers(id piece.ID, infos []swarm.PeerInfo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.named[id] = append(p.named[id], infos...)
}

func (p *fakePeers) Share(id piece.ID, share uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shares[id] = share
}

func (p *fakePeers) Proven(id piece.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.proven[id] = true
}

func (p *fakePeers) Status(id piece.ID) (swarm.BlobStatus, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.joined[id]
	return swarm.BlobStatus{Useful: p.useful[id], Peers: p.useful[id]}, ok
}

func (p *fakePeers) as(id piece.ID) (joinAs, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	as, ok := p.joined[id]
	return as, ok
}

func (p *fakePeers) fail(id piece.ID, err error) {
	p.mu.Lock()
	done := p.onDone[id]
	p.mu.Unlock()
	done(err)
}

// fakeFinder records what is asked, and answers as a test lets it.
type fakeFinder struct {
	fs *fetches

	mu      sync.Mutex
	answers map[piece.ID]verdict // to a waiting want; others get none
	asks    map[piece.ID]uint64  // the last one's
	partial func()               // called by Partial, unless nil
	log     []string
}

func newFakeFinder(fs *fetches) *fakeFinder {
	return &fakeFinder{fs: fs, answers: map[piece.ID]verdict{}, asks: map[piece.ID]uint64{}}
}

func (f *fakeFinder) say(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, fmt.Sprintf(format, args...))
}

// events returns what was asked, without repetitions in a row, and forgets it.
func (f *fakeFinder) events() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	log := slices.Compact(f.log)
	f.log = nil
	return log
}

func (f *fakeFinder) Want(id piece.ID, waiting bool, ask uint64) {
	f.say("want %t", waiting)
	f.mu.Lock()
	v, ok := f.answers[id]
	f.asks[id] = ask
	f.mu.Unlock()
	if ok && waiting {
		go f.fs.verdict(id, ask, v) // as the client does: from another goroutine
	}
}

// tell answers the last want once more.
func (f *fakeFinder) tell(id piece.ID, v verdict) {
	f.mu.Lock()
	ask := f.asks[id]
	f.mu.Unlock()
	f.fs.verdict(id, ask, v)
}
func (f *fakeFinder) Unwant(piece.ID) { f.say("unwant") }
func (f *fakeFinder) Partial(piece.ID) {
	f.say("partial")
	if f.partial != nil {
		f.partial()
	}
}
func (f *fakeFinder) Gone(piece.ID)                 { f.say("gone") }
func (f *fakeFinder) LeaseProgress(piece.ID, int64) { f.say("progress") }
func (f *fakeFinder) LeaseDone(_ piece.ID, err error) {
	f.say("done %t", err == nil)
}

var errFull = fmt.Errorf("disk full: %w", errdefs.ErrResourceExhausted)
