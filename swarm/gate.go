package swarm

import (
	"net/netip"
	"time"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"
)

// gate decides which inbound connections may begin their handshake, and which must make room
// for them. A guest is one of them: its handshake is under way, or it is established, or it
// leaves: it was told to end, and is still there. Strangers may come in any number and say
// nothing, so when all places are taken, one that leaves has to go, or one in its handshake: one
// of the network that has the most of these, within it of the address that has the most, and of these
// the oldest: a handshake takes milliseconds, silence seconds. So many cannot keep out one
// that comes from elsewhere. Hosts that are known, since a tracker named them or a certificate was
// seen there, go after all others, as long as they have few.
//
// It is not safe for concurrent use; see admission.
type gate struct {
	inbound int // places, and how many of those may be in their handshakes
	shaking int

	guests   map[*guest]struct{}
	last     uint64 // guest.number
	shakes   int
	networks map[netip.Prefix]int // guests that are not established
	hosts    map[netip.Addr]int
	known    *lru.LRU[netip.Addr, struct{}]
}

// guest is an inbound connection.
type guest struct {
	host   netip.Addr // zero: not an IP address
	since  time.Time
	number uint64 // in the order in which they came
	state  guestState
	cut    func() // ends it; must not block
}

type guestState uint8

const (
	guestShakes guestState = iota
	guestEstablished
	guestLeaves
)

const (
	// unhurried is how long a handshake may take before it makes room for another one that
	// comes from where as many come from.
	unhurried = 500 * time.Millisecond
	maxHosts  = 4096 // known ones
	fewShakes = 4    // guests of a known host that are not established
)

func newGate(inbound, shaking int) *gate {
	known, err := lru.NewLRU[netip.Addr, struct{}](maxHosts, nil)
	if err != nil {
		panic(err) // only for a size of 0
	}
	return &gate{
		inbound: inbound, shaking: shaking, guests: map[*guest]struct{}{},
		networks: map[netip.Prefix]int{}, hosts: map[netip.Addr]int{}, known: known,
	}
}

// network is what one stranger may have all addresses of.
func network(host netip.Addr) netip.Prefix {
	bits := 64
	if host.Is4() {
		bits = 24
	}
	p, _ := host.Prefix(bits) // the zero Prefix of the zero Addr
	return p
}

// know notes that a host belongs to the cluster.
func (g *gate) know(host netip.Addr) {
	if host.IsValid() {
		g.known.Add(host, struct{}{})
	}
}

// weight is how little a guest is to be missed.
type weight struct {
	leaves        bool
	many          bool // its host is not known, or has many
	network, host int  // how many they have
}

func (g *gate) weigh(x *guest) weight {
	n := g.hosts[x.host]
	return weight{x.state == guestLeaves, !g.known.Contains(x.host) || n > fewShakes, g.networks[network(x.host)], n}
}

func (w weight) more(o weight) bool {
	switch {
	case w.leaves != o.leaves:
		return w.leaves
	case w.many != o.many:
		return w.many
	case w.network != o.network:
		return w.network > o.network
	}
	return w.host > o.host
}

// enter admits a connection to its handshake, and returns who has to make room, if anybody has;
// nil, if there is no place.
func (g *gate) enter(now time.Time, host netip.Addr, cut func()) (in, out *guest) {
	g.last++
	in = &guest{host: host, since: now, number: g.last, cut: cut}
	full, crowded := len(g.guests) >= g.inbound, g.shakes >= g.shaking
	g.count(host, 1)
	if full || crowded {
		out = g.heaviest(crowded)
		if out == nil || !g.weigh(out).more(g.weigh(in)) && now.Sub(out.since) < unhurried {
			g.count(host, -1)
			return nil, nil
		}
		g.leave(out)
	}
	g.guests[in] = struct{}{}
	g.shakes++
	return in, out
}

// heaviest returns the guest that is to be missed least, among those in their handshakes if
// there are too many of these.
func (g *gate) heaviest(crowded bool) (out *guest) {
	var most weight
	for x := range g.guests {
		if x.state == guestEstablished || crowded && x.state != guestShakes {
			continue
		}
		w := g.weigh(x)
		if out == nil || w.more(most) || w == most && x.number < out.number {
			out, most = x, w
		}
	}
	return out
}

func (g *gate) count(host netip.Addr, n int) {
	p := network(host)
	if g.networks[p] += n; g.networks[p] == 0 {
		delete(g.networks, p)
	}
	if g.hosts[host] += n; g.hosts[host] == 0 {
		delete(g.hosts, host)
	}
}

// become notes what a guest is now. One that is gone stays so.
func (g *gate) become(x *guest, s guestState) {
	if _, ok := g.guests[x]; !ok || x.state == s {
		return
	}
	if x.state == guestShakes {
		g.shakes--
	}
	switch {
	case s == guestEstablished:
		g.count(x.host, -1)
	case x.state == guestEstablished:
		g.count(x.host, 1)
	}
	x.state = s
}

// leave notes that a guest is gone.
func (g *gate) leave(x *guest) {
	if _, ok := g.guests[x]; !ok {
		return
	}
	delete(g.guests, x)
	if x.state == guestShakes {
		g.shakes--
	}
	if x.state != guestEstablished {
		g.count(x.host, -1)
	}
}
