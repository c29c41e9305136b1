package swarm_test

import (
	"context"
	"errors"
	"io"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/swarmtest"
	"github.com/capelin-io/capelin/swarm/wire"
)

// bubble runs a Node "node", scripted unless script is nil, on an in-memory network
// in a bubble, where time is free.
func bubble(
	t *testing.T, script *swarm.Script, change func(*swarm.NodeConfig),
	test func(t *testing.T, n *swarm.Node, dial func() *swarmtest.Conn),
) {
	synctest.Test(t, func(t *testing.T) {
		network := new(swarmtest.Network)
		cfg := swarm.NodeConfig{
			Cluster: "test", Node: "node", Advertise: "node:1", Listener: network.Listen("node:1"),
			Dial: network.Dial, Store: swarmtest.NewStore(""),
		}
		if change != nil {
			change(&cfg)
		}
		n, err := swarm.NewNode(cfg)
		if script != nil {
			n, err = swarm.NewScriptedNode(cfg, script)
		}
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- n.Run(ctx) }()
		test(t, n, func() *swarmtest.Conn {
			nc, err := network.Dial(ctx, "node:1")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { nc.Close() })
			return swarmtest.NewConn(nc)
		})
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// hearAll collects what a connection says until it ends.
func hearAll(c *swarmtest.Conn) <-chan []wire.Message {
	heard := make(chan []wire.Message, 1)
	c.SetReadDeadline(time.Time{})
	r := wire.NewReader(c.Conn, nil)
	go func() {
		var ms []wire.Message
		for {
			m, err := r.Next()
			if err != nil {
				heard <- ms
				return
			}
			ms = append(ms, m)
		}
	}()
	return heard
}

func lastError(ms []wire.Message) *wire.Error {
	if len(ms) == 0 {
		return nil
	}
	e, _ := ms[len(ms)-1].(*wire.Error)
	return e
}

// A stranger that sends its Hello a byte a second is cut off after
// HelloTimeout, and does not keep others out.
func TestSlowHello(t *testing.T) {
	bubble(t, &swarm.Script{}, nil, func(t *testing.T, n *swarm.Node, dial func() *swarmtest.Conn) {
		c := dial()
		began := time.Now()
		heard := hearAll(c)
		p, err := wire.Append(nil, swarmtest.Hello("test", "slow"))
		if err != nil {
			t.Fatal(err)
		}
		for len(p) > 0 {
			c.SetWriteDeadline(time.Now().Add(2 * time.Second))
			if _, err := c.Write(p[:1]); err != nil {
				break
			}
			p = p[1:]
			time.Sleep(time.Second)
		}
		if len(p) == 0 {
			t.Error("the whole Hello was taken")
		}
		if e := lastError(<-heard); e == nil || e.Code != wire.CodeTimeout {
			t.Errorf("heard %+v, want timeout", e)
		}
		if d := time.Since(began); d < swarm.HelloTimeout || d > swarm.HelloTimeout+3*time.Second {
			t.Errorf("cut off after %v", d)
		}
		if _, err := dial().Greet(swarmtest.Hello("test", "b")); err != nil {
			t.Error(err)
		}
	})
}

// idleForEver keeps connections over which nothing is shared.
func idleForEver(c *swarm.NodeConfig) { c.Peer.IdleAfter = 1000 * time.Hour }

// A silent peer gets Pings, then an Error; one that pings stays.
func TestKeepAlive(t *testing.T) {
	bubble(t, nil, idleForEver, func(t *testing.T, n *swarm.Node, dial func() *swarmtest.Conn) {
		silent, alive := dial(), dial()
		for i, c := range []*swarmtest.Conn{silent, alive} {
			if _, err := c.Greet(swarmtest.Hello("test", string(rune('a'+i)))); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		aliveHeard := hearAll(alive)
		heard := <-hearAll(silent)
		if e := lastError(heard); e == nil || e.Code != wire.CodeTimeout {
			t.Errorf("heard %+v, want timeout", heard)
		}
		if d := time.Since(began); d < swarm.DeadAfter || d > swarm.DeadAfter+3*time.Second {
			t.Errorf("closed after %v", d)
		}
		if pings := len(heard) - 1; pings < 2 || pings > 3 {
			t.Errorf("%d pings", pings)
		}
		if e := <-aliveHeard; lastError(e) == nil {
			t.Errorf("the other: %+v", e)
		}

		alive = dial()
		if _, err := alive.Greet(swarmtest.Hello("test", "c")); err != nil {
			t.Fatal(err)
		}
		hearAll(alive) // takes what is sent
		for range 40 {
			time.Sleep(swarm.PingAfter)
			if err := alive.Say(&wire.Ping{}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if s := n.Snapshot(); len(s.Conns) != 1 || s.Conns[0].Peer.Node != "c" || s.Conns[0].Inbound != true {
			t.Errorf("connections %+v", s.Conns)
		}
	})
}

// A peer that sends and never reads is closed, whatever waits for it.
func TestPeerThatTakesNothing(t *testing.T) {
	bubble(t, nil, idleForEver, func(t *testing.T, n *swarm.Node, dial func() *swarmtest.Conn) {
		c := dial()
		if _, err := c.Greet(swarmtest.Hello("test", "c")); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for {
			time.Sleep(5 * time.Second)
			if c.Say(&wire.Ping{}) != nil {
				break
			}
		}
		if d := time.Since(began); d < swarm.SendTimeout || d > swarm.SendTimeout+swarm.PingAfter+10*time.Second {
			t.Errorf("closed after %v", d)
		}
		synctest.Wait()
		if s := n.Snapshot(); len(s.Conns) != 0 {
			t.Errorf("still connected: %+v", s.Conns)
		}
	})
}

// What waits for a connection is bounded.
func TestQueueLimit(t *testing.T) {
	var gone chan swarm.ConnID
	script := &swarm.Script{OnStep: func(ev swarm.Event) (a []swarm.Action) {
		switch ev := ev.(type) {
		case swarm.EvConnected:
			states := make([]byte, 64<<10)
			for range swarm.MaxQueued/len(states) + 3 {
				a = append(a, swarm.ActSend{Conn: ev.Conn, Message: &wire.Sums{States: states}})
			}
		case swarm.EvDisconnected:
			gone <- ev.Conn
		}
		return a
	}}
	bubble(t, script, nil, func(t *testing.T, n *swarm.Node, dial func() *swarmtest.Conn) {
		gone = make(chan swarm.ConnID, 1)
		if _, err := dial().Greet(swarmtest.Hello("test", "c")); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		<-gone
		if d := time.Since(began); d > 0 {
			t.Errorf("closed after %v, not at once", d)
		}
	})
}

// Run tells everybody that it stops, and waits for what it started.
func TestShutdown(t *testing.T) {
	var heard <-chan []wire.Message
	bubble(t, &swarm.Script{}, nil, func(t *testing.T, n *swarm.Node, dial func() *swarmtest.Conn) {
		c := dial()
		if _, err := c.Greet(swarmtest.Hello("test", "c")); err != nil {
			t.Fatal(err)
		}
		heard = hearAll(c)
		dial() // and stays in its handshake
		if _, err := dial().Greet(swarmtest.Hello("test", "deaf")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if e := lastError(<-heard); e == nil || e.Code != wire.CodeShutdown {
				t.Errorf("heard %+v, want shutdown", e)
			}
			if _, ok := n.Status(piece.ID{}); ok {
				t.Error("Status of a stopped node")
			}
			if err := n.Run(context.Background()); !errors.Is(err, swarm.ErrStopped) {
				t.Errorf("a second Run: %v", err)
			}
		})
	})
}

// A slow disk slows the senders down: beyond StoreMemory nothing is read.
func TestBackPressure(t *testing.T) {
	id, data, sums := swarmtest.Bytes(4<<20, 1)
	store := swarmtest.NewStore("")
	release := make(chan struct{})
	stored := 0
	script := &swarm.Script{OnStep: func(ev swarm.Event) []swarm.Action {
		switch ev := ev.(type) {
		case swarm.EvMessage:
			if m, ok := ev.Message.(*wire.Block); ok {
				return []swarm.Action{swarm.ActStore{ID: id, Piece: int(m.Piece), Sums: sums, Data: [][]byte{m.Data}}}
			}
		case swarm.EvStored:
			if ev.Err == nil {
				stored++
			}
		}
		return nil
	}}
	const limit = 1 << 20
	change := func(c *swarm.NodeConfig) { c.Store, c.StoreMemory = store, limit }
	bubble(t, script, change, func(t *testing.T, n *swarm.Node, dial func() *swarmtest.Conn) {
		release = make(chan struct{})
		if err := n.Join(t.Context(), id, swarm.JoinOptions{Want: true}); err != nil {
			t.Fatal(err)
		}
		store.Blob(id).Fault = func(op string) error {
			if op == "write" {
				<-release
			}
			return nil
		}
		c := dial()
		if _, err := c.Greet(swarmtest.Hello("test", "c")); err != nil {
			t.Fatal(err)
		}
		said := make(chan error, 1)
		sent := 0
		go func() {
			c.SetWriteDeadline(time.Time{})
			for i := range id.Pieces() {
				p, err := wire.Append(nil, &wire.Block{Blob: 1, Piece: uint32(i), Data: data[id.Offset(i):][:id.PieceSize(i)]})
				if err == nil {
					_, err = c.Write(p)
				}
				if err != nil {
					said <- err
					return
				}
				sent += id.PieceSize(i)
			}
			said <- nil
		}()
		synctest.Wait()
		// The channel is not read any more: msgQueue blocks may be in it.
		if max := limit + (64+2)*int(id.Length()); sent < limit || sent > max {
			t.Errorf("%d bytes were taken, want between %d and %d", sent, limit, max)
		}
		close(release)
		if err := <-said; err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		n.Snapshot()
		if stored != id.Pieces() || n.Snapshot().Total.Stored != id.Size {
			t.Errorf("%d pieces stored of %d", stored, id.Pieces())
		}
	})
}

// Blocks go out in order with what is queued around them; what cannot be read
// is lost, and the connection lives on.
func TestSendBlocks(t *testing.T) {
	id, data, sums := swarmtest.Bytes(300_000, 1)
	store := swarmtest.NewStore("")
	b, err := store.Add(id, data, sums)
	if err != nil {
		t.Fatal(err)
	}
	reads := 0
	b.Fault = func(op string) error {
		if op == "read" {
			if reads++; reads == 2 {
				return io.ErrNoProgress
			}
		}
		return nil
	}
	var events []string
	script := &swarm.Script{OnStep: func(ev swarm.Event) []swarm.Action {
		switch ev := ev.(type) {
		case swarm.EvConnected:
			block := func(i int) swarm.Action {
				return swarm.ActSendBlock{Conn: ev.Conn, Handle: 7, ID: id, Piece: i, Offset: 10, Length: 1000 + i}
			}
			have := func(i uint32) swarm.Action {
				return swarm.ActSend{Conn: ev.Conn, Message: &wire.Have{Blob: 7, Pieces: []uint32{i}}}
			}
			return []swarm.Action{
				have(0), block(0), have(1), block(1), block(2), have(2),
				swarm.ActSendBlock{Conn: ev.Conn, Handle: 7, ID: id, Piece: 0, Offset: 65_000, Length: 1000}, // beyond the piece
			}
		case swarm.EvLost:
			events = append(events, "lost")
		case swarm.EvBlockSent:
			events = append(events, "sent")
		}
		return nil
	}}
	bubble(t, script, func(c *swarm.NodeConfig) { c.Store = store }, func(t *testing.T, n *swarm.Node, dial func() *swarmtest.Conn) {
		if err := n.Join(t.Context(), id, swarm.JoinOptions{}); err != nil {
			t.Fatal(err)
		}
		c := dial()
		if _, err := c.Greet(swarmtest.Hello("test", "c")); err != nil {
			t.Fatal(err)
		}
		block := func(i int) wire.Message {
			return &wire.Block{Blob: 7, Piece: uint32(i), Offset: 10, Data: data[int(id.Offset(i))+10:][:1000+i]}
		}
		have := func(i uint32) wire.Message { return &wire.Have{Blob: 7, Pieces: []uint32{i}} }
		for _, want := range []wire.Message{have(0), block(0), have(1), block(2), have(2)} {
			m, err := c.Hear()
			if err != nil || !reflect.DeepEqual(m, want) {
				t.Fatalf("heard %v, %v; want %v", m, err, want)
			}
		}
		synctest.Wait()
		n.Snapshot()
		if want := []string{"sent", "sent", "lost", "sent", "sent"}; !reflect.DeepEqual(events, want) {
			t.Errorf("events %v, want %v", events, want)
		}
		if got := n.Snapshot().Total.BytesOut; got != 1000+1002 {
			t.Errorf("%d bytes out", got)
		}
		n.Leave(id)
		synctest.Wait()
		if b.Opens() != 0 {
			t.Errorf("%d handles open", b.Opens())
		}
	})
}

// Who says nothing makes room for others when all places are taken, and otherwise has as long
// as a handshake may take.
func TestHandshakeSilent(t *testing.T) {
	change := func(c *swarm.NodeConfig) { c.MaxHandshakes = 2 }
	bubble(t, &swarm.Script{}, change, func(t *testing.T, n *swarm.Node, dial func() *swarmtest.Conn) {
		var heard []<-chan []wire.Message
		for range 2 {
			heard = append(heard, hearAll(dial())) // and says nothing
		}
		synctest.Wait()
		if _, err := dial().Greet(swarmtest.Hello("test", "c")); err == nil {
			t.Error("a third handshake was admitted at once")
		}
		time.Sleep(time.Second)
		if _, err := dial().Greet(swarmtest.Hello("test", "d")); err != nil {
			t.Errorf("two that say nothing keep a third out: %v", err)
		}
		if e := lastError(<-heard[0]); e != nil {
			t.Errorf("the one that made room heard %+v", e)
		}
		if e := lastError(<-heard[1]); e == nil || e.Code != wire.CodeTimeout {
			t.Errorf("the other heard %+v, want timeout", e)
		}
		synctest.Wait()
		if s := n.Snapshot().Total; s.Accepted != 1 || s.Refused != 3 {
			t.Errorf("totals %+v", s)
		}
	})
}
