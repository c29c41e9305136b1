package httpclient

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// aliveLoopback returns an aliveConn, and its other end.
func aliveLoopback(t *testing.T, state func(*net.TCPConn) (pending, gone bool), every time.Duration) (c *aliveConn, other net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	made, err := dialed(new(net.Dialer).DialContext, time.Minute)(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c = made.(*aliveConn)
	c.state, c.every = state, every
	t.Cleanup(func() { c.Close() })
	if other, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	return c, other
}

// It is looked at as long as something is not acknowledged, and not longer.
func TestAliveLooks(t *testing.T) {
	var looks atomic.Int64
	var pending atomic.Bool
	c, _ := aliveLoopback(t, func(*net.TCPConn) (bool, bool) { looks.Add(1); return pending.Load(), false }, time.Millisecond)
	looking := func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.looking }
	for range 2 { // it begins again
		pending.Store(true)
		if looking() {
			t.Fatal("it is looked at although nothing is sent")
		}
		before := looks.Load()
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		for looks.Load() < before+3 {
			time.Sleep(time.Millisecond)
		}
		pending.Store(false)
		for looking() {
			time.Sleep(time.Millisecond)
		}
	}
}

// When the other machine is gone, who reads and who writes hears that the connection has timed out.
func TestAliveEnds(t *testing.T) {
	var gone atomic.Bool
	c, _ := aliveLoopback(t, func(*net.TCPConn) (bool, bool) { return true, gone.Load() }, time.Millisecond)
	read := make(chan error, 1)
	go func() { _, err := c.Read(make([]byte, 1)); read <- err }()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	gone.Store(true)
	var werr error
	for werr == nil {
		_, werr = c.Write([]byte("x"))
	}
	_, ferr := c.ReadFrom(strings.NewReader("x"))
	for op, err := range map[string]error{"read": <-read, "write": werr, "ReadFrom": ferr} {
		if !errors.Is(err, syscall.ETIMEDOUT) || !strings.Contains(err.Error(), c.RemoteAddr().String()) {
			t.Errorf("%s: %v", op, err)
		}
	}
}

// A dial has its time, whoever dials; what is no TCP stays what it is.
func TestDialed(t *testing.T) {
	slow := func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
	if _, err := dialed(slow, time.Millisecond)(t.Context(), "tcp", "x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	dial := dialed(func(context.Context, string, string) (net.Conn, error) { return a, nil }, 0)
	if c, err := dial(t.Context(), "tcp", "x"); c != a || err != nil {
		t.Error(c, err)
	}
}
