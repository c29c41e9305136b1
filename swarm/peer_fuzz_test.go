package swarm

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// chaos feeds a Peer events without sense, from strangers and from its own
// driver, chosen by next, and checks its books after each.
type chaos struct {
	t     testing.TB
	p     *Peer
	now   time.Time
	next  func(n int) int // 0..n-1
	ids   []piece.ID
	known []ConnID // connections that exist
	ever  ConnID
}

func (c *chaos) id() piece.ID { return c.ids[c.next(len(c.ids))] }

func (c *chaos) conn() ConnID {
	if len(c.known) == 0 || c.next(20) == 0 {
		return ConnID(c.next(int(c.ever) + 2))
	}
	return c.known[c.next(len(c.known))]
}

func (c *chaos) name() string { return fmt.Sprintf("n%d", c.next(12)) }

// piece is mostly one that exists.
func (c *chaos) piece() uint32 {
	switch c.next(12) {
	case 0:
		return wire.AnyPiece
	case 1:
		return uint32(c.next(1 << 20))
	}
	return uint32(c.next(9))
}

func (c *chaos) bits(n int) *piece.Bits {
	b := piece.NewBits(n)
	if c.next(4) == 0 {
		b.SetAll()
		return b
	}
	for i := range n {
		if c.next(3) == 0 {
			b.Set(i)
		}
	}
	return b
}

func (c *chaos) states(n int) []byte {
	b := make([]byte, 32*n)
	if c.next(4) > 0 {
		return b // all alike, so that lists can agree
	}
	for i := range b {
		b[i] = byte(c.next(2))
	}
	return b
}

func (c *chaos) message() wire.Message {
	h := wire.Handle(c.next(6))
	switch c.next(17) {
	case 0, 1:
		m := &wire.Open{Blob: h, ID: c.id(), Want: c.next(2) == 0}
		switch c.next(4) {
		case 0:
			m.Complete = true
		case 1:
			m.Bits, _ = c.bits(m.ID.Pieces()).AppendBinary(nil)
		case 2:
			m.Bits = make([]byte, c.next(4))
		}
		return m
	case 2:
		return &wire.Close{Blob: h}
	case 3, 4:
		m := &wire.Have{Blob: h}
		for range 1 + c.next(4) {
			m.Pieces = append(m.Pieces, c.piece())
		}
		return m
	case 5:
		return &wire.SumsRequest{Blob: h, From: uint32(c.next(10)), Count: uint32(1 + c.next(10))}
	case 6, 7:
		return &wire.Sums{Blob: h, From: uint32(c.next(8)), Proven: c.next(2) == 0, States: c.states(c.next(9))}
	case 8, 9:
		m := &wire.Request{Blob: h, Piece: c.piece(), Offset: uint32(c.next(3)) * piece.MaxBlock, Length: piece.MaxBlock}
		if c.next(3) == 0 {
			m.Length = uint32(c.next(1 << 18))
		}
		return m
	case 10, 11, 12:
		m := &wire.Block{Blob: h, Piece: c.piece(), Offset: uint32(c.next(2)) * piece.MaxBlock, Queue: uint16(c.next(9)),
			Data: make([]byte, piece.MaxBlock)}
		if n := c.ids[c.next(len(c.ids))].PieceSize(int(m.Piece)); n > 0 && c.next(3) > 0 {
			m.Data = m.Data[:min(n, piece.MaxBlock)]
		}
		return m
	case 13:
		return &wire.Busy{Blob: h, Piece: c.piece(), Queue: uint16(c.next(9)), Retry: uint16(c.next(2000))}
	case 14:
		return &wire.Lost{Blob: h, Piece: c.piece()}
	case 15:
		return &wire.Cancel{Blob: h, Piece: c.piece()}
	}
	switch c.next(8) {
	case 0:
		return &wire.Error{Code: wire.Code(c.next(30)), Text: "x"}
	case 1:
		return &wire.Hello{Node: c.name()}
	case 2, 3:
		return &wire.Ping{}
	}
	return &wire.Bad{Blob: h, Piece: c.piece()}
}

