package plugin

import (
	"testing"

	"github.com/capelin-io/capelin/internal/seeding"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Whole blobs that nobody takes anything of are left, so that they may be evicted; so
// are those that are gone.
func TestSeederLeaves(t *testing.T) {
	p := newFakePeers()
	s := newSeeder(nil, newFetches(t.Context(), fetchConfig{}, newFakeBlobs()))
	ids := make([]piece.ID, seeding.MaxOpen+2)
	for i := range ids {
		ids[i] = piece.ID{Alg: piece.SHA256, Sum: piece.Sum{byte(i), byte(i >> 8)}, Size: 1}
		if err := p.Join(t.Context(), ids[i], joinAs{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	s.open.Add(ids[0]) // before there is a swarm to leave
	s.peers = p
	p.useful[ids[0]] = 1
	for _, id := range ids {
		s.open.Add(id)
	}
	for i, want := range map[int]bool{0: true, 1: false, 2: false, 3: true} {
		if _, ok := p.as(ids[i]); ok != want {
			t.Errorf("blob %d joined: %t", i, ok)
		}
	}
	s.open.LeaveIdle()
	s.open.LeaveIdle()
	if n := len(p.joined); n != 1 {
		t.Errorf("%d joined, want the one that is of use", n)
	}
	s.blobGone(ids[0])
	if n := len(p.joined); n != 0 {
		t.Error("a blob that is gone is still joined")
	}
}
