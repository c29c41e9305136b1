package swarm

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// hall is a gate, and who was told to make room.
type hall struct {
	*testing.T
	*gate
	now time.Time
	out []string
}

func newHall(t *testing.T, inbound, shaking int) *hall {
	return &hall{T: t, gate: newGate(inbound, shaking), now: time.Unix(1_000_000, 0)}
}

// comes lets a connection in, a millisecond after the last, and returns nil if it was refused.
func (h *hall) comes(host string) *guest {
	h.Helper()
	h.now = h.now.Add(time.Millisecond)
	in, out := h.enter(h.now, netip.MustParseAddr(host), func() {})
	if out != nil {
		h.out = append(h.out, out.host.String())
	}
	if err := h.check(); err != nil {
		h.Fatal(err)
	}
	return in
}

// check verifies the books.
func (g *gate) check() error {
	shakes, hosts, networks := 0, map[netip.Addr]int{}, map[netip.Prefix]int{}
	for x := range g.guests {
		if x.state == guestShakes {
			shakes++
		}
		if x.state != guestEstablished {
			hosts[x.host]++
			networks[network(x.host)]++
		}
	}
	if fmt.Sprint(hosts, networks, shakes) != fmt.Sprint(g.hosts, g.networks, g.shakes) {
		return fmt.Errorf("counted %v %v %d, there are %v %v %d", g.hosts, g.networks, g.shakes, hosts, networks, shakes)
	}
	if len(g.guests) > g.inbound || g.shakes > g.shaking {
		return fmt.Errorf("%d guests, %d in their handshakes", len(g.guests), g.shakes)
	}
	return nil
}

// Whoever holds all places with silence, from a few addresses, makes room for everybody else.
func TestGateSilence(t *testing.T) {
	for name, tt := range map[string]struct {
		silent []string
		comer  string
	}{
		"from elsewhere":   {[]string{"10.9.0.1", "10.9.0.2", "10.9.0.3", "10.9.0.4"}, "10.1.0.7"},
		"from beside them": {[]string{"10.9.0.1", "10.9.0.2", "10.9.0.3", "10.9.0.4"}, "10.9.0.7"},
		"from IPv6":        {[]string{"2001:db8:1:2::1", "2001:db8:1:2:3::1", "2001:db8:1:2:4::1", "2001:db8:1:2:5::1"}, "2001:db8:1:3::1"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHall(t, 256, 128)
			for i := range 136 {
				if in := h.comes(tt.silent[i%4]); (in != nil) != (i < 128) {
					t.Fatalf("%d: admitted %v", i, in != nil)
				}
			}
			for i := range 20 {
				in := h.comes(tt.comer)
				if in == nil {
					t.Fatal("refused")
				}
				h.become(in, guestEstablished)
				h.comes(tt.silent[i%4])
			}
			if len(h.out) != 20 || h.out[0] != tt.silent[0] || h.out[1] != tt.silent[1] || slices.Contains(h.out, tt.comer) {
				t.Errorf("%q made room", h.out)
			}
		})
	}
}

// Where as many come from as from anywhere, only who is slow makes room.
func TestGateCrowd(t *testing.T) {
	h := newHall(t, 256, 4)
	for range 4 {
		h.comes("127.0.0.1")
	}
	if h.comes("127.0.0.1") != nil {
		t.Error("one was admitted for one that had just come")
	}
	h.now = h.now.Add(unhurried - 6*time.Millisecond)
	if h.comes("127.0.0.1") != nil {
		t.Error("one was admitted too early")
	}
	if h.comes("127.0.0.1") == nil || len(h.out) != 1 {
		t.Error("the oldest did not make room")
	}
	if h.comes("::ffff:10.0.0.1") == nil {
		t.Error("one from elsewhere was refused")
	}
}

// A host that is known goes after all others, unless it has many connections that say nothing.
func TestGateKnown(t *testing.T) {
	h := newHall(t, 256, 8)
	h.know(netip.MustParseAddr("10.1.0.1"))
	for range fewShakes {
		h.comes("10.1.0.1")
	}
	for i := range 4 {
		h.comes(fmt.Sprintf("10.2.%d.1", i)) // each has fewer than the known one
	}
	for i := range 4 {
		h.now = h.now.Add(time.Second)
		if h.comes(fmt.Sprintf("10.3.%d.1", i)) == nil {
			t.Error("refused")
		}
	}
	for _, out := range h.out {
		if out == "10.1.0.1" {
			t.Errorf("a known host made room: %q", h.out)
		}
	}

	h = newHall(t, 256, 8)
	h.know(netip.MustParseAddr("10.1.0.1"))
	for range 8 {
		h.comes("10.1.0.1")
	}
	if h.comes("10.4.0.1") == nil {
		t.Error("a known host took all places")
	}
}

// When there is no place for one more connection at all, those that were told to end go.
func TestGateLeaving(t *testing.T) {
	h := newHall(t, 3, 3)
	var in []*guest
	for range 3 {
		x := h.comes("10.0.0.1")
		h.become(x, guestEstablished)
		in = append(in, x)
	}
	if h.comes("10.0.1.1") != nil {
		t.Error("an established one made room")
	}
	h.become(in[1], guestLeaves)
	x := h.comes("10.0.0.1")
	if x == nil || len(h.guests) != 3 {
		t.Error("one that leaves kept its place")
	}
	h.leave(in[1]) // comes late
	h.become(in[1], guestEstablished)
	h.leave(x)
	h.leave(in[0])
	h.leave(in[2])
	if err := h.check(); err != nil || len(h.guests) != 0 {
		t.Error(err, len(h.guests))
	}
}

func TestGateBooks(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	h := newHall(t, 20, 10)
	var all []*guest
	for range 3000 {
		h.now = h.now.Add(time.Duration(rng.IntN(100)) * time.Millisecond)
		switch x := rng.IntN(4); {
		case x == 0 || len(all) == 0:
			if in := h.comes(fmt.Sprintf("10.0.%d.%d", rng.IntN(3), rng.IntN(3))); in != nil {
				all = append(all, in)
			}
		case x == 1:
			h.leave(all[rng.IntN(len(all))])
		default:
			g := all[rng.IntN(len(all))]
			h.become(g, max(g.state, guestState(rng.IntN(3))))
		}
		if err := h.check(); err != nil {
			t.Fatal(err)
		}
	}
}
