package swarmtest

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/capelin-io/capelin/swarm/wire"
)

// Conn is a peer that says what a test tells it to, valid or not. Every call
// ends within Patience.
type Conn struct {
	net.Conn
	r *wire.Reader
}

// Patience is how long a Conn waits for the other side: for hangs only.
const Patience = time.Minute

// NewConn returns a Conn over nc, over which nothing was said yet.
func NewConn(nc net.Conn) *Conn { return &Conn{nc, wire.NewReader(nc, nil)} }

// Hello returns a valid Hello.
func Hello(cluster, node string) *wire.Hello {
	return &wire.Hello{Version: wire.Version, Role: wire.RoleAgent, Cluster: cluster, Node: node, Software: "swarmtest"}
}

// Greet dials' side of the handshake: says h and waits for the answer.
func (c *Conn) Greet(h *wire.Hello) (*wire.Hello, error) {
	if err := c.Say(h); err != nil {
		return nil, err
	}
	m, err := c.Hear()
	if err != nil {
		return nil, err
	}
	answer, ok := m.(*wire.Hello)
	if !ok {
		return nil, fmt.Errorf("answered with %v: %+v", m.Type(), m)
	}
	return answer, nil
}

// Say sends messages.
func (c *Conn) Say(messages ...wire.Message) error {
	var p []byte
	for _, m := range messages {
		var err error
		if p, err = wire.Append(p, m); err != nil {
			return err
		}
	}
	return c.SayBytes(p)
}

// SayBytes sends bytes.
func (c *Conn) SayBytes(p []byte) error {
	c.SetWriteDeadline(time.Now().Add(Patience))
	_, err := c.Write(p)
	return err
}

// Hear returns the next message.
func (c *Conn) Hear() (wire.Message, error) {
	c.SetReadDeadline(time.Now().Add(Patience))
	return c.r.Next()
}

// HearError skips messages up to the Error with which the other side closes the
// connection, and then waits for the end of the stream.
func (c *Conn) HearError() (*wire.Error, error) {
	for {
		m, err := c.Hear()
		if err != nil {
			return nil, fmt.Errorf("waiting for Error: %w", err)
		}
		e, ok := m.(*wire.Error)
		if !ok {
			continue
		}
		if m, err := c.Hear(); err == nil {
			return e, fmt.Errorf("%v after Error", m.Type())
		} else if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
			return e, fmt.Errorf("the connection was not closed: %w", err)
		}
		return e, nil
	}
}
