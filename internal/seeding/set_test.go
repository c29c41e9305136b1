package seeding

import (
	"testing"

	"github.com/capelin-io/capelin/swarm/piece"
)

// The blobs that are open are bounded; those that somebody takes of stay, the others
// are left after two looks.
func TestSet(t *testing.T) {
	takes, open := map[piece.ID]bool{}, map[piece.ID]bool{}
	s := newSet(func(id piece.ID) bool { return takes[id] }, func(piece.ID) bool { return false }, func(id piece.ID) { delete(open, id) })
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

// What somebody needs is neither forgotten nor left, however many they are; when nobody
// needs them, the bound holds again.
func TestSetKeepsWhatIsBusy(t *testing.T) {
	busy, open := map[piece.ID]bool{}, map[piece.ID]bool{}
	s := newSet(func(piece.ID) bool { return false }, func(id piece.ID) bool { return busy[id] }, func(id piece.ID) { delete(open, id) })
	id := func(i int) piece.ID {
		return piece.ID{Alg: piece.SHA256, Sum: piece.Sum{byte(i), byte(i >> 8)}, Size: 1}
	}
	add := func(i int, needed bool) {
		busy[id(i)], open[id(i)] = needed, true
		s.add(id(i))
	}
	expect := func(when string, n int) {
		t.Helper()
		if len(open) != n || s.len() != n {
			t.Errorf("%s: %d open, %d known; want %d", when, len(open), s.len(), n)
		}
	}
	many := 3 * MaxOpen
	for i := range many {
		add(i, true)
	}
	expect("all are needed", many)
	s.leaveIdle()
	s.leaveIdle()
	expect("needed when looked at twice", many)
	clear(busy)
	add(many, false)
	expect("none is needed", MaxOpen)
	if !open[id(many)] {
		t.Error("the last to be opened was left, want the longest open")
	}
	busy[id(many-MaxOpen+1)] = true
	add(many+1, false)
	expect("the oldest is needed", MaxOpen)
	if !open[id(many-MaxOpen+1)] || open[id(many-MaxOpen+2)] {
		t.Error("want the longest open left of those that are not needed")
	}
}
