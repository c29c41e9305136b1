package sim

import (
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// Without either, the tests are quick: every kind of case, with few hosts.
var (
	whole = flag.Bool("sim.table", false, "run the large cases and the table of goals, too: a minute and a half (make sim-test)")
	full  = flag.Bool("sim.full", false, "run the cases at the size of a cluster, too: minutes and gigabytes")
)

// with returns cfg changed by f.
func with(cfg Config, f func(*Config)) Config {
	f(&cfg)
	return cfg
}

// goal is what a case must reach, in multiples: of size/rate for times, of the
// size for the origins' uploads together, of the size for bytes received twice
// by all hosts together per host. Zero: not checked.
type goal struct {
	p50, p99  float64
	origins   float64
	redundant float64
	done      int                              // hosts that must finish; 0: all downloaders
	check     func(*testing.T, Config, Result) // more
}

type tableCase struct {
	name string
	cfg  Config
	rate float64 // bytes per second, of the ideal
	goal goal
}

// table has every kind of case.
func table() []tableCase {
	const mb = 1_000_000
	usual := goal{p50: 1.06, p99: 1.10, origins: 1.10, redundant: 0.005}
	return []tableCase{
		{"1 host", FanOut(1, 1, 200*mb, 20*mb, 0), 20 * mb, goal{p50: 1.01, p99: 1.01, origins: 1.01, redundant: 0.005}},
		{"1 host, a fast link", FanOut(1, 1, 1000*mb, 1<<30, 0), 1 << 30, goal{p50: 1.05, p99: 1.05, origins: 1.01, redundant: 0.005}},
		{"16 hosts", FanOut(16, 1, 100*mb, 20*mb, 0), 20 * mb, usual},
		// Eight pieces at once would be all that is under way: 1.14 and 1.08 without
		// counting what travels, 2.2 at "a long way, fast links".
		{"around the world", with(FanOut(32, 1, 128<<20, 10*mb, 0), func(c *Config) { c.Latency = 50 * time.Millisecond }), 10 * mb,
			goal{p50: 1.16, p99: 1.20, origins: 1.12, redundant: 0.005}},
		{"two layers, one after the other", with(FanOut(16, 1, 100*mb, 20*mb, 0), func(c *Config) {
			c.Blobs = append(c.Blobs, Blob{Size: 60 * mb, Hash: true})
		}), 20 * mb, goal{p50: 1.06, p99: 1.10, origins: 1.10, redundant: 0.005, check: func(t *testing.T, c Config, r Result) {
			for k, h := range r.Hosts[1:] {
				if h.BlobDone[0] >= h.BlobDone[1] {
					t.Errorf("host %d had the second layer at %v, the first at %v", k, h.BlobDone[1], h.BlobDone[0])
				}
			}
		}}},
		// By seed the last is between 1.08 and 1.40.
		{"one by one", with(FanOut(24, 1, 60*mb, 20*mb, 0), func(c *Config) {
			for k := range c.Hosts[1:] {
				c.Hosts[1+k].Join = time.Duration(k) * 200 * time.Millisecond
			}
		}), 20 * mb, goal{p50: 1.10, p99: 1.45, redundant: 0.01}},
		{"a late joiner among many", with(FanOut(40, 1, 40*mb, 20*mb, 0), func(c *Config) {
			c.Hosts[40].Join = time.Second
			c.Hosts[39].Join = 3 * time.Second
		}), 20 * mb, goal{p50: 1.10, p99: 1.25, redundant: 0.01}},
		{"a small blob", FanOut(16, 1, 10_000, 20*mb, 0), 20 * mb, goal{check: func(t *testing.T, _ Config, r Result) {
			if ts := took(r); ts[len(ts)-1] > 100*time.Millisecond {
				t.Errorf("10 kB took %v", ts[len(ts)-1])
			}
		}}},
		{"two zones", twoZones(32, 60*mb, 20*mb), 20 * mb, goal{p50: 1.08, p99: 1.12, origins: 1.10, redundant: 0.005, check: crosses(1.05)}},
		// By seed the last is between 2.1 and 3.8: how many stalls follow each other.
		{"two zones, most bringers of one freeze", with(twoZones(32, 60*mb, 20*mb), func(c *Config) {
			for k := 1; k <= 21; k += 2 { // of 16 in the zone without an origin
				c.Hosts[k].Freeze = 700 * time.Millisecond
			}
		}), 20 * mb, goal{p99: 3.3, redundant: 0.02, done: 21, check: crosses(1.5)}},
		// By seed the last is between 1.5 and 2.1.
		{"two zones, two slow bringers", with(twoZones(32, 60*mb, 20*mb), func(c *Config) {
			for k := 1; k <= 3; k += 2 {
				c.Hosts[k].Up, c.Hosts[k].Down, c.Hosts[k].Aside = 1*mb, 1*mb, true
			}
		}), 20 * mb, goal{p99: 2.2, redundant: 0.01, check: crosses(1.2)}},
		{"two zones with a thin link", with(twoZones(32, 30*mb, 20*mb), func(c *Config) {
			c.ZoneRate = 2 * mb
		}), 2 * mb, goal{p99: 1.2, redundant: 0.01, check: crosses(1.1)}},
		{"two zones, the tracker goes away", with(twoZones(8, 20*mb, 20*mb), func(c *Config) {
			c.TrackerDown, c.TrackerFor = 100*time.Millisecond, time.Minute
		}), 20 * mb, goal{check: crosses(2)}},
		{"limits, set on the way", with(FanOut(8, 1, 60*mb, 200*mb, 0), func(c *Config) {
			for k := range c.Hosts {
				c.Hosts[k].Limits = []Limit{{At: 1, Up: 20 * mb, Down: 20 * mb}}
			}
		}), 20 * mb, goal{p50: 1.05, p99: 1.05, redundant: 0.005, check: func(t *testing.T, _ Config, r Result) {
			for k, h := range r.Hosts[1:] {
				if h.Took < 2800*time.Millisecond {
					t.Errorf("host %d took %v for 60 MB at 20 MB/s", k, h.Took)
				}
			}
		}}},
		{"a slow source behind a relay", relay(), 10 * mb, goal{p50: 1.02, p99: 1.10, redundant: 0.005}},
		{"a slow link", FanOut(4, 1, 10*mb, 100_000, 0), 100_000, goal{p50: 1.25, p99: 1.25, redundant: 0.03}},
		{"a stall", with(FanOut(16, 1, 100*mb, 20*mb, 0), func(c *Config) {
			c.Hosts[5].Freeze, c.Hosts[5].Thaw = time.Second, 20*time.Second
		}), 20 * mb, goal{p50: 1.06, redundant: 0.005, check: func(t *testing.T, _ Config, r Result) {
			if ts := took(r); ts[len(ts)-2] > 6500*time.Millisecond {
				t.Errorf("one frozen host made another take %v", ts[len(ts)-2])
			}
		}}},
		{"crashes", with(FanOut(32, 1, 100*mb, 20*mb, 0), func(c *Config) {
			for k := 1; k <= 12; k++ {
				at := time.Duration(k) * 300 * time.Millisecond
				switch k % 3 {
				case 0:
					c.Hosts[k].Crash = at
				case 1:
					c.Hosts[k].Freeze = at
				case 2:
					c.Hosts[k].Leave = at
				}
			}
		}), 20 * mb, goal{p50: 1.15, p99: 1.4, redundant: 0.01, done: 20}},
		{"the origin goes away when all is out", with(FanOut(16, 1, 60*mb, 20*mb, 0), func(c *Config) {
			c.Hosts[0].Crash = 3150 * time.Millisecond
		}), 20 * mb, goal{p50: 1.2, p99: 1.3, redundant: 0.005}},
		{"liars", with(FanOut(24, 1, 60*mb, 20*mb, 0), func(c *Config) {
			c.Hosts[3].Lie, c.Hosts[4].Lie, c.Hosts[5].Lie = LieBytes, LieAll, LieHaves
		}), 20 * mb, goal{p50: 1.25, done: 22, check: func(t *testing.T, c Config, r Result) {
			caught := 0
			for k, h := range r.Hosts {
				for _, n := range h.Convicted {
					if n != "h3" && n != "h4" {
						t.Errorf("host %d convicted %s, who is honest", k, n)
					}
					caught++
				}
			}
			if caught < 22 {
				t.Errorf("%d convictions of two liars by 22 hosts", caught)
			}
		}}},
		{"wrong sums", with(FanOut(16, 1, 60*mb, 20*mb, 0), func(c *Config) {
			c.Blobs[0].Hash = false
			c.Hosts[0].Role = wire.RoleAgent
			c.Hosts[2] = Host{Name: "liar", Seed: true, Lie: LieSums, Up: 20 * mb, Down: 20 * mb}
		}), 20 * mb, goal{p50: 2, check: func(t *testing.T, c Config, r Result) {
			for k, h := range r.Hosts {
				for _, n := range h.Convicted {
					if n != "liar" {
						t.Errorf("host %d convicted %s, who is honest", k, n)
					}
				}
			}
		}}},
	}
}

// largeTable is what takes longer: more hosts, and more pieces.
func largeTable() []tableCase {
	const mb = 1_000_000
	usual := goal{p50: 1.06, p99: 1.10, origins: 1.10, redundant: 0.005}
	return []tableCase{
		{"32 hosts", FanOut(32, 1, 200*mb, 20*mb, 0), 20 * mb, goal{p50: 1.03, p99: 1.05, origins: 1.03, redundant: 0.005}},
		{"16 hosts, large pieces", FanOut(16, 1, 600*mb, 300*mb, 0), 300 * mb, usual},
		{"100 hosts", FanOut(100, 1, 30*mb, 20*mb, 0), 20 * mb, goal{p50: 1.08, p99: 1.15, origins: 1.15, redundant: 0.005}},
		{"a long way", with(FanOut(16, 1, 100*mb, 20*mb, 0), func(c *Config) { c.Latency = 3 * time.Millisecond }), 20 * mb,
			goal{p50: 1.10, p99: 1.15, origins: 1.10, redundant: 0.005}},
		{"a long way, fast links", with(FanOut(32, 1, 1<<30, 100*mb, 0), func(c *Config) { c.Latency = 20 * time.Millisecond }), 100 * mb,
			goal{p50: 1.45, p99: 1.50, origins: 1.10, redundant: 0.005}},
		{"a slow source", with(FanOut(16, 1, 100*mb, 20*mb, 0), func(c *Config) {
			c.Blobs[0].Hash, c.Blobs[0].SourceRate = false, 10*mb
		}), 10 * mb, goal{p50: 1.02, p99: 1.02, redundant: 0.005}},
	}
}

// twoZones is FanOut with every other host in another zone than the origin.
func twoZones(n int, size int64, rate float64) Config {
	cfg := FanOut(n, 1, size, rate, 0)
	cfg.ZoneLatency = 5 * time.Millisecond
	for k := range cfg.Hosts {
		cfg.Hosts[k].Zone = fmt.Sprint(k % 2)
	}
	return cfg
}

// crosses checks how many times a blob comes into a zone in all.
func crosses(most float64) func(*testing.T, Config, Result) {
	return func(t *testing.T, c Config, r Result) {
		for zone, n := range r.Zones {
			if x := float64(n) / float64(c.Blobs[0].Size); x > most {
				t.Errorf("the blob came %.3f times into zone %s, more than %.3f", x, zone, most)
			}
		}
	}
}

// relay is a host whose only neighbour is another that is itself still
// downloading from a slow source.
func relay() Config {
	cfg := FanOut(2, 1, 100_000_000, 20e6, 0)
	cfg.Blobs[0].Hash, cfg.Blobs[0].SourceRate = false, 10e6
	cfg.Hosts[0].Peer = swarm.PeerConfig{MaxConns: 1}
	cfg.Hosts[2].Join = 500 * time.Millisecond
	return cfg
}

// fullTable is what the swarm's design was measured against first: fan-outs of growing
// size, and one of Kraken's scale.
func fullTable() []tableCase {
	g := goal{p50: 1.08, p99: 1.15, origins: 1.15, redundant: 0.005}
	return []tableCase{
		{"32 hosts, 3 GB at 300 MB/s", FanOut(32, 1, 3e9, 300e6, 0), 300e6, g},
		{"300 hosts, 200 MB at 20 MB/s", FanOut(300, 1, 200e6, 20e6, 0), 20e6, g},
		{"the same, 3 ms away", with(FanOut(300, 1, 200e6, 20e6, 0), func(c *Config) { c.Latency = 3 * time.Millisecond }), 20e6, g},
		{"2,600 hosts, 5 origins, 100 MB at 20 MB/s", FanOut(2600, 5, 100e6, 20e6, 0), 20e6,
			goal{p50: 1.10, p99: 1.2, origins: 5.75, redundant: 0.005}},
	}
}

func took(r Result) []time.Duration {
	var ts []time.Duration
	for _, h := range r.Hosts {
		if h.Done {
			ts = append(ts, h.Took)
		}
	}
	slices.Sort(ts)
	return ts
}

func (c tableCase) run(t *testing.T) {
	start := time.Now()
	r := Run(c.cfg)
	var size int64
	for _, b := range c.cfg.Blobs {
		size += b.Size
	}
	f := r.Figures()
	stalled, bad, convicted, dials := 0, 0, 0, 0
	for _, h := range r.Hosts {
		stalled += h.Stalled
		bad += h.Bad
		convicted += len(h.Convicted)
		dials += h.Dials
	}
	over := func(d time.Duration) float64 { return d.Seconds() / (float64(size) / c.rate) }
	p50, p99, p999 := over(f.P50), over(f.P99), over(f.P999)
	origins := float64(f.Origins) / float64(size)
	redundant := float64(f.Twice) / float64(size) / float64(f.Want)
	t.Logf("%d of %d done; p50 %.3f p99 %.3f p99.9 %.3f; origins sent %.3f ×; twice %.3f %%; "+
		"%d stalls, %d bad pieces, %d convictions, %.1f dials each; %d events in %v",
		f.Done, f.Want, p50, p99, p999, origins, 100*redundant,
		stalled, bad, convicted, float64(dials)/float64(f.Want), r.Events, time.Since(start).Round(time.Millisecond))
	g := c.goal
	if g.done == 0 {
		g.done = f.Want
	}
	if f.Done < g.done {
		t.Errorf("%d hosts have finished, want %d", f.Done, g.done)
	}
	for _, x := range []struct {
		name      string
		got, most float64
	}{{"p50", p50, g.p50}, {"p99", p99, g.p99}, {"origins", origins, g.origins}, {"twice", redundant, g.redundant}} {
		if x.most > 0 && x.got > x.most {
			t.Errorf("%s is %.4f, want at most %.4f", x.name, x.got, x.most)
		}
	}
	if g.check != nil {
		g.check(t, c.cfg, r)
	}
}

func TestTable(t *testing.T) {
	cases := table()
	if *whole || *full {
		cases = append(cases, largeTable()...)
	}
	if *full {
		cases = append(cases, fullTable()...)
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.run(t)
		})
	}
}

