package swarm

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

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
		if a.peer.down.memory > a.peer.cfg.BlobMemory {
			t.Errorf("%d bytes of pieces, more than %d", a.peer.down.memory, a.peer.cfg.BlobMemory)
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
	if s1.Have < 15 || s2.Have > 5 {
		t.Errorf("after a while there are %d pieces of the first and %d of the second", s1.Have, s2.Have)
	}
	l.pass(3 * time.Second)
	if a.complete != 2 {
		t.Errorf("%d of 2 are complete", a.complete)
	}
}

// Blobs behind the first have a turn now and then, for a small part of what comes, so that none
// stands still; and from another that downloads, rather than from the seeder.
func TestTurns(t *testing.T) {
	l := newLab(t)
	a := l.add("a", PeerConfig{})
	o := l.add("o", PeerConfig{})
	o.step(EvLimits{Up: 4 * piece.MinLength})
	y := l.add("y", PeerConfig{})
	var ids []piece.ID
	for k := range 3 {
		id := l.blob(60 * piece.MinLength)
		ids = append(ids, id)
		o.seed(id)
		a.have[id] = piece.NewBits(60)
		a.step(EvJoin{ID: id, Want: true, Priority: k, Have: piece.NewBits(60)})
		if k == 2 {
			y.join(id, false, piece.NewBits(60), piece.NewSums(id), false)
			for i := range 3 {
				y.have[id].Set(i)
			}
			y.step(EvLocal{ID: id, From: 0, To: 3, States: l.sums[id].Range(0, 3)})
		}
		a.named(id, "o", "y")
	}
	last, still := make([]int, 3), make([]time.Duration, 3)
	var longest time.Duration
	for range 40 {
		l.pass(500 * time.Millisecond)
		for k, id := range ids {
			s, _ := a.peer.Status(id)
			if still[k] += 500 * time.Millisecond; s.Have > last[k] {
				last[k], still[k] = s.Have, 0
			}
			longest = max(longest, still[k])
		}
		if last[0] == 60 {
			break
		}
	}
	if longest > 4*time.Second {
		t.Errorf("a blob stood still for %v", longest)
	}
	if last[0] != 60 || last[1]+last[2] > 24 {
		t.Errorf("%d pieces of 60 of the first have come in 20 s, and %d and %d of the others", last[0], last[1], last[2])
	}
	s, _ := y.peer.Status(ids[2])
	if s.BytesOut != 3*piece.MinLength {
		t.Errorf("another that has 3 pieces of the third gave %d bytes", s.BytesOut)
	}
}

// However many blobs wait behind the first, their turns are a fifth of what comes.
func TestTurnsAreFew(t *testing.T) {
	l := newLab(t)
	a, o := l.add("a", PeerConfig{}), l.add("o", PeerConfig{})
	o.step(EvLimits{Up: 4 * piece.MinLength})
	var first piece.ID
	for k := range 20 {
		id := l.blob(20 * piece.MinLength)
		if k == 0 {
			first = id
		}
		o.seed(id)
		a.have[id] = piece.NewBits(20)
		a.step(EvJoin{ID: id, Want: true, Priority: k, Have: piece.NewBits(20)})
		a.named(id, "o")
	}
	l.pass(8 * time.Second) // 32 pieces
	if s, _ := a.peer.Status(first); s.Have != 20 {
		t.Errorf("the first has %d of its 20 pieces", s.Have)
	}
}

