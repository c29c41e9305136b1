package swarm

import (
	"net"
	"testing"

	"github.com/capelin-io/capelin/swarm/wire"
)

// What waits for peers that take nothing is bounded over all of them: those for whom more waits than
// for others are cut off.
func TestQueuedTogether(t *testing.T) {
	n := &Node{queues: 1 << 20, conns: map[ConnID]*nodeConn{}}
	n.admission.gate = newGate(10, 10)
	for id := range ConnID(4) {
		nc, other := net.Pipe()
		defer nc.Close()
		defer other.Close()
		n.conns[id] = newConn(n, nc, nil, wire.Hello{}, nil)
	}
	closed := func(id ConnID) bool { return n.conns[id].closing }
	states := &wire.Sums{States: make([]byte, wire.MaxSums*32)}
	for range 7 {
		n.conns[0].send(states)
		n.conns[1].send(states)
	}
	for range 4 {
		n.conns[3].send(&wire.Ping{})
	}
	if closed(0) || closed(1) || closed(3) {
		t.Fatal("closed before it was too much")
	}
	n.conns[0].send(states)
	n.conns[0].send(states) // too much
	n.conns[2].send(states)
	n.conns[3].send(&wire.Ping{})
	if !closed(0) || closed(2) || closed(3) {
		t.Errorf("closed: %v %v %v %v", closed(0), closed(1), closed(2), closed(3))
	}
	for id, c := range n.conns {
		c.take(output{})
		c.cut()
		if c.counted != 0 {
			t.Errorf("connection %d counts %d bytes still", id, c.counted)
		}
	}
	if got := n.queued.Load(); got != 0 {
		t.Errorf("%d bytes are counted still", got)
	}
}
