package swarm

import (
	"fmt"
	"testing"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// Connections lead to the own zone; to others only if there are pieces to bring.
func TestZones(t *testing.T) {
	l := newLab(t)
	id := l.blob(2 * piece.MinLength)
	a := l.add("a", PeerConfig{Zone: "here", DialConns: 8})
	a.want(id)
	var names []string
	for k := range 40 {
		n := fmt.Sprintf("p%d", k)
		e := l.stranger(n)
		if e.zone = "there"; k%2 == 0 {
			e.zone = "here"
		}
		names = append(names, n)
	}
	a.named(id, names...)
	l.run()
	expect := func(near, far int) {
		t.Helper()
		here, there := 0, 0
		for _, c := range a.peer.list {
			if c.node.zone == "here" {
				here++
			} else {
				there++
			}
		}
		if here != near || there != far {
			t.Errorf("%d connections inside and %d outside, want %d and %d", here, there, near, far)
		}
	}
	expect(8, 0)
	a.step(EvShare{ID: id, Share: 1})
	l.run()
	expect(9, 4) // nobody has given anything yet: it looks further inside as well
}

// zoned is a seeder in one zone and peers that want the blob in another, each with
// its share of the pieces.
func zoned(t *testing.T, pieces int64, shares ...uint16) (l *lab, id piece.ID, o *end, peers []*end) {
	l = newLab(t)
	id = l.blob(pieces * piece.MinLength)
	o = l.add("o", PeerConfig{Zone: "there"})
	o.seed(id)
	names := []string{"o"}
	for k := range shares {
		p := l.add(fmt.Sprintf("p%d", k), PeerConfig{Zone: "here"})
		peers, names = append(peers, p), append(names, p.name)
	}
	for k, p := range peers {
		p.want(id)
		p.step(EvSumsHash{id, l.sums[id].Hash()})
		p.named(id, names...)
		p.step(EvShare{id, shares[k]})
	}
	return l, id, o, peers
}

func expectWhole(t *testing.T, id piece.ID, peers []*end) {
	t.Helper()
	for _, p := range peers {
		if n := p.have[id].Count(); n != id.Pieces() {
			t.Errorf("%s has %d pieces", p.name, n)
		}
	}
}

// Each piece comes into the zone once, brought by whose share it is in; who has no
// share has no connection to the other zone.
func TestShares(t *testing.T) {
	l, id, o, peers := zoned(t, 200, 0x0f0f, 0xf0f0, 0, 0)
	for range 400 {
		l.run()
		l.pass(5 * time.Millisecond)
	}
	expectWhole(t, id, peers)
	if s, _ := o.peer.Status(id); s.BytesOut != id.Size {
		t.Errorf("%d bytes of %d left their zone", s.BytesOut, id.Size)
	}
	for _, p := range peers[2:] {
		if p.peer.nodes["o"] != nil && p.peer.nodes["o"].conn != nil {
			t.Errorf("%s is connected to the other zone", p.name)
		}
	}
}

// A share whose holder does nothing is taken on by another; and if nobody has one,
// as when the tracker went away, everybody helps himself.
func TestSharesUntended(t *testing.T) {
	for _, shares := range [][]uint16{{0x00ff, 0}, {0}, {0, 0, 0}} {
		t.Run(fmt.Sprintf("%x", shares), func(t *testing.T) {
			l, id, o, peers := zoned(t, 200, shares...)
			for range 100 {
				l.run()
				l.pass(250 * time.Millisecond)
			}
			expectWhole(t, id, peers)
			if s, _ := o.peer.Status(id); len(shares) < 3 && s.BytesOut != id.Size {
				t.Errorf("%d bytes of %d left their zone", s.BytesOut, id.Size)
			}
		})
	}
}

// What a seeder chooses goes to its own zone while anybody there waits.
func TestOwnZoneFirst(t *testing.T) {
	l := newLab(t)
	id := l.blob(40 * piece.MinLength)
	o := l.add("o", PeerConfig{Role: wire.RoleOrigin, Zone: "here", UpQueue: 8})
	o.seed(id)
	o.slow = true // nothing leaves
	near, far := l.stranger("near"), l.stranger("far")
	near.zone, far.zone = "here", "there"
	ask := func(e *end) {
		c := l.connect(e.name, "o")
		l.run()
		e.say(c, &wire.Open{Blob: 1, ID: id, Want: true})
		for range 4 {
			e.say(c, &wire.Request{Blob: 1, Piece: wire.AnyPiece, Length: piece.MaxBlock})
		}
		l.run()
	}
	ask(near)
	ask(far)
	busy := 0
	for _, m := range far.heard {
		if _, ok := m.(*wire.Busy); ok {
			busy++
		}
	}
	if busy != 4 {
		t.Errorf("%d requests from the other zone of 4 were refused", busy)
	}
}
