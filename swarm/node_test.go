package swarm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/swarmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for something that must happen: for hangs only.
const patience = 2 * time.Minute

// place is where Nodes run: on loopback with real sockets, or on an in-memory network.
type place struct {
	network *swarmtest.Network // nil: real sockets
	hosts   int
}

// loopback is for tests whose subject is a socket.
var loopback = &place{}

// inMemory runs a test in a bubble, where time is free: no verdict depends on how busy
// the machine is.
func inMemory(t *testing.T, test func(t *testing.T, at *place)) {
	synctest.Test(t, func(t *testing.T) {
		test(t, &place{network: &swarmtest.Network{Buffer: 256 << 10}})
	})
}

func (at *place) listen(t testing.TB) net.Listener {
	t.Helper()
	if at.network != nil {
		at.hosts++
		return at.network.Listen(fmt.Sprintf("10.0.0.%d:1", at.hosts))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (at *place) dial(ctx context.Context, addr string) (net.Conn, error) {
	if at.network != nil {
		return at.network.Dial(ctx, addr)
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
}

// testNode is a Node that runs until the test ends.
type testNode struct {
	*swarm.Node
	at         *place
	name, addr string
	store      *swarmtest.Store
	stop       func() // waits for Run

	mu      sync.Mutex
	reports []swarm.Report
}

func (n *testNode) info(complete bool) swarm.PeerInfo {
	return swarm.PeerInfo{Node: n.name, Addr: n.addr, Complete: complete, Source: complete}
}

func (n *testNode) reported(kind swarm.ReportKind) (found []swarm.Report) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.reports {
		if r.Kind == kind {
			found = append(found, r)
		}
	}
	return found
}

// start starts a Node whose config change may alter.
func (at *place) start(t testing.TB, name string, store *swarmtest.Store, change func(*swarm.NodeConfig)) *testNode {
	t.Helper()
	l := at.listen(t)
	n := &testNode{at: at, name: name, addr: l.Addr().String(), store: store}
	cfg := swarm.NodeConfig{
		Cluster: "test", Node: name, Software: "test", Advertise: n.addr, Listener: l, Dial: at.dial, Store: store,
		Peer: swarm.PeerConfig{Seed: 1},
		OnReport: func(r swarm.Report) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.reports = append(n.reports, r)
		},
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if n.Node, err = swarm.NewNode(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("%s: Run: %v", name, err)
			}
		case <-time.After(patience):
			t.Errorf("%s: Run does not return", name)
		}
	})
	t.Cleanup(n.stop)
	return n
}

func (n *testNode) join(t testing.TB, id piece.ID, want bool) {
	t.Helper()
	if err := n.Join(context.Background(), id, swarm.JoinOptions{Want: want}); err != nil {
		t.Fatal(err)
	}
}

// wait waits for a download to end.
func (n *testNode) wait(t testing.TB, id piece.ID) error {
	t.Helper()
	select {
	case err := <-n.Done(id):
		return err
	case <-time.After(patience):
		s, _ := n.Status(id)
		return fmt.Errorf("%s: not done: %+v, %+v", n.name, s, n.Snapshot().Conns)
	}
}

func tempStore(t testing.TB) *swarmtest.Store {
	s := swarmtest.NewStore(t.TempDir())
	t.Cleanup(s.Close)
	return s
}

func addBlob(t testing.TB, s *swarmtest.Store, size int) (piece.ID, []byte, *swarmtest.Blob) {
	t.Helper()
	id, data, sums := swarmtest.Bytes(size, 1)
	b, err := s.Add(id, data, sums)
	if err != nil {
		t.Fatal(err)
	}
	return id, data, b
}

// LeaveNow returns when the blob is closed, or with its context, joined or not.
func TestLeaveNow(t *testing.T) {
	inMemory(t, func(t *testing.T, at *place) {
		n := at.start(t, "node", swarmtest.NewStore(""), nil)
		id, _, b := addBlob(t, n.store, 1<<20)
		n.LeaveNow(t.Context(), id)
		n.join(t, id, false)
		if _, ok := n.Status(id); !ok || b.Opens() != 1 {
			t.Fatalf("joined: %t, %d open", ok, b.Opens())
		}
		n.LeaveNow(t.Context(), id)
		if _, ok := n.Status(id); ok || b.Opens() != 0 {
			t.Errorf("left: %t, %d open", !ok, b.Opens())
		}
		n.stop()
		n.LeaveNow(t.Context(), id)
	})
}

