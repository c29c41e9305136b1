package trackerd

import (
	"context"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/peer"
)

// When a tracker has been away, every agent of a cluster connects at once and
// announces all it has. Taken in together, none would be welcomed before all are: each
// handshake, and each keep-alive of those that are done, waits for all the others', is
// late, and everybody starts over, for ever. So only some are taken in at once; the
// rest wait in the listener's backlog, which is short enough for them to be served in
// time, and costs nothing.
const (
	maxArriving    = 256             // connections that are being taken in
	goneAfter      = 4 * time.Second // without acknowledging anything that was sent: the other's machine is gone
	streamWithin   = time.Second     // a connection without a stream is not waited for any longer,
	announceWithin = 5 * time.Second // nor a stream that does not say what it said it would
)

// arrivals is a listener that accepts no more than maxArriving connections before they
// have arrived.
type arrivals struct {
	net.Listener
	places chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newArrivals(ln net.Listener) *arrivals {
	return &arrivals{Listener: ln, places: make(chan struct{}, maxArriving), closed: make(chan struct{})}
}

func (a *arrivals) Accept() (net.Conn, error) {
	select {
	case a.places <- struct{}{}:
	case <-a.closed:
		return nil, net.ErrClosed
	}
	c, err := a.Listener.Accept()
	if err != nil {
		<-a.places
		return nil, err
	}
	if c, ok := c.(*net.TCPConn); ok {
		_ = setUserTimeout(c, goneAfter) // where there is no such thing, the keep-alive finds it out
	}
	p := &place{arrived: sync.OnceFunc(func() { <-a.places })}
	p.patience = time.AfterFunc(streamWithin, p.arrived)
	return &arriving{c, p}, nil
}

func (a *arrivals) Close() error {
	a.once.Do(func() { close(a.closed) })
	return a.Listener.Close()
}

// place is a connection's among those that arrive; arrived gives it to another, and
// patience does so in the end.
type place struct {
	arrived  func()
	patience *time.Timer
}

// arriving is a connection with a place.
type arriving struct {
	net.Conn
	place *place
}

func (c *arriving) Close() error {
	c.place.patience.Stop()
	c.place.arrived()
	return c.Conn.Close()
}

// RemoteAddr is how a stream's handler gets at the place, through TLS and gRPC.
func (c *arriving) RemoteAddr() net.Addr { return placeAddr{c.Conn.RemoteAddr(), c.place} }

type placeAddr struct {
	net.Addr
	place *place
}

// streamBegan notes that the connection of ctx has a stream, and returns what to call when
// that has said what it has; once or more.
func streamBegan(ctx context.Context) (arrived func()) {
	if p, _ := peer.FromContext(ctx); p != nil {
		if a, ok := p.Addr.(placeAddr); ok {
			a.place.patience.Reset(announceWithin)
			return a.place.arrived
		}
	}
	return func() {}
}
