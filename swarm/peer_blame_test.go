package swarm

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

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

// Whoever sent a piece wrong, and then right when it is asked again, made a slip.
func TestSlip(t *testing.T) {
	l := newLab(t)
	id := l.blob(4 * piece.MinLength)
	a, x := l.add("a", PeerConfig{}), l.add("x", PeerConfig{})
	x.seed(id)
	x.corrupt = 1
	a.want(id)
	a.named(id, "x")
	l.run()
	if a.peer.blobs[id].blame.none() {
		t.Fatal("x is not suspected of anything")
	}
	x.corrupt = 0
	l.pass(2 * retrySame)
	if a.complete != 1 {
		t.Error("not complete although x is asked again")
	}
	for _, r := range a.reports {
		if r.Kind == ReportConvicted {
			t.Errorf("%s is cut off for its own slip: %v", r.Node, r.Err)
		}
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
		for k := 0; k < 20 && !a.peer.blobs[id].sums.list.Complete(); k++ {
			l.pass(time.Second)
		}
		b := a.peer.blobs[id]
		if !b.sums.list.Complete() || b.sums.list.Hash() != l.sums[id].Hash() {
			t.Errorf("named %v: the list has %d states of %d", named, b.sums.list.Len(), b.sums.list.MaxLen())
		}
		for i, want := range map[int]bool{2150: true, 2250: false} {
			if b.have.Has(i) != want {
				t.Errorf("named %v: piece %d is kept: %v", named, i, !want)
			}
		}
	}
}

// A source that is alone and lies is cut off within a second, and what it has brought is in doubt
// until somebody else has sent what is missing.
func TestDoubt(t *testing.T) {
	l := newLab(t)
	id := l.blob(20 * piece.MinLength)
	a, x := l.add("a", PeerConfig{}), l.add("x", PeerConfig{})
	x.seed(id)
	x.slow = true
	a.want(id)
	a.named(id, "x*")
	l.run()
	x.slow, x.corrupt = false, 1
	for _, e := range []*end{a, x} { // what was sent before is right
		e.inbox, e.held = append(e.inbox, e.held...), nil
	}
	l.run()
	start := l.now
	for len(reportsOf(a, ReportConvicted)) == 0 {
		if l.pass(50 * time.Millisecond); l.now.Sub(start) > time.Second {
			t.Fatalf("nobody was convicted within a second\n%s", l.log.String())
		}
	}
	if a.have[id].Count() == 0 || !strings.HasSuffix(doubts(l), "true\n") || !strings.Contains(l.log.String(), "no source is left") {
		t.Errorf("%d pieces are here, doubts %q", a.have[id].Count(), doubts(l))
	}
	l.add("y", PeerConfig{}).seed(id)
	a.named(id, "y")
	l.pass(time.Second)
	if a.complete != 1 || !strings.HasSuffix(doubts(l), "false\n") {
		t.Errorf("complete %d, doubts %q", a.complete, doubts(l))
	}
}

// doubts returns what was said of doubts.
func doubts(l *lab) (s string) {
	for line := range strings.Lines(l.log.String()) {
		if _, of, ok := strings.Cut(line, "in doubt: "); ok {
			s += of
		}
	}
	return s
}

func reportsOf(e *end, kind ReportKind) (all []Report) {
	for _, r := range e.reports {
		if r.Kind == kind {
			all = append(all, r)
		}
	}
	return all
}
