package piece

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding"
	"encoding/binary"
	"fmt"
	"hash"
)

// Sums is a blob's list of chaining states, or a prefix of that list while the
// blob is still arriving in order at the list's source. The states between
// pieces are kept; the first (the hash's initial state) and the last (the
// digest) are known from the ID. A Sums is not safe for concurrent use, but an
// appended-to Sums never changes the states it already has, so a [Sums.Clone]
// shares them.
//
// Sums say nothing about whether they are true. They are provisional until
// somebody has verified every link, which leads from the hash's fixed initial
// state to the digest: that proves them.
type Sums struct {
	id     ID
	states []byte // Alg.Size() bytes for each of pieces 0..n-2
}

// NewSums returns the empty list for id.
func NewSums(id ID) *Sums { return &Sums{id: id} }

// ID returns the blob's name.
func (s *Sums) ID() ID { return s.id }

// MaxLen returns the number of states in the complete list: Pieces()-1.
func (s *Sums) MaxLen() int { return s.id.Pieces() - 1 }

// Len returns how many states are known.
func (s *Sums) Len() int { return len(s.states) / s.id.Alg.Size() }

// Complete reports whether every state is known.
func (s *Sums) Complete() bool { return s.Len() == s.MaxLen() }

// Verifiable returns how many leading pieces can be verified: all of them for a
// complete list, otherwise as many as there are states.
func (s *Sums) Verifiable() int {
	if s.Complete() {
		return s.id.Pieces()
	}
	return s.Len()
}

// Bytes returns the known states, concatenated. The caller must not change them.
func (s *Sums) Bytes() []byte { return s.states[:len(s.states):len(s.states)] }

// Range returns states from..from+n-1, concatenated, cut at what is known. The
// caller must not change them.
func (s *Sums) Range(from, n int) []byte {
	w, l := s.id.Alg.Size(), s.Len()
	if from < 0 || n <= 0 || from >= l {
		return nil
	}
	to := min(l, from+min(n, l))
	return s.states[from*w : to*w : to*w]
}

// Append adds states, concatenated, behind those that are known. It refuses a
// fraction of a state and more states than the list can have.
func (s *Sums) Append(states []byte) error {
	w := s.id.Alg.Size()
	if len(states)%w != 0 || (len(s.states)+len(states))/w > s.MaxLen() {
		return fmt.Errorf("appending %d bytes of states to %d of %d of %s: %w", len(states), s.Len(), s.MaxLen(), s.id.Digest(), ErrInvalid)
	}
	s.states = append(s.states, states...)
	return nil
}

// Clone returns a copy that can be appended to independently.
func (s *Sums) Clone() *Sums { return &Sums{s.id, s.Bytes()} }

// HasPrefix reports whether the first states of s are all those of p.
func (s *Sums) HasPrefix(p *Sums) bool {
	return s.id == p.id && bytes.HasPrefix(s.states, p.states)
}

// Agrees reports whether piece i has the same two ends in both lists, so that
// bytes verified against one are verified against the other.
func (s *Sums) Agrees(o *Sums, i int) bool {
	a, aok := s.link(i)
	b, bok := o.link(i)
	return aok && bok && s.id == o.id && a == b
}

// link is the pair of states around a piece; the digest stands for the last.
type link struct{ from, to Sum }

func (s *Sums) link(i int) (l link, ok bool) {
	if i < 0 || i >= s.Verifiable() {
		return l, false
	}
	w := s.id.Alg.Size()
	if i > 0 {
		copy(l.from[:], s.states[(i-1)*w:i*w])
	}
	if i == s.id.Pieces()-1 {
		l.to = s.id.Sum
	} else {
		copy(l.to[:], s.states[i*w:(i+1)*w])
	}
	return l, true
}

// Hash returns the SHA-256 of the complete list, bound to the blob's name: the
// value by which a tracker pins the proven list. It panics on an incomplete
// list.
func (s *Sums) Hash() [32]byte {
	if !s.Complete() {
		panic("piece: Hash of incomplete sums")
	}
	h := sha256.New()
	var b [9]byte
	b[0] = byte(s.id.Alg)
	binary.BigEndian.PutUint64(b[1:], uint64(s.id.Size))
	h.Write(b[:])
	h.Write(s.id.Sum[:s.id.Alg.Size()])
	h.Write(s.states)
	return [32]byte(h.Sum(nil))
}