func (c *chaos) event() Event {
	id := c.id()
	switch c.next(40) {
	case 0:
		sums := piece.NewSums(id)
		if c.next(2) == 0 {
			_ = sums.Append(make([]byte, id.Alg.Size()*sums.MaxLen()))
		}
		return EvJoin{ID: id, Want: c.next(3) > 0, Priority: c.next(3), Have: c.bits(id.Pieces()), Sums: sums, Proven: c.next(2) == 0}
	case 1:
		if c.next(6) == 0 {
			return EvLeave{id}
		}
	case 2:
		from := c.next(4)
		return EvLocal{ID: id, From: from, To: from + c.next(3), States: c.states(c.next(3))}
	case 3:
		return EvProven{id}
	case 4:
		return EvLost{id, c.next(10) - 1}
	case 5:
		if c.next(2) == 0 {
			return EvShare{id, uint16(c.next(1 << 16))}
		}
		return EvIntact{id, c.next(10)}
	case 6, 7:
		ev := EvPeers{ID: id}
		for range c.next(4) {
			n := c.name()
			ev.Peers = append(ev.Peers, PeerInfo{Node: n, Addr: n, Source: c.next(4) == 0, Role: wire.Role(c.next(3)), Zone: fmt.Sprint(c.next(2))})
		}
		return ev
	case 8:
		return EvPeersGone{id, []string{c.name()}}
	case 9:
		if c.next(4) == 0 {
			ev := EvSumsHash{ID: id}
			s := piece.NewSums(id)
			_ = s.Append(make([]byte, id.Alg.Size()*s.MaxLen()))
			if c.next(2) == 0 {
				ev.Hash = s.Hash()
			}
			return ev
		}
	case 10, 11:
		c.ever++
		c.known = append(c.known, c.ever)
		return EvConnected{Conn: c.ever, Inbound: c.next(2) == 0, Peer: wire.Hello{Node: c.name(), Role: wire.Role(1 + c.next(2)), Addr: "x"}}
	case 12:
		if c.next(3) == 0 {
			return EvDisconnected{c.conn()}
		}
	case 13:
		return EvDialFailed{Node: c.name()}
	case 14, 15:
		if c.next(4) == 0 {
			return EvHeard{c.conn(), time.Duration(c.next(2)) * time.Hour}
		}
		return EvBlockSent{c.conn(), c.next(piece.MaxBlock)}
	case 16:
		if c.next(6) == 0 {
			return EvLimits{int64(c.next(3)) * 1e6, int64(c.next(3)) * 1e6}
		}
	case 17, 18, 19:
		c.now = c.now.Add(time.Duration(c.next(1<<16)) * time.Duration(1+c.next(1<<14)))
		return EvTick{}
	case 20, 21:
		ev := EvStored{ID: id, Piece: c.next(9)}
		switch c.next(4) {
		case 0:
			ev.Err = fmt.Errorf("x: %w", piece.ErrMismatch)
			ev.Hash[0] = byte(c.next(3))
		case 1:
			if c.next(8) == 0 {
				ev.Err = errors.New("disk")
			}
		}
		return ev
	}
	return EvMessage{c.conn(), c.message()}
}

// sensible returns an event that fits the Peer's state, or nil: without these,
// every conversation would end at its first word.
func (c *chaos) sensible() Event {
	switch c.next(8) {
	case 0: // the driver has stored a piece
		b := c.p.blobs[c.id()]
		if b == nil || len(b.flight.storing) == 0 {
			return nil
		}
		first := b.n
		for i := range b.flight.storing {
			first = min(first, i)
		}
		ev := EvStored{ID: b.id, Piece: first}
		if c.next(4) == 0 {
			ev.Err = fmt.Errorf("x: %w", piece.ErrMismatch)
			ev.Hash[0] = byte(c.next(3))
		}
		return ev
	case 1:
		for _, k := range c.p.list {
			if k.out.inDriver > 0 && c.next(2) == 0 {
				return EvBlockSent{k.id, piece.MaxBlock}
			}
		}
		return nil
	case 2:
		if c.next(4) == 0 {
			c.ever++
			c.known = append(c.known, c.ever)
			return EvConnected{Conn: c.ever, Inbound: c.next(2) == 0, Peer: wire.Hello{Node: c.name(), Role: wire.Role(1 + c.next(2)), Addr: "x"}}
		}
	}
	if len(c.p.list) == 0 {
		return nil
	}
	k := c.p.list[c.next(len(c.p.list))]
	id := c.id()
	l := k.swarms.byID[id]
	n := id.Pieces()
	if l == nil || !l.open {
		h := wire.Handle(c.next(100))
		for k.swarms.remote[h] != nil {
			h++
		}
		m := &wire.Open{Blob: h, ID: id, Want: c.next(3) > 0}
		switch c.next(3) {
		case 0:
			m.Complete = true
		case 1:
			m.Bits, _ = c.bits(n).AppendBinary(nil)
		}
		return EvMessage{k.id, m}
	}
	i := c.next(n)
	if k := c.next(3); k > 0 && i+k < n {
		i %= 6
	}
	var m wire.Message
	switch c.next(9) {
	case 0:
		m = &wire.Have{Blob: l.remote, Pieces: []uint32{uint32(i)}}
	case 1:
		from := max(0, min(c.next(id.Pieces()), n-1))
		m = &wire.Sums{Blob: l.remote, Proven: c.next(3) == 0, States: make([]byte, id.Alg.Size()*min(from, n-1))}
		if b := l.blob; b != nil && c.next(4) > 0 {
			have := b.sums.list.Len()
			m = &wire.Sums{Blob: l.remote, From: uint32(have), Proven: c.next(3) == 0,
				States: make([]byte, id.Alg.Size()*min(n-1-have, 1+c.next(1000)))}
		}
	case 2:
		m = &wire.Request{Blob: l.remote, Piece: uint32(i), Length: uint32(min(piece.MaxBlock, id.PieceSize(i)))}
		if c.next(2) == 0 {
			m = &wire.Request{Blob: l.remote, Piece: wire.AnyPiece, Length: piece.MaxBlock}
		}
	case 3, 4, 5, 6:
		if len(k.pipe.attempts) == 0 || l.any > 0 && c.next(2) == 0 {
			if l.any == 0 {
				return nil
			}
			if c.next(4) == 0 {
				m = &wire.Busy{Blob: l.remote, Piece: wire.AnyPiece, Retry: uint16(c.next(50))}
				break
			}
			m = &wire.Block{Blob: l.remote, Piece: uint32(i), Queue: uint16(c.next(3)), Data: make([]byte, min(piece.MaxBlock, id.PieceSize(i)))}
			break
		}
		a := k.pipe.attempts[c.next(len(k.pipe.attempts))]
		switch c.next(12) {
		case 0:
			m = &wire.Busy{Blob: a.l.remote, Piece: uint32(a.i), Offset: uint32(a.got), Retry: uint16(c.next(50))}
		case 1:
			m = &wire.Lost{Blob: a.l.remote, Piece: uint32(a.i)}
		default:
			m = &wire.Block{Blob: a.l.remote, Piece: uint32(a.i), Offset: uint32(a.got), Queue: uint16(c.next(3)),
				Data: make([]byte, min(piece.MaxBlock, a.size-a.got))}
		}
	case 7:
		m = &wire.Cancel{Blob: l.remote, Piece: uint32(i)}
	case 8:
		switch c.next(4) {
		case 0:
			m = &wire.Lost{Blob: l.remote, Piece: uint32(i)}
		case 1:
			m = &wire.Close{Blob: l.remote}
		default:
			m = &wire.Bad{Blob: l.remote, Piece: uint32(i)}
		}
	}
	return EvMessage{k.id, m}
}

