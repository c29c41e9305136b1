package swarm_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/swarmtest"
)

// A node that has a blob, but has neither joined it nor hashed it, is found by
// a peer that wants it: it is invited, joins, computes the sums, and seeds.
func TestInvitedToSeed(t *testing.T) {
	inMemory(t, func(t *testing.T, at *place) {
		id, data, _ := swarmtest.Bytes(5<<20, 1)
		store := swarmtest.NewStore("")
		if _, err := store.Add(id, data, piece.NewSums(id)); err != nil {
			t.Fatal(err)
		}
		wanted := make(chan piece.ID, 10)
		seeder := at.start(t, "seeder", store, func(c *swarm.NodeConfig) {
			c.OnWanted = func(id piece.ID) { wanted <- id }
		})
		leech := at.start(t, "leech", swarmtest.NewStore(""), nil)
		leech.join(t, id, true)
		leech.AddPeers(id, []swarm.PeerInfo{seeder.info(true)})
		select {
		case got := <-wanted:
			if got != id {
				t.Fatalf("wanted %v", got)
			}
		case <-time.After(patience):
			t.Fatal("nobody was told")
		}
		seeder.join(t, id, false)
		if err := leech.wait(t, id); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(leech.store.Blob(id).Bytes(), data) {
			t.Error("other bytes arrived")
		}
		if sums, proven := store.Blob(id).Sums(); !proven || !sums.Complete() {
			t.Error("the seeder's sums were not computed")
		}
	})
}

// Pieces move on as they appear at a source that gets them in order from
// elsewhere, so the last byte arrives shortly after it got there.
func TestCutThrough(t *testing.T) {
	inMemory(t, func(t *testing.T, at *place) {
		id, data, _ := swarmtest.Bytes(4<<20, 1)
		source := at.start(t, "source", swarmtest.NewStore(""), nil)
		if err := source.Join(t.Context(), id, swarm.JoinOptions{}); err == nil {
			t.Fatal("joined a blob that is not there without wanting it")
		}
		h, err := source.store.Open(t.Context(), id, true) // by whoever writes it
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		source.join(t, id, false)
		leech := at.start(t, "leech", swarmtest.NewStore(""), nil)
		leech.join(t, id, true)
		half := make(chan struct{})
		var stored atomic.Int32
		leech.store.Blob(id).Fault = func(op string) error {
			if op == "write" && stored.Add(1) == int32(id.Pieces()/2) {
				close(half)
			}
			return nil
		}
		leech.AddPeers(id, []swarm.PeerInfo{{Node: source.name, Addr: source.addr, Source: true}})
		b := source.store.Blob(id)
		for i := range id.Pieces() {
			if i == id.Pieces()/2 {
				select { // half of it has moved on before the rest is there
				case <-half:
				case <-time.After(patience):
					t.Fatal("nothing moves before everything is there")
				}
			}
			i, state, err := b.Append(data[id.Offset(i):][:id.PieceSize(i)])
			if err != nil {
				t.Fatal(err)
			}
			source.Appended(id, i, i+1, state)
		}
		source.Proven(id)
		if err := leech.wait(t, id); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(leech.store.Blob(id).Bytes(), data) {
			t.Error("other bytes arrived")
		}
		if err := source.wait(t, id); err != nil {
			t.Error(err)
		}
	})
}

