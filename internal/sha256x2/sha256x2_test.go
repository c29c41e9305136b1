package sha256x2

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

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

func need(t testing.TB) {
	t.Helper()
	if !Available {
		t.Skip("this processor cannot")
	}
}

var initial = State{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}

// digest ends a stream that began with initial as FIPS 180-4, section 5.1.1, says.
func digest(s State, size int) (d [sha256.Size]byte) {
	end := make([]byte, BlockSize)
	end[0] = 0x80
	binary.BigEndian.PutUint64(end[BlockSize-8:], uint64(size)*8)
	one(&s, end)
	for i, w := range s {
		binary.BigEndian.PutUint32(d[4*i:], w)
	}
	return d
}

func randomBytes(r *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

// Two streams, cut anywhere between blocks and at any address, have crypto/sha256's
// digests, and neither has anything to do with the other.
func TestBlocks(t *testing.T) {
	need(t)
	r := rand.New(rand.NewPCG(1, 1))
	for n := range 70 {
		size := n * BlockSize
		mem := randomBytes(r, 2*size+32)
		p, q := mem[n%16:][:size], mem[16+size:][:size]
		before := bytes.Clone(mem)
		a, b := initial, initial
		for done := 0; done < size; {
			k := (1 + r.IntN((size-done)/BlockSize)) * BlockSize
			Blocks(&a, &b, p[done:done+k], q[done:done+k])
			done += k
		}
		if digest(a, size) != sha256.Sum256(p) || digest(b, size) != sha256.Sum256(q) {
			t.Errorf("%d blocks: another digest than crypto/sha256's", n)
		}
		if !bytes.Equal(mem, before) {
			t.Errorf("%d blocks: the data was changed", n)
		}
	}
}

func TestNotWholeBlocks(t *testing.T) {
	for _, n := range [][2]int{{64, 128}, {63, 63}, {0, 64}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%d and %d bytes were taken", n[0], n[1])
				}
			}()
			var a, b State
			Blocks(&a, &b, make([]byte, n[0]), make([]byte, n[1]))
		}()
	}
}

// From any states, the two streams end as they do with crypto/sha256.
func FuzzBlocks(f *testing.F) {
	need(f)
	f.Add(uint64(0), []byte("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"))
	f.Fuzz(func(t *testing.T, seed uint64, data []byte) {
		n := len(data) / (2 * BlockSize) * BlockSize
		r := rand.New(rand.NewPCG(seed, 0))
		var a, b State
		for i := range a {
			a[i], b[i] = r.Uint32(), r.Uint32()
		}
		p, q := data[:n], data[len(data)-n:]
		wantA, wantB := a, b
		one(&wantA, p)
		one(&wantB, q)
		Blocks(&a, &b, p, q)
		if a != wantA || b != wantB {
			t.Fatalf("%d bytes from seed %d: %x and %x, want %x and %x", n, seed, a, b, wantA, wantB)
		}
	})
}

// BenchmarkBlocks compares two streams at once with crypto/sha256, one after the other.
func BenchmarkBlocks(b *testing.B) {
	need(b)
	p, q := make([]byte, 1<<20), make([]byte, 1<<20)
	b.Run("at once", func(b *testing.B) {
		b.SetBytes(int64(len(p) + len(q)))
		var x, y State
		for b.Loop() {
			Blocks(&x, &y, p, q)
		}
	})
	b.Run("one by one", func(b *testing.B) {
		b.SetBytes(int64(len(p) + len(q)))
		for b.Loop() {
			sha256.Sum256(p)
			sha256.Sum256(q)
		}
	})
}
