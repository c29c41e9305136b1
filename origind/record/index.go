package record

import (
	"encoding/binary"
	"maps"
	"slices"
	"sync"
)

// index has entries in memory, by digest: in 256 parts, each of which is one piece of memory that the garbage collector does
// not look into. An entry is what of it comes after the digest.
type index [256]part

// part is the entries of digests that begin with one byte.
type part struct {
	mu     sync.RWMutex
	sha256 map[[32]byte]uint32 // where in data
	sha512 map[[64]byte]uint32
	data   []byte // of each entry its length, a uvarint, and it
	dead   int    // bytes in data of entries that were replaced
}

// maxPart bounds the bytes of a part. What is beyond 1<<32 has no place in a uint32; one entry fits in between.
const maxPart = 1 << 31

func (x *index) part(sum []byte) *part { return &x[sum[0]] }

func (p *part) find(sum []byte) (at uint32, ok bool) {
	if len(sum) == 32 {
		at, ok = p.sha256[[32]byte(sum)]
	} else {
		at, ok = p.sha512[[64]byte(sum)]
	}
	return at, ok
}

func (p *part) point(sum []byte, at uint32) {
	if p.sha256 == nil {
		p.sha256, p.sha512 = map[[32]byte]uint32{}, map[[64]byte]uint32{}
	}
	if len(sum) == 32 {
		p.sha256[[32]byte(sum)] = at
	} else {
		p.sha512[[64]byte(sum)] = at
	}
}

// at returns the entry at a place, and how many bytes it takes there.
func (p *part) at(at uint32) (entry []byte, size int) {
	n, w := binary.Uvarint(p.data[at:])
	size = w + int(n)
	return p.data[int(at)+w : int(at)+size], size
}

// get appends the entry of a digest to b.
func (x *index) get(b, sum []byte) ([]byte, bool) {
	p := x.part(sum)
	p.mu.RLock()
	defer p.mu.RUnlock()
	at, ok := p.find(sum)
	if !ok {
		return b, false
	}
	e, _ := p.at(at)
	return append(b, e...), true
}

// put makes entry that of a digest. With nil there is none any more.
func (x *index) put(sum, entry []byte) {
	p := x.part(sum)
	p.mu.Lock()
	defer p.mu.Unlock()
	if at, ok := p.find(sum); ok {
		_, size := p.at(at)
		p.dead += size
	}
	if entry == nil {
		if len(sum) == 32 {
			delete(p.sha256, [32]byte(sum))
		} else {
			delete(p.sha512, [64]byte(sum))
		}
	} else {
		p.point(sum, uint32(len(p.data)))
		p.data = append(binary.AppendUvarint(p.data, uint64(len(entry))), entry...)
	}
	if p.dead > 64<<10 && p.dead > len(p.data)/2 {
		p.sweep()
	}
}

// full reports whether the part of a digest takes no more.
func (x *index) full(sum []byte) bool {
	p := x.part(sum)
	p.mu.RLock()
	defer p.mu.RUnlock()
	return len(p.data)-p.dead > maxPart/2 || len(p.data) > maxPart
}

// sweep leaves out what is dead. p.mu is held.
func (p *part) sweep() {
	old := part{data: p.data}
	p.data, p.dead = make([]byte, 0, len(p.data)-p.dead+4<<10), 0
	move := func(at uint32) uint32 {
		_, size := old.at(at)
		p.data = append(p.data, old.data[at:int(at)+size]...)
		return uint32(len(p.data) - size)
	}
	for k, at := range p.sha256 {
		p.sha256[k] = move(at)
	}
	for k, at := range p.sha512 {
		p.sha512[k] = move(at)
	}
}

// len returns how many entries there are.
func (x *index) len() (n int) {
	for i := range x {
		p := &x[i]
		p.mu.RLock()
		n += len(p.sha256) + len(p.sha512)
		p.mu.RUnlock()
	}
	return n
}

// sums returns the digests whose first byte is i.
func (x *index) sums(i int) (short [][32]byte, long [][64]byte) {
	p := &x[i]
	p.mu.RLock()
	defer p.mu.RUnlock()
	return slices.Collect(maps.Keys(p.sha256)), slices.Collect(maps.Keys(p.sha512))
}

// each calls f for every entry, as they are when it comes to them, with no lock held.
func (x *index) each(f func(sum, entry []byte) error) error {
	var b []byte
	one := func(sum []byte) error {
		var ok bool
		if b, ok = x.get(b[:0], sum); !ok {
			return nil
		}
		return f(sum, b)
	}
	for i := range x {
		short, long := x.sums(i)
		for _, sum := range short {
			if err := one(sum[:]); err != nil {
				return err
			}
		}
		for _, sum := range long {
			if err := one(sum[:]); err != nil {
				return err
			}
		}
	}
	return nil
}
