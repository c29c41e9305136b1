package plugin

import (
	"testing"

	"github.com/capelin-io/capelin/swarm/piece"
)

// The blobs that are kept open for the swarm are bounded; those that somebody is
// connected for stay.
func TestSeederIsBounded(t *testing.T) {
	p := newFakePeers()
	fs := newFetches(t.Context(), fetchConfig{}, newFakeBlobs())
	s := newSeeder(nil, fs)
	s.peers = p
	ids := make([]piece.ID, maxSeeding+20)
	for i := range ids {
		ids[i] = piece.ID{Alg: piece.SHA256, Sum: piece.Sum{byte(i), byte(i >> 8)}, Size: 1}
		if i < 3 {
			p.useful[ids[i]] = 1
		}
		if err := p.Join(t.Context(), ids[i], joinAs{}, nil); err != nil {
			t.Fatal(err)
		}
		s.keep(ids[i])
	}
	if n := len(p.joined); n != maxSeeding || s.joined.Len() != maxSeeding {
		t.Errorf("%d joined, %d kept; want %d", n, s.joined.Len(), maxSeeding)
	}
	for i, want := range map[int]bool{0: true, 2: true, 3: false, 22: false, 23: true, len(ids) - 1: true} {
		if _, ok := p.as(ids[i]); ok != want {
			t.Errorf("blob %d joined: %t", i, ok)
		}
	}
	// Nobody takes anything of most of them: two looks later they are not open, and
	// may be evicted.
	idle := s.releaseIdle(p, nil)
	if n := len(p.joined); n != maxSeeding {
		t.Errorf("%d joined after the first look, want %d", n, maxSeeding)
	}
	s.releaseIdle(p, idle)
	if n := len(p.joined); n != 3 || s.joined.Len() != 3 {
		t.Errorf("%d joined, %d kept; want those 3 that are of use", n, s.joined.Len())
	}
	s.blobGone(ids[0])
	if _, ok := p.as(ids[0]); ok {
		t.Error("a blob that is gone is still joined")
	}
}
