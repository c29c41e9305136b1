package fetchsim

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/capelin-io/capelin/plugin/fetch"
)

const mib = 1 << 20

// cluster is a pull of one image by all nodes, as it should be. No swarm is slow beside its
// registry: see TestSlowSources.
func cluster(seed uint64) Config {
	return Config{
		Seed: seed, Nodes: 8, Blobs: 3, Size: 10 * mib, Registry: 5 * mib, Rate: 20 * mib, Trackers: 2,
		Spread: 500 * time.Millisecond, Latency: 20 * time.Millisecond, Known: 1,
	}
}

func with(cfg Config, f func(*Config)) Config {
	f(&cfg)
	return cfg
}

// TestFetches: each kind of trouble, with several seeds.
func TestFetches(t *testing.T) {
	type bounds struct {
		// copies that leave the registry, at most. One, if only holders of leases bring bytes
		// (who gives up while it waits has brought none), and hardly more if they crash:
		// what they had brought, others have. When several were refused, others try without a
		// lease: two. A lease whose stream breaks is granted anew while its holder goes on,
		// which happens twice to a blob at these rates: three. Nodes that are told nothing, or
		// of sources that give nothing, bring all themselves: a copy for each.
		copies float64
		wait   time.Duration // the longest, at most
	}
	for _, tt := range []struct {
		name   string
		seeds  int
		change func(*Config)
		want   bounds
	}{
		{"all is well", 5, func(*Config) {}, bounds{copies: 1}},
		{"one tracker", 5, func(c *Config) { c.Trackers = 1 }, bounds{copies: 1}},
		{"nodes expect what they are asked for", 15, func(c *Config) { c.Prefetch = 0.7 }, bounds{copies: 1}},
		{"messages are late and cross", 10, func(c *Config) { c.Prefetch, c.Latency = 0.7, 60*time.Millisecond }, bounds{copies: 1}},
		{"clients give up", 10, func(c *Config) { c.GiveUp, c.Latency = 0.5, 50*time.Millisecond }, bounds{copies: 1}},
		{"messages are lost", 10, func(c *Config) { c.Breaks, c.Prefetch = 0.3, 0.5 }, bounds{copies: 3}},
		{"the registry refuses some", 5, func(c *Config) { c.Refused, c.Nodes = 3, 8 }, bounds{copies: 2}},
		{"holders crash", 5, func(c *Config) { c.Crashes = 2 }, bounds{copies: 1.1}},
		{"sources give nothing", 3, func(c *Config) { c.Frozen = 1 }, bounds{copies: 7}},
		{"nobody reaches a source", 5, func(c *Config) { c.Dead = 1 }, bounds{copies: 1}},
		{"sources do not answer", 5, func(c *Config) { c.Dead, c.FoundOut = 3, 1200*time.Millisecond }, bounds{copies: 1}},
		{"one node, and its source refuses", 3, func(c *Config) { c.Dead, c.Nodes = 1, 2 }, bounds{copies: 1, wait: 200 * time.Millisecond}},
		{"one node, and its source does not answer", 3, func(c *Config) { c.Dead, c.Nodes, c.FoundOut = 1, 2, 1200*time.Millisecond },
			bounds{copies: 1, wait: 1400 * time.Millisecond}},
		{"one of two sources answers", 3, func(c *Config) { c.Dead, c.Nodes, c.FoundOut, c.Full = 1, 4, 1200*time.Millisecond, 1 }, bounds{}},
		{"trackers are silent", 3, func(c *Config) { c.Silent = true }, bounds{copies: 8, wait: find}},
		{"there are none", 3, func(c *Config) { c.Trackers = 0 }, bounds{copies: 8, wait: 10 * time.Millisecond}}, // two questions to the swarm
		{"all of it", 10, func(c *Config) {
			c.Breaks, c.Prefetch, c.GiveUp, c.Crashes, c.Refused, c.Latency = 0.1, 0.5, 0.3, 2, 1, 40*time.Millisecond
		}, bounds{copies: 3}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for seed := range tt.seeds {
				cfg := with(cluster(uint64(seed)), tt.change)
				r := Run(cfg)
				for _, b := range r.Broken {
					t.Errorf("seed %d: %s", seed, b)
				}
				if n := float64(r.Registry) / float64(cfg.Size) / float64(cfg.Blobs); n > tt.want.copies {
					t.Errorf("seed %d: %.2f copies left the registry, want at most %.1f (%d leases, %d alone)", seed, n, tt.want.copies, r.Leases, r.Alone)
				}
				if longest := slices.Max(r.Waited); tt.want.wait > 0 && longest > tt.want.wait+time.Millisecond {
					t.Errorf("seed %d: a session waited for %v, want at most %v", seed, longest, tt.want.wait)
				}
			}
		})
	}
}

