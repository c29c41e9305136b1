package swarmtest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"

	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Bytes returns a blob of size bytes, the same for the same seed, and its name
// and complete sums.
func Bytes(size int, seed uint64) (piece.ID, []byte, *piece.Sums) {
	data := make([]byte, size)
	var key [32]byte
	key[0] = byte(seed)
	rand.NewChaCha8(key).Read(data)
	id := piece.ID{Alg: piece.SHA256, Size: int64(size)}
	sum := sha256.Sum256(data)
	copy(id.Sum[:], sum[:])
	return id, data, SumsOf(id, data)
}

// SumsOf returns the sums of data, which must be the blob that id names.
func SumsOf(id piece.ID, data []byte) *piece.Sums {
	s := piece.NewSums(id)
	if err := piece.NewHasher(s).Write(s, data); err != nil {
		panic(err)
	}
	return s
}

// ErrNotFound is what Open returns for a blob that is not there.
var ErrNotFound = errors.New("no such blob")

// Store is a swarm.Store that keeps its promises, and breaks them when told
// to. It is safe for concurrent use.
type Store struct {
	dir string

	mu    sync.Mutex
	blobs map[piece.ID]*Blob
}

// NewStore returns an empty Store that keeps blobs as files in dir, or in
// memory if dir is empty.
func NewStore(dir string) *Store { return &Store{dir: dir, blobs: make(map[piece.ID]*Blob)} }

// Open implements swarm.Store.
func (s *Store) Open(ctx context.Context, id piece.ID, create bool) (swarm.Blob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[id]
	if b == nil {
		if !create {
			return nil, fmt.Errorf("%v: %w", id, ErrNotFound)
		}
		var err error
		if b, err = s.make(id); err != nil {
			return nil, err
		}
	}
	b.mu.Lock()
	b.opens++
	b.mu.Unlock()
	return &handle{Blob: b}, nil
}

func (s *Store) make(id piece.ID) (*Blob, error) {
	b := &Blob{id: id, have: piece.NewBits(id.Pieces()), sums: piece.NewSums(id)}
	if s.dir == "" {
		b.mem = make([]byte, id.Size)
	} else {
		f, err := os.Create(filepath.Join(s.dir, id.Hex()))
		if err != nil {
			return nil, err
		}
		if err := f.Truncate(id.Size); err != nil {
			return nil, err
		}
		b.file = f
	}
	s.blobs[id] = b
	return b, nil
}

// Add stores a complete blob. It is proven if sums is complete; an empty list
// is that of a blob which came by another way and was not hashed.
func (s *Store) Add(id piece.ID, data []byte, sums *piece.Sums) (*Blob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.make(id)
	if err != nil {
		return nil, err
	}
	b.have.SetAll()
	b.sums, b.proven = sums.Clone(), sums.Complete()
	return b, b.writeAt(data, 0)
}

// Append stores the next piece of a blob that arrives in order by another way
// than the swarm, and returns what swarm.Node.Appended is to be told: the
// piece, and the state after it, if it is not the last.
func (b *Blob) Append(data []byte) (i int, state []byte, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i = b.have.Prefix()
	if err := b.writeAt(data, b.id.Offset(i)); err != nil {
		return i, nil, err
	}
	sums := b.sums.Clone()
	if err := piece.NewHasher(sums).Write(sums, data); err != nil {
		return i, nil, err
	}
	b.sums = sums
	b.have.Set(i)
	b.proven = b.have.Full()
	return i, sums.Range(i, 1), nil
}

// Blob returns a blob that was opened or added, or nil.
func (s *Store) Blob(id piece.ID) *Blob {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.blobs[id]
}

// Close closes the files.
func (s *Store) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.blobs {
		if b.file != nil {
			b.file.Close()
		}
	}
}

// Blob is a blob of a Store, shared by all who have it open.
type Blob struct {
	id   piece.ID
	mem  []byte
	file *os.File

	// Fault, if set before the blob is used, is asked at the beginning of every
	// operation that can fail ("read", "write", "recheck", "adopt", "complete");
	// an error from it is the operation's.
	Fault func(op string) error

	mu     sync.Mutex
	have   *piece.Bits
	sums   *piece.Sums
	proven bool
	opens  int
}

// handle is one Open of a Blob.
type handle struct {
	*Blob
	closed sync.Once
}

