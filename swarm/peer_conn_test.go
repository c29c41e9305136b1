package swarm

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// Dials are retried ever later, and not at the same time everywhere.
func TestDialBackoff(t *testing.T) {
	l := newLab(t)
	id := l.blob(2 * piece.MinLength)
	a := l.add("a", PeerConfig{})
	a.want(id)
	a.named(id, "nobody")
	l.pass(2 * time.Minute)
	n := strings.Count(l.log.String(), "dials nobody")
	if n < 5 || n > 20 {
		t.Errorf("%d dials in two minutes", n)
	}
	// A new address is tried at once.
	before := n
	a.step(EvPeers{ID: id, Peers: []PeerInfo{{Node: "nobody", Addr: "elsewhere:1"}}})
	l.pass(time.Second)
	if n := strings.Count(l.log.String(), "dials nobody"); n <= before {
		t.Error("a new address is not tried")
	}
}

// Two machines of one name take each other's place at a peer, not as fast as they can.
func TestNamesakeAtAPeer(t *testing.T) {
	p := NewPeer(PeerConfig{Node: "self", Role: wire.RoleAgent, Seed: 1})
	start := time.Unix(1_000_000, 0)
	dials, connected := 0, 0
	step := func(now time.Time, ev Event) {
		for _, a := range p.Step(now, ev) {
			if _, ok := a.(ActDial); ok {
				dials++
			}
		}
	}
	id := piece.ID{Alg: piece.SHA256, Size: 1 << 20}
	step(start, EvJoin{ID: id, Want: true, Have: piece.NewBits(id.Pieces()), Sums: piece.NewSums(id)})
	step(start, EvPeers{ID: id, Peers: []PeerInfo{{Node: "p", Addr: "p:1", Complete: true}}})
	for at := time.Millisecond; at < 10*time.Second; at += 10 * time.Millisecond {
		now := start.Add(at)
		step(now, EvTick{})
		if connected < dials {
			connected++
			step(now, EvConnected{Conn: ConnID(connected), Peer: wire.Hello{Version: 1, Role: wire.RoleAgent, Node: "p"}})
			step(now, EvMessage{ConnID(connected), &wire.Error{Code: wire.CodeDuplicate, Text: "connected anew"}})
		}
	}
	if dials < 10 || dials > 40 {
		t.Errorf("%d dials in ten seconds", dials)
	}
}

