package tracker

import (
	"fmt"
	"testing"
	"time"

	"github.com/capelin-io/capelin/control/trackerpb"
)

// Blobs that are none, in every part of a message, are nothing.
func TestNonsenseIsIgnored(t *testing.T) {
	now := time.Unix(1000, 0)
	m := NewMachine("n")
	m.Step(now, EvTrackers{Names: []string{"t1:1"}})
	m.Step(now, EvConnected{Tracker: "t1:1", Welcome: &trackerpb.Welcome{}})
	m.Step(now, EvReady{Tracker: "t1:1"})
	m.Step(now, EvHandlerReady{})
	m.Step(now, EvHandlerReady{})
	for _, blob := range []*trackerpb.Blob{nil, {}, {Digest: make([]byte, 31), Size: 1}, {Digest: make([]byte, 32)}} {
		acts := m.Step(now, EvMessage{Tracker: "t1:1", Message: &trackerpb.ToAgent{
			Sums:     []*trackerpb.SumsHash{{Blob: blob, Hash: make([]byte, 32)}},
			Peers:    []*trackerpb.Peers{{Blob: blob, Peers: []*trackerpb.Peer{{Node: "p"}}}},
			Verdicts: []*trackerpb.Verdict{{Blob: blob, Kind: trackerpb.Verdict_KIND_LEASE}},
			Enough:   []*trackerpb.Enough{{Blobs: &trackerpb.Blobs{Digests: make([]byte, 31), Sizes: []int64{1}}}, {}},
			Lookups:  []*trackerpb.Blob{blob},
		}})
		if len(acts) != 0 {
			t.Errorf("%v: %v", blob, acts)
		}
	}
}

// Of one blob no more than a thousand peers are remembered, however many a tracker
// names.
func TestPeersAreBounded(t *testing.T) {
	p := peers{}
	for i := range maxTold {
		if _, ok := p.tell(0, fmt.Sprint(i), false, false); !ok {
			t.Fatalf("peer %d is one too many", i)
		}
	}
	if _, ok := p.tell(0, "more", false, false); ok || len(p) != maxTold {
		t.Errorf("%d peers are remembered", len(p))
	}
	if known, ok := p.tell(1, "7", true, false); !ok || known != (toldPeer{known: 3, complete: 2}) {
		t.Errorf("one that is known already: %+v, %v", known, ok)
	}
}

// What trackers said of peers stays theirs when they change places.
func TestPeersMove(t *testing.T) {
	for _, tt := range []struct {
		from [2]int
		want map[string]toldPeer
	}{
		{[2]int{0, 1}, map[string]toldPeer{"a": {1, 1, 0}, "b": {2, 0, 2}, "c": {3, 1, 2}}},
		{[2]int{1, 0}, map[string]toldPeer{"a": {2, 2, 0}, "b": {1, 0, 1}, "c": {3, 2, 1}}},
		{[2]int{-1, 0}, map[string]toldPeer{"a": {2, 2, 0}, "c": {2, 2, 0}}},
		{[2]int{1, -1}, map[string]toldPeer{"b": {1, 0, 1}, "c": {1, 0, 1}}},
		{[2]int{-1, -1}, map[string]toldPeer{}},
	} {
		p := peers{}
		p.tell(0, "a", true, false)
		p.tell(1, "b", false, true)
		p.tell(0, "c", true, false)
		p.tell(1, "c", false, true)
		p.move(tt.from)
		if fmt.Sprint(p) != fmt.Sprint(tt.want) {
			t.Errorf("from %v: got %v, want %v", tt.from, p, tt.want)
		}
	}
}
