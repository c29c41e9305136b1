package inflate

import "math/bits"

// Entries of the decoding tables, from the low bits up:
//
//	bits 0-5    how many bits of input to drop
//	bits 8-11   number of extra bits (lengths, distances), or of index bits (links)
//	bits 12-15  flags
//	bits 16-31  base value, or the index of a link's table
//
// For literals:
//
//	bits 0-5    how many bits of input to drop
//	bits 8-15   the literal
//	bits 16-23  the second literal, if flagPair is set
const (
	flagLiteral = 1 << 31
	flagPair    = 1 << 30
	flagOther   = 1 << 15 // not a length or distance: a link, the end, or (neither) invalid
	flagLink    = 1 << 14
	flagEnd     = 1 << 13

	bitsMask = 63

	litBits  = 11 // index bits of the first table for literals and lengths
	distBits = 9  // and of the one for distances
	maxBits  = 15

	numLit  = 288
	numDist = 32
)

// The sizes are powers of two so that masked indexes need no check. The worst
// cases are 2342 and 594 entries (zlib's "enough" for 288, 11, 15 and 32, 9, 15).
type (
	litTable  [4096]uint32
	distTable [1024]uint32
)

var lengthBase = [...]uint16{
	3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258,
}
var lengthExtra = [...]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}

// litEntry is sym's entry without the number of bits; distEntry likewise.
var litEntry, distEntry = func() (lit [numLit]uint32, dist [numDist]uint32) {
	for i := range lit {
		switch {
		case i < 256:
			lit[i] = flagLiteral | uint32(i)<<8
		case i == 256:
			lit[i] = flagOther | flagEnd
		case i-257 < len(lengthBase):
			lit[i] = uint32(lengthBase[i-257])<<16 | uint32(lengthExtra[i-257])<<8
		default:
			lit[i] = flagOther
		}
	}
	base := uint32(1)
	for i := range dist {
		if i >= 30 {
			dist[i] = flagOther
			continue
		}
		extra := uint32(max(i/2-1, 0))
		dist[i] = base<<16 | extra<<8
		base += 1 << extra
	}
	return lit, dist
}()

// build fills table, whose first 1<<first entries are indexed by the next bits
// of input, for the code with the given lengths. It reports whether that is a
// code: complete, or nothing, or one single bit, as in compress/flate. It is one
// function because its steps (count, check, make room for long codes, enter) share the
// arrays that each of them fills for the next, which so stay on the stack.
func build(table []uint32, first uint, lengths []uint8, entries []uint32) bool {
	var count [maxBits + 1]int
	for _, n := range lengths {
		count[n]++
	}
	count[0] = 0
	top := uint(maxBits)
	for top > 0 && count[top] == 0 {
		top--
	}
	var next [maxBits + 1]uint32
	code := uint32(0)
	for n := uint(1); n <= top; n++ {
		code = (code + uint32(count[n-1])) << 1
		next[n] = code
	}
	if top > 0 {
		if end := code + uint32(count[top]); end != 1<<top && !(end == 1 && top == 1) {
			return false
		}
	}
	size := 1 << first
	for i := range table[:size] {
		table[i] = flagOther
	}
	if top == 0 {
		return true
	}

	// Codes that are longer than the index go to tables of their own, each as
	// large as the longest code with its prefix needs.
	var codes [numLit]uint16 // reversed: the first bit is the lowest
	var long [1 << litBits]uint8
	for sym, n := range lengths {
		if n == 0 {
			continue
		}
		c := bits.Reverse16(uint16(next[n])) >> (16 - n)
		next[n]++
		codes[sym] = c
		if uint(n) > first {
			p := int(c) & (size - 1)
			long[p] = max(long[p], n-uint8(first))
		}
	}
	if top > first {
		at := size
		for p, n := range long[:size] {
			if n > 0 {
				table[p] = flagOther | flagLink | uint32(at)<<16 | uint32(n)<<8 | uint32(first)
				end := at + 1<<n
				if end > len(table) {
					return false // cannot be: the code is complete
				}
				for i := range table[at:end] {
					table[at+i] = flagOther
				}
				at = end
			}
		}
	}
	for sym, n := range lengths {
		if n == 0 {
			continue
		}
		c := int(codes[sym])
		if uint(n) <= first {
			e := entries[sym] | uint32(n)
			for i := c; i < size; i += 1 << n {
				table[i] = e
			}
			continue
		}
		link := table[c&(size-1)]
		at, width := int(link>>16), int(link>>8&15)
		e := entries[sym] | uint32(uint(n)-first)
		for i := c >> first; i < 1<<width; i += 1 << (uint(n) - first) {
			table[at+i] = e
		}
	}
	return true
}

// pair makes entries of the first table stand for two literals where both
// codes are within the index.
func (t *litTable) pair() {
	const size = 1 << litBits
	var first [size]uint32
	copy(first[:], t[:size])
	for i, e := range first {
		if e&flagLiteral == 0 {
			continue
		}
		n := e & bitsMask
		// The high bits of the index are unknown; they are 0 in this look-up, and
		// do not matter if the second code is within the known ones.
		e2 := first[uint32(i)>>n]
		if e2&flagLiteral != 0 && n+e2&bitsMask <= litBits {
			t[i] = e&^bitsMask | (n + e2&bitsMask) | e2&0xff00<<8 | flagPair
		}
	}
}