// A piece that somebody else finds wrong at a source is not sent, and the others are; it is when it is there again.
func TestLost(t *testing.T) {
	inMemory(t, func(t *testing.T, at *place) {
		const lost = 3
		source := at.start(t, "source", swarmtest.NewStore(""), nil)
		id, data, b := addBlob(t, source.store, 4<<20)
		sums, _ := b.Sums()
		b.Fault = func(op string) error {
			if op == "recheck" {
				return piece.ErrMismatch
			}
			return nil
		}
		source.join(t, id, false)
		leech := at.start(t, "leech", swarmtest.NewStore(""), nil)
		leech.join(t, id, true)
		others := make(chan struct{})
		var stored atomic.Int32
		leech.store.Blob(id).Fault = func(op string) error {
			if op == "write" && stored.Add(1) == int32(id.Pieces()-1) {
				close(others)
			}
			return nil
		}
		if err := b.Recheck(lost); !errors.Is(err, piece.ErrMismatch) {
			t.Fatal(err)
		}
		source.Lost(id, lost)
		if s, ok := source.Status(id); !ok || s.Have != id.Pieces()-1 {
			t.Errorf("the source offers %+v", s)
		}
		leech.AddPeers(id, []swarm.PeerInfo{{Node: source.name, Addr: source.addr, Source: true}})
		select {
		case <-others:
		case <-time.After(patience):
			t.Fatal("the other pieces do not move")
		}
		if leech.store.Blob(id).Have().Has(lost) {
			t.Error("the piece was sent")
		}
		if err := b.WritePiece(piece.NewClaim(sums, lost, data[id.Offset(lost):][:id.PieceSize(lost)])); err != nil {
			t.Fatal(err)
		}
		source.Appended(id, lost, lost+1, sums.Range(lost, 1))
		if err := leech.wait(t, id); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(leech.store.Blob(id).Bytes(), data) {
			t.Error("other bytes arrived")
		}
	})
}

// cutConn breaks after a number of bytes.
type cutConn struct {
	net.Conn
	left atomic.Int64
}

func (c *cutConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.left.Add(-int64(n)) < 0 {
		c.Conn.Close()
		return 0, net.ErrClosed
	}
	return n, err
}

// Connections break at any byte, also within a message; everybody gets the
// blob all the same.
func TestBrokenConnections(t *testing.T) {
	inMemory(t, func(t *testing.T, at *place) {
		rng := rand.New(rand.NewPCG(1, 2))
		var mu sync.Mutex
		breaks := 0
		dial := func(ctx context.Context, addr string) (net.Conn, error) {
			nc, err := at.dial(ctx, addr)
			mu.Lock()
			defer mu.Unlock()
			if err != nil || breaks == 12 {
				return nc, err
			}
			breaks++
			c := &cutConn{Conn: nc}
			c.left.Store(rng.Int64N(3 << 20))
			return c, nil
		}
		change := func(c *swarm.NodeConfig) { c.Dial = dial }
		seeder := at.start(t, "seeder", swarmtest.NewStore(""), change)
		id, data, _ := addBlob(t, seeder.store, 16<<20)
		seeder.join(t, id, false)
		for _, n := range fanOut(t, seeder, id, data, 3, change) {
			if faults := n.reported(swarm.ReportFault); len(faults) > 0 {
				t.Errorf("%s: a break was taken for a fault: %+v", n.name, faults)
			}
		}
	})
}

// Everything at once, from many goroutines; nothing is left behind.
func TestJoinLeaveRaces(t *testing.T) {
	inMemory(t, func(t *testing.T, at *place) {
		seeder := at.start(t, "seeder", swarmtest.NewStore(""), nil)
		leech := at.start(t, "leech", swarmtest.NewStore(""), nil)
		var ids []piece.ID
		for i := range 4 {
			id, data, sums := swarmtest.Bytes(500_000+i, uint64(i))
			if _, err := seeder.store.Add(id, data, sums); err != nil {
				t.Fatal(err)
			}
			seeder.join(t, id, false)
			ids = append(ids, id)
		}
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				for i := range 40 {
					id := ids[(g+i)%len(ids)]
					if err := leech.Join(context.Background(), id, swarm.JoinOptions{Want: i%2 == 0, Priority: i % 3}); err != nil && i%2 == 0 {
						t.Error(err)
					}
					leech.AddPeers(id, []swarm.PeerInfo{seeder.info(true)})
					leech.Status(id)
					leech.SetLimits(0, 0)
					if i%5 == 0 {
						leech.RemovePeers(id, []string{seeder.name})
					}
					if i%3 == 0 {
						leech.Snapshot()
						leech.Leave(id)
					}
				}
			})
		}
		wg.Wait()
		for _, id := range ids {
			leech.join(t, id, true)
			leech.AddPeers(id, []swarm.PeerInfo{seeder.info(true)})
			if err := leech.wait(t, id); err != nil {
				t.Fatal(err)
			}
		}
		leech.stop()
		seeder.stop()
		for _, id := range ids {
			if a, b := leech.store.Blob(id).Opens(), seeder.store.Blob(id).Opens(); a != 0 || b != 0 {
				t.Errorf("%d and %d handles left open", a, b)
			}
		}
	})
}
