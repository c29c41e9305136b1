package swarm

import "testing"

// Stores that stand before an exclusive job must reach the workers although that
// job cannot begin: nothing else would ever wake the blob up again.
func TestJobsBeforeExclusiveOneAreFed(t *testing.T) {
	n := &Node{work: make(chan *job, 4)}
	b := &nodeBlob{}
	b.queue = []*job{
		{blob: b, kind: jobStore, piece: 0}, {blob: b, kind: jobStore, piece: 1},
		{blob: b, kind: jobAdopt}, {blob: b, kind: jobStore, piece: 2},
	}
	n.advance(b)
	if len(n.work) != 2 || b.running != 2 {
		t.Errorf("%d jobs reached the workers and %d count as running, want 2", len(n.work), b.running)
	}
	if len(b.queue) != 2 || b.queue[0].kind != jobAdopt || b.alone {
		t.Errorf("the exclusive job did not wait: %d jobs queued, alone %t", len(b.queue), b.alone)
	}
}
