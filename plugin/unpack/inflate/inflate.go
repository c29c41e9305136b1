package inflate

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// ErrCorrupt is returned for what is not gzip, and for a wrong checksum or size.
// A stream that ends early is [io.ErrUnexpectedEOF].
var ErrCorrupt = errors.New("corrupt gzip stream")

const (
	inSize  = 256 << 10
	inSlack = 1 << 10 // zeros behind the last input; more than a block's header

	window   = 32 << 10
	outSize  = 256 << 10 // behind the window
	outSlack = 320       // what one round of the inner loop may write past its limit
)

// A Reader is the uncompressed content of a gzip stream.
type Reader struct {
	src io.Reader
	err error // sticky; given out after the last byte

	in       []byte // inSlack at the end is not read into
	pos, end int    // in[pos:end] is not yet in hold
	eof      bool   // in[end:] is zeros, and src has nothing more
	srcErr   error
	hold     uint64 // input bits, the next is the lowest; those above n are of in[pos:]
	n        uint   // valid bits in hold

	out  []byte // window of history, then output; outSlack behind
	base int    // of the member: nothing before is its history
	rp   int    // out[rp:wp] is to be given out
	wp   int

	state  int
	final  bool // the current block is the last one
	stored int  // bytes left of a stored block
	sum    uint32
	size   uint32 // modulo 2^32

	lit  *litTable
	dist *distTable
	// Of dynamic blocks; lit and dist may point to the fixed tables instead.
	dynLit  litTable
	dynDist distTable
}

// States: between members, between blocks, within a block.
const (
	stateMember = iota
	stateBlock
	stateHuffman
	stateStored
)

// NewReader returns a Reader of src, which it reads ahead of what it needs. It
// needs no buffer around src, takes 600 KiB of memory, and has nothing to close.
func NewReader(src io.Reader) *Reader { return newReader(src, inSize, outSize) }

// newReader has other buffers than NewReader, for tests; in is at least 2*inSlack.
func newReader(src io.Reader, in, out int) *Reader {
	return &Reader{
		src: src,
		in:  make([]byte, in+inSlack),
		out: make([]byte, window+out+outSlack),
	}
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for r.rp == r.wp {
		if r.err != nil {
			return 0, r.err
		}
		r.slide()
		r.err = r.step()
		b := r.out[r.rp:r.wp]
		r.sum = crc32.Update(r.sum, crc32.IEEETable, b)
		r.size += uint32(len(b))
		if r.err == errMemberEnd {
			r.err = r.trailer()
		}
	}
	n := copy(p, r.out[r.rp:r.wp])
	r.rp += n
	return n, nil
}

// slide makes room for output, keeping the window.
func (r *Reader) slide() {
	if r.wp > window {
		d := r.wp - window
		copy(r.out, r.out[d:r.wp])
		r.wp = window
		r.base = max(r.base-d, 0)
	}
	r.rp = r.wp
}

var errMemberEnd = errors.New("end of member")

// step decodes until the output is full or the member ends.
func (r *Reader) step() error {
	for full := len(r.out) - outSlack; r.wp < full; {
		switch r.state {
		case stateMember:
			if err := r.header(); err != nil {
				return err
			}
			r.sum, r.size = 0, 0
			r.base = r.wp
			r.final = false
			r.state = stateBlock
		case stateBlock:
			if r.final {
				r.state = stateMember
				return errMemberEnd
			}
			if err := r.block(); err != nil {
				return err
			}
		case stateHuffman:
			if err := r.huffman(); err != nil {
				return err
			}
		case stateStored:
			if err := r.copyStored(); err != nil {
				return err
			}
		}
	}
	return nil
}

// fill makes sure that at least want bytes follow pos, or that src is at its end.
// want is at most half of what in has room for.
func (r *Reader) fill(want int) error {
	if r.end-r.pos >= want || r.eof {
		return nil
	}
	if r.pos > r.end {
		return r.noMore() // cannot be: without eof, pos stays before end
	}
	keep := min(r.pos, 8) // what is in hold may be given back by align
	r.end = copy(r.in, r.in[r.pos-keep:r.end])
	r.pos = keep
	for r.end-r.pos < want && !r.eof {
		n, err := r.src.Read(r.in[r.end : len(r.in)-inSlack])
		r.end += n
		if err != nil {
			r.eof = true
			if err != io.EOF {
				r.srcErr = err
			}
			clear(r.in[r.end : r.end+inSlack])
		}
	}
	return nil
}

// noMore is the error for input that ends too early.
func (r *Reader) noMore() error {
	if r.srcErr != nil {
		return r.srcErr
	}
	return io.ErrUnexpectedEOF
}

// short reports whether more was taken from the input than there is.
func (r *Reader) short() bool { return r.pos-int(r.n>>3) > r.end }

