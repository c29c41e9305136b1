package swarm

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/capelin-io/capelin/internal/hostaddr"
	"github.com/capelin-io/capelin/swarm/wire"
)

// admission is the gate, shared by those who accept, shake hands and hang up.
type admission struct {
	mu   sync.Mutex
	gate *gate
}

// enter admits a connection to its handshake, or returns nil.
func (a *admission) enter(nc net.Conn) *guest {
	a.mu.Lock()
	in, out := a.gate.enter(time.Now(), remoteIP(nc), func() { closeNow(nc) })
	a.mu.Unlock()
	if out != nil {
		out.cut()
	}
	return in
}

// become and leave are the gate's; nil is not a guest.
func (a *admission) become(x *guest, s guestState) {
	if x != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.gate.become(x, s)
	}
}

func (a *admission) leave(x *guest) {
	if x != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.gate.leave(x)
	}
}

// know notes that a host belongs to the cluster: a peer that was proven to be there, or
// that a tracker named.
func (a *admission) know(host netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gate.know(host)
}

// accept accepts connections until ctx is done or the listener fails for good.
func (n *Node) accept(ctx context.Context) error {
	wait := time.Duration(0)
	for {
		nc, err := n.cfg.Listener.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				nc.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accepting: %w", err)
		case err != nil: // out of file descriptors, most likely
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
			continue
		}
		wait = 0
		guest := n.admission.enter(nc)
		if guest == nil {
			n.do(func() { n.total.Refused++ })
			nc.Close()
			continue
		}
		n.wg.Go(func() {
			c, err := n.shake(ctx, nc, "", guest)
			if err != nil {
				n.do(func() {
					n.total.Refused++
					n.report(Report{Kind: ReportRefused, Err: fmt.Errorf("connection from %s: %w", nc.RemoteAddr(), err)})
				})
				n.refuse(c.nc, err)
				n.admission.leave(guest)
				return
			}
			if n.cfg.TLS != nil {
				n.admission.know(guest.host)
			}
			n.admission.become(guest, guestEstablished)
			n.hand(c)
		})
	}
}

// remoteIP returns from where a connection comes, the zero Addr if that is no IP address.
func remoteIP(nc net.Conn) netip.Addr {
	at, err := netip.ParseAddrPort(nc.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap().WithZone("")
}

// hand gives an established connection to the loop.
func (n *Node) hand(c *nodeConn) {
	if !n.do(func() { n.connected(c) }) {
		closeNow(c.nc)
		n.admission.leave(c.guest)
	}
}

// dial connects to a peer.
func (n *Node) dial(a ActDial) {
	n.wg.Go(func() {
		c, err := n.reach(a)
		if err == nil {
			n.hand(c)
			return
		}
		n.do(func() {
			why, short := reason(err)
			n.total.DialsFailed++
			n.report(Report{Kind: ReportDialFailed, Node: a.Node, Reason: why, Err: fmt.Errorf("connecting to %s at %s: %w", a.Node, a.Addr, err)})
			n.step(EvDialFailed{a.Node, a.Addr, why, short})
		})
		if c != nil {
			n.refuse(c.nc, err)
		}
	})
}

// maxWays is how many addresses of a peer are tried at once.
const maxWays = 4

// nextWayAfter is how long after an address the next one is tried beside it (as in RFC 8305):
// not in turn, since one that answers nothing takes seconds.
const nextWayAfter = 250 * time.Millisecond

// reach connects to a peer by the first of its addresses where it is found. If all fail the
// error is the first that came.
func (n *Node) reach(a ActDial) (*nodeConn, error) {
	if len(a.Others) == 0 {
		return n.reachAt(n.ctx, a.Node, a.Addr)
	}
	type result struct {
		conn *nodeConn
		err  error
	}
	ctx, cancel := context.WithCancel(n.ctx)
	ways := append([]string{a.Addr}, a.Others[:min(len(a.Others), maxWays-1)]...)
	results, pending := make(chan result), 0
	defer func() {
		cancel()
		n.wg.Go(func() { // what comes too late
			for range pending {
				if r := <-results; r.conn != nil {
					closeNow(r.conn.nc)
				}
			}
		})
	}()
	var first error
	for timer := time.NewTimer(0); ; {
		if pending == 0 && len(ways) == 0 {
			return nil, first
		}
		select {
		case r := <-results:
			if pending--; r.err == nil {
				return r.conn, nil
			}
			if r.conn != nil {
				n.wg.Go(func() { n.refuse(r.conn.nc, r.err) })
			}
			if first == nil {
				first = r.err
			}
			timer.Reset(0)
		case <-timer.C:
			if len(ways) > 0 {
				addr := ways[0]
				ways, pending = ways[1:], pending+1
				n.wg.Go(func() {
					c, err := n.reachAt(ctx, a.Node, addr)
					results <- result{c, err}
				})
				timer.Reset(nextWayAfter)
			}
		}
	}
}

// reachAt connects to a peer at an address. If the handshake failed, the connection is
// returned with the error, to be refused.
func (n *Node) reachAt(ctx context.Context, node, addr string) (*nodeConn, error) {
	dctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	nc, err := n.cfg.Dial(dctx, addr)
	if err != nil {
		return nil, err
	}
	if n.cfg.TLS != nil {
		cfg := n.cfg.TLS.Clone()
		if cfg.ServerName == "" {
			if cfg.ServerName, _, err = net.SplitHostPort(addr); err != nil {
				nc.Close()
				return nil, err
			}
		}
		return n.shake(ctx, tls.Client(&recordConn{Conn: nc}, cfg), node, nil)
	}
	return n.shake(ctx, nc, node, nil)
}

// shake performs the handshake of PROTOCOL.md §3 on a new connection, as the
// accepting side for a guest, and as the dialling one, which expects
// to find node expect, for none. If it fails, the connection is returned too,
// and good for nothing but refuse.
func (n *Node) shake(ctx context.Context, nc net.Conn, expect string, guest *guest) (*nodeConn, error) {
	inbound := guest != nil
	raw := nc
	tune(raw)
	raw.SetDeadline(time.Now().Add(helloTimeout))
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if inbound && n.cfg.TLS != nil {
		nc = tls.Server(&recordConn{Conn: nc}, n.cfg.TLS)
	}
	r := wire.NewReader(newReceiver(nc), buffer)
	peer, err := n.exchange(ctx, nc, r, expect, inbound)
	if err == nil && !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		return &nodeConn{nc: nc}, err
	}
	nc.SetDeadline(time.Time{})
	return newConn(n, nc, r, *peer, guest), nil
}

