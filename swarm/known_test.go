package swarm

import (
	"strings"
	"testing"
	"time"

	"github.com/capelin-io/capelin/swarm/wire"
)

// The oldest makes room, unless it is of use.
func TestExpendable(t *testing.T) {
	s := newKnownPeers()
	for _, n := range []*node{{name: "connected", conn: &conn{}}, {name: "dialed", dialing: true}, {name: "source"}, {name: "origin"}} {
		k := s.add(n)
		k.info.Source = n.name == "source"
		if n.name == "origin" {
			k.info.Role = wire.RoleOrigin
		}
	}
	if k := s.expendable(); k != nil {
		t.Errorf("%s is expendable", k.node.name)
	}
	old := &node{name: "old"}
	s.add(old)
	s.add(&node{name: "new"})
	if k := s.expendable(); k == nil || k.node != old {
		t.Errorf("%+v makes room, want the oldest of no use", k)
	}
	if old.refs != 1 || !s.has("old") {
		t.Errorf("old counts %d blobs, known: %v", old.refs, s.has("old"))
	}
	if s.remove(s.byName["old"]); old.refs != 0 || s.has("old") || s.expendable().node.name != "new" || len(s.list) != 5 {
		t.Errorf("old is still known: %v, counts %d blobs, of %d", s.has("old"), old.refs, len(s.list))
	}
}

func TestKnownPeersAreBounded(t *testing.T) {
	s := newKnownPeers()
	for range maxKnown {
		if s.full() {
			t.Fatalf("full with %d", len(s.list))
		}
		s.add(&node{})
	}
	if !s.full() {
		t.Error("not full")
	}
}

// A node is dialed ever later, up to a bound.
func TestNodeBackoff(t *testing.T) {
	var n node
	for k, want := range []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 4 * time.Second} {
		if got := n.backoff(500*time.Millisecond, 3); got != want || n.fails != k+1 {
			t.Errorf("after %d failures %v, want %v", n.fails, got, want)
		}
	}
	n.fails = 100
	if got := n.backoff(500*time.Millisecond, 8); got != maxBackoff {
		t.Errorf("after many failures %v, want %v", got, maxBackoff)
	}
}

// What is known of where a node is, of a tracker and of others that know less or more.
func TestNodeMoves(t *testing.T) {
	n := &node{}
	for _, tt := range []struct {
		told  []string
		moves bool
		ways  string
	}{
		{[]string{""}, false, ""},
		{[]string{"a:1", "b:1"}, true, "a:1 b:1"},
		{[]string{"a:1"}, false, "a:1 b:1"},
		{[]string{"b:1", "a:1"}, false, "a:1 b:1"},
		{[]string{"c:1"}, true, "c:1 a:1 b:1"},
		{[]string{"d:1", "e:1"}, true, "d:1 e:1 c:1 a:1"},
	} {
		moves := n.moves(tt.told[0], tt.told[1:])
		if ways := strings.Join(append([]string{n.addr}, n.others...), " "); moves != tt.moves || ways != tt.ways {
			t.Errorf("told %q: %v, it is at %q; want %v, %q", tt.told, moves, ways, tt.moves, tt.ways)
		}
	}
}
