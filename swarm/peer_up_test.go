package swarm

import (
	"testing"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// A seeder hands out each piece once before it hands out any twice, and not
// what the requester has.
func TestLeastSentFirst(t *testing.T) {
	l := newLab(t)
	id := l.blob(64 * piece.MinLength)
	o := l.add("o", PeerConfig{Role: wire.RoleOrigin})
	o.seed(id)
	names := []string{"x", "y", "z", "w"}
	cs := l.meet("o", id, wire.Open{Want: true, Bits: bitfield(t, 64, 5, 6)}, names...)
	sent := make(map[uint32]int)
	for round := range 62 * 2 {
		e := l.ends[names[round%4]]
		e.say(cs[round%4], &wire.Request{Blob: 9, Piece: wire.AnyPiece, Length: piece.MaxBlock})
		l.run()
		bs := heardOf[*wire.Block](e)
		if len(bs) != 1 {
			t.Fatalf("round %d: %d blocks", round, len(bs))
		}
		i := bs[0].Piece
		if i == 5 || i == 6 {
			t.Fatalf("round %d: piece %d, which the requester has", round, i)
		}
		if sent[i]++; sent[i] > 1+round/62 {
			t.Fatalf("round %d: piece %d for the %dth time, before others", round, i, sent[i])
		}
	}
}

// Beyond its queue, a seeder that has measured its uplink says when to come
// back; each crowd member has one AnyPiece request at a time.
func TestBusy(t *testing.T) {
	l := newLab(t)
	id := l.blob(64 * piece.MinLength)
	o := l.add("o", PeerConfig{Role: wire.RoleOrigin, Up: 1 << 20, UpQueue: 4})
	o.seed(id)
	o.slow = true
	names := []string{"a", "b", "c", "d", "e", "f", "g"}
	cs := l.meet("o", id, wire.Open{Want: true}, names...)
	ask := func(k int) []*wire.Busy {
		l.ends[names[k]].say(cs[k], &wire.Request{Blob: 9, Piece: wire.AnyPiece, Length: piece.MaxBlock})
		l.run()
		return heardOf[*wire.Busy](l.ends[names[k]])
	}
	for k := range 4 {
		if b := ask(k); len(b) != 0 {
			t.Fatalf("request %d is refused", k)
		}
	}
	if b := ask(1); len(b) != 1 {
		t.Errorf("a second AnyPiece request of a peer is admitted while others wait")
	}
	last := uint16(0)
	for k := 4; k < 7; k++ {
		b := ask(k)
		if len(b) != 1 {
			t.Fatalf("request %d is admitted to a queue of 4", k)
		}
		if b[0].Retry <= last || b[0].Retry > 1000 {
			t.Errorf("peer %d is to come back after %d ms, the one before it after %d", k, b[0].Retry, last)
		}
		last = b[0].Retry
	}
	if got := len(o.peer.up.uploads); got != 4 {
		t.Errorf("%d pieces wait, want 4", got)
	}
	// A lone peer is not held to that.
	l = newLab(t)
	id = l.blob(64 * piece.MinLength)
	o = l.add("o", PeerConfig{Role: wire.RoleOrigin})
	o.seed(id)
	o.slow = true
	cs = l.meet("o", id, wire.Open{Want: true}, "x")
	for i := range 40 {
		l.ends["x"].say(cs[0], &wire.Request{Blob: 9, Piece: uint32(i), Length: piece.MinLength})
	}
	l.run()
	if b := heardOf[*wire.Busy](l.ends["x"]); len(b) > 0 {
		t.Errorf("a lone requester is refused %d times", len(b))
	}
}

// When a piece's first block was refused those that were requested after it are
// refused too, even if there is room by now: the requester is starting over elsewhere.
func TestBusyTail(t *testing.T) {
	l := newLab(t)
	id := l.blob(60 << 30) // pieces of many blocks
	o := l.add("o", PeerConfig{Role: wire.RoleOrigin, Up: 1 << 20})
	o.seed(id)
	o.slow = true
	names := []string{"a", "b", "c", "d", "x"}
	cs := l.meet("o", id, wire.Open{Want: true}, names...)
	request := func(k, i, off int) (busy int) {
		l.ends[names[k]].say(cs[k], &wire.Request{Blob: 9, Piece: uint32(i), Offset: uint32(off), Length: piece.MaxBlock})
		l.run()
		return len(heardOf[*wire.Busy](l.ends[names[k]]))
	}
	for k := range 4 {
		request(k, k, 0)
	}
	if request(4, 9, 0) != 1 {
		t.Fatal("a fifth piece is admitted")
	}
	for k := range 4 {
		l.ends[names[k]].say(cs[k], &wire.Cancel{Blob: 9, Piece: uint32(k)})
	}
	l.run()
	if request(4, 9, piece.MaxBlock) != 1 {
		t.Error("the second block of a refused piece is admitted")
	}
	if request(4, 10, 0) != 0 {
		t.Error("another piece is refused although there is room")
	}
	l.pass(2 * uploadIdle)
	if request(4, 9, piece.MaxBlock) != 0 {
		t.Error("a refused piece is refused for ever")
	}
}
