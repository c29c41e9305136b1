package sim

import (
	"fmt"
	"slices"
	"time"

	"github.com/capelin-io/capelin/swarm/wire"
)

// FanOut returns the Config of the simplest case: n hosts that all want one
// blob at once, and origins that have it, with links of rate bytes per second
// each way and a latency one way between any two. A latency of 0 is the default.
func FanOut(n, origins int, size int64, rate float64, latency time.Duration) Config {
	cfg := Config{Seed: 1, Latency: latency, Blobs: []Blob{{Size: size, Hash: true}}}
	for k := range origins {
		cfg.Hosts = append(cfg.Hosts, Host{Name: fmt.Sprintf("o%d", k), Role: wire.RoleOrigin, Seed: true, Up: rate, Down: rate})
	}
	for range n {
		cfg.Hosts = append(cfg.Hosts, Host{Up: rate, Down: rate})
	}
	return cfg
}

// Figures sums a run up. Durations are from a host's joining until it had
// proven every blob.
type Figures struct {
	Want, Done          int // downloaders, and those of them that have finished
	P50, P99, P999, Max time.Duration
	Origins             int64 // bytes that hosts with Seed sent
	Early               int64 // of those, sent again before every piece was sent once
	Received, Twice     int64 // bytes of blocks that downloaders received, and those of them that they had
}

// Figures sums the run up.
func (r Result) Figures() Figures {
	var f Figures
	var took []time.Duration
	for _, h := range r.Hosts {
		if h.Seed {
			f.Origins += h.Up
			f.Early += h.Early
			continue
		}
		if h.Aside {
			continue
		}
		f.Want++
		f.Received += h.Down
		f.Twice += h.Redundant
		if h.Done {
			took = append(took, h.Took)
		}
	}
	slices.Sort(took)
	f.Done = len(took)
	f.P50, f.P99, f.P999, f.Max = Quantile(took, .5), Quantile(took, .99), Quantile(took, .999), Quantile(took, 1)
	return f
}

// Quantile returns the q-th quantile of what is in ascending order, or zero if
// that is empty.
func Quantile[T any](sorted []T, q float64) (zero T) {
	if len(sorted) == 0 {
		return zero
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
