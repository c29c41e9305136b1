package httpclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// A machine that loses its power or its cable ends no connection. Linux would go on sending to it for a quarter of an hour, and
// believe for minutes in a connection on which nothing is sent.
const (
	// A connection on which nothing is sent ends 4 s after the last sign of life: before one of which something is expected, so that no
	// other one of the same machine is used when that has failed.
	probeAfter  = 2 * time.Second
	probeEvery  = time.Second
	probesGiven = 2
	// One on which something was sent ends when no sign of life has come for so long, and it was sent again resends times meanwhile:
	// that takes 1.4 s, so that what was sent just now, after a long silence, has its time. A machine that is busy acknowledges: its
	// kernel does.
	silentFor = 5 * time.Second
	resends   = 3
	// lookEvery is how often that is looked at, from when something is sent until it is acknowledged.
	lookEvery = time.Second
)

type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// dialed returns what dials within some time, if that is not 0, connections that end when the other machine has vanished.
func dialed(dial dialer, within time.Duration) dialer {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if within > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, within)
			defer cancel()
		}
		c, err := dial(ctx, network, addr)
		tcp, ok := c.(*net.TCPConn)
		if err != nil || !ok {
			return c, err
		}
		err = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: probeAfter, Interval: probeEvery, Count: probesGiven})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("connecting to %s: %w", addr, err), tcp.Close())
		}
		return &aliveConn{TCPConn: tcp, state: unacknowledged, every: lookEvery}, nil
	}
}

// aliveConn is a connection that ends when what it sends is not acknowledged for silentFor. TCP_USER_TIMEOUT would end those as well
// to a server that lives and takes nothing for so long, because its disk is slow: Linux does not tell the two apart.
type aliveConn struct {
	*net.TCPConn
	state func(*net.TCPConn) (pending, gone bool)
	every time.Duration

	mu      sync.Mutex
	timer   *time.Timer // nil: nothing was sent yet
	looking bool        // the timer runs, or its function
	writing int         // calls
	gone    bool
	closed  bool
}

// writes notes that something is being sent, until the function that it returns is called.
func (c *aliveConn) writes() (done func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writing++
	switch {
	case c.looking || c.closed:
	case c.timer == nil:
		c.timer = time.AfterFunc(c.every, c.look)
	default:
		c.timer.Reset(c.every)
	}
	c.looking = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.writing--
	}
}

// look looks whether what was sent was acknowledged, until it is.
func (c *aliveConn) look() {
	pending, gone := c.state(c.TCPConn)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
	case gone:
		c.gone = true
		_ = c.TCPConn.Close() // whoever reads or writes has an error
	case pending || c.writing > 0:
		c.timer.Reset(c.every)
		return
	}
	c.looking = false
}

func (c *aliveConn) Write(p []byte) (int, error) {
	defer c.writes()()
	n, err := c.TCPConn.Write(p)
	return n, c.explain("write", err)
}

// ReadFrom lets sendfile through.
func (c *aliveConn) ReadFrom(r io.Reader) (int64, error) {
	defer c.writes()()
	n, err := c.TCPConn.ReadFrom(r)
	return n, c.explain("write", err)
}

func (c *aliveConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	return n, c.explain("read", err)
}

// explain returns the error of the kernel for a connection that has timed out in place of that for one that was closed.
func (c *aliveConn) explain(op string, err error) error {
	if err == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.gone || !errors.Is(err, net.ErrClosed) {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: syscall.ETIMEDOUT}
}

func (c *aliveConn) Close() error {
	c.mu.Lock()
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
	}
	c.mu.Unlock()
	return c.TCPConn.Close()
}
