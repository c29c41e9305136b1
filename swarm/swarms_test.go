package swarm

import (
	"testing"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// A handle means what the peer opened under it last, and a closed one is remembered.
func TestSwarms(t *testing.T) {
	s := newSwarms()
	a, b := &link{id: piece.ID{Size: 1}}, &link{id: piece.ID{Size: 2}}
	s.add(a)
	s.add(b)
	expect := func(what string, h wire.Handle, want *link, former bool) {
		t.Helper()
		for range 2 { // the second is found without the map
			if got := s.find(h); got != want {
				t.Errorf("%s: handle %d is not what it was opened for", what, h)
			}
		}
		if s.former[h] != former {
			t.Errorf("%s: handle %d is a former one: %v", what, h, !former)
		}
	}
	expect("at first", 7, nil, false)
	s.opened(a, 7)
	s.opened(b, 8)
	expect("opened", 7, a, false)
	expect("opened", 8, b, false)
	s.closed(a)
	expect("closed", 7, nil, true)
	s.find(8)
	s.closed(b)
	s.opened(b, 7)
	expect("opened anew", 7, b, false)
	expect("closed", 8, nil, true)
	s.find(7)
	s.remove(b)
	expect("removed", 7, nil, false)
	if len(s.links) != 1 || s.links[0] != a || s.byID[b.id] != nil || s.byID[a.id] != a {
		t.Errorf("%d links are left", len(s.links))
	}
	if x, y := s.next(), s.next(); x == y {
		t.Errorf("handle %d is given twice", x)
	}
}

func TestSwarmsAreBounded(t *testing.T) {
	s := newSwarms()
	for h := range wire.Handle(maxForeign) {
		if s.full() {
			t.Fatalf("full with %d", h)
		}
		s.opened(&link{}, h)
	}
	if !s.full() {
		t.Error("not full")
	}
	for h := range wire.Handle(3 * maxForeign) {
		s.closed(&link{remote: h})
		if !s.former[h] || len(s.former) > maxForeign {
			t.Fatalf("handle %d is forgotten, or %d are remembered", h, len(s.former))
		}
	}
}
