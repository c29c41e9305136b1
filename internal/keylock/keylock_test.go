package keylock

import (
	"sync"
	"testing"
)

func TestLocks(t *testing.T) {
	var l Locks[int]
	other := l.Lock(-1) // does not keep anybody from another key
	n := make([]int, 3)
	var wg sync.WaitGroup
	for i := range 300 {
		wg.Go(func() {
			defer l.Lock(i % 3)()
			n[i%3]++ // what the race detector watches
		})
	}
	wg.Wait()
	other()
	if n[0] != 100 || n[1] != 100 || n[2] != 100 || len(l.m) != 0 {
		t.Errorf("%v, %d locks left", n, len(l.m))
	}
}
