// Package sha256x2 hashes two streams with SHA-256 at once, which takes an x86-64
// processor little more time than one: its rounds wait for each other, so half of them
// can belong to somebody else.
//
// It is crypto/sha256's compression function, for whoever has chaining states and whole
// blocks in the hand; elsewhere than on such a processor it does one stream after the
// other.
package sha256x2

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
)

// BlockSize is SHA-256's, in bytes.
const BlockSize = sha256.BlockSize

// State is a chaining state (FIPS 180-4, section 6.2.2: H(i)).
type State [8]uint32

// Blocks hashes p from state a on and q from state b on, and leaves there what comes out.
// p and q are of one length, a multiple of BlockSize, or it panics; a and b are not the
// same.
func Blocks(a, b *State, p, q []byte) {
	if len(p) != len(q) || len(p)%BlockSize != 0 {
		panic("sha256x2: not as many whole blocks in both")
	}
	switch {
	case len(p) == 0:
	case available:
		blocks(a, b, &p[0], &q[0], len(p)/BlockSize)
	default:
		one(a, p)
		one(b, q)
	}
}

// one hashes a single stream with crypto/sha256, whose marshalled form is a magic, the
// state, a block that is not full yet, and how much was hashed.
func one(s *State, p []byte) {
	const magic = "sha\x03"
	m := make([]byte, 0, len(magic)+sha256.Size+BlockSize+8)
	m = append(m, magic...)
	for _, w := range s {
		m = binary.BigEndian.AppendUint32(m, w)
	}
	h := sha256.New()
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(m[:cap(m)]); err != nil {
		panic("sha256x2: restoring a hash: " + err.Error())
	}
	h.Write(p)
	m, err := h.(encoding.BinaryAppender).AppendBinary(m[:0])
	if err != nil {
		panic("sha256x2: saving a hash: " + err.Error())
	}
	for i := range s {
		s[i] = binary.BigEndian.Uint32(m[len(magic)+4*i:])
	}
}