// The only seeder goes away in the middle: what is left of the blob with the others is its
// beginning, which is all that is of use to whoever fetches the rest elsewhere.
func TestLost(t *testing.T) {
	for _, c := range []struct {
		name  string
		hosts int
		rate  float64       // of the hosts' links; the seeder's is 10 MB/s
		after time.Duration // how long they give each other what they have
		most  float64       // what is fetched elsewhere then over what is missing
	}{
		{"1 host", 1, 10e6, 50 * time.Millisecond, 1.01},
		{"2 hosts", 2, 10e6, 50 * time.Millisecond, 1.03},
		{"2 hosts, fast links", 2, 100e6, 50 * time.Millisecond, 1.01},
		{"16 hosts", 16, 10e6, time.Second, 1.01}, // by seed up to 1.14 at once
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := FanOut(c.hosts, 1, 40e6, c.rate, 0)
			cfg.Hosts[0].Up, cfg.Hosts[0].Crash = 10e6, 3*time.Second
			cfg.Limit = cfg.Hosts[0].Crash + c.after
			r := Run(cfg)
			all := piece.ID{Alg: piece.SHA256, Size: cfg.Blobs[0].Size}.Pieces()
			if r.Blobs[0].Have < all*7/10 {
				t.Fatalf("%d of %d pieces came", r.Blobs[0].Have, all)
			}
			for k, h := range r.Hosts[1:] {
				if x := float64(all-h.Parts[0].Prefix) / float64(all-r.Blobs[0].Have); x > c.most {
					t.Errorf("host %d begins at piece %d, of %d all hosts have %d: %.3f times what is missing",
						k, h.Parts[0].Prefix, all, r.Blobs[0].Have, x)
				}
			}
		})
	}
}

