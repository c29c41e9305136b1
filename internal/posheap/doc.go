// Package posheap is a heap of things that know where they are in it, so that one of them can be moved or taken out (heap.Fix,
// heap.Remove) without being looked for: what waits for its time, in machines that look at the earliest first.
//
// A [Heap] is used by container/heap's functions. It is not safe for concurrent use.
package posheap
