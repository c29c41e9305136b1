package swarm

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// Each turn tells a quarter of the links, or four, in order, and goes on where the one
// before it ended; who has nothing pending takes nobody's place.
func TestRounds(t *testing.T) {
	for _, tt := range []struct {
		name  string
		n     int
		waits []int
		turn  int // the first link
		want  string
	}{
		{"few", 3, []int{0, 1, 2}, 0, "[0 1 2] all"},
		{"four at least", 6, []int{0, 1, 2, 3, 4, 5}, 0, "[0 1 2 3] [4 5] all"},
		{"exactly four", 4, []int{0, 1, 2, 3}, 0, "[0 1 2 3] all"},
		{"a quarter", 24, ints(24), 0, "[0 1 2 3 4 5] [6 7 8 9 10 11] [12 13 14 15 16 17] [18 19 20 21 22 23] all"},
		{"a quarter, rounded up", 17, ints(17), 0, "[0 1 2 3 4] [5 6 7 8 9] [10 11 12 13 14] [15 16] all"},
		{"from the middle", 6, ints(6), 4, "[4 5 0 1] [2 3] all"},
		{"some have nothing", 8, []int{1, 2, 4, 6, 7}, 5, "[6 7 1 2] [4] all"},
		{"links are gone", 3, ints(3), 7, "[1 2 0] all"},
		{"nobody", 0, nil, 0, "[] all"},
	} {
		a := announcing{due: 0, turn: tt.turn}
		waits, got := slices.Clone(tt.waits), ""
		for {
			told := []int{}
			all := a.round(tt.n,
				func(j int) bool { return slices.Contains(waits, j) },
				func(j int) {
					told = append(told, j)
					waits = slices.DeleteFunc(waits, func(w int) bool { return w == j })
				}, time.Second)
			got += fmt.Sprint(told, " ")
			if all != (len(waits) == 0) || all != (a.due == never) || a.next != time.Second {
				t.Fatalf("%s: %d still wait, all: %v, due %v, next %v", tt.name, len(waits), all, a.due, a.next)
			}
			if all {
				break
			}
		}
		if got+"all" != tt.want {
			t.Errorf("%s: told %sall, want %s", tt.name, got, tt.want)
		}
	}
}

func ints(n int) (s []int) {
	for i := range n {
		s = append(s, i)
	}
	return s
}

// A turn comes at once, but not before the time that the one before it set.
func TestAnnouncingWait(t *testing.T) {
	a := announcing{due: never, next: 50}
	if !a.wait(20) || a.due != 50 {
		t.Errorf("due %d, want 50, when the next turn may be", a.due)
	}
	if a.wait(30) || a.due != 50 {
		t.Errorf("a second piece moves the turn to %d", a.due)
	}
	if a = (announcing{due: never, next: 50}); !a.wait(70) || a.due != 70 {
		t.Errorf("due %d, want 70, at once", a.due)
	}
}

func TestHaveDelay(t *testing.T) {
	const ms = time.Millisecond
	for _, tt := range []struct {
		length int64
		rate   float64
		want   time.Duration
	}{
		{64 << 10, 0, 20 * ms},        // not known
		{1_000_000, 1e6, 40 * ms},     // slow
		{1_000_000, 100e6, 30 * ms},   // three pieces
		{1_000_000, 10_000e6, 2 * ms}, // fast
	} {
		if got := haveDelay(40*ms, tt.length, tt.rate); got != tt.want {
			t.Errorf("pieces of %d at %.0f/s: %v, want %v", tt.length, tt.rate, got, tt.want)
		}
	}
}

// What a peer is not told of goes one of three ways: announced, withheld to the end, or
// into another Open.
func TestNews(t *testing.T) {
	even := func(i int) bool { return i%2 == 0 }
	var n news
	for i := range 6 {
		n.add(i)
	}
	n.lose(3)
	if got := n.take(even); !slices.Equal(got, []uint32{1, 5}) {
		t.Errorf("announced %d to one that has the even pieces, want 1 and 5", got)
	}
	if got := n.take(nil); len(got) > 0 {
		t.Errorf("%d are announced twice", got)
	}
	n.add(6)
	n.add(7)
	if got := n.take(nil); !slices.Equal(got, []uint32{6, 7}) {
		t.Errorf("announced %d to one whose pieces do not count, want 6 and 7", got)
	}
	if got := n.takeWithheld(); !slices.Equal(got, []uint32{0, 2, 4}) {
		t.Errorf("withheld %d, want 0, 2 and 4", got)
	}
	if got := n.takeWithheld(); len(got) > 0 {
		t.Errorf("%d were withheld twice", got)
	}
}

func TestNewsFull(t *testing.T) {
	var n news
	for i := range maxHaves {
		if full := n.add(i); full != (i == maxHaves-1) {
			t.Fatalf("full: %v with %d pieces", full, i+1)
		}
	}
}

// A peer that closes the blob before it was told everything needs another Open.
func TestNewsStale(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(n *news)
		want bool
	}{
		{"told everything", func(n *news) {}, false},
		{"pending", func(n *news) { n.add(1) }, true},
		{"withheld", func(n *news) { n.add(1); n.take(func(int) bool { return true }) }, true},
		{"announced", func(n *news) { n.add(1); n.take(nil) }, false},
		{"missed", func(n *news) { n.miss() }, true},
	} {
		var n news
		tt.do(&n)
		if n.peerClosed(); n.stale != tt.want || n.pending != nil || n.withheld != nil {
			t.Errorf("%s: %+v, want stale %v and no more", tt.name, n, tt.want)
		}
	}
}
