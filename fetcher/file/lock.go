package file

import (
	"context"
	"hash/fnv"
	"os"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// stripes is how many locks there are in a directory; keys are spread over them.
const stripes = 64

// stripe is a lock among goroutines (the channel) and processes (the file).
type stripe struct {
	name string
	turn chan struct{} // 1 buffered; whoever has put something in may use f
	f    *os.File
}

func (s *stripe) init(name string) {
	s.name = name
	s.turn = make(chan struct{}, 1)
}

func (s *stripe) close() {
	if s.turn == nil {
		return
	}
	s.turn <- struct{}{}
	if s.f != nil {
		s.f.Close()
		s.f = nil
	}
	<-s.turn
}

// lock waits until nobody else replaces or deletes the object, in any process.
func (b *Backend) lock(ctx context.Context, key string) (unlock func(), err error) {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key))
	s := &b.locks[h.Sum32()%stripes]
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() {
		if err != nil {
			<-s.turn
		}
	}()
	if s.f == nil {
		if s.f, err = b.root.OpenFile(s.name, os.O_RDWR|os.O_CREATE, fileMode); err != nil {
			return nil, err
		}
	}
	// flock cannot be waited for with a context. Locks are held for a few syncs.
	pause := backoff.ExponentialBackOff{InitialInterval: time.Millisecond, MaxInterval: 16 * time.Millisecond, Multiplier: 2}
	for {
		err := flock(s.f, syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if err != syscall.EWOULDBLOCK {
			return nil, err
		}
		t := time.NewTimer(pause.NextBackOff())
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		}
	}
	return func() {
		_ = flock(s.f, syscall.LOCK_UN)
		<-s.turn
	}, nil
}

func flock(f *os.File, how int) error {
	for {
		if err := syscall.Flock(int(f.Fd()), how); err != syscall.EINTR {
			return err
		}
	}
}
