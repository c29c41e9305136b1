package keylock

import "sync"

// Locks are the locks of all keys. The zero value is ready; it keeps only those
// that are held or waited for.
type Locks[K comparable] struct {
	mu sync.Mutex
	m  map[K]*lock
}

type lock struct {
	ch    chan struct{} // holds a token while locked
	users int
}

// Lock locks k until the function it returns is called.
func (l *Locks[K]) Lock(k K) (unlock func()) {
	l.mu.Lock()
	if l.m == nil {
		l.m = make(map[K]*lock)
	}
	one := l.m[k]
	if one == nil {
		one = &lock{ch: make(chan struct{}, 1)}
		l.m[k] = one
	}
	one.users++
	l.mu.Unlock()
	one.ch <- struct{}{}
	return func() {
		<-one.ch
		l.mu.Lock()
		if one.users--; one.users == 0 {
			delete(l.m, k)
		}
		l.mu.Unlock()
	}
}