// take returns the next k bits, k ≤ 32. Beyond the end of input they are zeros;
// the caller has called fill for all that it takes, and asks short afterwards.
func (r *Reader) take(k uint) uint32 {
	if r.n < k {
		r.refill()
	}
	v := uint32(r.hold & (1<<k - 1))
	r.hold >>= k
	r.n -= k
	return v
}

func (r *Reader) refill() {
	if r.pos > len(r.in)-8 {
		r.pos = len(r.in) - 8 // far beyond end: short will tell
	}
	r.hold |= binary.LittleEndian.Uint64(r.in[r.pos:]) << (r.n & 63)
	r.pos += int(63-r.n) >> 3
	r.n |= 56
}

// align drops the bits up to the next byte and gives whole bytes back to in.
func (r *Reader) align() {
	r.pos -= int(r.n >> 3)
	r.hold, r.n = 0, 0
}

func (r *Reader) block() error {
	// A dynamic block's header has at most 2,286 bits: 17 + 19·3, and 7 for each of 316 lengths.
	if err := r.fill(inSlack / 2); err != nil {
		return err
	}
	r.final = r.take(1) == 1
	switch r.take(2) {
	case 0:
		r.align()
		if r.end-r.pos < 4 {
			return r.noMore()
		}
		n := binary.LittleEndian.Uint16(r.in[r.pos:])
		if n != ^binary.LittleEndian.Uint16(r.in[r.pos+2:]) {
			return ErrCorrupt
		}
		r.pos += 4
		r.stored = int(n)
		r.state = stateStored
	case 1:
		if r.short() {
			return r.noMore()
		}
		r.lit, r.dist = fixedLit, fixedDist
		r.state = stateHuffman
	case 2:
		err := r.tables()
		if r.short() {
			return r.noMore()
		}
		if err != nil {
			return err
		}
		r.lit, r.dist = &r.dynLit, &r.dynDist
		r.state = stateHuffman
	default:
		if r.short() {
			return r.noMore()
		}
		return ErrCorrupt
	}
	return nil
}

var fixedLit, fixedDist = func() (*litTable, *distTable) {
	var lengths [numLit]uint8
	for i := range lengths {
		switch {
		case i < 144:
			lengths[i] = 8
		case i < 256:
			lengths[i] = 9
		case i < 280:
			lengths[i] = 7
		default:
			lengths[i] = 8
		}
	}
	lit, dist := new(litTable), new(distTable)
	build(lit[:], litBits, lengths[:], litEntry[:])
	lit.pair()
	for i := range numDist {
		lengths[i] = 5
	}
	build(dist[:], distBits, lengths[:numDist], distEntry[:])
	return lit, dist
}()

var codeOrder = [...]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// tables reads the header of a dynamic block.
func (r *Reader) tables() error {
	nlit, ndist, ncode := int(r.take(5))+257, int(r.take(5))+1, int(r.take(4))+4
	if nlit > 286 || ndist > 30 {
		return ErrCorrupt
	}
	var codeLengths [19]uint8
	for _, i := range codeOrder[:ncode] {
		codeLengths[i] = uint8(r.take(3))
	}
	var codes [128]uint32
	var plain [19]uint32
	for i := range plain {
		plain[i] = uint32(i) << 16
	}
	if !build(codes[:], 7, codeLengths[:], plain[:]) {
		return ErrCorrupt
	}
	var lengths [286 + 30]uint8
	total := nlit + ndist
	for i := 0; i < total; {
		if r.n < 15 {
			r.refill()
		}
		e := codes[r.hold&127]
		if e&flagOther != 0 {
			return ErrCorrupt
		}
		r.take(uint(e & bitsMask))
		sym := e >> 16
		if sym < 16 {
			lengths[i] = uint8(sym)
			i++
			continue
		}
		var n int
		var v uint8
		switch sym {
		case 16:
			if i == 0 {
				return ErrCorrupt
			}
			v = lengths[i-1]
			n = 3 + int(r.take(2))
		case 17:
			n = 3 + int(r.take(3))
		default:
			n = 11 + int(r.take(7))
		}
		if i+n > total {
			return ErrCorrupt
		}
		for range n {
			lengths[i] = v
			i++
		}
	}
	if !build(r.dynLit[:], litBits, lengths[:nlit], litEntry[:]) ||
		!build(r.dynDist[:], distBits, lengths[nlit:total], distEntry[:]) {
		return ErrCorrupt
	}
	r.dynLit.pair()
	return nil
}

func (r *Reader) copyStored() error {
	full := len(r.out) - outSlack
	for r.stored > 0 && r.wp < full {
		if err := r.fill(1); err != nil {
			return err
		}
		if r.pos >= r.end {
			return r.noMore()
		}
		n := min(r.stored, r.end-r.pos, full-r.wp)
		copy(r.out[r.wp:r.wp+n], r.in[r.pos:r.end])
		r.pos += n
		r.wp += n
		r.stored -= n
	}
	if r.stored == 0 {
		r.state = stateBlock
	}
	return nil
}

