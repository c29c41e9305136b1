package seeding

import (
	"testing"

	"github.com/capelin-io/capelin/swarm/piece"
)

// The blobs that are open are bounded; those that somebody takes of stay, the others
// are left after two looks.
func TestSet(t *testing.T) {
	takes, open := map[piece.ID]bool{}, map[piece.ID]bool{}
	s := newSet(func(id piece.ID) bool { return takes[id] }, func(id piece.ID) { delete(open, id) })
	ids := make([]piece.ID, MaxOpen+20)
	for i := range ids {
		ids[i] = piece.ID{Alg: piece.SHA256, Sum: piece.Sum{byte(i), byte(i >> 8)}, Size: 1}
		takes[ids[i]] = i < 3
		open[ids[i]] = true
		s.add(ids[i])
		s.add(ids[i])
	}
	if len(open) != MaxOpen || s.len() != MaxOpen {
		t.Errorf("%d open, %d known; want %d", len(open), s.len(), MaxOpen)
	}
	for i, want := range map[int]bool{0: true, 2: true, 3: false, 22: false, 23: true, len(ids) - 1: true} {
		if open[ids[i]] != want {
			t.Errorf("blob %d open: %t", i, open[ids[i]])
		}
	}
	s.leaveIdle()
	if len(open) != MaxOpen {
		t.Errorf("%d open after the first look, want %d", len(open), MaxOpen)
	}
	takes[ids[30]] = true
	s.leaveIdle()
	if len(open) != 4 || s.len() != 4 {
		t.Errorf("%d open, %d known; want those 4 that are of use", len(open), s.len())
	}
	if !s.remove(ids[0]) || s.remove(ids[0]) || s.len() != 3 {
		t.Error("a blob is not removed once")
	}
}
