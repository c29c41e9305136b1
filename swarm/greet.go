package swarm

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/capelin-io/capelin/swarm/wire"
)

// Greet finds out whether a peer is at the other end of a new connection, and speaks as this
// side does: plain, or TLS if secure is not nil, and then whether each accepts the other's certificate. It
// introduces itself in a way that every peer refuses, since a good Hello would take the
// place of the connection that the node itself has. So it does not tell which cluster and node a peer
// without a certificate is of. The connection is of no more use.
func Greet(ctx context.Context, nc net.Conn, secure *tls.Config) error {
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if secure != nil {
		t := tls.Client(nc, secure)
		if err := t.HandshakeContext(ctx); err != nil {
			if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
				return errors.New("it does not speak TLS, and this node has an [identity]")
			}
			return err
		}
		nc = t
	}
	_, err := nc.Write(wire.AppendUnspoken(nil))
	if err == nil {
		err = hearRefusal(wire.NewReader(nc, nil))
	}
	if err == nil {
		return nil
	}
	why, short := reason(err)
	_, notOurs := errors.AsType[*wire.Fault](err)
	switch {
	case isAlert(err):
		return fmt.Errorf("it refuses this node's certificate: %w", err)
	case secure == nil && why == ReasonClosed:
		return errors.New("it ends plain connections, as one does that speaks TLS, and this node has no [identity]")
	case notOurs:
		return fmt.Errorf("it is no peer of a swarm: %w", err)
	}
	return short
}

// hearRefusal reads the answer to what nobody speaks.
func hearRefusal(r *wire.Reader) error {
	m, err := r.Next()
	if err != nil {
		return err
	}
	if e, ok := m.(*wire.Error); !ok || e.Code != wire.CodeVersion {
		return fmt.Errorf("it answers as no peer does: %v", m.Type())
	}
	return nil
}