// TestDeterministic: a run is a function of its Config.
func TestDeterministic(t *testing.T) {
	var logs [2]string
	for i := range logs {
		cfg := with(cluster(7), func(c *Config) { c.Breaks, c.Prefetch, c.GiveUp, c.Crashes = 0.3, 0.5, 0.3, 1 })
		cfg.Trace = func(at time.Duration, node int, what string, ev any) {
			if p, ok := ev.(fetch.ActAnswer); ok {
				logs[i] += fmt.Sprintln(at, node, what, p.Session, p.Answer, p.Why)
			}
		}
		logs[i] += fmt.Sprint(Run(cfg))
	}
	if logs[0] != logs[1] {
		t.Errorf("two runs of the same Config differ:\n%s\n%s", logs[0], logs[1])
	}
}

// TestSlowSources: with a registry of R bytes a second, a pull of S takes at most 1.2 × S/R + 2 s, whatever
// the sources do; where these are as fast as that, nothing is downloaded twice; and where it is the
// registry that has become slow, few nodes go there, one after the other.
func TestSlowSources(t *testing.T) {
	const rate, size = 10 * mib, 30 * mib
	base := func(seed uint64) Config {
		return Config{
			Seed: seed, Nodes: 2, Blobs: 1, Size: size, Registry: rate, Each: true, Known: rate, Rate: 20 * mib, Trackers: 2,
			Spread: 100 * time.Millisecond, Latency: 20 * time.Millisecond,
		}
	}
	bound := func(size, rate float64) time.Duration { return time.Duration((1.2*size/rate + 2) * 1e9) }
	for _, tt := range []struct {
		name   string
		change func(*Config)
		within time.Duration // 0: not looked at
		copies float64       // from the registry, beyond what the slow one takes
	}{
		{"the holder's registry is slow", func(c *Config) { c.Slow = 450e3 }, bound(size, rate), 1},
		{"and many wait for it", func(c *Config) { c.Slow, c.Nodes = 450e3, 16 }, bound(size, rate) + 500*time.Millisecond, 2},
		{"the holder's is as fast", func(c *Config) { c.Slow, c.Nodes = rate, 16 }, bound(size, rate), 0},
		{"the seeder is slow", func(c *Config) { c.Frozen, c.Trickle = 1, 60e3 }, bound(size, rate), 1},
		{"and many wait for it", func(c *Config) { c.Frozen, c.Trickle, c.Nodes = 1, 60e3, 16 }, bound(size, rate) + 500*time.Millisecond, 2},
		{"a piece now and then", func(c *Config) { c.Frozen, c.Trickle = 1, 32e3 }, bound(size, rate), 1},
		{"the seeder is nearly as fast as the registry", func(c *Config) { c.Frozen, c.Trickle = 1, 0.95*rate }, bound(size, rate), 0},
		{"no tracker gives leases in turn", func(c *Config) { c.Trackers, c.Slow = 0, 0 }, bound(size, rate), 2},
		{"what was known of the registry is no more", func(c *Config) { c.Nodes, c.Registry, c.Each = 12, rate/10, false }, 0, 5},
		{"and all the rest", func(c *Config) {
			c.Nodes, c.Blobs, c.Slow, c.Spread = 8, 2, 450e3, time.Second
			c.Breaks, c.Prefetch, c.GiveUp, c.Crashes, c.Refused, c.Latency = 0.1, 0.5, 0.3, 2, 1, 40*time.Millisecond
		}, 0, 16},
		{"nothing is known of the registry", func(c *Config) { c.Known, c.Slow = 0, 450e3 }, bound(size, rate), 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for seed := range uint64(3) {
				cfg := with(base(seed), tt.change)
				if seed > 0 && cfg.Nodes > 8 {
					break // they take long
				}
				r := Run(cfg)
				for _, b := range r.Broken {
					t.Errorf("seed %d: %s", seed, b)
				}
				copies := float64(r.Registry) / size
				if cfg.Slow > 0 {
					copies--
				}
				if copies > tt.copies+0.01 {
					t.Errorf("seed %d: %.2f copies left the registry, want at most %.1f (%d leases, %d alone)", seed, copies, tt.copies, r.Leases, r.Alone)
				}
				if longest := slices.Max(r.Took); tt.within > 0 && longest > tt.within {
					t.Errorf("seed %d: a pull took %v, want at most %v", seed, longest, tt.within)
				} else {
					t.Logf("seed %d: %v of %v, %.2f copies, %d leases, %d alone", seed, longest, tt.within, copies, r.Leases, r.Alone)
				}
			}
		})
	}
}
