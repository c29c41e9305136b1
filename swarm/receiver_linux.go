package swarm

import (
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// tcpReceiver reads from plain TCP. While it waits for a block's data it asks
// the kernel (SO_RCVLOWAT) to be woken when all of it is there, not with every
// packet: on a link that is slower than we are those are many.
type tcpReceiver struct {
	*net.TCPConn
	raw syscall.RawConn
	try func(fd uintptr) bool // r.attempt, made once

	rest   []byte // of what is to be read
	awaits int    // the SO_RCVLOWAT in force
	err    error
}

func newReceiver(nc net.Conn) io.Reader {
	tcp, raw := rawTCP(nc)
	if raw == nil {
		return nc
	}
	r := &tcpReceiver{TCPConn: tcp, raw: raw, awaits: 1}
	r.try = r.attempt
	return r
}

// ReadFull reads len(p) bytes, or returns an error: io.ErrUnexpectedEOF at the
// stream's end.
func (r *tcpReceiver) ReadFull(p []byte) error {
	r.rest, r.err = p, nil
	err := r.raw.Read(r.try)
	r.rest = nil
	if r.err != nil {
		return r.err
	}
	return err
}

// attempt reads what is there, and reports whether that was all or the end.
func (r *tcpReceiver) attempt(fd uintptr) bool {
	for len(r.rest) > 0 {
		n, err := unix.Read(int(fd), r.rest)
		switch {
		case err == unix.EAGAIN:
			r.await(fd, len(r.rest))
			return false
		case err == unix.EINTR:
		case err != nil:
			r.err = os.NewSyscallError("read", err)
			return true
		case n == 0:
			r.err = io.ErrUnexpectedEOF
			return true
		default:
			r.rest = r.rest[n:]
		}
	}
	r.await(fd, 1) // a message may be as short as that
	return true
}

func (r *tcpReceiver) await(fd uintptr, n int) {
	if r.awaits != n && unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, n) == nil {
		r.awaits = n
	}
}