func (h *handle) Close() error {
	err := errors.New("blob closed twice")
	h.closed.Do(func() {
		h.mu.Lock()
		h.opens--
		h.mu.Unlock()
		err = nil
	})
	return err
}

// Opens returns how many handles are open.
func (b *Blob) Opens() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.opens
}

// Bytes returns the whole blob as it is stored.
func (b *Blob) Bytes() []byte {
	p := make([]byte, b.id.Size)
	b.readAt(p, 0)
	return p
}

// Corrupt flips a bit of piece i on the disk; nobody notices until it is
// verified.
func (b *Blob) Corrupt(i int) error {
	var p [1]byte
	off := b.id.Offset(i)
	b.readAt(p[:], off)
	p[0] ^= 1
	return b.writeAt(p[:], off)
}

func (b *Blob) fault(op string) error {
	if b.Fault == nil {
		return nil
	}
	return b.Fault(op)
}

func (b *Blob) writeAt(p []byte, off int64) error {
	if b.file == nil {
		copy(b.mem[off:], p)
		return nil
	}
	_, err := b.file.WriteAt(p, off)
	return err
}

func (b *Blob) readAt(p []byte, off int64) (int, error) {
	if b.file != nil {
		return b.file.ReadAt(p, off)
	}
	if off < 0 || off > b.id.Size {
		return 0, io.EOF
	}
	n := copy(p, b.mem[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Have implements swarm.Blob.
func (b *Blob) Have() *piece.Bits {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.have.Clone()
}

// Sums implements swarm.Blob.
func (b *Blob) Sums() (*piece.Sums, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sums.Clone(), b.proven
}

// Adopt implements swarm.Blob.
func (b *Blob) Adopt(s *piece.Sums) (dropped []int, err error) {
	if err := b.fault("adopt"); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := b.have.NextSet(0); i >= 0; i = b.have.NextSet(i + 1) {
		if !b.sums.Agrees(s, i) {
			b.have.Clear(i)
			dropped = append(dropped, i)
		}
	}
	b.sums, b.proven = s.Clone(), false
	return dropped, nil
}

// WritePiece implements swarm.Blob.
func (b *Blob) WritePiece(c *piece.Claim) error {
	if err := b.fault("write"); err != nil {
		return err
	}
	if err := c.Verify(); err != nil {
		return err
	}
	i, sums := c.Piece(), c.Sums()
	off := b.id.Offset(i)
	for _, d := range c.Data() {
		if err := b.writeAt(d, off); err != nil {
			return err
		}
		off += int64(len(d))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if sums.HasPrefix(b.sums) && sums.Len() > b.sums.Len() {
		b.sums = sums.Clone()
	}
	if !sums.Agrees(b.sums, i) {
		return fmt.Errorf("piece %d of %v: stored under sums that were not adopted", i, b.id)
	}
	b.have.Set(i)
	return nil
}

// Recheck implements swarm.Blob.
func (b *Blob) Recheck(i int) error {
	p := make([]byte, b.id.PieceSize(i))
	_, err := b.readAt(p, b.id.Offset(i))
	sums, _ := b.Sums()
	if err == nil {
		err = b.fault("recheck")
	}
	if err == nil {
		err = sums.Verify(i, p)
	}
	if err != nil {
		b.mu.Lock()
		b.have.Clear(i)
		b.proven = false
		b.mu.Unlock()
	}
	return err
}

// ReadAt implements swarm.Blob.
func (b *Blob) ReadAt(p []byte, off int64) (int, error) {
	if err := b.fault("read"); err != nil {
		return 0, err
	}
	return b.readAt(p, off)
}

// File implements swarm.Blob.
func (b *Blob) File() *os.File {
	if b.Fault != nil { // so that it is asked
		return nil
	}
	return b.file
}

// ComputeSums fills in the sums of a complete blob.
func (b *Blob) ComputeSums(ctx context.Context) error {
	data := b.Bytes()
	sums := piece.NewSums(b.id)
	if err := piece.NewHasher(sums).Write(sums, data); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sums, b.proven = sums, true
	return nil
}

// Complete implements swarm.Blob.
func (b *Blob) Complete(ctx context.Context) error {
	if err := b.fault("complete"); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.have.Full() || !b.sums.Complete() {
		return fmt.Errorf("%v is not complete", b.id)
	}
	b.proven = true
	return nil
}
