package sim

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/wire"
)

// Config describes a run.
type Config struct {
	Seed  uint64
	Hosts []Host
	Blobs []Blob

	Latency     time.Duration // one way; default 250 µs
	ZoneLatency time.Duration // between zones; default Latency
	StoreDelay  time.Duration // latency of storing a piece; default 100 µs
	StoreRate   float64       // bytes per second of verifying and writing; default 2 GB/s
	Limit       time.Duration // the run ends then at the latest; default 1 h

	// ZoneRate is what leaves each zone for the others in all, and what enters it
	// from them in all, in bytes per second; 0: as much as its hosts can.
	ZoneRate float64

	// MessageBytes is how long each message other than a block is on the wire, in
	// its sender's uplink; MessageCost is how long a host is busy with each
	// message that it receives. Default 0.
	MessageBytes int
	MessageCost  time.Duration

	// The tracker is away from TrackerDown on for TrackerFor, and has forgotten all
	// when it comes back; every host has a stream to it again within a second.
	TrackerDown, TrackerFor time.Duration

	// Coarse divides all sizes and rates of the run, and multiplies the bytes in
	// its Result, so that a block stands for as many: an approximation that saves
	// most of the events of pieces of several blocks. Blobs keep their numbers of
	// pieces if it is no more than the blocks of a piece. 0 and 1: none.
	Coarse int

	Trace func(at time.Duration, host string, ev swarm.Event, acts []swarm.Action) // may be nil
}

// Blob is something to distribute. Blobs with a lower index have priority.
type Blob struct {
	Size int64
	// SourceRate: hosts with Seed begin with nothing and receive the blob from
	// upstream at this rate, in bytes per second; 0: they have it.
	SourceRate float64
	// Sources are the indices of the hosts with Seed that take part; nil: all.
	Sources []int
	// Hash: the tracker names the hash of the proven list from the beginning.
	Hash bool
}

// Host is one node.
type Host struct {
	Name     string // default "h<index>"
	Zone     string
	Role     wire.Role // default wire.RoleAgent
	Up, Down float64   // bytes per second; 0: 1e12
	Seed     bool      // has the blobs, or receives them from upstream; wants nothing
	Blobs    []int     // indices of those that it has or wants; nil: all
	Join     time.Duration
	Leave    time.Duration // after joining; leaves all swarms and closes its connections; 0: never
	Crash    time.Duration // after joining; 0: never
	Freeze   time.Duration // after joining; 0: never
	Thaw     time.Duration // after freezing; 0: never
	Limits   []Limit       // bandwidth limits set on the way

	Aside bool // not waited for, and not counted by Figures
	Lie   Lie
	Peer  swarm.PeerConfig // Node, Zone, Role and Seed are set by the run
}

// Limit is a change of bandwidth limits (swarm.EvLimits).
type Limit struct {
	At       time.Duration // after joining
	Up, Down int64
}

// Lie is a set of ways to misbehave.
type Lie uint8

const (
	LieBytes Lie = 1 << iota // sends wrong bytes for every third block
	LieAll                   // sends wrong bytes for every block
	LieSums                  // sends wrong sums, and says that they are proven
	LieHaves                 // says that it has everything
	LieSizes                 // says that the blob is one byte longer
)

// Result is what came out.
type Result struct {
	Hosts  []HostResult
	Blobs  []Part           // what the hosts that are up, but for those with Seed, have together at the end
	Zones  map[string]int64 // bytes of blocks that entered each zone from others
	Events int              // steps of all peers
	Time   time.Duration    // virtual, when the run ended
}

// HostResult is what became of one host.
type HostResult struct {
	Seed      bool // as configured
	Aside     bool // as configured
	Done      bool
	Took      time.Duration // from joining until it had proven everything
	BlobDone  []time.Duration
	Parts     []Part          // by blob, at the end
	Still     []time.Duration // by blob, the longest time without a piece of it
	Up, Down  int64           // bytes of blocks sent and received
	Redundant int64
	Early     int64    // bytes of blocks that a host with Seed sent again before it had sent every piece once
	Convicted []string // nodes that it convicted, in order
	Stalled   int      // stalls that it reported
	Bad       int      // pieces that did not verify
	Conns     int      // connections at the end
	Dials     int
	Reports   []swarm.Report
}

// Part is how many pieces of a blob are there, and without a gap from the first one on.
type Part struct{ Have, Prefix int }

// divided returns cfg with all that is counted in bytes divided by k.
func (cfg Config) divided(k int64) Config {
	f := float64(k)
	cfg.Blobs, cfg.Hosts = slices.Clone(cfg.Blobs), slices.Clone(cfg.Hosts)
	for i := range cfg.Blobs {
		cfg.Blobs[i].Size /= k
		cfg.Blobs[i].SourceRate /= f
	}
	for i := range cfg.Hosts {
		h := &cfg.Hosts[i]
		h.Up, h.Down, h.Limits = h.Up/f, h.Down/f, slices.Clone(h.Limits)
		for j := range h.Limits {
			h.Limits[j].Up /= k
			h.Limits[j].Down /= k
		}
	}
	cfg.StoreRate /= f
	cfg.ZoneRate /= f
	cfg.MessageBytes /= int(k)
	return cfg
}

// withDefaults returns cfg with its zero fields filled in.
func (cfg Config) withDefaults() Config {
	cfg.Latency = cmp.Or(cfg.Latency, 250*time.Microsecond)
	cfg.ZoneLatency = cmp.Or(cfg.ZoneLatency, cfg.Latency)
	cfg.StoreDelay = cmp.Or(cfg.StoreDelay, 100*time.Microsecond)
	cfg.StoreRate = cmp.Or(cfg.StoreRate, 2e9)
	cfg.Limit = cmp.Or(cfg.Limit, time.Hour)
	return cfg
}

// withDefaults returns the k-th host with its zero fields filled in.
func (h Host) withDefaults(k int) Host {
	h.Name = cmp.Or(h.Name, fmt.Sprintf("h%d", k))
	h.Role = cmp.Or(h.Role, wire.RoleAgent)
	h.Up, h.Down = cmp.Or(h.Up, 1e12), cmp.Or(h.Down, 1e12)
	return h
}
