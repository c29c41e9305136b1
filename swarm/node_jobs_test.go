package swarm

import "testing"

// Stores that stand before an exclusive job must reach the workers although that
// job cannot begin: nothing else would ever wake the blob up again. Two of them are one
// worker's; one that is alone waits for company while a worker has something to do.
func TestFeedingWorkers(t *testing.T) {
	n := &Node{work: make(chan unit, 4)}
	b := &nodeBlob{refs: 10, left: true}
	b.queue = []*job{
		{blob: b, kind: jobStore}, {blob: b, kind: jobStore}, {blob: b, kind: jobStore},
		{blob: b, kind: jobAdopt}, {blob: b, kind: jobStore},
	}
	n.advance(b)
	if b.running != 3 || n.fed != 1 || len(n.ready) != 1 {
		t.Fatalf("%d jobs count as running, workers have %d units, %d jobs wait for company; want 3, 1, 1", b.running, n.fed, len(n.ready))
	}
	if len(b.queue) != 2 || b.queue[0].kind != jobAdopt || b.alone {
		t.Errorf("the exclusive job did not wait: %d jobs queued, alone %t", len(b.queue), b.alone)
	}
	pair := <-n.work
	if pair.first == nil || pair.second == nil {
		t.Fatalf("the first two jobs are not one worker's: %v", pair)
	}
	n.finished(pair.first)
	if n.fed != 1 {
		t.Errorf("a unit ended with its first job")
	}
	pair.second.ends = true
	n.finished(pair.second)
	if last := <-n.work; n.fed != 1 || last.first == nil || last.second != nil {
		t.Errorf("no worker has the job that waited: %v", last)
	}
}