func TestOneToOne(t *testing.T) {
	for _, tt := range []struct {
		name  string
		size  int
		store func(testing.TB) *swarmtest.Store
	}{
		{"files", 64<<20 + 12345, tempStore},
		{"memory", 3<<20 + 1, func(testing.TB) *swarmtest.Store { return swarmtest.NewStore("") }},
		{"one byte", 1, tempStore},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seeder := loopback.start(t, "seeder", tt.store(t), nil)
			id, data, _ := addBlob(t, seeder.store, tt.size)
			seeder.join(t, id, false)
			leech := loopback.start(t, "leech", tt.store(t), nil)
			leech.join(t, id, true)
			leech.AddPeers(id, []swarm.PeerInfo{seeder.info(true)})
			if err := leech.wait(t, id); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(leech.store.Blob(id).Bytes(), data) {
				t.Error("other bytes arrived")
			}
			if err := seeder.wait(t, id); err != nil {
				t.Errorf("Done at the seeder: %v", err)
			}
			s := leech.Snapshot()
			if s.Total.Stored != id.Size || s.Total.BytesIn < id.Size || len(s.Blobs) != 1 || !s.Blobs[0].Proven {
				t.Errorf("snapshot %+v", s)
			}
			leech.Leave(id)
			if err := leech.wait(t, id); !errors.Is(err, swarm.ErrNotJoined) {
				t.Errorf("Done after Leave: %v", err)
			}
			leech.stop()
			seeder.stop()
			if a, b := leech.store.Blob(id).Opens(), seeder.store.Blob(id).Opens(); a != 0 || b != 0 {
				t.Errorf("%d and %d handles left open", a, b)
			}
			if err := <-leech.Done(id); !errors.Is(err, swarm.ErrStopped) {
				t.Errorf("Done of a stopped node: %v", err)
			}
			if err := leech.Join(context.Background(), id, swarm.JoinOptions{}); !errors.Is(err, swarm.ErrStopped) {
				t.Errorf("Join of a stopped node: %v", err)
			}
			if leech.store.Blob(id).Opens() != 0 {
				t.Error("Join of a stopped node left the blob open")
			}
		})
	}
}

// fanOut starts n nodes that know each other and the seeder, and waits until all
// of them have the blob's bytes.
func fanOut(t *testing.T, seeder *testNode, id piece.ID, data []byte, n int, change func(*swarm.NodeConfig)) []*testNode {
	t.Helper()
	infos := []swarm.PeerInfo{seeder.info(true)}
	var leeches []*testNode
	for i := range n {
		n := seeder.at.start(t, fmt.Sprintf("leech%d", i), swarmtest.NewStore(""), change)
		leeches = append(leeches, n)
		infos = append(infos, n.info(false))
	}
	for _, n := range leeches {
		n.join(t, id, true)
		n.AddPeers(id, infos)
	}
	for _, n := range leeches {
		if err := n.wait(t, id); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(n.store.Blob(id).Bytes(), data) {
			t.Errorf("%s: other bytes arrived", n.name)
		}
	}
	return leeches
}

// Ten nodes that know each other and one seeder. Their links are limited, so that the time
// of the bubble decides who sends what, and not whose goroutine runs.
func TestTenNodes(t *testing.T) {
	limited := func(c *swarm.NodeConfig) { c.Peer.Up, c.Peer.Down = 20e6, 20e6 }
	inMemory(t, func(t *testing.T, at *place) {
		seeder := at.start(t, "seeder", swarmtest.NewStore(""), limited)
		id, data, _ := addBlob(t, seeder.store, 16<<20+7)
		seeder.join(t, id, false)
		fanOut(t, seeder, id, data, 9, limited)
		if sent := seeder.Snapshot().Total.BytesOut; 2*sent > 3*id.Size {
			t.Errorf("the seeder sent %.1f times the blob", float64(sent)/float64(id.Size))
		}
	})
}