// A seeder with a limit, of which several blobs are wanted: none stands still, however many hosts
// want each, and the first is there nearly as early as if it were alone.
func TestShared(t *testing.T) {
	limited := func(hosts, blobs int) Config {
		cfg := FanOut(hosts, 1, 30e6, 100e6, 0)
		for range blobs - 1 {
			cfg.Blobs = append(cfg.Blobs, cfg.Blobs[0])
		}
		cfg.Hosts[0].Limits = []Limit{{At: 1, Up: 10e6}}
		return cfg
	}
	for _, c := range []struct {
		name  string
		cfg   Config
		still time.Duration // at most, of any blob
		first time.Duration // 0: not checked
	}{
		{"three layers, two hosts", limited(2, 3), 4 * time.Second, 3200 * time.Millisecond},
		{"three layers, five hosts", limited(5, 3), 4 * time.Second, 3300 * time.Millisecond},
		{"one host wants another blob", with(limited(12, 2), func(c *Config) {
			for k := range c.Hosts[1:] {
				c.Hosts[1+k].Blobs = []int{0}
			}
			c.Hosts[12].Blobs = []int{1}
		}), 200 * time.Millisecond, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := Run(c.cfg)
			for k, h := range r.Hosts[1:] {
				if !h.Done || slices.Max(h.Still) > c.still || c.first > 0 && h.BlobDone[0] > c.first {
					t.Errorf("host %d: done %v at %v; for so long nothing came: %v", k, h.Done, h.BlobDone, h.Still)
				}
			}
			if f := r.Figures(); f.P99 > time.Duration(len(c.cfg.Blobs))*3200*time.Millisecond {
				t.Errorf("it took %v", f.P99)
			}
		})
	}
}

