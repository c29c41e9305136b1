package swarmtest

import (
	"context"
	"fmt"
	"net"
	"sync"
)

// Network is an in-memory network, usable in a testing/synctest bubble.
type Network struct {
	// Buffer is how many bytes a connection holds each way. 0: none, so that whoever
	// writes waits for whoever reads, as with net.Pipe.
	Buffer int

	mu        sync.Mutex
	listeners map[string]*listener
}

// Listen returns a listener for an address, which may be any string.
func (w *Network) Listen(addr string) net.Listener {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.listeners == nil {
		w.listeners = make(map[string]*listener)
	}
	l := &listener{addr: address(addr), conns: make(chan net.Conn), closed: make(chan struct{})}
	w.listeners[addr] = l
	return l
}

// Dial connects to a listener.
func (w *Network) Dial(ctx context.Context, addr string) (net.Conn, error) {
	w.mu.Lock()
	l := w.listeners[addr]
	w.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("dialing %s: nobody listens", addr)
	}
	here, there := net.Pipe()
	if w.Buffer > 0 {
		here, there = bufferedPipe(w.Buffer, l.addr)
	}
	select {
	case l.conns <- there:
		return here, nil
	case <-l.closed:
		return nil, fmt.Errorf("dialing %s: %w", addr, net.ErrClosed)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type address string

func (a address) Network() string { return "test" }
func (a address) String() string  { return string(a) }

type listener struct {
	addr   address
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *listener) Addr() net.Addr { return l.addr }
