package posheap

import (
	"container/heap"
	"math/rand/v2"
	"slices"
	"testing"
)

type item struct{ due, at int }

func (x *item) Before(o *item) bool { return x.due < o.due }
func (x *item) Place() *int         { return &x.at }

// Whatever is done to a heap, each item knows its place, and the first comes out first.
func TestHeap(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var h Heap[*item]
	in := map[*item]bool{}
	for range 10_000 {
		switch n := r.IntN(4); {
		case n < 2:
			x := &item{due: r.IntN(100), at: Out}
			heap.Push(&h, x)
			in[x] = true
		case len(h) == 0:
		case n == 2:
			x := h[r.IntN(len(h))]
			if r.IntN(2) == 0 {
				x.due = r.IntN(100)
				heap.Fix(&h, x.at)
				break
			}
			if heap.Remove(&h, x.at) != x || x.at != Out {
				t.Fatalf("%+v was to be removed", x)
			}
			delete(in, x)
		default:
			first := slices.MinFunc(h, func(a, b *item) int { return a.due - b.due }).due
			x := heap.Pop(&h).(*item)
			if x.due != first || x.at != Out {
				t.Fatalf("%+v came out before %d", x, first)
			}
			delete(in, x)
		}
		for i, x := range h {
			if x.at != i || !in[x] {
				t.Fatalf("%+v is at %d", x, i)
			}
		}
		if len(in) != len(h) {
			t.Fatalf("%d in the heap, of %d", len(h), len(in))
		}
	}
}
