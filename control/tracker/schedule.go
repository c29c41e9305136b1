package tracker

import (
	"container/heap"
	"time"
)

// schedule orders active blobs by when they are to be looked at again.
type schedule struct{ heap dueHeap }

// set changes when a is due; zero: not at all.
func (s *schedule) set(a *active, due time.Time) {
	a.due = due
	switch {
	case due.IsZero():
		if a.heap >= 0 {
			heap.Remove(&s.heap, a.heap)
		}
	case a.heap >= 0:
		heap.Fix(&s.heap, a.heap)
	default:
		heap.Push(&s.heap, a)
	}
}

// deadline returns when the first is due, or the zero time.
func (s *schedule) deadline() time.Time {
	if len(s.heap) == 0 {
		return time.Time{}
	}
	return s.heap[0].due
}

// next removes and returns one that is due, or nil.
func (s *schedule) next(now time.Time) *active {
	if len(s.heap) == 0 || s.heap[0].due.After(now) {
		return nil
	}
	return heap.Pop(&s.heap).(*active)
}

// dueHeap is heap.Interface; a position in it is active.heap, -1 for who is not in it.
type dueHeap []*active

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].heap, h[j].heap = i, j
}

func (h *dueHeap) Push(x any) {
	a := x.(*active)
	a.heap = len(*h)
	*h = append(*h, a)
}

func (h *dueHeap) Pop() any {
	old := *h
	a := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	a.heap = -1
	return a
}