// Strangers cannot fill the memory with swarms that are nobody's but theirs: who has the most of
// them open is cut off, the others are not.
func TestStrangeSwarms(t *testing.T) {
	p := NewPeer(PeerConfig{Node: "self", Role: wire.RoleOrigin, Seed: 1, Strange: 2 << 20})
	now := time.Unix(1_000_000, 0)
	closed := map[ConnID]string{}
	step := func(ev Event) {
		for _, a := range slices.Clone(p.Step(now, ev)) {
			if a, ok := a.(ActClose); ok {
				closed[a.Conn] = fmt.Sprintf("%v: %s", a.Code, a.Text)
			}
		}
	}
	blob := func(n int, size int64) piece.ID {
		id := piece.ID{Alg: piece.SHA256, Size: size}
		binary.BigEndian.PutUint32(id.Sum[:], uint32(n))
		return id
	}
	bits := make([]byte, (1<<40/piece.MaxLength)/8)
	bits[0] = 0x80
	for i := range 9 {
		step(EvConnected{Conn: ConnID(i), Peer: wire.Hello{Version: 1, Role: wire.RoleAgent, Node: string(rune('a' + i))}, Inbound: true})
		for k := range 30 {
			step(EvMessage{ConnID(i), &wire.Open{Blob: wire.Handle(k), ID: blob(k, 1<<30), Want: true}})
		}
	}
	for k := range 130 {
		for i := 1; i < 5; i++ {
			step(EvMessage{ConnID(i), &wire.Open{Blob: wire.Handle(1000 + k), ID: blob(1000+k, 1<<40), Bits: bits}})
		}
		// One says that it has all, and then, piece by piece, that it has not.
		step(EvMessage{5, &wire.Open{Blob: wire.Handle(1000 + k), ID: blob(1000+k, 1<<40), Complete: true}})
		step(EvMessage{5, &wire.Lost{Blob: wire.Handle(1000 + k), Piece: 1}})
		if k%10 == 0 {
			if err := p.check(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(closed) < 4 || !strings.HasPrefix(closed[1], "limit: ") {
		t.Errorf("closed %v", closed)
	}
	for _, i := range []ConnID{0, 6, 7, 8} {
		if why := closed[i]; why != "" {
			t.Errorf("one that has 30 blobs open was closed: %s", why)
		}
	}
	for i := range 9 {
		step(EvDisconnected{ConnID(i)})
	}
	if err := p.check(); err != nil || p.strange != 0 {
		t.Errorf("%d bytes are left: %v", p.strange, err)
	}
}

// A newcomer displaces a connection that is of no use, or an old one, but a
// crowd of newcomers does not empty the house.
func TestSurplus(t *testing.T) {
	l := newLab(t)
	id := l.blob(64 * piece.MinLength)
	o := l.add("o", PeerConfig{Role: wire.RoleOrigin, MaxConns: 3})
	o.seed(id)
	refused := func(e *end) bool {
		for _, m := range heardOf[*wire.Error](e) {
			if m.Code == wire.CodeSurplus {
				return true
			}
		}
		return false
	}
	l.meet("o", id, wire.Open{Want: true}, "a", "b", "c")
	l.meet("o", id, wire.Open{Want: true}, "d")
	if !refused(l.ends["d"]) {
		t.Error("a fourth connection is accepted at once")
	}
	l.pass(10 * time.Second)
	l.meet("o", id, wire.Open{Want: true}, "e", "f", "g")
	if refused(l.ends["e"]) {
		t.Error("a newcomer is refused for ever")
	}
	if !refused(l.ends["f"]) || !refused(l.ends["g"]) {
		t.Error("three newcomers displace three at once")
	}
	if n := len(o.peer.list); n != 3 {
		t.Errorf("%d connections", n)
	}
}

// Strangers cannot make a node keep or do more than the stated bounds.
func TestFloods(t *testing.T) {
	data := make([]byte, piece.MinLength)
	for _, c := range []struct {
		name  string
		flood func(l *lab, x *end, conn ConnID, id piece.ID, k int)
		code  wire.Code
	}{
		{"opens", func(l *lab, x *end, conn ConnID, id piece.ID, k int) {
			id.Sum[5], id.Sum[6] = byte(k+1), byte((k+1)>>8)
			x.say(conn, &wire.Open{Blob: wire.Handle(100 + k), ID: id, Want: true})
		}, wire.CodeLimit},
		{"requests", func(l *lab, x *end, conn ConnID, id piece.ID, k int) {
			x.say(conn, &wire.Request{Blob: 9, Piece: uint32(k % 64), Offset: 1, Length: 1})
		}, wire.CodeLimit},
		{"requests for any piece", func(l *lab, x *end, conn ConnID, id piece.ID, k int) {
			x.say(conn, &wire.Request{Blob: 9, Piece: wire.AnyPiece, Length: piece.MaxBlock})
		}, 0},
		{"blocks", func(l *lab, x *end, conn ConnID, id piece.ID, k int) {
			x.say(conn, &wire.Block{Blob: 9, Piece: 1, Data: data})
		}, wire.CodeUnexpected},
		{"sums requests", func(l *lab, x *end, conn ConnID, id piece.ID, k int) {
			x.say(conn, &wire.SumsRequest{Blob: 9, From: 0, Count: 64})
		}, 0},
		{"closing and opening", func(l *lab, x *end, conn ConnID, id piece.ID, k int) {
			x.say(conn, &wire.Close{Blob: wire.Handle(9 + k)})
			x.say(conn, &wire.Open{Blob: wire.Handle(10 + k), ID: id, Want: true})
		}, 0},
		{"bad pieces", func(l *lab, x *end, conn ConnID, id piece.ID, k int) {
			x.say(conn, &wire.Bad{Blob: 9, Piece: uint32(k % 64)})
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			l.sparse = 64 // what is flooded makes the books long
			id := l.blob(64 * piece.MinLength)
			o := l.add("o", PeerConfig{})
			o.seed(id)
			o.silent = true
			conn := l.meet("o", id, wire.Open{Want: true}, "x")[0]
			x := l.ends["x"]
			sums := 0
			for k := range maxForeign + 10 {
				c.flood(l, x, conn, id, k)
				if k%10 == 0 {
					l.run()
					for _, s := range heardOf[*wire.Sums](x) {
						sums += len(s.States)
					}
				}
			}
			l.run()
			es := heardOf[*wire.Error](x)
			switch {
			case c.code == 0 && len(es) > 0:
				t.Errorf("closed with %v %q", es[0].Code, es[0].Text)
			case c.code != 0 && (len(es) != 1 || es[0].Code != c.code):
				t.Errorf("closed with %v, want %v", es, c.code)
			}
			if sums > sumsBurst+sumsRate {
				t.Errorf("%d bytes of sums were sent", sums)
			}
			if n := len(o.peer.blobs[id].rechecks.at); n > maxRechecks {
				t.Errorf("%d rechecks", n)
			}
		})
	}
}
