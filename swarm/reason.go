package swarm

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/capelin-io/capelin/swarm/wire"
)

// reason says why a dial failed, and the error in few words.
func reason(err error) (Reason, error) {
	var errno syscall.Errno
	errors.As(err, &errno)
	var ne net.Error
	var refused *refusedError
	var fault *wire.Fault
	var cert *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &refused), errors.As(err, &fault), errors.As(err, &cert), errors.As(err, &record), isAlert(err):
		return ReasonHandshake, err
	case errno == syscall.ECONNREFUSED:
		return ReasonRefused, errno
	case errno == syscall.EHOSTUNREACH, errno == syscall.ENETUNREACH, errno == syscall.EADDRNOTAVAIL, errno == syscall.EHOSTDOWN:
		return ReasonNoRoute, errno
	case errno == syscall.ETIMEDOUT, errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded),
		errors.As(err, &ne) && ne.Timeout():
		return ReasonTimeout, errNoAnswer
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errno == syscall.ECONNRESET, errno == syscall.EPIPE:
		return ReasonClosed, errClosed
	}
	return ReasonOther, err
}

var errClosed = errors.New("the connection is closed before the handshake")

// isAlert reports whether err is what the other end of a TLS connection complains of. Its type
// is not exported.
func isAlert(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}
