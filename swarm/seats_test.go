package swarm

import (
	"fmt"
	"testing"

	"github.com/capelin-io/capelin/swarm/wire"
)

func neighbour(far, source bool) *link {
	return &link{slot: -1, c: &conn{far: far, node: &node{role: wire.RoleAgent}}, source: source}
}

// TestSeats seats neighbours and has them become seeders and leave: s is a source, n one of
// our own zone, f one of another.
func TestSeats(t *testing.T) {
	s := newSeats()
	ls := map[byte]*link{'s': neighbour(false, true), 'n': neighbour(false, false), 'f': neighbour(true, false)}
	for _, tt := range []struct {
		do   string // + takes a seat, * is a seeder, / is not, - leaves
		want string // seeds, common, near, nearSeeds, fewSeeds
	}{
		{"s+", "000 000 001 000 true"},
		{"n+", "000 000 011 000 true"},
		{"f+", "000 000 011 000 true"},
		{"s*", "001 000 011 001 true"},
		{"f*", "101 100 011 001 false"},
		{"s/", "100 100 011 000 true"}, // there is but one
		{"n*", "110 110 011 010 false"},
		{"f-", "010 010 011 010 true"},
		{"n-", "000 000 001 000 true"},
		{"f+", "000 000 001 000 true"}, // in the slot that became free, without what was said of it
		{"f*", "010 010 001 000 true"},
	} {
		l := ls[tt.do[0]]
		switch tt.do[1] {
		case '+':
			if !s.take(l) || s.at[l.slot] != l {
				t.Fatalf("%s: no seat", tt.do)
			}
		case '*':
			s.seeder(l)
		case '/':
			s.partial(l)
		case '-':
			slot := l.slot
			if s.leave(l); l.slot >= 0 || s.at[slot] != nil {
				t.Errorf("%s: slot %d is not free", tt.do, slot)
			}
		}
		got := fmt.Sprintf("%03b %03b %03b %03b %v", s.seeds, s.common, s.near, s.nearSeeds(), s.fewSeeds())
		if got != tt.want {
			t.Errorf("after %s: %s, want %s", tt.do, got, tt.want)
		}
	}
}

func TestSeatsAreBounded(t *testing.T) {
	s := newSeats()
	for k := range maxSlots {
		if l := neighbour(false, false); !s.take(l) || l.slot != k {
			t.Fatalf("neighbour %d is in slot %d", k, l.slot)
		}
	}
	if l := neighbour(false, false); s.take(l) || l.slot >= 0 {
		t.Error("there are more seats than bits")
	}
	if l := neighbour(false, false); (&seats{}).take(l) {
		t.Error("a blob that is not wanted has seats")
	}
}