// Verify reports whether data, in consecutive parts, is piece i according to
// the list: nil, ErrMismatch, or ErrInvalid if the list does not reach piece i
// yet. It hashes at the machine's speed and allocates no buffer.
func (s *Sums) Verify(i int, data ...[]byte) error { return NewClaim(s, i, data...).Verify() }

// Hasher hashes a blob in order, from a piece's beginning, and yields the state
// at each boundary it passes. It is how sums come into being.
type Hasher struct {
	id ID
	h  hash.Hash
	n  int64 // bytes of the blob hashed, those before the start included
}

// NewHasher returns a Hasher that stands at the beginning of piece s.Len(),
// after the last known state: at the blob's beginning for an empty list.
func NewHasher(s *Sums) *Hasher {
	i := s.Len()
	var from Sum
	if i > 0 {
		w := s.id.Alg.Size()
		copy(from[:], s.states[(i-1)*w:])
	}
	return &Hasher{s.id, resume(s.id, i, from), s.id.Offset(i)}
}

// Offset returns how many bytes of the blob have been hashed.
func (h *Hasher) Offset() int64 { return h.n }

// Write hashes p, which follows what was hashed before, and appends to sums the
// state at each piece boundary it passes. sums must be the list that h was made
// from, or have the same states. Bytes beyond the blob's size are an
// ErrMismatch and nothing is hashed. When the last byte has been hashed, Write
// compares the digest and returns ErrMismatch if it is another.
func (h *Hasher) Write(sums *Sums, p []byte) error {
	if int64(len(p)) > h.id.Size-h.n {
		return fmt.Errorf("%s: more than %d bytes: %w", h.id.Digest(), h.id.Size, ErrMismatch)
	}
	l := h.id.Length()
	for len(p) > 0 {
		n := min(int64(len(p)), l-h.n%l)
		h.h.Write(p[:n])
		h.n += n
		p = p[n:]
		if h.n == h.id.Size {
			if end(h.id, h.h, true) != h.id.Sum {
				return fmt.Errorf("%s: %w", h.id.Digest(), ErrMismatch)
			}
		} else if h.n%l == 0 {
			s := end(h.id, h.h, false)
			if err := sums.Append(s[:h.id.Alg.Size()]); err != nil {
				return err
			}
		}
	}
	return nil
}

// The states that crypto/sha256 and crypto/sha512 marshal: a magic, the
// chaining values, the buffered part of a block (nothing, at a boundary), and
// the number of bytes hashed.
const (
	magic256 = "sha\x03"
	magic512 = "sha\x07"
	block256 = 64
	block512 = 128
)

// resume returns a hash that stands at the beginning of piece i.
func resume(id ID, i int, from Sum) hash.Hash {
	var h hash.Hash
	var magic string
	var block int
	switch id.Alg {
	case SHA256:
		h, magic, block = sha256.New(), magic256, block256
	case SHA512:
		h, magic, block = sha512.New(), magic512, block512
	default:
		panic("piece: " + id.Alg.String())
	}
	if i == 0 {
		return h
	}
	n := id.Alg.Size()
	b := make([]byte, 0, 4+64+block512+8)
	b = append(b, magic...)
	b = append(b, from[:n]...)
	b = b[:len(b)+block]
	b = binary.BigEndian.AppendUint64(b, uint64(id.Offset(i)))
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(b); err != nil {
		panic("piece: restoring a hash: " + err.Error())
	}
	return h
}

// end returns the digest, or the chaining state at a boundary.
func end(id ID, h hash.Hash, last bool) (s Sum) {
	if last {
		h.Sum(s[:0])
		return s
	}
	var buf [4 + 64 + block512 + 8]byte
	b, err := h.(encoding.BinaryAppender).AppendBinary(buf[:0])
	if err != nil {
		panic("piece: saving a hash: " + err.Error())
	}
	copy(s[:], b[4:4+id.Alg.Size()])
	return s
}
