package tracker

import (
	"container/heap"
	"time"

	"github.com/capelin-io/capelin/internal/posheap"
)

// schedule orders active blobs by when they are to be looked at again.
type schedule struct{ heap posheap.Heap[*active] }

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

// Before and Place are posheap.Item's.
func (a *active) Before(o *active) bool { return a.due.Before(o.due) }
func (a *active) Place() *int           { return &a.heap }
