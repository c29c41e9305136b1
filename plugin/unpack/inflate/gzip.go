package inflate

import (
	"encoding/binary"
	"hash/crc32"
	"io"
)

// header reads a member's header. The end of the input before its first byte
// is io.EOF. The fields follow each other as RFC 1952 (section 2.3) has them, all of
// them through next, which sums what it reads: taken apart, they would have to share that.
func (r *Reader) header() error {
	r.align()
	if err := r.fill(10); err != nil {
		return err
	}
	have := r.end - r.pos
	if have <= 0 {
		if r.srcErr != nil {
			return r.srcErr
		}
		return io.EOF
	}
	if have < 10 {
		return r.noMore()
	}
	var b [10]byte
	copy(b[:], r.in[r.pos:])
	if b[0] != 0x1f || b[1] != 0x8b || b[2] != 8 {
		return ErrCorrupt
	}
	r.pos += 10
	sum := crc32.ChecksumIEEE(b[:])
	next := func() (byte, error) {
		if err := r.fill(1); err != nil {
			return 0, err
		}
		if r.pos >= r.end {
			return 0, r.noMore()
		}
		c := r.in[r.pos]
		r.pos++
		sum = crc32.Update(sum, crc32.IEEETable, []byte{c})
		return c, nil
	}
	flags := b[3]
	if flags>>5 != 0 { // reserved
		return ErrCorrupt
	}
	if flags&4 != 0 { // extra field
		lo, err := next()
		if err != nil {
			return err
		}
		hi, err := next()
		if err != nil {
			return err
		}
		for range int(hi)<<8 | int(lo) {
			if _, err := next(); err != nil {
				return err
			}
		}
	}
	for _, f := range []byte{8, 16} { // name, comment
		if flags&f == 0 {
			continue
		}
		for i := 0; ; i++ {
			if i >= 512 { // the standard library's limit
				return ErrCorrupt
			}
			c, err := next()
			if err != nil {
				return err
			}
			if c == 0 {
				break
			}
		}
	}
	if flags&2 != 0 { // checksum of the header
		want := uint16(sum)
		lo, err := next()
		if err != nil {
			return err
		}
		hi, err := next()
		if err != nil {
			return err
		}
		if uint16(hi)<<8|uint16(lo) != want {
			return ErrCorrupt
		}
	}
	return nil
}

// trailer checks the member that has just ended.
func (r *Reader) trailer() error {
	r.align()
	if err := r.fill(8); err != nil {
		return err
	}
	if r.end-r.pos < 8 {
		return r.noMore()
	}
	b := r.in[r.pos:]
	r.pos += 8
	if binary.LittleEndian.Uint32(b) != r.sum || binary.LittleEndian.Uint32(b[4:]) != r.size {
		return ErrCorrupt
	}
	return nil
}
