package swarm_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/swarmtest"
)

// A peer is found at any of its addresses: at once if one before refuses or is somebody
// else's, and soon if it does not answer.
func TestSeveralAddresses(t *testing.T) {
	const refused, silent = "10.9.9.1:1", "10.9.9.2:1"
	for _, tt := range []struct {
		name   string
		before []string // the address where it is; other: of another node
		within time.Duration
	}{
		{"refused", []string{refused}, 0},
		{"no answer", []string{silent}, 250 * time.Millisecond},
		{"no answer, twice", []string{silent, silent}, 500 * time.Millisecond},
		{"another node", []string{"other"}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inMemory(t, func(t *testing.T, at *place) {
				seeder := at.start(t, "seeder", swarmtest.NewStore(""), nil)
				id, _, _ := addBlob(t, seeder.store, 300_000)
				seeder.join(t, id, false)
				other := at.start(t, "other", swarmtest.NewStore(""), nil)
				leech := at.start(t, "leech", swarmtest.NewStore(""), func(c *swarm.NodeConfig) {
					dial := c.Dial
					c.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
						if addr == silent {
							<-ctx.Done()
							return nil, ctx.Err()
						}
						return dial(ctx, addr)
					}
				})
				leech.join(t, id, true)
				var ways []string
				for _, w := range tt.before {
					if w == "other" {
						w = other.addr
					}
					ways = append(ways, w)
				}
				ways = append(ways, seeder.addr)
				began := time.Now()
				leech.AddPeers(id, []swarm.PeerInfo{{Node: "seeder", Addr: ways[0], Addrs: ways[1:], Complete: true}})
				if err := <-leech.Done(id); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took < tt.within || took > tt.within+50*time.Millisecond {
					t.Errorf("it took %v, want %v", took, tt.within)
				}
				if failed := leech.Unreachable(); len(failed) > 0 {
					t.Errorf("failed: %+v", failed)
				}
			})
		})
	}
}

// A peer at none of its addresses has failed, with all of them.
func TestNoneOfSeveralAddresses(t *testing.T) {
	inMemory(t, func(t *testing.T, at *place) {
		id, _, _ := swarmtest.Bytes(300_000, 1)
		gone := make(chan struct{})
		leech := at.start(t, "leech", swarmtest.NewStore(""), func(c *swarm.NodeConfig) {
			c.OnNoSource = func(piece.ID) { close(gone) }
		})
		leech.join(t, id, true)
		leech.AddPeers(id, []swarm.PeerInfo{{Node: "seeder", Addr: "10.9.9.1:1", Addrs: []string{"[fd00::9]:1"}, Complete: true}})
		<-gone
		failed := leech.Unreachable()
		if len(failed) != 1 || failed[0].Node != "seeder" || failed[0].Addr != "10.9.9.1:1, [fd00::9]:1" || failed[0].Err == nil {
			t.Errorf("failed: %+v", failed)
		}
		if st, ok := leech.Status(id); !ok || !st.DeadEnd || len(st.Lost) != 1 || st.Lost[0] != "seeder" {
			t.Errorf("status: %+v", st)
		}
	})
}
