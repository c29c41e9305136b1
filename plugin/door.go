package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// A door is where containerd comes in. containerd gives a connection a second to stand, and
// when it does not, fails every call at once; calls on a connection that stands it lets
// wait. So the door is the first thing of an agent that is there, and lets calls wait
// until what answers them is; and it is the last that goes, when nothing that takes long is
// under way.
//
// It closes in turns, each a gRPC server of its own. A turn that ends tells its clients to
// make their next calls over another connection, and what it has accepted it serves. If
// that is over at once, the door is closed, and whoever comes now waits in the socket
// for the next agent. If not, the next turn serves whoever comes meanwhile.
type door struct {
	ln       unixListener
	options  []grpc.ServerOption
	opened   chan struct{} // closed by open
	content  lateContent
	diff     *lateDiff // nil: the agent does not unpack
	health   *health.Server
	linger   time.Duration // what is at once
	failures chan error    // of a turn that could not serve
	turns    sync.WaitGroup
	turn     *turn // the present one
}

// unixListener is a listener whose Accept can be ended without closing it.
type unixListener interface {
	net.Listener
	SetDeadline(time.Time) error
}

// lateContent and lateDiff are services that are made after they were registered; nobody
// calls them before.
type (
	lateContent struct{ contentapi.ContentServer }
	lateDiff    struct{ diffapi.DiffServer }
)

// newDoor returns a door that lets calls in, and lets them wait until open is called.
func newDoor(ln net.Listener, unpack bool, m *metrics) (*door, error) {
	l, ok := ln.(unixListener)
	if !ok {
		return nil, fmt.Errorf("containerd's socket %s is of type %T", ln.Addr(), ln)
	}
	d := &door{ln: l, opened: make(chan struct{}), health: health.NewServer(), linger: 100 * time.Millisecond, failures: make(chan error, 1)}
	if unpack {
		d.diff = &lateDiff{}
	}
	d.options = []grpc.ServerOption{
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
		grpc.ChainUnaryInterceptor(d.unary, m.unary), grpc.ChainStreamInterceptor(d.stream, m.stream),
		// Who connects and says nothing holds up the end of a turn.
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.WaitForHandlers(true),
	}
	d.next()
	return d, nil
}

// open lets the calls that wait, and those to come, be answered. diff is nil if the agent does
// not unpack.
func (d *door) open(content contentapi.ContentServer, diff diffapi.DiffServer) {
	d.content.ContentServer = content
	if d.diff != nil {
		d.diff.DiffServer = diff
	}
	close(d.opened)
}

// awaitOpen waits until the door is open.
func (d *door) awaitOpen(ctx context.Context) error {
	select {
	case <-d.opened:
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

func (d *door) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if err := d.awaitOpen(ctx); err != nil {
		return nil, err
	}
	return handle(ctx, req)
}

func (d *door) stream(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if err := d.awaitOpen(s.Context()); err != nil {
		return err
	}
	return handle(srv, s)
}

// next begins a turn.
func (d *door) next() {
	t := &turn{
		Server: grpc.NewServer(d.options...), ln: d.ln,
		parked: make(chan struct{}), ended: make(chan struct{}), closed: make(chan struct{}),
	}
	contentapi.RegisterContentServer(t.Server, &d.content)
	if d.diff != nil {
		diffapi.RegisterDiffServer(t.Server, d.diff)
	}
	healthpb.RegisterHealthServer(t.Server, d.health)
	d.turn = t
	_ = d.ln.SetDeadline(time.Time{})
	d.turns.Go(func() {
		defer close(t.ended)
		if err := t.Serve(t); err != nil {
			select {
			case d.failures <- err:
			default:
			}
		}
	})
}

// serve serves until ctx is done.
func (d *door) serve(ctx context.Context) error {
	select {
	case err := <-d.failures:
		return err
	case <-ctx.Done():
		return nil
	}
}

// shut closes the door when nothing is under way that takes long, and breaks off what is
// after patience. Until then calls are served as ever.
func (d *door) shut(ctx context.Context, patience time.Duration) error {
	over := time.NewTimer(patience)
	defer over.Stop()
	for {
		old := d.turn
		old.hold()
		gone := make(chan struct{})
		d.turns.Go(func() {
			defer close(gone)
			old.GracefulStop()
		})
		select {
		case <-gone:
			return nil
		case <-time.After(d.linger):
		}
		d.next()
		select {
		case <-gone:
		case err := <-d.failures:
			old.Stop()
			return err
		case <-over.C:
			log.G(ctx).Warn("calls still run, ending them")
			d.turn.hold()
			old.Stop()
			d.turn.Stop()
			return nil
		}
	}
}

// close closes the door whatever is under way, and returns when nobody is inside any more.
func (d *door) close() {
	d.turn.hold()
	d.turn.Stop()
	d.turns.Wait()
}

// A turn serves the connections of one time. It is the listener of its own server.
type turn struct {
	*grpc.Server
	ln     unixListener
	fresh  sync.WaitGroup // connections that the server has not looked at yet
	parked chan struct{}  // closed when no connections are accepted any more
	ended  chan struct{}  // closed when it has ended, or failed
	closed chan struct{}
	once   sync.Once
}

// Accept is called by one goroutine.
func (t *turn) Accept() (net.Conn, error) {
	c, err := t.ln.Accept()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		close(t.parked)
		<-t.closed
		return nil, net.ErrClosed
	case err != nil:
		return nil, err
	}
	t.fresh.Add(1)
	return &freshConn{Conn: c, seen: sync.OnceFunc(t.fresh.Done)}, nil
}

// hold has no more connections accepted; they stay in the socket. Those that were accepted are
// the server's when it returns: a server that ends drops those that it has not looked at.
func (t *turn) hold() {
	_ = t.ln.SetDeadline(time.Unix(1, 0))
	select {
	case <-t.parked:
	case <-t.ended:
	}
	t.fresh.Wait()
}

// Close ends the turn and not the socket.
func (t *turn) Close() error {
	t.once.Do(func() { close(t.closed) })
	return nil
}

func (t *turn) Addr() net.Addr { return t.ln.Addr() }

// freshConn tells when the server begins with a connection.
type freshConn struct {
	net.Conn
	seen func()
}

func (c *freshConn) Read(p []byte) (int, error) {
	c.seen()
	return c.Conn.Read(p)
}

func (c *freshConn) Write(p []byte) (int, error) {
	c.seen()
	return c.Conn.Write(p)
}

func (c *freshConn) Close() error {
	c.seen()
	return c.Conn.Close()
}
