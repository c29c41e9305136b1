package swarmtest

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// bufferedPipe returns two ends of a connection that holds size bytes each way, and
// that each end can close for writing alone, as TCP does. Unlike TCP it takes no time.
// Its waits are durably blocking in a testing/synctest bubble.
func bufferedPipe(size int, addr net.Addr) (here, there net.Conn) {
	a, b := newStream(size), newStream(size)
	return &pipeEnd{r: a, w: b, addr: addr}, &pipeEnd{r: b, w: a, addr: addr}
}

// stream is one direction of a connection.
type stream struct {
	size int

	mu            sync.Mutex
	changed       *sync.Cond
	held          []byte
	ended         bool // nothing more is written
	dropped       bool // nothing more is read
	readBy        time.Time
	writeBy       time.Time
	readT, writeT *time.Timer
}

func newStream(size int) *stream {
	s := &stream{size: size}
	s.changed = sync.NewCond(&s.mu)
	return s
}

func past(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func (s *stream) read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.dropped:
			return 0, net.ErrClosed
		case past(s.readBy):
			return 0, os.ErrDeadlineExceeded
		case len(s.held) > 0 || len(p) == 0:
			n := copy(p, s.held)
			s.held = s.held[n:]
			s.changed.Broadcast()
			return n, nil
		case s.ended:
			return 0, io.EOF
		}
		s.changed.Wait()
	}
}

func (s *stream) write(p []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.ended:
			return n, net.ErrClosed
		case s.dropped:
			return n, io.ErrClosedPipe
		case past(s.writeBy):
			return n, os.ErrDeadlineExceeded
		case len(p) == 0:
			return n, nil
		case len(s.held) < s.size:
			k := min(len(p), s.size-len(s.held))
			s.held = append(s.held, p[:k]...)
			n, p = n+k, p[k:]
			s.changed.Broadcast()
			continue
		}
		s.changed.Wait()
	}
}

// set changes the stream.
func (s *stream) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.changed.Broadcast()
}

// deadline sets one of the stream's deadlines, and has whoever waits look at it then.
func (s *stream) deadline(by *time.Time, timer **time.Timer, t time.Time) {
	s.set(func() {
		*by = t
		if *timer != nil {
			(*timer).Stop()
		}
		if *timer = nil; !t.IsZero() && !past(t) {
			*timer = time.AfterFunc(time.Until(t), s.changed.Broadcast)
		}
	})
}

type pipeEnd struct {
	r, w *stream
	addr net.Addr
}

func (c *pipeEnd) Read(p []byte) (int, error)  { return c.r.read(p) }
func (c *pipeEnd) Write(p []byte) (int, error) { return c.w.write(p) }

func (c *pipeEnd) Close() error {
	c.SetDeadline(time.Time{}) // its timers are of no use any more
	c.w.set(func() { c.w.ended = true })
	c.r.set(func() { c.r.dropped = true })
	return nil
}

func (c *pipeEnd) CloseWrite() error {
	c.w.set(func() { c.w.ended = true })
	return nil
}

func (c *pipeEnd) LocalAddr() net.Addr  { return c.addr }
func (c *pipeEnd) RemoteAddr() net.Addr { return c.addr }

func (c *pipeEnd) SetReadDeadline(t time.Time) error {
	c.r.deadline(&c.r.readBy, &c.r.readT, t)
	return nil
}

func (c *pipeEnd) SetWriteDeadline(t time.Time) error {
	c.w.deadline(&c.w.writeBy, &c.w.writeT, t)
	return nil
}

func (c *pipeEnd) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	c.SetWriteDeadline(t)
	return nil
}
