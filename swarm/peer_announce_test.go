package swarm

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// A new piece is announced to a few neighbours at a time, to each once, and at
// once to whoever is sent something else.
func TestHaveTurns(t *testing.T) {
	l := newLab(t)
	id := l.blob(64 * piece.MinLength)
	a := l.add("a", PeerConfig{})
	a.want(id)
	var names []string
	for k := range 12 {
		names = append(names, fmt.Sprintf("x%d", k))
	}
	cs := l.meet("a", id, wire.Open{Want: true}, names...)
	a.have[id].Set(0)
	a.step(EvLocal{ID: id, From: 0, To: 1, States: l.sums[id].Range(0, 1)})
	l.run()
	told := map[string]int{}
	count := func() int {
		for _, n := range names {
			for _, h := range heardOf[*wire.Have](l.ends[n]) {
				told[n] += len(h.Pieces)
			}
		}
		return len(told)
	}
	if n := count(); n != haveAtOnce {
		t.Errorf("%d are told at once, want %d", n, haveAtOnce)
	}
	for k, n := range names {
		if told[n] == 0 {
			l.ends[n].say(cs[k], &wire.Request{Blob: 9, Piece: 0, Length: piece.MinLength})
			l.run()
			if count(); told[n] != 1 {
				t.Errorf("%s is sent a block without being told of the piece", n)
			}
			break
		}
	}
	l.pass(45 * time.Millisecond)
	if n := count(); n != len(names) {
		t.Errorf("%d of %d are told in the end", n, len(names))
	}
	for n, k := range told {
		if k != 1 {
			t.Errorf("%s is told %d times", n, k)
		}
	}
}

// Who has got everything while an announcement waited for its turn is not told of a
// piece by one who wants nothing.
func TestNoNewsForTheComplete(t *testing.T) {
	l := newLab(t)
	const n = 8
	id := l.blob(n * piece.MinLength)
	a := l.add("a", PeerConfig{})
	a.join(id, false, piece.NewBits(n), nil, false) // a source that gets its pieces elsewhere
	names := []string{"x0", "x1", "x2", "x3", "x4", "x5"}
	cs := l.meet("a", id, wire.Open{Want: true}, names...)
	a.have[id].Set(0)
	a.step(EvLocal{ID: id, From: 0, To: 1, States: l.sums[id].Range(0, 1)})
	l.run()
	last := l.ends["x5"] // four have their turn at once
	all := make([]uint32, n)
	for i := range all {
		all[i] = uint32(i)
	}
	last.say(cs[5], &wire.Have{Blob: 9, Pieces: all})
	l.pass(time.Second)
	for _, name := range names[:5] {
		if len(heardOf[*wire.Have](l.ends[name])) != 1 {
			t.Errorf("%s, which wants the piece, is not told of it", name)
		}
	}
	if h := heardOf[*wire.Have](last); len(h) > 0 {
		t.Errorf("x5, which has all, is told of %d", h[0].Pieces)
	}
}

// Haves are collected for some milliseconds, and not sent to downloaders that
// have the piece; they learn it when we are complete.
func TestHavesBatched(t *testing.T) {
	l := newLab(t)
	id := l.blob(6 * piece.MinLength)
	a := l.add("a", PeerConfig{})
	a.join(id, true, piece.NewBits(6), l.sums[id].Clone(), false)
	cx := l.meet("a", id, wire.Open{Want: true, Bits: bitfield(t, 6, 0, 1)}, "x")[0]
	l.meet("a", id, wire.Open{}, "y")
	x := l.ends["x"]
	for _, r := range heardOf[*wire.Request](x) {
		l.block(x, cx, id, r, 0)
	}
	cz := l.meet("a", id, wire.Open{Bits: bitfield(t, 6, 2)}, "z")[0]
	for _, r := range heardOf[*wire.Request](l.ends["z"]) {
		l.block(l.ends["z"], cz, id, r, 0)
	}
	l.pass(3 * time.Millisecond)
	if h := heardOf[*wire.Have](x); len(h) > 0 {
		t.Errorf("%v is announced at once", h)
	}
	l.pass(20 * time.Millisecond)
	if h := heardOf[*wire.Have](x); len(h) != 1 || !slices.Equal(h[0].Pieces, []uint32{2}) {
		t.Errorf("announced %v, want one Have of piece 2", h)
	}
	if h := heardOf[*wire.Have](l.ends["y"]); len(h) > 0 {
		t.Errorf("%v is announced to a peer that does not want it", h)
	}
	for i := range 6 {
		a.have[id].Set(i)
	}
	a.step(EvLocal{ID: id, From: 0, To: 6, States: l.sums[id].Bytes()})
	l.run()
	var told []uint32
	for _, h := range heardOf[*wire.Have](x) {
		told = append(told, h.Pieces...)
	}
	slices.Sort(told)
	if !slices.Equal(told, []uint32{0, 1, 3, 4, 5}) {
		t.Errorf("at the end %d is announced, want all but piece 2", told)
	}
	if a.complete != 1 {
		t.Errorf("completed %d times", a.complete)
	}
}

// A peer that leaves a swarm and comes back learns of the pieces that came in
// between, although ours is the same membership all along.
func TestComesBack(t *testing.T) {
	l := newLab(t)
	id := l.blob(8 * piece.MinLength)
	s, a := l.add("s", PeerConfig{}), l.add("a", PeerConfig{})
	s.join(id, false, piece.NewBits(8), nil, false) // a source that has nothing yet
	a.want(id)
	a.named(id, "s")
	l.run()
	a.step(EvLeave{id})
	l.run()
	s.have[id] = l.all(id)
	s.step(EvLocal{id, 0, 8, l.sums[id].Bytes()})
	l.pass(100 * time.Millisecond)
	a.want(id)
	l.pass(100 * time.Millisecond)
	if a.complete != 1 {
		st, _ := a.peer.Status(id)
		t.Errorf("%d pieces of 8 after it came back", st.Have)
	}
}
