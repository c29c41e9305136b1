package swarm

import (
	"testing"
	"time"
)

// A download starves when nothing has come, nor is on its way, for a while; then again only
// after as long.
func TestStarving(t *testing.T) {
	a := arrivals{began: time.Second}
	const s = time.Second
	for _, tt := range []struct {
		now  time.Duration
		idle bool
		want bool
	}{
		{3 * s, true, false},
		{3*s + 1, false, false},
		{3*s + 1, true, true},
		{5*s + 1, true, false}, // it has just looked
		{5*s + 2, true, true},
	} {
		if got := a.starving(tt.now, tt.idle); got != tt.want {
			t.Errorf("at %v, idle %v: starving %v", tt.now, tt.idle, got)
		}
	}
	a.stored(10 * s)
	if a.starving(12*s, true) || !a.starving(12*s+1, true) || !a.some {
		t.Error("a piece that came does not count")
	}
}

// One piece is read again once a minute, and not many within a minute.
func TestRechecks(t *testing.T) {
	var r rechecks
	for i := range maxRechecks {
		if !r.allow(i, time.Duration(i)*time.Second) {
			t.Fatalf("piece %d is not read again", i)
		}
	}
	for _, tt := range []struct {
		i    int
		now  time.Duration
		want bool
	}{
		{99, 59 * time.Second, false},           // too many
		{0, recheckEvery - 1, false},            // too often
		{0, recheckEvery, true},                 // in the place of itself
		{99, recheckEvery, false},               // which leaves none
		{99, recheckEvery + time.Second, true},  // in that of piece 1
		{98, recheckEvery + time.Second, false}, //
		{2, recheckEvery + 2*time.Second - 1, false},
	} {
		if got := r.allow(tt.i, tt.now); got != tt.want {
			t.Errorf("piece %d at %v is read again: %v", tt.i, tt.now, got)
		}
	}
	if r.forget(0); !r.allow(0, recheckEvery+time.Second) {
		t.Error("a new copy is not read again")
	}
	if len(r.at) > maxRechecks {
		t.Errorf("%d pieces are remembered", len(r.at))
	}
}
