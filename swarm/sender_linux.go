package swarm

import (
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// fileSender sends blocks over plain TCP with sendfile: the data goes from the
// page cache to the socket. net.TCPConn.ReadFrom would read at the file's own
// offset, which all connections share, so this calls sendfile itself.
type fileSender struct {
	nc   *net.TCPConn
	cp   copySender // for blobs without a file
	raw  syscall.RawConn
	try  func(fd uintptr) bool // s.attempt, made once
	copy func(fd uintptr)      // s.sendfile, made once
	sock int                   // the socket, while copy is under way
	more bool                  // what copy found: the socket takes no more now

	// The block being sent.
	bytes []byte
	file  syscall.RawConn
	off   int64
	n     int
	err   error // of the socket
	ferr  error // of the file
}

func newFileSender(nc net.Conn) sender {
	tcp, raw := rawTCP(nc)
	if raw == nil {
		return nil
	}
	s := &fileSender{nc: tcp, raw: raw, cp: copySender{w: tcp}}
	s.try, s.copy = s.attempt, s.sendfile
	return s
}

func (s *fileSender) block(bytes []byte, headLen int, b outBlock) error {
	file := b.blob.File()
	if file == nil {
		return s.cp.block(bytes, headLen, b)
	}
	s.bytes, s.off, s.n, s.err, s.ferr = bytes, b.off, b.n, nil, nil
	// Through file's RawConn, because the Store may close it under us, and its
	// number may then be another file's.
	if s.file, s.ferr = file.SyscallConn(); s.ferr != nil {
		return s.cp.block(bytes, headLen, b)
	}
	if err := s.raw.Write(s.try); err != nil && s.err == nil {
		s.err = err
	}
	s.file = nil
	switch {
	case s.err != nil:
		return s.err
	case s.ferr != nil:
		// Perhaps the file system has no sendfile. What remains is read; if that
		// fails too, the frame stays incomplete.
		b.off, b.n = s.off, s.n
		p := buffer(b.n)
		defer recycle([][]byte{p})
		if err := readBlock(b, p); err != nil {
			return &errLost{false, err}
		}
		_, err := s.nc.Write(p)
		return err
	}
	return nil
}

// attempt sends as much as the socket takes, and reports whether that was all
// or the end.
func (s *fileSender) attempt(fd uintptr) bool {
	for len(s.bytes) > 0 {
		n, err := unix.SendmsgN(int(fd), s.bytes, nil, nil, unix.MSG_MORE|unix.MSG_NOSIGNAL)
		switch err {
		case nil:
			s.bytes = s.bytes[n:]
		case unix.EAGAIN:
			return false
		case unix.EINTR:
		default:
			s.err = os.NewSyscallError("sendmsg", err)
			return true
		}
	}
	if s.n == 0 {
		return true
	}
	s.sock, s.more = int(fd), false
	if err := s.file.Control(s.copy); err != nil && s.ferr == nil {
		s.ferr = err
	}
	return !s.more
}

// sendfile sends the rest of the block from the file fd as far as the socket
// takes it.
func (s *fileSender) sendfile(fd uintptr) {
	for s.n > 0 {
		n, err := unix.Sendfile(s.sock, int(fd), &s.off, s.n)
		switch {
		case err == nil && n > 0: // s.off has moved
			s.n -= n
		case err == nil:
			s.ferr = io.ErrUnexpectedEOF
			return
		case err == unix.EAGAIN:
			s.more = true
			return
		case err == unix.EINTR:
		case err == unix.EPIPE || err == unix.ECONNRESET || err == unix.ENOTCONN:
			s.err = os.NewSyscallError("sendfile", err)
			return
		default:
			s.ferr = os.NewSyscallError("sendfile", err)
			return
		}
	}
}
