package posheap

// Out is the place of what is in no heap, once it was taken out of one. Who makes an item sets it.
const Out = -1

// Item is what can be in a Heap, of one at a time.
type Item[T any] interface {
	// Before reports whether it comes out before other.
	Before(other T) bool
	// Place is where the heap keeps the item's index, or Out. Nobody else changes that while it is in the heap.
	Place() *int
}

// Heap is a heap.Interface, the first at index 0. The zero value is empty.
type Heap[T Item[T]] []T

func (h Heap[T]) Len() int           { return len(h) }
func (h Heap[T]) Less(i, j int) bool { return h[i].Before(h[j]) }

func (h Heap[T]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	*h[i].Place(), *h[j].Place() = i, j
}

// Push is for heap.Push; x is a T.
func (h *Heap[T]) Push(x any) {
	t := x.(T)
	*t.Place() = len(*h)
	*h = append(*h, t)
}

// Pop is for heap.Pop.
func (h *Heap[T]) Pop() any {
	last := len(*h) - 1
	t := (*h)[last]
	clear((*h)[last:])
	*h = (*h)[:last]
	*t.Place() = Out
	return t
}