// The same Config yields the same run, event by event.
func TestDeterministic(t *testing.T) {
	run := func(seed uint64) (events int, log string) {
		cfg := FanOut(12, 1, 10e6, 20e6, 0)
		cfg.Seed = seed
		cfg.Hosts[3].Lie, cfg.Hosts[4].Crash = LieBytes, 300*time.Millisecond
		h := uint64(14695981039346656037)
		cfg.Trace = func(at time.Duration, host string, ev swarm.Event, acts []swarm.Action) {
			for _, c := range fmt.Sprintf("%d %s %T %d", at, host, ev, len(acts)) {
				h = (h ^ uint64(c)) * 1099511628211
			}
		}
		r := Run(cfg)
		return r.Events, fmt.Sprintf("%x %v", h, took(r))
	}
	n1, a := run(7)
	n2, b := run(7)
	if a != b || n1 != n2 {
		t.Errorf("two runs of one seed differ: %d events, %s; %d events, %s", n1, a, n2, b)
	}
	if _, c := run(8); a == c {
		t.Error("another seed makes no difference")
	}
}

// The table of goals, with a 26th of the hosts: what cmd/sim measures at full size.
func TestGoals(t *testing.T) {
	if !*whole && !*full {
		t.Skip("a minute: make sim-test")
	}
	for k, s := range Goals(26, 8) {
		if s.Zones > 0 {
			s = Goals(6, 8)[k] // what one of ten hosts in a zone sends to others is much
		}
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			row := s.Measure(1)
			t.Logf("%+v", row)
			for _, f := range s.Figures(row) {
				if !f.OK() {
					t.Errorf("%s is %.4f, more than %.4f", f.Name, f.Value, f.Max)
				}
			}
		})
	}
}
