package fetchtest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/plugin/fetch"
	"github.com/capelin-io/capelin/swarm/piece"
)

// ErrFull is what a full disk says.
var ErrFull = fmt.Errorf("disk full: %w", errdefs.ErrResourceExhausted)

// Random returns random bytes and their name.
func Random(t testing.TB, size int, seed byte) (piece.ID, []byte) {
	t.Helper()
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{seed, byte(size), byte(size >> 8)}).Read(data)
	id, err := piece.ParseID(fmt.Sprintf("sha256:%x", sha256.Sum256(data)), int64(size))
	if err != nil {
		t.Fatal(err)
	}
	return id, data
}

// Blobs keeps blobs in memory.
type Blobs struct {
	mu      sync.Mutex
	blobs   map[piece.ID]*state
	openErr error
}

// State is what there is of a blob.
type State struct {
	Done     bool  // complete and durable
	Visible  bool  // containerd's
	Pieces   int   // that count
	Dropped  int   // how often it was
	GivenUp  int   // the same
	Opened   int   // handles that are not closed
	Looks    int   // how often somebody asked what there is of it
	WriteErr error // of every write
}

type state struct {
	State
	id      piece.ID
	have    *piece.Bits
	data    []byte
	changed chan struct{}
}

// NewBlobs returns a disk without blobs.
func NewBlobs() *Blobs { return &Blobs{blobs: map[piece.ID]*state{}} }

// at returns a blob's state. mu is held.
func (f *Blobs) at(id piece.ID) *state {
	st := f.blobs[id]
	if st == nil {
		st = &state{id: id, have: piece.NewBits(id.Pieces()), data: make([]byte, id.Size), changed: make(chan struct{})}
		f.blobs[id] = st
	}
	return st
}

func (st *state) notify() {
	close(st.changed)
	st.changed = make(chan struct{})
}

// Deliver makes pieces appear, as the swarm would.
func (f *Blobs) Deliver(id piece.ID, data []byte, pieces ...int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := f.at(id)
	for _, i := range pieces {
		copy(st.data[id.Offset(i):], data[id.Offset(i):][:id.PieceSize(i)])
		st.have.Set(i)
	}
	st.notify()
}

// Get returns what there is of a blob.
func (f *Blobs) Get(id piece.ID) State {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := f.at(id)
	st.Pieces = st.have.Count()
	return st.State
}

// Set changes that, but for its pieces.
func (f *Blobs) Set(id piece.ID, change func(*State)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.at(id).State)
}

// CannotOpen lets every OpenBlob fail from now on.
func (f *Blobs) CannotOpen(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.openErr = err
}

// Whole implements fetch.Blobs.
func (f *Blobs) Whole(id piece.ID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.at(id).Done
}

// Committed reports whether containerd has the blob.
func (f *Blobs) Committed(id piece.ID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.at(id).Visible
}

// AdoptIngest has nothing to adopt.
func (f *Blobs) AdoptIngest(context.Context, string, piece.ID) error { return nil }

// Forget gives a blob up.
func (f *Blobs) Forget(_ context.Context, id piece.ID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if st := f.blobs[id]; st != nil {
		st.Done, st.have = false, piece.NewBits(id.Pieces())
		st.Dropped++
	}
	return nil
}

// Here calls fn with every blob of which there is anything.
func (f *Blobs) Here(fn func(id piece.ID, whole bool)) {
	f.mu.Lock()
	all := maps.Clone(f.blobs)
	f.mu.Unlock()
	for id, st := range all {
		if st.Done || st.have.Count() > 0 {
			fn(id, st.Done)
		}
	}
}

// OpenBlob implements fetch.Blobs.
func (f *Blobs) OpenBlob(_ context.Context, id piece.ID) (fetch.Blob, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.openErr != nil {
		return nil, f.openErr
	}
	f.at(id).Opened++
	return &blob{f, f.at(id)}, nil
}

type blob struct {
	f *Blobs
	*state
}

func (b *blob) Have() *piece.Bits {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	b.Looks++
	return b.have.Clone()
}

func (b *blob) ReadAt(p []byte, off int64) (int, error) {
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

func (b *blob) Prefix() int64 {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	return min(b.id.Offset(b.have.Prefix()), b.id.Size)
}

func (b *blob) Changed() <-chan struct{} {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	return b.changed
}

func (b *blob) Complete(context.Context) error {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	if !b.have.Full() {
		return errors.New("incomplete")
	}
	b.Done = true
	b.notify()
	return nil
}

func (b *blob) Empty() error {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	if !b.Done {
		b.have = piece.NewBits(b.id.Pieces())
		b.notify()
	}
	return nil
}

func (b *blob) Publish(context.Context) error {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	if !b.Done {
		return errors.New("publishing an incomplete blob")
	}
	b.Visible = true
	return nil
}

func (b *blob) Drop() error {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	b.Dropped++
	b.have = piece.NewBits(b.id.Pieces())
	return nil
}

func (b *blob) Close() error {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	b.Opened--
	return nil
}

func (b *blob) GiveUp() {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	b.GivenUp++
}

func (b *blob) Append(_ context.Context, off int64) (fetch.Appender, error) {
	return &appender{b, off}, nil
}

type appender struct {
	b   *blob
	off int64
}

func (a *appender) Write(p []byte) (int, error) {
	a.b.f.mu.Lock()
	defer a.b.f.mu.Unlock()
	if a.b.WriteErr != nil {
		return 0, a.b.WriteErr
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

func (a *appender) Finish(ctx context.Context) error {
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

func (a *appender) Close() error { return nil }
