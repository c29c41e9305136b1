package memnet

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"syscall"
)

// ErrRefused is the error of dialling an address at which nobody listens.
var ErrRefused = fmt.Errorf("dial: %w", syscall.ECONNREFUSED)

// Network is servers by host:port.
type Network struct {
	mu sync.Mutex
	at map[string]*listener // who listens
}

// New returns a network without servers.
func New() *Network { return &Network{at: map[string]*listener{}} }

// listener accepts what Dial makes.
type listener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l *listener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *listener) Close() error { close(l.closed); return nil }

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Serve starts a server; stop ends it at once.
func (n *Network) Serve(addr string, h http.HandlerFunc) (stop func()) {
	l := &listener{make(chan net.Conn), make(chan struct{})}
	srv := &http.Server{Handler: h}
	n.mu.Lock()
	n.at[addr] = l
	n.mu.Unlock()
	done := make(chan struct{})
	go func() { _ = srv.Serve(l); close(done) }()
	return func() {
		n.mu.Lock()
		delete(n.at, addr)
		n.mu.Unlock()
		srv.Close()
		<-done
	}
}

// Dial connects to a server.
func (n *Network) Dial(_ context.Context, _, addr string) (net.Conn, error) {
	n.mu.Lock()
	l := n.at[addr]
	n.mu.Unlock()
	if l == nil {
		return nil, ErrRefused
	}
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.closed:
		return nil, ErrRefused
	}
}
