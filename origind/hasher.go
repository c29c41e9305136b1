package origind

import (
	"crypto/sha256"
	"encoding"
	"fmt"
	"hash"
	"io"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/swarm/piece"
)

// hasher makes a blob's SHA-256 and its sums in one pass, although pieces are cut
// by the size of the blob, which nobody knows before its end. It keeps the
// chaining states at a distance that is short enough for every size that is still
// possible, and leaves out every second one when the distance grows: 4,000 states
// at most up to 16 GB, 131,072 for 1 TiB.
type hasher struct {
	h      hash.Hash
	n      int64  // bytes hashed
	step   int64  // distance of states
	states []byte // after step, 2*step, … bytes
}

func newHasher() *hasher { return &hasher{h: sha256.New(), step: piece.MinLength} }

func (s *hasher) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 {
		n := min(int64(len(p)), s.step-s.n%s.step)
		s.h.Write(p[:n])
		s.n += n
		p = p[n:]
		if s.n%s.step == 0 {
			s.states = append(s.states, state(s.h)...)
			s.thin()
		}
	}
	return written, nil
}

// thin makes step the length of pieces of a blob of n bytes.
func (s *hasher) thin() {
	for s.step < (piece.ID{Size: s.n}).Length() {
		kept := s.states[:0]
		for i := sha256.Size; i+sha256.Size <= len(s.states); i += 2 * sha256.Size {
			kept = append(kept, s.states[i:i+sha256.Size]...)
		}
		s.states = kept
		s.step *= 2
	}
}

func (s *hasher) digest() digest.Digest {
	return digest.NewDigest(digest.SHA256, s.h)
}

// sums returns the sums of the blob that has been hashed, which must have a byte.
func (s *hasher) sums() (*piece.Sums, error) {
	id, err := piece.ParseID(string(s.digest()), s.n)
	if err != nil {
		return nil, err
	}
	s.thin()
	sums := piece.NewSums(id)
	return sums, sums.Append(s.states[:min(len(s.states), sums.MaxLen()*sha256.Size)])
}

// state returns the chaining state of a SHA-256 that stands at the end of a block:
// what its marshalled form has after a magic of 4 bytes (see piece.Sums).
func state(h hash.Hash) []byte {
	b, err := h.(encoding.BinaryAppender).AppendBinary(nil)
	if err != nil {
		panic("origind: saving a hash: " + err.Error())
	}
	return b[4 : 4+sha256.Size]
}

// sumsOf reads a blob and returns its sums; piece.ErrMismatch if it is another.
func sumsOf(r io.Reader, id piece.ID) (*piece.Sums, error) {
	sums := piece.NewSums(id)
	h := piece.NewHasher(sums)
	buf := make([]byte, 1<<20)
	for h.Offset() < id.Size {
		n, err := io.ReadFull(r, buf[:min(int64(len(buf)), id.Size-h.Offset())])
		if err != nil {
			return nil, fmt.Errorf("hashing %s: %w", id, err)
		}
		if err := h.Write(sums, buf[:n]); err != nil {
			return nil, err
		}
	}
	return sums, nil
}
