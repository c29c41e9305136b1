package sim

import (
	"fmt"
	"math"
	"time"
)

// Scenario is a row of the table of goals: a run and what it must reach.
type Scenario struct {
	Name   string
	Seeds  int     // how many runs its figures are the worst of
	Ideal  float64 // seconds that a host would take that had everything from one idle neighbour, or the bound of its zone
	Zones  int     // of which the origins are in the first
	Config func(seed uint64) Config
	// Goals: times over Ideal; bytes over those of the blobs together: what the
	// origins send in all, what they send again before they have sent every piece
	// once, what comes into each zone but the first; of what was received, the
	// share that was there. Infinite: not a goal of this row.
	P50, P99, P999, Origins, Early, Twice, Cross float64
}

// Row is what a Scenario came to: the worst of its runs.
type Row struct {
	Want, Done                                   int
	P50, P99, P999, Origins, Early, Twice, Cross float64
}

// Goals returns the table for clusters of a scale-th of the hosts, and blobs of
// their full size. Coarse is that of the Configs, 8 for blocks as long as pieces.
//
// The cluster is that of Kraken's report: 2,600 hosts, 300 MB/s each way, 3 GB in
// two layers.
func Goals(scale, coarse int) []Scenario {
	const (
		rate = 300e6
		size = 1_500_000_000
		none = math.MaxFloat64
	)
	ideal := 2 * size / rate
	cluster := func(n, origins int) func(uint64) Config {
		return func(seed uint64) Config {
			cfg := FanOut(max(n/scale, 30), origins, size, rate, 0)
			cfg.Blobs = append(cfg.Blobs, cfg.Blobs[0])
			cfg.Seed, cfg.Coarse, cfg.MessageBytes = seed, coarse, 100
			return cfg
		}
	}
	changed := func(base func(uint64) Config, f func(*Config)) func(uint64) Config {
		return func(seed uint64) Config {
			cfg := base(seed)
			f(&cfg)
			return cfg
		}
	}
	return []Scenario{
		{
			// One of the layers: the start weighs twice as much.
			Name: "15,000 hosts", Seeds: 1, Ideal: ideal / 2, Config: changed(cluster(15000, 5), func(c *Config) { c.Blobs = c.Blobs[:1] }),
			P50: 1.05, P99: 1.08, P999: 1.10, Origins: none, Early: none, Twice: .005, Cross: none,
		}, {
			Name: "2,600 hosts, 5 origins, warm", Seeds: 5, Ideal: ideal, Config: cluster(2600, 5),
			P50: 1.04, P99: 1.06, P999: 1.08, Origins: none, Early: none, Twice: .005, Cross: none,
		}, {
			Name: "the same, cold", Seeds: 1, Ideal: ideal,
			// Each blob is read once, by the origin that owns it: 1 GB/s in all would be
			// more than the two of them can receive.
			Config: changed(cluster(2600, 5), func(c *Config) {
				for k := range c.Blobs {
					c.Blobs[k].SourceRate, c.Blobs[k].Sources, c.Blobs[k].Hash = rate, []int{k}, false
				}
			}),
			P50: 1.08, P99: 1.12, P999: 1.15, Origins: none, Early: none, Twice: .005, Cross: none,
		}, {
			Name: "one origin", Seeds: 1, Ideal: ideal, Config: cluster(2600, 1),
			P50: 1.05, P99: 1.08, P999: 1.10, Origins: 1.15, Early: 0, Twice: .005, Cross: none,
		}, {
			Name: "arrivals, crashes, slow hosts, liars", Seeds: 1, Ideal: ideal, Config: changed(cluster(2600, 5), trouble),
			P50: none, P99: 1.30, P999: none, Origins: none, Early: none, Twice: .005, Cross: none,
		}, {
			Name: "3 zones", Seeds: 1, Ideal: ideal, Zones: 3,
			Config: changed(cluster(600, 1), func(c *Config) {
				c.ZoneLatency = time.Millisecond
				c.ZoneRate = rate * float64(len(c.Hosts)) / 3 / 10
				for k := range c.Hosts {
					c.Hosts[k].Zone = fmt.Sprintf("z%d", k%3)
				}
			}),
			P50: none, P99: 1.30, P999: none, Origins: none, Early: none, Twice: .005, Cross: 1.2,
		},
	}
}

// trouble lets hosts arrive over 30 s; of each hundred, ten crash, five have a
// tenth of the bandwidth and one lies; the tracker is away for 2 s in the middle.
func trouble(c *Config) {
	c.TrackerDown, c.TrackerFor = 14*time.Second, 2*time.Second
	n := 0
	for k := range c.Hosts {
		h := &c.Hosts[k]
		if h.Seed {
			continue
		}
		n++
		h.Join = time.Duration(n*7919%30011) * time.Millisecond
		switch m := n % 100; {
		case m < 10:
			h.Crash = time.Duration(1+n*31%9) * time.Second
			h.Aside = true
		case m < 15:
			h.Up, h.Down, h.Aside = h.Up/10, h.Down/10, true
		case m == 15:
			lies := []Lie{LieBytes, LieAll, LieHaves, LieSums, LieSizes}
			h.Lie, h.Aside = lies[n/100%len(lies)], true
		}
	}
}

// Measure runs the scenario with one seed.
func (s Scenario) Measure(seed uint64) Row {
	cfg := s.Config(seed)
	r := Run(cfg)
	f := r.Figures()
	var size float64
	for _, b := range cfg.Blobs {
		size += float64(b.Size)
	}
	over := func(d time.Duration) float64 { return d.Seconds() / s.Ideal }
	row := Row{
		Want: f.Want, Done: f.Done,
		P50: over(f.P50), P99: over(f.P99), P999: over(f.P999),
		Origins: float64(f.Origins) / size, Early: float64(f.Early) / size, Twice: float64(f.Twice) / float64(f.Received),
	}
	for z, n := range r.Zones {
		if s.Zones > 0 && z != cfg.Hosts[0].Zone {
			row.Cross = max(row.Cross, float64(n)/size)
		}
	}
	return row
}

// Worst merges two rows.
func (r Row) Worst(o Row) Row {
	return Row{
		Want: r.Want + o.Want, Done: r.Done + o.Done,
		P50: max(r.P50, o.P50), P99: max(r.P99, o.P99), P999: max(r.P999, o.P999), Origins: max(r.Origins, o.Origins),
		Early: max(r.Early, o.Early), Twice: max(r.Twice, o.Twice), Cross: max(r.Cross, o.Cross),
	}
}

// Figure is one figure of a row and its goal.
type Figure struct {
	Name       string
	Value, Max float64
}

// OK reports whether the goal is met.
func (f Figure) OK() bool { return f.Value <= f.Max }

// Figures returns those of r that have a goal.
func (s Scenario) Figures(r Row) []Figure {
	all := []Figure{
		{"p50", r.P50, s.P50}, {"p99", r.P99, s.P99}, {"p99.9", r.P999, s.P999}, {"origins", r.Origins, s.Origins},
		{"early", r.Early, s.Early}, {"twice", r.Twice, s.Twice}, {"cross", r.Cross, s.Cross},
		{"unfinished", float64(r.Want - r.Done), 0},
	}
	var fs []Figure
	for _, f := range all {
		if f.Max != math.MaxFloat64 {
			fs = append(fs, f)
		}
	}
	return fs
}
