package sha256x2

import "crypto/sha256"

// BlockSize is SHA-256's, in bytes.
const BlockSize = sha256.BlockSize

// State is a chaining state (FIPS 180-4, section 6.2.2: H(i)).
type State [8]uint32

// Blocks hashes p from state a on and q from state b on, and leaves there what comes out.
// p and q are of one length, a multiple of BlockSize; a and b are not the same. It panics
// if they are not of such a length, or it is not [Available].
func Blocks(a, b *State, p, q []byte) {
	if len(p) != len(q) || len(p)%BlockSize != 0 {
		panic("sha256x2: not as many whole blocks in both")
	}
	if !Available {
		panic("sha256x2: not available")
	}
	if len(p) > 0 {
		blocks(a, b, &p[0], &q[0], len(p)/BlockSize)
	}
}
