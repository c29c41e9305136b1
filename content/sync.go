package content

import (
	"sync"

	"github.com/capelin-io/capelin/internal/durable"
)

// dirSync lets callers that want one directory synced at once share a sync: each
// gets one that began after it asked.
type dirSync struct {
	mu            sync.Mutex
	running, next *syncCall
}

type syncCall struct {
	done chan struct{}
	err  error
}

func (s *Store) syncDir(dir string) error {
	v, ok := s.syncs.Load(dir)
	if !ok {
		v, _ = s.syncs.LoadOrStore(dir, new(dirSync))
	}
	d := v.(*dirSync)
	d.mu.Lock()
	if c := d.next; c != nil {
		d.mu.Unlock()
		<-c.done
		return c.err
	}
	c := &syncCall{done: make(chan struct{})}
	if prev := d.running; prev != nil {
		d.next = c
		d.mu.Unlock()
		<-prev.done
		d.mu.Lock()
		d.next = nil
	}
	d.running = c
	d.mu.Unlock()
	c.err = durable.SyncDir(dir)
	d.mu.Lock()
	if d.running == c {
		d.running = nil
	}
	d.mu.Unlock()
	close(c.done)
	return c.err
}
