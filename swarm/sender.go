package swarm

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// sender sends blocks over a connection. One goroutine uses it.
type sender interface {
	// block sends bytes, the last headLen of which are the header of b's frame,
	// and b's data. If the data cannot be read the error is an *errLost.
	block(bytes []byte, headLen int, b outBlock) error
}

// errLost says that a block's data could not be read.
type errLost struct {
	whole bool // nothing of the block's frame was sent: the connection is in order
	err   error
}

func (e *errLost) Error() string { return fmt.Sprintf("reading a block: %v", e.err) }
func (e *errLost) Unwrap() error { return e.err }

// copySender reads a block into memory and writes it: for TLS, and wherever
// sendfile cannot be used.
type copySender struct {
	w   io.Writer
	buf []byte
}

func (s *copySender) block(bytes []byte, headLen int, b outBlock) error {
	if cap(s.buf) < len(bytes)+b.n {
		s.buf = make([]byte, len(bytes)+largeBuffer)
	}
	p := s.buf[:len(bytes)+b.n]
	copy(p, bytes)
	if err := readBlock(b, p[len(bytes):]); err != nil {
		if _, err := s.w.Write(bytes[:len(bytes)-headLen]); err != nil {
			return err
		}
		return &errLost{true, err}
	}
	_, err := s.w.Write(p)
	return err
}

// readBlock reads b's data into p, which is as long.
func readBlock(b outBlock, p []byte) error {
	n, err := b.blob.ReadAt(p, b.off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func newSender(nc net.Conn) sender {
	if s := newFileSender(nc); s != nil {
		return s
	}
	if t, ok := nc.(*tls.Conn); ok {
		if r, ok := t.NetConn().(*recordConn); ok {
			return &copySender{w: recordWriter{t, r}}
		}
	}
	return &copySender{w: nc}
}

// recordWriter writes to a tls.Conn, which sends every record, 16 KiB at most, with a
// system call of its own; here those of one Write leave together.
type recordWriter struct {
	tls   *tls.Conn
	below *recordConn
}

func (w recordWriter) Write(p []byte) (int, error) {
	w.below.hold()
	n, err := w.tls.Write(p)
	return n, cmp.Or(err, w.below.flush())
}

// recordConn is the connection below a tls.Conn. It is safe for concurrent use, since
// a tls.Conn's reader may have to write too.
type recordConn struct {
	net.Conn

	mu      sync.Mutex
	holding bool
	held    []byte
}

// hold has what is written from now on wait for flush.
func (c *recordConn) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holding = true
}

// flush writes what was held back.
func (c *recordConn) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.Conn.Write(c.held)
	c.holding, c.held = false, c.held[:0]
	return err
}

func (c *recordConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.holding {
		c.held = append(c.held, p...)
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// transport returns what is below TLS, if nc is that.
func transport(nc net.Conn) net.Conn {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	if r, ok := nc.(*recordConn); ok {
		nc = r.Conn
	}
	return nc
}