// huffman decodes symbols until the block ends, the output is full, or more
// input is needed than fill has brought; it then returns to be called again. It is one
// loop, and not a function for each kind of symbol, because its state is in registers:
// a call for each symbol would store and load all of it.
func (r *Reader) huffman() error {
	const margin = 32 // input that one round may load
	if err := r.fill((len(r.in) - inSlack) / 2); err != nil {
		return err
	}
	if r.short() {
		return r.noMore()
	}
	limit := r.end - margin
	if r.eof {
		limit = r.end + margin // into the zeros, which short finds
	}
	var (
		in   = r.in
		out  = r.out
		lit  = r.lit
		dist = r.dist
		pos  = r.pos
		op   = r.wp
		base = r.base
		hold = r.hold
		n    = r.n
		full = len(out) - outSlack
		err  error
	)
loop:
	for pos < limit && op < full {
		hold |= binary.LittleEndian.Uint64(in[pos:]) << (n & 63)
		pos += int(63-n) >> 3
		n |= 56
		e := lit[hold&(1<<litBits-1)]
		if e&flagLiteral != 0 {
			// Four look-ups of at most 11 bits each fit in 56.
			binary.LittleEndian.PutUint16(out[op:], uint16(e>>8))
			op += 1 + int(e>>30&1)
			hold >>= e & bitsMask
			n -= uint(e & bitsMask)
			e = lit[hold&(1<<litBits-1)]
			if e&flagLiteral != 0 {
				binary.LittleEndian.PutUint16(out[op:], uint16(e>>8))
				op += 1 + int(e>>30&1)
				hold >>= e & bitsMask
				n -= uint(e & bitsMask)
				e = lit[hold&(1<<litBits-1)]
				if e&flagLiteral != 0 {
					binary.LittleEndian.PutUint16(out[op:], uint16(e>>8))
					op += 1 + int(e>>30&1)
					hold >>= e & bitsMask
					n -= uint(e & bitsMask)
					continue
				}
			}
			hold |= binary.LittleEndian.Uint64(in[pos:]) << (n & 63)
			pos += int(63-n) >> 3
			n |= 56
		}
		if e&flagOther != 0 {
			if e&flagLink != 0 {
				hold >>= litBits
				n -= litBits
				e = lit[(e>>16+uint32(hold)&(1<<(e>>8&15)-1))&uint32(len(lit)-1)]
				if e&flagLiteral != 0 {
					out[op] = byte(e >> 8)
					op++
					hold >>= e & bitsMask
					n -= uint(e & bitsMask)
					continue
				}
			}
			if e&flagOther != 0 {
				if e&flagEnd == 0 {
					err = ErrCorrupt
					break loop
				}
				hold >>= e & bitsMask
				n -= uint(e & bitsMask)
				r.state = stateBlock
				break loop
			}
		}
		// A length: at most 20 bits with its extra ones, then at most 28 of distance.
		hold >>= e & bitsMask
		n -= uint(e & bitsMask)
		x := e >> 8 & 15
		length := int(e>>16) + int(hold&(1<<x-1))
		hold >>= x
		n -= uint(x)

		e = dist[hold&(1<<distBits-1)]
		if e&flagOther != 0 {
			if e&flagLink != 0 {
				hold >>= distBits
				n -= distBits
				e = dist[(e>>16+uint32(hold)&(1<<(e>>8&15)-1))&uint32(len(dist)-1)]
			}
			if e&flagOther != 0 {
				err = ErrCorrupt
				break loop
			}
		}
		hold >>= e & bitsMask
		n -= uint(e & bitsMask)
		x = e >> 8 & 15
		d := int(e>>16) + int(hold&(1<<x-1))
		hold >>= x
		n -= uint(x)
		if d > op-base {
			err = ErrCorrupt
			break loop
		}

		from := op - d
		switch {
		case d >= 8 && length <= 16:
			// The slack behind out takes what is too much.
			v := binary.LittleEndian.Uint64(out[from:])
			binary.LittleEndian.PutUint64(out[op:], v)
			v = binary.LittleEndian.Uint64(out[from+8:])
			binary.LittleEndian.PutUint64(out[op+8:], v)
		case d >= length:
			copy(out[op:op+length], out[from:])
		case d == 1:
			b := out[op : op+length]
			v := out[from]
			for i := range b {
				b[i] = v
			}
		default:
			// The copied part doubles with each step.
			for to, end := op, op+length; to < end; {
				to += copy(out[to:end], out[from:to])
			}
		}
		op += length
	}
	r.pos, r.wp, r.hold, r.n = pos, op, hold, n
	if r.short() {
		return r.noMore()
	}
	return err
}
