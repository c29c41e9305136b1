package swarm

import (
	"errors"
	"fmt"
	"slices"
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
	e.say(c, &wire.Block{Blob: 9, Piece: r.Piece, Offset: r.Offset, Queue: uint16(queue), Data: make([]byte, min(int(r.Length), id.PieceSize(int(r.Piece))-int(r.Offset)))})
	l.run()
}

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

// The requester stays away as long as it was told to.
func TestBusyIsRespected(t *testing.T) {
	l := newLab(t)
	id := l.blob(64 * piece.MinLength)
	a := l.add("a", PeerConfig{})
	a.want(id)
	cs := l.meet("a", id, wire.Open{Complete: true}, "x")
	x := l.ends["x"]
	l.teach(x, cs[0], id)
	r := heardOf[*wire.Request](x)
	if len(r) != 1 || r[0].Piece != wire.AnyPiece {
		t.Fatalf("requests %v, want one for any piece", r)
	}
	x.say(cs[0], &wire.Busy{Blob: 9, Piece: wire.AnyPiece, Retry: 700})
	l.pass(690 * time.Millisecond)
	if r := heardOf[*wire.Request](x); len(r) > 0 {
		t.Errorf("asked again before the time: %v", r)
	}
	l.pass(20 * time.Millisecond)
	if r := heardOf[*wire.Request](x); len(r) != 1 {
		t.Errorf("%d requests after the time, want 1", len(r))
	}
}

// The window is bounded in pieces, and in bytes when pieces are large.
func TestWindow(t *testing.T) {
	for _, c := range []struct {
		size   int64
		pieces int
	}{
		{1000 * piece.MinLength, 8},
		{60 << 30, 4}, // 8 MiB each
	} {
		l := newLab(t)
		id := l.blob(c.size)
		a := l.add("a", PeerConfig{})
		a.want(id)
		var names []string
		for k := range 20 {
			names = append(names, fmt.Sprintf("x%d", k))
		}
		cs := l.meet("a", id, wire.Open{Complete: true}, names...)
		l.teach(l.ends["x0"], cs[0], id)
		if got := a.peer.down.active; got != c.pieces {
			t.Errorf("%d bytes: %d pieces of %d bytes under way, want %d", c.size, got, id.Length(), c.pieces)
		}
		if a.peer.memory > a.peer.cfg.BlobMemory {
			t.Errorf("%d bytes of pieces, more than %d", a.peer.memory, a.peer.cfg.BlobMemory)
		}
	}
}

// The least loaded neighbour is asked: the one whose replies say so.
func TestLeastLoaded(t *testing.T) {
	l := newLab(t)
	id := l.blob(200 * piece.MinLength)
	a := l.add("a", PeerConfig{Window: 2})
	a.want(id)
	all := make([]int, 100)
	for i := range all {
		all[i] = i
	}
	cs := l.meet("a", id, wire.Open{Want: true, Bits: bitfield(t, 200, all...)}, "x", "y")
	x, y := l.ends["x"], l.ends["y"]
	l.teach(x, cs[0], id)
	nx, ny := 0, 0
	for range 30 {
		for _, r := range heardOf[*wire.Request](x) {
			nx++
			l.block(x, cs[0], id, r, 30)
		}
		for _, r := range heardOf[*wire.Request](y) {
			ny++
			l.block(y, cs[1], id, r, 2)
		}
	}
	if nx*3 > ny {
		t.Errorf("the loaded neighbour was asked %d times, the other %d", nx, ny)
	}
}