func newChaos(t testing.TB, seed uint64, next func(n int) int) *chaos {
	c := &chaos{t: t, now: time.Unix(1_800_000_000, 0), next: next}
	for k, size := range []int64{5 * piece.MinLength, 700_000_000, 100} {
		id := piece.ID{Alg: piece.SHA256, Size: size}
		id.Sum[0] = byte(k)
		c.ids = append(c.ids, id)
	}
	c.ids = append(c.ids, piece.ID{Alg: piece.SHA512, Sum: piece.Sum{9}, Size: 3*piece.MinLength + 1})
	cfg := PeerConfig{Node: "n3", Seed: seed, MaxConns: 4}
	if next(3) == 0 {
		cfg.Role = wire.RoleOrigin
	}
	c.p = NewPeer(cfg)
	return c
}

func (c *chaos) step() {
	var ev Event
	switch c.next(40) {
	case 0, 1:
	case 2:
		ev = EvTick{}
		c.now = c.now.Add(time.Duration(c.next(1<<15)) * time.Microsecond * 100)
	default:
		ev = c.sensible()
	}
	if ev == nil {
		ev = c.event()
	}
	acts := c.p.Step(c.now, ev)
	for _, a := range acts {
		if a, ok := a.(ActClose); ok {
			for k, id := range c.known {
				if id == a.Conn {
					c.known = append(c.known[:k], c.known[k+1:]...)
					break
				}
			}
		}
	}
	if err := c.p.check(); err != nil {
		c.t.Fatalf("after %T%+v: %v", ev, ev, err)
	}
	switch {
	case len(acts) > 20_000:
		c.t.Fatalf("%d actions after %T%+v", len(acts), ev, ev)
	case len(c.p.nodes) > 20:
		c.t.Fatalf("%d nodes are remembered of 12", len(c.p.nodes))
	case c.p.down.memory > c.p.cfg.Memory+int64(len(c.ids))*2*piece.MaxLength:
		c.t.Fatalf("%d bytes of pieces are held", c.p.down.memory)
	}
	if d := c.p.Deadline(); !d.IsZero() && d.Before(c.now) && c.p.now >= c.p.next {
		c.t.Fatalf("deadline %v is past", c.now.Sub(d))
	}
}

// Whatever comes, in whatever order, the Peer's books are right.
func TestChaos(t *testing.T) {
	seeds := uint64(12)
	if testing.Short() {
		seeds = 3
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 7))
		c := newChaos(t, seed, rng.IntN)
		for range 2000 {
			c.step()
		}
	}
}

func FuzzStep(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 4 {
		b := make([]byte, 400)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		next := func(n int) int {
			v := 0
			for k := 1; k < n && len(data) > 0; k <<= 8 {
				v = v<<8 | int(data[0])
				data = data[1:]
			}
			return v % n
		}
		c := newChaos(t, 1, next)
		for range 5000 {
			if len(data) == 0 {
				return
			}
			c.step()
		}
	})
}
