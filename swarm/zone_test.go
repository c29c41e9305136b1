package swarm

import (
	"fmt"
	"testing"
	"time"
)

// A share grows by one, two, four and all when nothing comes for long enough, from a
// peer of another zone; who has none takes on everything, later, or at once if alone.
func TestStandIn(t *testing.T) {
	const ms = time.Millisecond
	far := supply{far: true, near: true}
	for _, tt := range []struct {
		name  string
		given uint16
		v     supply
		at    []time.Duration // standIn is asked then
		want  string          // the pieces after each
	}{
		{"grows", 0x0001, far, []time.Duration{501 * ms, 1002 * ms, 1503 * ms, 2004 * ms}, "0003 000f 00ff ffff"},
		{"goes round", 0x8000, far, []time.Duration{501 * ms, 1002 * ms}, "8001 8007"},
		{"not before its time", 0x0001, far, []time.Duration{500 * ms, 501 * ms, 1001 * ms, 1002 * ms}, "0001 0003 0003 000f"},
		{"since something came", 0x0001, supply{far: true, since: 300 * ms}, []time.Duration{800 * ms, 801 * ms}, "0001 0003"},
		{"pieces from afar take long", 0x0001, supply{far: true, farTook: 300 * ms}, []time.Duration{1200 * ms, 1201 * ms}, "0001 0003"},
		{"pieces from afar are quick", 0x0001, supply{far: true, farTook: 10 * ms}, []time.Duration{500 * ms, 501 * ms}, "0001 0003"},
		{"nobody afar has anything", 0x0001, supply{}, []time.Duration{time.Minute}, "0001"},
		{"no share, alone", 0, supply{}, []time.Duration{2000 * ms, 2001 * ms}, "0000 ffff"},
		{"no share, others in the zone", 0, supply{near: true}, []time.Duration{10_000 * ms, 10_001 * ms}, "0000 ffff"},
	} {
		s := zoneShare{}
		s.give(tt.given)
		got := ""
		for _, at := range tt.at {
			before := s.pieces()
			if grew := s.standIn(at, tt.v); grew != (s.pieces() != before) {
				t.Errorf("%s: standIn at %v says it grew: %v, from %04x to %04x", tt.name, at, grew, before, s.pieces())
			}
			got += fmt.Sprintf(" %04x", s.pieces())
		}
		if got[1:] != tt.want {
			t.Errorf("%s: the share is%s, want %s", tt.name, got, tt.want)
		}
	}
}

// What was taken on is given back with the next share, which then grows by one first.
func TestShareGivenAnew(t *testing.T) {
	s := zoneShare{}
	s.give(0x0001)
	s.standIn(time.Second, supply{far: true})
	s.standIn(2*time.Second, supply{far: true})
	s.give(0x0010)
	if s.pieces() != 0x0010 {
		t.Errorf("the share is %04x, want what the tracker gave", s.pieces())
	}
	if s.standIn(3*time.Second, supply{far: true}); s.pieces() != 0x0030 {
		t.Errorf("the share is %04x after a step, want one more", s.pieces())
	}
}

func TestShareOfPieces(t *testing.T) {
	s := zoneShare{given: 0x0001, extra: 0x8000}
	for i, want := range map[int]bool{0: true, 1: false, 14: false, 15: true, 16: true, 31: true, 32: true, 33: false} {
		if s.brings(i) != want {
			t.Errorf("piece %d is brought: %v, want %v", i, !want, want)
		}
	}
	for _, tt := range []struct {
		s         zoneShare
		none, all bool
	}{{zoneShare{}, true, false}, {zoneShare{extra: 1}, false, false}, {zoneShare{given: 0xff00, extra: 0x00ff}, false, true}} {
		if tt.s.none() != tt.none || tt.s.all() != tt.all {
			t.Errorf("%+v: none %v, all %v", tt.s, tt.s.none(), tt.s.all())
		}
	}
}

func TestOtherZone(t *testing.T) {
	for _, tt := range []struct {
		own, zone string
		want      bool
	}{{"", "", false}, {"", "a", false}, {"a", "a", false}, {"a", "b", true}, {"a", "", true}} {
		if got := otherZone(tt.own, tt.zone); got != tt.want {
			t.Errorf("from %q, %q is another zone: %v", tt.own, tt.zone, got)
		}
	}
}