// The rarest pieces are asked for first.
func TestRarestFirst(t *testing.T) {
	l := newLab(t)
	id := l.blob(100 * piece.MinLength)
	a := l.add("a", PeerConfig{Window: 1})
	a.want(id)
	common := []int{10, 11, 12, 13, 14, 15, 16, 17, 18, 19}
	cs := l.meet("a", id, wire.Open{Want: true, Bits: bitfield(t, 100, common...)}, "u", "v", "w")
	cs = append(cs, l.meet("a", id, wire.Open{Want: true, Bits: bitfield(t, 100, append(common, 77)...)}, "x")...)
	// They all hold back their answers but x, which is asked for 77 as soon as it
	// is asked for anything.
	l.teach(l.ends["u"], cs[0], id)
	for range 20 {
		for k, n := range []string{"u", "v", "w", "x"} {
			for _, r := range heardOf[*wire.Request](l.ends[n]) {
				if n == "x" {
					if r.Piece != 77 {
						t.Errorf("x was asked for %d first", r.Piece)
					}
					return
				}
				l.block(l.ends[n], cs[k], id, r, 0)
			}
		}
	}
	t.Error("x was never asked")
}

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
	if n := count(); n != haveFew {
		t.Errorf("%d are told at once, want %d", n, haveFew)
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

// When nothing else is left, a piece that is slow to come is asked from a second
// peer, and what is no longer needed is cancelled.
func TestEndgame(t *testing.T) {
	l := newLab(t)
	id := l.blob(2 * piece.MinLength)
	a := l.add("a", PeerConfig{})
	a.want(id, 0)
	cs := l.meet("a", id, wire.Open{Complete: true}, "x", "y")
	l.pass(100 * time.Millisecond)
	slow, fast, c := l.ends["x"], l.ends["y"], cs[1]
	r := heardOf[*wire.Request](slow)
	if len(r) == 0 {
		slow, fast, c = fast, slow, cs[0]
		r = heardOf[*wire.Request](slow)
	}
	if len(r) != 1 || len(heardOf[*wire.Request](fast)) > 0 {
		t.Fatalf("requests %v, want one in all", r)
	}
	l.pass(250 * time.Millisecond)
	r = heardOf[*wire.Request](fast)
	if len(r) != 1 || r[0].Piece != 1 {
		t.Fatalf("the second peer is asked for %v, want piece 1", r)
	}
	l.block(fast, c, id, r[0], 0)
	if k := heardOf[*wire.Cancel](slow); len(k) != 1 || k[0].Piece != 1 {
		t.Errorf("cancelled %v, want piece 1", k)
	}
	if a.complete != 1 {
		t.Error("not complete")
	}
}

// The end game costs little: second requests stay within half a percent.
func TestEndgameBudget(t *testing.T) {
	l := newLab(t)
	id := l.blob(1000 * piece.MinLength)
	a := l.add("a", PeerConfig{Window: 100})
	var have []int
	for i := range 940 {
		have = append(have, i)
	}
	a.want(id, have...)
	var names []string
	for k := range 20 {
		names = append(names, fmt.Sprintf("x%d", k))
	}
	l.meet("a", id, wire.Open{Complete: true}, names...)
	for range 8 { // lest a connection's depth keep requests back
		l.pass(150 * time.Millisecond)
	}
	n := 0
	for _, name := range names {
		n += len(heardOf[*wire.Request](l.ends[name]))
	}
	if n > 60+5 {
		t.Errorf("%d requests for 60 pieces of 1000, want at most 5 twice", n)
	}
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

// The blob with the lower priority number comes first.
func TestPriority(t *testing.T) {
	l := newLab(t)
	first, second := l.blob(20*piece.MinLength), l.blob(20*piece.MinLength)
	o := l.add("o", PeerConfig{})
	o.seed(first)
	o.seed(second)
	a := l.add("a", PeerConfig{})
	a.have[first], a.have[second] = piece.NewBits(20), piece.NewBits(20)
	a.step(EvJoin{ID: second, Want: true, Priority: 1, Have: piece.NewBits(20)})
	a.step(EvJoin{ID: first, Want: true, Priority: 0, Have: piece.NewBits(20)})
	o.step(EvLimits{Up: 1 << 20})
	a.named(second, "o")
	a.named(first, "o")
	l.pass(1200 * time.Millisecond)
	s1, _ := a.peer.Status(first)
	s2, _ := a.peer.Status(second)
	if s1.Have < 15 || s2.Have > 4 {
		t.Errorf("after a while there are %d pieces of the first and %d of the second", s1.Have, s2.Have)
	}
	l.pass(3 * time.Second)
	if a.complete != 2 {
		t.Errorf("%d of 2 are complete", a.complete)
	}
}

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

// A banned node is let in again when its time is over.
func TestBanEnds(t *testing.T) {
	l := newLab(t)
	id := l.blob(4 * piece.MinLength)
	a := l.add("a", PeerConfig{BanFor: time.Minute})
	x, y := l.add("x", PeerConfig{}), l.add("y", PeerConfig{})
	x.seed(id)
	x.corrupt = 1
	y.seed(id)
	a.want(id)
	l.connect("a", "x")
	l.run()
	a.named(id, "x", "y")
	l.pass(5 * time.Second)
	if a.complete != 1 {
		t.Fatal("not complete")
	}
	if n := a.peer.nodes["x"]; n == nil || n.banned == 0 {
		t.Fatal("x is not cut off")
	}
	l.pass(time.Minute)
	l.connect("x", "a")
	l.run()
	if n := a.peer.nodes["x"]; n == nil || n.conn == nil {
		t.Error("x is still cut off")
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

// With the list's hash known, three sources that agree against it end the blob, or
// two that insist; nobody is convicted.
func TestPinnedSumsDisproved(t *testing.T) {
	for _, sources := range [][]string{{"x", "y", "z"}, {"x", "y"}} {
		l := newLab(t)
		id := l.blob(4 * piece.MinLength)
		a := l.add("a", PeerConfig{})
		a.want(id)
		a.step(EvSumsHash{id, l.sums[id].Hash()})
		for _, n := range sources {
			e := l.add(n, PeerConfig{})
			e.seed(id)
			e.corrupt = 1
		}
		a.named(id, sources...)
		l.pass(10 * time.Second)
		if len(a.failed) != 1 || !errors.Is(a.failed[0], piece.ErrMismatch) {
			t.Errorf("%d sources: failed with %v", len(sources), a.failed)
		}
		for _, r := range a.reports {
			if r.Kind == ReportConvicted {
				t.Errorf("%d sources: convicted %s: %v", len(sources), r.Node, r.Err)
			}
		}
	}
}

// With the list's hash known, liars who agree do not end the blob while somebody can
// contradict them, even if they are asked first: it completes, and they are cut off.
func TestPinnedSumsAgainstConspiracy(t *testing.T) {
	l := newLab(t)
	id := l.blob(2 * piece.MinLength)
	a, o := l.add("a", PeerConfig{}), l.add("o", PeerConfig{})
	o.seed(id)
	o.slow = true
	a.want(id)
	a.step(EvSumsHash{id, l.sums[id].Hash()})
	liars := []string{"x", "y", "z", "w"}
	for _, n := range liars {
		e := l.add(n, PeerConfig{})
		e.seed(id)
		e.corrupt = 1
	}
	a.named(id, append(liars, "o")...)
	l.pass(time.Second)
	if len(a.failed) > 0 {
		t.Fatalf("failed with %v although o has not said anything", a.failed)
	}
	o.slow = false
	o.release()
	a.release()
	l.pass(10 * time.Second)
	if a.complete != 1 || len(a.failed) > 0 {
		t.Errorf("complete: %d, failed with %v", a.complete, a.failed)
	}
	var convicted []string
	for _, r := range a.reports {
		if r.Kind == ReportConvicted {
			convicted = append(convicted, r.Node)
		}
	}
	slices.Sort(convicted)
	if want := []string{"w", "x", "y", "z"}; !slices.Equal(convicted, want) {
		t.Errorf("cut off: %v, want %v", convicted, want)
	}
}

// A download that is resumed with a wrong list, from before a restart, comes to
// the right one: the named one, or a source's.
func TestResumeWithWrongSums(t *testing.T) {
	for _, named := range []bool{true, false} {
		l := newLab(t)
		id := l.blob(2500 * piece.MaxLength)
		o, a := l.add("o", PeerConfig{Role: wire.RoleOrigin}), l.add("a", PeerConfig{})
		o.seed(id)
		o.silent = true
		have := l.all(id)
		for i := range 4 {
			have.Clear(i)
		}
		wrong := piece.NewSums(id)
		if err := wrong.Append(l.sums[id].Range(0, 2200)); err != nil {
			t.Fatal(err)
		}
		if err := wrong.Append(l.wrong[id].Range(2200, 100)); err != nil {
			t.Fatal(err)
		}
		for i := wrong.Verifiable(); i < id.Pieces(); i++ {
			have.Clear(i)
		}
		a.join(id, true, have, wrong, false)
		if named {
			a.step(EvSumsHash{id, l.sums[id].Hash()})
		}
		a.named(id, "o")
		for k := 0; k < 20 && !a.peer.blobs[id].sums.Complete(); k++ {
			l.pass(time.Second)
		}
		b := a.peer.blobs[id]
		if !b.sums.Complete() || b.sums.Hash() != l.sums[id].Hash() {
			t.Errorf("named %v: the list has %d states of %d", named, b.sums.Len(), b.sums.MaxLen())
		}
		for i, want := range map[int]bool{2150: true, 2250: false} {
			if b.have.Has(i) != want {
				t.Errorf("named %v: piece %d is kept: %v", named, i, !want)
			}
		}
	}
}

// Strangers cannot make a node keep or do more than the stated bounds.
func TestFloods(t *testing.T) {
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
			x.say(conn, &wire.Block{Blob: 9, Piece: 1, Data: make([]byte, piece.MinLength)})
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
			id := l.blob(64 * piece.MinLength)
			o := l.add("o", PeerConfig{})
			o.seed(id)
			o.silent = true
			conn := l.meet("o", id, wire.Open{Want: true}, "x")[0]
			x := l.ends["x"]
			sums := 0
			for k := range maxForeign + 10 {
				c.flood(l, x, conn, id, k)
				if k%100 == 0 {
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
			if n := len(o.peer.blobs[id].rechecks); n > maxRechecks {
				t.Errorf("%d rechecks", n)
			}
		})
	}
}

// A block that was under way when its sender closed the blob is no offence.
func TestBlockAfterClose(t *testing.T) {
	l := newLab(t)
	id := l.blob(4 * piece.MinLength)
	a := l.add("a", PeerConfig{})
	a.want(id)
	c := l.meet("a", id, wire.Open{Complete: true}, "x")[0]
	x := l.ends["x"]
	l.teach(x, c, id)
	r := heardOf[*wire.Request](x)
	if len(r) == 0 {
		t.Fatal("nothing requested")
	}
	x.say(c, &wire.Close{Blob: 9})
	x.say(c, &wire.Block{Blob: 9, Piece: 2, Data: make([]byte, piece.MinLength)})
	l.run()
	if e := heardOf[*wire.Error](x); len(e) > 0 {
		t.Errorf("closed with %v %s", e[0].Code, e[0].Text)
	}
	if s, _ := a.peer.Status(id); s.InFlight != 0 {
		t.Errorf("%d blocks are still awaited", s.InFlight)
	}
}

// On a slow link nobody is taken for dead: what came late shows that waiting
// longer pays.
func TestPatience(t *testing.T) {
	l := newLab(t)
	id := l.blob(8 * piece.MinLength)
	a := l.add("a", PeerConfig{})
	a.want(id)
	c := l.meet("a", id, wire.Open{Complete: true}, "x")[0]
	x := l.ends["x"]
	l.teach(x, c, id)
	var queue []*wire.Request
	for range 100 {
		for _, r := range heardOf[*wire.Cancel](x) {
			queue = slices.DeleteFunc(queue, func(q *wire.Request) bool { return q.Piece == r.Piece })
		}
		queue = append(queue, heardOf[*wire.Request](x)...)
		l.pass(2 * time.Second) // for each block
		if len(queue) > 0 {
			r := queue[0]
			queue = queue[1:]
			if r.Piece == wire.AnyPiece {
				r.Piece = uint32(a.have[id].NextClear(0))
			}
			l.block(x, c, id, r, len(queue))
		}
		if a.complete > 0 {
			break
		}
	}
	if a.complete != 1 {
		t.Errorf("not complete after 200 s; %d stalls", len(a.reports))
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
		if len(p.blobs) != 0 || len(p.list) != 0 || len(p.nodes) != 0 || p.memory != 0 || !p.Deadline().IsZero() {
			t.Errorf("%s keeps %d blobs, %d connections, %d nodes, %d bytes, deadline %v", e.name, len(p.blobs), len(p.list), len(p.nodes), p.memory, p.Deadline())
		}
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

func TestBucket(t *testing.T) {
	var k bucket
	if k.ready(0) != 0 {
		t.Error("no limit, and not ready")
	}
	k.set(1<<20, 0)
	now, taken := time.Duration(0), 0
	for now < 10*time.Second {
		if r := k.ready(now); r > now {
			now = r
			continue
		}
		k.take(piece.MaxBlock)
		taken += piece.MaxBlock
	}
	if got := float64(taken) / 10 / (1 << 20); got < 0.98 || got > 1.06 {
		t.Errorf("%.3f MiB/s with a limit of 1", got)
	}
	k.set(0, now)
	if k.ready(now) != now {
		t.Error("not ready after the limit was lifted")
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
					mail{o, EvMessage{1, &wire.Block{Blob: a.Handle, Piece: uint32(a.Piece), Offset: uint32(a.Offset), Queue: a.Queue, Data: data[:a.Length]}}})
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
