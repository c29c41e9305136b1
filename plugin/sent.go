package plugin

import (
	"hash/maphash"
	"sync"
)

// sentBlock is in how large parts sentBytes knows what was sent. It divides every piece.
const sentBlock = 64 << 10

// sentBytes is which bytes of a blob a registry has sent, by keyed sums: what is on disk
// may come from others, and is replaced when it is found false. One goroutine adds what it
// downloads, another reads it from disk.
type sentBytes struct {
	mu    sync.Mutex
	seed  maphash.Seed
	first int64    // the number of the block that sums begins with
	sums  []uint64 // of blocks; 0: not known

	// Owned by who adds.
	at   int64 // of the next byte
	hash maphash.Hash
	from int64 // where the hash began

	// Owned by who reads.
	buf   []byte
	bufAt int64
}

// begin says that the next bytes are those from off on.
func (s *sentBytes) begin(off int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sums == nil {
		s.seed = maphash.MakeSeed()
	}
	if block := off / sentBlock; s.sums == nil || block < s.first {
		s.first, s.sums = block, []uint64{}
	}
	s.hash.SetSeed(s.seed)
	s.at, s.from = off, off
}

// add notes bytes that were sent and stored.
func (s *sentBytes) add(p []byte) {
	for len(p) > 0 {
		n := min(int64(len(p)), sentBlock-s.at%sentBlock)
		s.hash.Write(p[:n])
		s.at += n
		p = p[n:]
		if s.at%sentBlock == 0 {
			s.end()
		}
	}
}

// end ends a block. One that is shorter, at the blob's end, is never known: it comes with the proof.
func (s *sentBytes) end() {
	if s.from%sentBlock == 0 && s.at > s.from {
		s.mu.Lock()
		i := int((s.at-1)/sentBlock - s.first)
		for len(s.sums) <= i {
			s.sums = append(s.sums, 0)
		}
		s.sums[i] = s.hash.Sum64()
		s.mu.Unlock()
	}
	s.hash.Reset()
	s.from = s.at
}

// readAt reads bytes at off from disk that are those that were sent, 0 if there are none.
func (s *sentBytes) readAt(p []byte, off int64, disk func(p []byte, off int64) (int, error)) (int, error) {
	if n := off - s.bufAt; n >= 0 && n < int64(len(s.buf)) {
		return copy(p, s.buf[n:]), nil
	}
	block := off / sentBlock
	var sum uint64
	s.mu.Lock()
	if i := block - s.first; i >= 0 && i < int64(len(s.sums)) {
		sum = s.sums[i]
	}
	s.mu.Unlock()
	if sum == 0 {
		return 0, nil
	}
	s.bufAt = block * sentBlock
	if s.buf == nil {
		s.buf = make([]byte, sentBlock)
	}
	s.buf = s.buf[:sentBlock]
	_, err := disk(s.buf, s.bufAt)
	if err != nil || maphash.Bytes(s.seed, s.buf) != sum {
		s.buf = s.buf[:0]
		return 0, err
	}
	return copy(p, s.buf[off-s.bufAt:]), nil
}
