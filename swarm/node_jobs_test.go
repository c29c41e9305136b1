package swarm

import (
	"fmt"
	"slices"
	"testing"

	"github.com/capelin-io/capelin/internal/sha256x2"
	"github.com/capelin-io/capelin/swarm/piece"
)

func needPairs(t *testing.T) {
	t.Helper()
	if !sha256x2.Available {
		t.Skip("company wins nothing on this processor")
	}
}

// storeJobs makes jobs that store pieces of one blob of ten.
func storeJobs(t *testing.T, b *nodeBlob, pieces ...int) (jobs []*job) {
	sums := piece.NewSums(piece.ID{Alg: piece.SHA256, Size: 10 * piece.MinLength})
	if err := sums.Append(make([]byte, 9*32)); err != nil {
		t.Fatal(err)
	}
	for _, i := range pieces {
		jobs = append(jobs, &job{blob: b, kind: jobStore, claim: piece.NewClaim(sums, i, make([]byte, piece.MinLength))})
	}
	return jobs
}

// Stores that stand before an exclusive job must reach the workers although that
// job cannot begin: nothing else would ever wake the blob up again.
func TestJobsBeforeExclusiveOneAreFed(t *testing.T) {
	n := &Node{work: make(chan unit, 4)}
	b := &nodeBlob{}
	b.queue = slices.Concat(storeJobs(t, b, 0, 9), []*job{{blob: b, kind: jobAdopt}}, storeJobs(t, b, 2))
	n.advance(b)
	if len(n.work) != 2 || b.running != 2 {
		t.Errorf("%d jobs reached the workers and %d count as running, want 2", len(n.work), b.running)
	}
	if len(b.queue) != 2 || b.queue[0].kind != jobAdopt || b.alone {
		t.Errorf("the exclusive job did not wait: %d jobs queued, alone %t", len(b.queue), b.alone)
	}
}

// Two pieces are one worker's. One that is alone waits for company while a worker has
// something to do, and only then, and only if company wins it anything: the first and the
// last do not wait.
func TestPiecesForWorkers(t *testing.T) {
	needPairs(t)
	for _, tt := range []struct {
		ready []int
		fed   int // units that workers have already
		want  string
		wait  int
	}{
		{[]int{1}, 0, "1", 0},
		{[]int{1}, 1, "", 1},
		{[]int{1, 2}, 1, "1+2", 0},
		{[]int{1, 2, 3}, 0, "1+2", 1},
		{[]int{1, 2, 3, 4}, 0, "1+2 3+4", 0},
		{[]int{0}, 1, "0", 0},
		{[]int{9}, 1, "9", 0},
		{[]int{0, 1, 2}, 1, "0 1+2", 0},
		{[]int{1, 9}, 1, "1 9", 0},
		{[]int{1, 2, 3, 4, 5, 6}, 2, "1+2 3+4", 2},
	} {
		n := &Node{work: make(chan unit, 4), fed: tt.fed, ready: storeJobs(t, &nodeBlob{}, tt.ready...)}
		n.feed()
		got := ""
		for len(n.work) > 0 {
			u := <-n.work
			got += fmt.Sprint(" ", u.first.claim.Piece())
			if u.second != nil {
				got += fmt.Sprint("+", u.second.claim.Piece())
			}
		}
		if got != " "+tt.want && got != tt.want || len(n.ready) != tt.wait {
			t.Errorf("pieces %d beside %d units: workers get%s and %d wait, want %s and %d", tt.ready, tt.fed, got, len(n.ready), tt.want, tt.wait)
		}
	}
}

// A worker is done with a unit when it is done with its last job; then the next can come.
func TestUnitEnds(t *testing.T) {
	needPairs(t)
	n := &Node{work: make(chan unit, 4)}
	b := &nodeBlob{refs: 10, left: true, running: 3}
	n.ready = storeJobs(t, b, 1, 2, 3)
	n.feed()
	u := <-n.work
	n.finished(u.first)
	if n.fed != 1 || len(n.work) != 0 {
		t.Errorf("the unit ended with its first job")
	}
	u.second.ends = true
	n.finished(u.second)
	if n.fed != 1 || len(n.work) != 1 {
		t.Errorf("no worker has the piece that waited")
	}
}
