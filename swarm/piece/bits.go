package piece

import (
	"fmt"
	"math/bits"
)

// Bits is a set of pieces. The zero Bits is empty and has room for none; make
// one with [NewBits]. It is not safe for concurrent use.
type Bits struct {
	words []uint64
	n     int // capacity in pieces
	count int // pieces in the set
}

// NewBits returns an empty set with room for pieces 0..n-1.
func NewBits(n int) *Bits { return &Bits{words: make([]uint64, (n+63)/64), n: n} }

// Len returns the room, in pieces.
func (b *Bits) Len() int { return b.n }

// Count returns how many pieces are in the set.
func (b *Bits) Count() int { return b.count }

// Full reports whether every piece is in the set.
func (b *Bits) Full() bool { return b.count == b.n }

// Has reports whether i is in the set; no index is out of bounds.
func (b *Bits) Has(i int) bool {
	return i >= 0 && i < b.n && b.words[i>>6]&(1<<(i&63)) != 0
}

// Set adds i and reports whether it was missing. It ignores an i without room.
func (b *Bits) Set(i int) bool {
	if i < 0 || i >= b.n || b.Has(i) {
		return false
	}
	b.words[i>>6] |= 1 << (i & 63)
	b.count++
	return true
}

// Clear removes i and reports whether it was there.
func (b *Bits) Clear(i int) bool {
	if !b.Has(i) {
		return false
	}
	b.words[i>>6] &^= 1 << (i & 63)
	b.count--
	return true
}

// SetAll adds every piece.
func (b *Bits) SetAll() {
	for i := range b.n {
		b.Set(i)
	}
}

// NextSet returns the first member at or after i, or -1.
func (b *Bits) NextSet(i int) int { return b.next(i, 0) }

// NextClear returns the first piece at or after i that is not a member, or -1.
func (b *Bits) NextClear(i int) int { return b.next(i, ^uint64(0)) }

func (b *Bits) next(i int, flip uint64) int {
	i = max(i, 0)
	for i < b.n {
		if w := (b.words[i>>6] ^ flip) >> (i & 63); w != 0 {
			if i += bits.TrailingZeros64(w); i < b.n {
				return i
			}
			return -1
		}
		i = (i>>6 + 1) << 6
	}
	return -1
}

// Prefix returns how many leading pieces are in the set without a gap.
func (b *Bits) Prefix() int {
	if i := b.NextClear(0); i >= 0 {
		return i
	}
	return b.n
}

// Clone returns a copy.
func (b *Bits) Clone() *Bits {
	return &Bits{append([]uint64(nil), b.words...), b.n, b.count}
}

// Words returns the set as 64-bit words, piece 0 in the lowest bit of the
// first. The caller must not change them.
func (b *Bits) Words() []uint64 { return b.words }

// AppendBinary appends the set as (n+7)/8 bytes, piece 0 in the highest bit of
// the first, as BitTorrent's bitfield has it (BEP 3).
func (b *Bits) AppendBinary(p []byte) ([]byte, error) {
	for i := 0; i < b.n; i += 8 {
		p = append(p, bits.Reverse8(byte(b.words[i>>6]>>(i&63))))
	}
	return p, nil
}

// ParseBits is the inverse of [Bits.AppendBinary] for a set of n pieces. It
// refuses another length and set bits beyond the last piece.
func ParseBits(p []byte, n int) (*Bits, error) {
	if n < 0 || len(p) != (n+7)/8 {
		return nil, fmt.Errorf("bitfield of %d bytes for %d pieces: %w", len(p), n, ErrInvalid)
	}
	b := NewBits(n)
	for i, c := range p {
		b.words[i>>3] |= uint64(bits.Reverse8(c)) << (i & 7 * 8)
		b.count += bits.OnesCount8(c)
	}
	if n&63 != 0 && b.words[len(b.words)-1]>>(n&63) != 0 {
		return nil, fmt.Errorf("bitfield has pieces beyond %d: %w", n, ErrInvalid)
	}
	return b, nil
}
