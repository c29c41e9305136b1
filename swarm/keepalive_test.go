package swarm

import (
	"testing"
	"time"
)

// A quiet connection is pinged, a silent one is dead, whatever was said on it.
func TestKeepaliveVerdict(t *testing.T) {
	const s = time.Second
	for _, tt := range []struct {
		heard, spoke, now time.Duration
		want              aliveVerdict
	}{
		{0, 0, 0, aliveFine},
		{0, 0, 10 * s, aliveFine},
		{0, 0, 10*s + 1, alivePing},
		{20 * s, 0, 25 * s, alivePing},
		{0, 20 * s, 30 * s, aliveFine},
		{0, 20 * s, 30*s + 1, aliveDead},
		{0, 0, 31 * s, aliveDead},
		{31 * s, 31 * s, 41 * s, aliveFine},
	} {
		k := keepalive{heard: tt.heard, spoke: tt.spoke}
		if got := k.verdict(tt.now); got != tt.want {
			t.Errorf("heard at %v, spoke at %v: verdict %d at %v, want %d", tt.heard, tt.spoke, got, tt.now, tt.want)
		}
	}
}
