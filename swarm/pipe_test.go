package swarm

import (
	"fmt"
	"testing"
	"time"
	"unsafe"
)

// A pipe's depth follows what the peer reports of its queue.
func TestPipeDepth(t *testing.T) {
	for _, tt := range []struct {
		name               string
		depth, outstanding int
		queue              int
		want, others       int
	}{
		{"its uplink is dry", 2, 1, 0, 3, 0},
		{"a quarter more", 16, 3, 0, 20, 0},
		{"up to a bound", 60, 3, 0, maxDepth, 0},
		{"only our own wait", 8, 3, 3, 8, 0},
		{"others wait", 8, 3, 4, 7, 1},
		{"not below the least", minDepth, 0, 9, minDepth, 9},
	} {
		q := pipe{depth: tt.depth, outstanding: tt.outstanding}
		q.reported(tt.queue, time.Second)
		if q.depth != tt.want || q.queue != tt.others || q.queueAt != time.Second {
			t.Errorf("%s: depth %d, %d of others since %v; want %d, %d", tt.name, q.depth, q.queue, q.queueAt, tt.want, tt.others)
		}
	}
	q := pipe{depth: 3}
	q.refused(7, 300*time.Millisecond, time.Second)
	if q.depth != 2 || q.queue != 7 || q.freeAt() != 1300*time.Millisecond {
		t.Errorf("refused: depth %d, queue %d, free at %v", q.depth, q.queue, q.freeAt())
	}
	if q.refused(7, 0, time.Second); q.depth != minDepth {
		t.Errorf("refused again: depth %d", q.depth)
	}
}

func TestPipeLoad(t *testing.T) {
	q := pipe{queue: 10, queueAt: time.Second, outstanding: 3}
	for _, tt := range []struct {
		at   time.Duration
		want float64
	}{{time.Second, 13}, {3 * time.Second, 9}, {6 * time.Second, 3}, {time.Minute, 3}} {
		if got := q.load(tt.at, 2); got != tt.want {
			t.Errorf("at %v the load is %v, want %v", tt.at, got, tt.want)
		}
	}
}

// TestPipeStalls tells when a peer that answers nothing is overdue, after each stall.
func TestPipeStalls(t *testing.T) {
	q := newPipe(0)
	limit := 1500 * time.Millisecond
	if q.overdue(time.Hour, limit) {
		t.Error("overdue although it owes nothing")
	}
	now := 10 * time.Second
	q.owe(now)
	now += time.Second
	q.owe(now) // the first counts
	for _, wait := range []time.Duration{limit, 2 * limit, 4 * limit, 8 * limit, 8 * limit} {
		if q.overdue(10*time.Second+wait-1, limit) || !q.overdue(10*time.Second+wait, limit) {
			t.Errorf("after %d stalls it is not overdue after exactly %v", q.stalls, wait)
		}
		q.stalled(now)
	}
	if short := 100 * time.Millisecond; q.overdue(10*time.Second+8*short-1, short) || !q.overdue(10*time.Second+8*short, short) {
		t.Errorf("after %d stalls a short limit is not stretched by 8", q.stalls)
	}
	if q.depth != 1 || q.freeAt() != now+snubFor {
		t.Errorf("a stalled peer has depth %d and is free at %v", q.depth, q.freeAt())
	}
	if q.overdue(10*time.Second+giveUpAfter-1, 5*time.Second) || !q.overdue(10*time.Second+giveUpAfter, 5*time.Second) {
		t.Errorf("stalls stretch a limit of 5s beyond %v", giveUpAfter)
	}
	if q.overdue(30*time.Second-1, 20*time.Second) || !q.overdue(30*time.Second, 20*time.Second) {
		t.Error("a limit above that is stretched or cut")
	}
	if q.hopeless(time.Hour) {
		t.Error("hopeless while it owes us something")
	}
	if q.settle(2); q.hopeless(giveUpAfter) || !q.hopeless(giveUpAfter+1) {
		t.Errorf("not hopeless after exactly %v", giveUpAfter)
	}
	if q.answered(now); q.hopeless(time.Hour) || q.freeAt() > now || q.stalls != 0 {
		t.Error("an answer does not end a stall")
	}
}

func TestPipeSlow(t *testing.T) {
	var q pipe
	if q.slow(0) {
		t.Error("slow before a piece has come")
	}
	q.measured(100)
	q.measured(200)
	if q.took != 150 || q.slow(75) || !q.slow(74) {
		t.Errorf("pieces take %d; slow beside 75: %v, beside 74: %v", q.took, q.slow(75), q.slow(74))
	}
}

func TestPipeClaims(t *testing.T) {
	var q pipe
	a, b := &blob{}, &blob{}
	q.claim(7, a)
	for _, tt := range []struct {
		round uint64
		b     *blob
		want  bool
	}{{7, a, false}, {7, b, true}, {8, b, false}} {
		if got := q.taken(tt.round, tt.b); got != tt.want {
			t.Errorf("round %d, the claimant's own: %v: taken %v", tt.round, tt.b == a, got)
		}
	}
}

// What is looked at in every neighbour is in one cache line.
func TestPipeLayout(t *testing.T) {
	var c conn
	if end := unsafe.Offsetof(c.pipe) + unsafe.Offsetof(c.pipe.snubbed) + unsafe.Sizeof(c.pipe.snubbed); end > 64 {
		t.Errorf("it ends at byte %d", end)
	}
}

func TestPatienceFades(t *testing.T) {
	var p patience
	got := ""
	note := func() { got += fmt.Sprint(" ", int64(p.stretch(1))) }
	for _, s := range []int{0, 1, 2} {
		p.rewarded(time.Duration(s) * time.Second)
		note()
	}
	for _, s := range []int{31, 32, 61, 62, 92} {
		p.fade(time.Duration(s) * time.Second)
		note()
	}
	if want := " 2 4 4 4 2 2 1 1"; got != want {
		t.Errorf("times stretch by%s, want%s", got, want)
	}
}