func (n *Node) exchange(ctx context.Context, nc net.Conn, r *wire.Reader, expect string, inbound bool) (*wire.Hello, error) {
	if t, ok := nc.(*tls.Conn); ok {
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, err
		}
	}
	if !inbound {
		if err := n.sayHello(nc); err != nil {
			return nil, err
		}
	}
	m, err := r.Next()
	if err != nil {
		return nil, err
	}
	switch m := m.(type) {
	case *wire.Hello:
		if f := n.checkHello(nc, m, expect); f != nil {
			return nil, f
		}
		m.Addr = hostaddr.Public(m.Addr, hostaddr.Of(transport(nc).RemoteAddr()))
		if inbound {
			err = n.sayHello(nc)
		}
		return m, err
	case *wire.Error:
		return nil, &refusedError{m.Code, m.Text}
	}
	return nil, &wire.Fault{Code: wire.CodeUnexpected, Type: m.Type(), Reason: "before Hello"}
}

func (n *Node) sayHello(w io.Writer) error {
	p, err := wire.Append(nil, &n.hello)
	if err == nil {
		_, err = w.Write(p)
	}
	return err
}

// checkHello makes the checks of PROTOCOL.md §3 that the codec did not.
func (n *Node) checkHello(nc net.Conn, h *wire.Hello, expect string) *wire.Fault {
	fault := func(code wire.Code, format string, args ...any) *wire.Fault {
		return &wire.Fault{Code: code, Type: wire.TypeHello, Reason: fmt.Sprintf(format, args...)}
	}
	if h.Cluster != n.cfg.Cluster {
		return fault(wire.CodeCluster, "cluster %q; this is %q", h.Cluster, n.cfg.Cluster)
	}
	if t, ok := nc.(*tls.Conn); ok {
		if err := n.cfg.VerifyPeer(t.ConnectionState(), h.Node, h.Role); err != nil {
			return fault(wire.CodeIdentity, "not proven to be %s %q: %v", h.Role, h.Node, err)
		}
	}
	switch {
	case h.Node == n.cfg.Node:
		return fault(wire.CodeIdentity, "%q is this node's own name", h.Node)
	case expect != "" && h.Node != expect:
		return fault(wire.CodeIdentity, "expected %q here, found %q", expect, h.Node)
	}
	return nil
}

// refuse closes a connection whose handshake failed, after saying why if the
// peer can be expected to listen.
func (n *Node) refuse(nc net.Conn, why error) {
	defer closeNow(nc)
	m := wire.Error{}
	var f *wire.Fault
	var ne net.Error
	stopping := n.ctx.Err() != nil
	switch {
	case stopping:
		m.Code, m.Text = wire.CodeShutdown, "shutting down"
	case errors.As(why, &f):
		m.Code, m.Text = f.Code, f.Reason
	case errors.As(why, &ne) && ne.Timeout():
		m.Code, m.Text = wire.CodeTimeout, "no Hello within "+helloTimeout.String()
	default:
		return
	}
	m.Text = wire.Text(m.Text)
	nc.SetDeadline(time.Now().Add(closeTimeout))
	p, err := wire.Append(nil, &m)
	if err != nil {
		return
	}
	if _, err := nc.Write(p); err != nil || stopping {
		return
	}
	if w, ok := nc.(interface{ CloseWrite() error }); ok {
		w.CloseWrite()
	}
	_, _ = io.CopyN(io.Discard, nc, wire.MaxFrame) // so that what it sent does not turn the Error into a reset
}

// refusedError is the Error that a peer answered with.
type refusedError struct {
	code wire.Code
	text string
}

func (e *refusedError) Error() string {
	return fmt.Sprintf("refused by the peer (%v): %s", e.code, e.text)
}
