package swarm

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// meet connects strangers to a Peer, each of which opens id, and returns their
// connections. have is a bitfield; nil: none.
func (l *lab) meet(to string, id piece.ID, open wire.Open, names ...string) []ConnID {
	var cs []ConnID
	for _, n := range names {
		if l.ends[n] == nil {
			l.stranger(n)
		}
		c := l.connect(n, to)
		cs = append(cs, c)
		o := open
		o.Blob, o.ID = 9, id
		l.ends[n].say(c, &o)
	}
	l.run()
	return cs
}

// heardOf returns what a stranger has heard of a type since the last call.
func heardOf[M wire.Message](e *end) (ms []M) {
	var rest []wire.Message
	for _, m := range e.heard {
		if x, ok := m.(M); ok {
			ms = append(ms, x)
		} else {
			rest = append(rest, m)
		}
	}
	e.heard = rest
	return ms
}

func bitfield(t testing.TB, n int, pieces ...int) []byte {
	b := piece.NewBits(n)
	for _, i := range pieces {
		b.Set(i)
	}
	p, err := b.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// teach gives a Peer the sums of id, from a stranger.
func (l *lab) teach(e *end, c ConnID, id piece.ID) {
	s := l.sums[id]
	for from := 0; from < s.Len(); from += wire.MaxSums {
		e.say(c, &wire.Sums{Blob: 9, From: uint32(from), Proven: true, States: s.Range(from, wire.MaxSums)})
	}
	l.run()
}

// block answers a request.
func (l *lab) block(e *end, c ConnID, id piece.ID, r *wire.Request, queue int) {
	data := make([]byte, min(int(r.Length), id.PieceSize(int(r.Piece))-int(r.Offset)))
	e.say(c, &wire.Block{Blob: 9, Piece: r.Piece, Offset: r.Offset, Queue: uint16(queue), Data: data})
	l.run()
}

// Limits hold, both ways, and change at any moment.
func TestLimits(t *testing.T) {
	l := newLab(t)
	id := l.blob(2000 * piece.MinLength)
	o := l.add("o", PeerConfig{})
	o.seed(id)
	a := l.add("a", PeerConfig{})
	o.step(EvLimits{Up: 2 << 20})
	a.want(id)
	a.named(id, "o")
	measure := func(d time.Duration) float64 {
		before, _ := a.peer.Status(id)
		l.pass(d)
		after, _ := a.peer.Status(id)
		return float64(after.BytesIn-before.BytesIn) / d.Seconds() / (1 << 20)
	}
	measure(time.Second)
	if got := measure(5 * time.Second); got < 1.8 || got > 2.2 {
		t.Errorf("%.2f MiB/s with a limit of 2 up", got)
	}
	o.step(EvLimits{})
	a.step(EvLimits{Down: 3 << 20})
	measure(time.Second)
	if got := measure(5 * time.Second); got < 2.7 || got > 3.3 {
		t.Errorf("%.2f MiB/s with a limit of 3 down", got)
	}
	a.step(EvLimits{Down: 1 << 20})
	measure(time.Second)
	if got := measure(5 * time.Second); got < 0.9 || got > 1.1 {
		t.Errorf("%.2f MiB/s with a limit of 1 down", got)
	}
	a.step(EvLimits{})
	l.pass(time.Second)
	if a.complete != 1 {
		t.Error("not complete a second after the limits were lifted")
	}
}

// A disk that does not take a piece ends the blob, with the reason.
func TestStoreFails(t *testing.T) {
	l := newLab(t)
	id := l.blob(4 * piece.MinLength)
	a, o := l.add("a", PeerConfig{}), l.add("o", PeerConfig{})
	o.seed(id)
	a.want(id)
	a.stubborn = true
	a.named(id, "o")
	l.run()
	full := errors.New("no space left on device")
	ev := a.held[0].(EvStored)
	ev.Err = full
	a.step(ev)
	l.run()
	if len(a.failed) != 1 || !errors.Is(a.failed[0], full) || !strings.Contains(a.failed[0].Error(), id.Digest()) {
		t.Errorf("failed with %v", a.failed)
	}
	if _, ok := a.peer.Status(id); ok {
		t.Error("the blob is still joined")
	}
	for _, ev := range a.held {
		a.step(ev) // crosses; ignored
	}
}

// Leaving and joining again, wanting and not, in every order, leaves nothing
// behind.
func TestJoinLeave(t *testing.T) {
	l := newLab(t)
	id := l.blob(16 * piece.MinLength)
	o, a := l.add("o", PeerConfig{}), l.add("a", PeerConfig{})
	o.seed(id)
	a.want(id)
	a.named(id, "o")
	l.run()
	if a.complete != 1 {
		t.Fatal("not complete")
	}
	a.step(EvLeave{id})
	l.run()
	if s, _ := o.peer.Status(id); s.Peers != 0 {
		t.Errorf("o still counts %d peers", s.Peers)
	}
	a.complete = 0
	a.want(id)
	a.named(id, "o")
	l.pass(time.Second)
	if a.complete != 1 {
		t.Error("not complete the second time")
	}
	a.join(id, false, l.all(id), l.sums[id].Clone(), true) // to seed only
	l.pass(time.Second)
	a.step(EvLost{id, 3})
	a.have[id].Clear(3)
	l.run()
	a.join(id, true, piece.NewBits(16), nil, false) // wants again what it lacks
	a.have[id] = l.all(id)
	a.have[id].Clear(3)
	l.pass(time.Second)
	if s, _ := a.peer.Status(id); s.Have != 16 {
		t.Errorf("%d pieces of 16", s.Have)
	}
	a.step(EvLeave{id})
	o.step(EvLeave{id})
	l.pass(2 * time.Minute)
	for _, e := range []*end{a, o} {
		p := e.peer
		if len(p.blobs) != 0 || len(p.list) != 0 || len(p.nodes) != 0 || p.down.memory != 0 || !p.Deadline().IsZero() {
			t.Errorf("%s keeps %d blobs, %d connections, %d nodes, %d bytes, deadline %v",
				e.name, len(p.blobs), len(p.list), len(p.nodes), p.down.memory, p.Deadline())
		}
	}
}

// BenchmarkPeer moves blocks from one Peer to another, without sockets: the
// machine's own cost per block of 128 KiB.
func BenchmarkPeer(b *testing.B) {
	l := newLab(b)
	id := l.blob(100 << 30)
	seed := NewPeer(PeerConfig{Node: "s", Role: wire.RoleOrigin})
	get := NewPeer(PeerConfig{Node: "g"})
	now := l.now
	have := piece.NewBits(id.Pieces())
	have.SetAll()
	type mail struct {
		p  *Peer
		ev Event
	}
	var box []mail
	data := make([]byte, piece.MaxBlock)
	blocks := 0
	perform := func(p, o *Peer, acts []Action) {
		for _, a := range acts {
			switch a := a.(type) {
			case ActSend:
				box = append(box, mail{o, EvMessage{1, a.Message}})
			case ActSendBlock:
				blocks++
				box = append(box, mail{p, EvBlockSent{1, a.Length}},
					mail{o, EvMessage{1, &wire.Block{
						Blob: a.Handle, Piece: uint32(a.Piece), Offset: uint32(a.Offset), Queue: a.Queue, Data: data[:a.Length],
					}}})
			case ActStore:
				box = append(box, mail{p, EvStored{ID: a.ID, Piece: a.Piece}})
			}
		}
	}
	step := func(p *Peer, ev Event) {
		o := seed
		if p == seed {
			o = get
		}
		perform(p, o, p.Step(now, ev))
	}
	step(seed, EvJoin{ID: id, Have: have, Sums: l.sums[id].Clone(), Proven: true})
	step(get, EvJoin{ID: id, Want: true})
	step(get, EvPeers{ID: id, Peers: []PeerInfo{{Node: "s", Addr: "s", Role: wire.RoleOrigin}}})
	step(seed, EvConnected{Conn: 1, Inbound: true, Peer: wire.Hello{Node: "g", Role: wire.RoleAgent}})
	step(get, EvConnected{Conn: 1, Peer: wire.Hello{Node: "s", Role: wire.RoleOrigin}})
	b.SetBytes(piece.MaxBlock)
	b.ReportAllocs()
	for b.Loop() {
		for want := blocks + 1; blocks < want; {
			now = now.Add(20 * time.Microsecond)
			if len(box) == 0 {
				step(get, EvTick{})
				step(seed, EvTick{})
				if get.blobs[id].have.Full() {
					b.Skip("all is sent")
				}
				continue
			}
			m := box[0]
			box = box[1:]
			step(m.p, m.ev)
		}
	}
}
