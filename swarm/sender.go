package swarm

import (
	"errors"
	"fmt"
	"io"
	"net"
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
	return &copySender{w: nc}
}