// What a download says of itself: how far it and its peers reach without a gap, and when whoever
// has something of it last gave something of any blob.
func TestReachAndWaits(t *testing.T) {
	l := newLab(t)
	id, other := l.blob(8*piece.MinLength), l.blob(8*piece.MinLength)
	a := l.add("a", PeerConfig{})
	a.want(id, 0, 3)
	a.want(other)
	status := func() BlobStatus {
		s, _ := a.peer.Status(id)
		return s
	}
	if s := status(); s.Reach != piece.MinLength || s.Missing != 6 || !s.Waits.IsZero() {
		t.Errorf("alone: %+v", s)
	}
	x := l.add("x", PeerConfig{})
	x.join(id, false, piece.NewBits(8), piece.NewSums(id), false)
	for i := range 3 {
		x.have[id].Set(i)
	}
	x.step(EvLocal{ID: id, From: 0, To: 3, States: l.sums[id].Range(0, 3)})
	x.silent = true
	a.named(id, "x")
	l.pass(100 * time.Millisecond)
	if s := status(); s.Reach != 4*piece.MinLength || s.Missing < 2 || s.Missing > 4 || !s.Waits.IsZero() {
		t.Errorf("with one that has three pieces: %+v", s)
	}
	l.pass(3 * time.Second) // x gives nothing, so that nothing is hoped of it
	if s := status(); s.Reach != piece.MinLength || s.Useful != 0 {
		t.Errorf("with one that has failed: %+v", s)
	}
	o := l.add("o", PeerConfig{})
	o.seed(id)
	o.seed(other)
	o.step(EvLimits{Up: piece.MinLength / 4})
	a.named(other, "o")
	a.named(id, "o")
	l.pass(time.Second)
	s := status()
	if s.Reach != id.Size || s.Missing != 0 || s.Waits.IsZero() {
		t.Errorf("with a seeder: %+v", s)
	}
	got := func() int { s, _ := a.peer.Status(other); return s.Have }
	for n := got(); got() == n; {
		l.pass(100 * time.Millisecond)
	}
	if again := status(); !again.Waits.After(s.Waits) {
		t.Error("that its source gives something else does not count")
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

// A block that crossed its Cancel says nothing of how long stalls take: its peer was not
// silent.
func TestNoPatienceWithoutStall(t *testing.T) {
	l := newLab(t)
	id := l.blob(8 * piece.MinLength)
	a := l.add("a", PeerConfig{})
	a.join(id, true, piece.NewBits(8), l.sums[id].Clone(), false)
	c := l.meet("a", id, wire.Open{Want: true, Bits: bitfield(t, 8, 0)}, "x")[0]
	x := l.ends["x"]
	asked := heardOf[*wire.Request](x)
	if len(asked) != 1 {
		t.Fatalf("asked %d times, want once for the piece that x has", len(asked))
	}
	limit := a.peer.down.stallLimit(&a.peer.cfg)
	a.have[id].Set(0)
	a.step(EvLocal{ID: id, From: 0, To: 1, States: l.sums[id].Range(0, 1)})
	l.run()
	if n := len(heardOf[*wire.Cancel](x)); n != 1 {
		t.Fatalf("%d Cancels, want one", n)
	}
	l.block(x, c, id, asked[0], 0)
	if got := a.peer.down.stallLimit(&a.peer.cfg); got != limit {
		t.Errorf("a peer is stalled after %v, want %v as before", got, limit)
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

// The only source, which was frozen while several blobs were asked of it, is asked again when it
// goes on, however often it had failed.
func TestThawedSource(t *testing.T) {
	l := newLab(t)
	waits := []string{"1.8s", "2.3s", "3.3s", "5.3s", "1.5s"}
	for range waits {
		l.blob(4 * piece.MinLength)
	}
	x, a := l.add("x", PeerConfig{}), l.add("a", PeerConfig{})
	for _, id := range l.blobs {
		x.seed(id)
	}
	l.connect("a", "x")
	l.run()
	x.frozen = true
	for i, wait := range waits {
		d, err := time.ParseDuration(wait)
		if err != nil {
			t.Fatal(err)
		}
		a.want(l.blobs[i])
		a.named(l.blobs[i], "x*")
		l.run()
		l.pass(d)
		l.run()
	}
	x.frozen = false
	l.run()
	l.pass(time.Second)
	l.run()
	if a.complete != len(waits) {
		t.Errorf("%d of %d blobs are here a second after it went on", a.complete, len(waits))
	}
}
