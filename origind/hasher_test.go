package origind

import (
	"bytes"
	"testing"

	"github.com/capelin-io/capelin/swarm/piece"
)

// Whatever the size turns out to be, the sums are those of its geometry.
func TestHasher(t *testing.T) {
	const k64 = 64 << 10
	for _, size := range []int64{1, k64 - 1, k64, k64 + 1, 10 * k64, 2000*k64 + 1, 4000*k64 + 5} {
		chunk := make([]byte, 300_001)
		for i := range chunk {
			chunk[i] = byte(i * i >> 3)
		}
		h := newHasher()
		each := func(f func(p []byte)) {
			for left := size; left > 0; {
				n := min(left, int64(len(chunk)))
				f(chunk[:n])
				left -= n
			}
		}
		each(func(p []byte) { h.Write(p) })
		got, err := h.sums()
		if err != nil {
			t.Fatal(err)
		}
		id := got.ID()
		want := piece.NewSums(id)
		ph := piece.NewHasher(want)
		each(func(p []byte) {
			if err := ph.Write(want, p); err != nil {
				t.Fatalf("%d bytes: %v", size, err)
			}
		})
		if id.Size != size || !got.Complete() || !bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Errorf("%d bytes: %d states, want %d, or others", size, got.Len(), want.Len())
		}
	}
}
