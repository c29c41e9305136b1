package trackertest

import (
	"context"
	"errors"
	"net"
	"sync"

	"google.golang.org/grpc/test/bufconn"
)

// Net is a network in memory. Addresses that nobody listens on refuse.
type Net struct {
	mu        sync.Mutex
	listeners map[string]*bufconn.Listener
	frozen    map[string]bool // packets to and from it vanish
	conns     map[string][]*conn
}

// NewNet returns a network of nobody.
func NewNet() *Net {
	return &Net{listeners: map[string]*bufconn.Listener{}, frozen: map[string]bool{}, conns: map[string][]*conn{}}
}

// Listen makes an address one that can be dialled, until Refuse.
func (n *Net) Listen(addr string) net.Listener {
	ln := bufconn.Listen(256 << 10)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[addr] = ln
	return ln
}

// Refuse makes an address refuse connections. Those that there are stay.
func (n *Net) Refuse(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.listeners, addr)
}

// Dial is for Config.Dial.
func (n *Net) Dial(ctx context.Context, addr string) (net.Conn, error) {
	n.mu.Lock()
	ln, frozen := n.listeners[addr], n.frozen[addr]
	n.mu.Unlock()
	if frozen {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if ln == nil {
		return nil, errors.New("connection refused")
	}
	c, err := ln.DialContext(ctx)
	if err != nil {
		return nil, err
	}
	f := &conn{Conn: c, freeze: make(chan struct{}), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns[addr] = append(n.conns[addr], f)
	return f, nil
}

// Freeze makes an address silent without closing anything, as if its machine
// had lost power.
func (n *Net) Freeze(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.frozen[addr] = true
	for _, c := range n.conns[addr] {
		c.once.Do(func() { close(c.freeze) })
	}
}

// conn is the dialler's end of a connection that can be frozen.
type conn struct {
	net.Conn
	once, closing  sync.Once
	freeze, closed chan struct{}
}

func (c *conn) frozen() bool {
	select {
	case <-c.freeze:
		return true
	default:
		return false
	}
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.frozen() {
		<-c.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	if c.frozen() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *conn) Close() error {
	c.closing.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
