package swarm

import (
	"testing"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
)

const mib = 1 << 20

func rated(r float64) downlink { return downlink{meter: meter{rate: r}} }

// The window covers a while at high speed, the round trips, and a second on a slow link.
func TestDownlinkWindow(t *testing.T) {
	cfg := PeerConfig{}.withDefaults()
	for _, tt := range []struct {
		name string
		d    downlink
		want int
	}{
		{"nothing measured", rated(0), 16},
		{"moderate", rated(20 * mib), 16},
		{"fast", rated(1000 * mib), 240},
		{"memory bounds it", rated(10_000 * mib), 512},
		{"slow", rated(1 * mib), 8},
		{"very slow", rated(1000), 2},
		{"far", downlink{meter: meter{rate: 10 * mib}, rtt: 100 * time.Millisecond}, 32},
	} {
		if got := tt.d.window(&cfg); got != tt.want {
			t.Errorf("%s: %d blocks, want %d", tt.name, got, tt.want)
		}
	}
}

func TestDownlinkMayStart(t *testing.T) {
	cfg := PeerConfig{}.withDefaults()
	const small, large = piece.MinLength, piece.MaxLength
	for _, tt := range []struct {
		name   string
		d      downlink
		window int
		length int64
		held   int
		want   bool
	}{
		{"the first", downlink{}, 16, small, 0, true},
		{"the window is full", downlink{inflight: 16}, 16, small, 0, false},
		{"room for one block", downlink{inflight: 15, active: 7}, 16, small, 7, true},
		{"as many pieces as may be", downlink{inflight: 8, active: 8}, 16, small, 8, false},
		{"small pieces in a wide window", downlink{inflight: 8, active: 39}, 40, small, 39, true},
		{"and no more", downlink{inflight: 8, active: 40}, 40, small, 39, false},
		{"a window not that wide", downlink{inflight: 8, active: 8}, 16, small, 8, false},
		{"far: what travels is added", downlink{active: 23, meter: meter{rate: 10 * mib}, rtt: 500 * time.Millisecond}, 32, small, 0, true},
		{"twice as many at most", downlink{active: 24, meter: meter{rate: 10 * mib}, rtt: 500 * time.Millisecond}, 32, small, 0, false},
		{"two always fit", downlink{memory: 1 << 40, active: 1}, 16, large, 1, true},
		{"four large ones of a blob", downlink{memory: 3 * large, active: 3}, 16, large, 3, true},
		{"five", downlink{memory: 4 * large, active: 4}, 16, large, 4, false},
		{"others use the memory", downlink{memory: cfg.Memory - large, active: 2}, 16, large, 2, true},
		{"all of it", downlink{memory: cfg.Memory - large + 1, active: 2}, 16, large, 2, false},
	} {
		if got := tt.d.mayStart(&cfg, tt.window, tt.length, tt.held); got != tt.want {
			t.Errorf("%s: may start: %v", tt.name, got)
		}
	}
}

// The middle of many times is what most take, not their average.
func TestDownlinkMedian(t *testing.T) {
	var d downlink
	for k := range 400 {
		took := 100 * time.Millisecond
		if k%10 == 0 {
			took = 10 * time.Second
		}
		d.measured(took, 80*time.Millisecond)
	}
	if d.took < 80*time.Millisecond || d.took > 150*time.Millisecond {
		t.Errorf("a piece takes %v in the middle, want about 100 ms", d.took)
	}
	if d.rtt < 79*time.Millisecond || d.rtt > 80*time.Millisecond {
		t.Errorf("round trip %v, want 80 ms", d.rtt)
	}
}

func TestDownlinkStallLimit(t *testing.T) {
	cfg := PeerConfig{}.withDefaults()
	for _, tt := range []struct {
		name        string
		d           downlink
		stall, late time.Duration
	}{
		{"nothing measured", downlink{inflight: 99}, 1500 * time.Millisecond, endgameAfter},
		{"fast", downlink{inflight: 8, meter: meter{rate: 100 * mib}}, 1500 * time.Millisecond, endgameAfter},
		{"all on one slow link", downlink{inflight: 8, meter: meter{rate: mib}}, 2 * time.Second, 4 * time.Second},
		{"within bounds", downlink{inflight: 80, meter: meter{rate: mib}}, 10 * time.Second, 40 * time.Second},
		{"patient", downlink{patience: patience{doublings: 2}}, 6 * time.Second, endgameAfter},
	} {
		if stall, late := tt.d.stallLimit(&cfg), tt.d.lateAfter(); stall != tt.stall || late != tt.late {
			t.Errorf("%s: stalled after %v, late after %v; want %v, %v", tt.name, stall, late, tt.stall, tt.late)
		}
	}
}
