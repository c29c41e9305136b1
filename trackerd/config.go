package trackerd

import (
	"errors"
	"net"
	"slices"

	"github.com/capelin-io/capelin/internal/daemon"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/trackerd/state"
)

// Config is the configuration of `capelin trackerd`; [DefaultConfig] has the
// defaults, and `capelin trackerd config` prints both.
type Config struct {
	Listen string `toml:"listen" comment:"Address for agents' streams, host:port. The default is reached by agents on this machine only; \":7470\" for all interfaces, with identity."`
	daemon.Common

	MaxStreams int `toml:"max_streams" comment:"How many agents may be connected at once. Default 50000. Each takes about 50 KiB of memory and a file descriptor."`

	Lease  LeaseConfig  `toml:"lease" comment:"Upstream leases: when no node has a blob, one of those that wait for it fetches it from the registry, and the others take it from there."`
	Peers  PeersConfig  `toml:"peers" comment:"What agents are told of each other."`
	Limits LimitsConfig `toml:"limits" comment:"Bounds of memory. What does not fit is refused and counted, and works like a blob that nobody has."`

	// Listener, if not nil, is used instead of Listen. Run closes it.
	Listener net.Listener `toml:"-"`
	// OnListen, if not nil, is called once the listeners are open, with their
	// addresses; metrics is nil if off.
	OnListen func(agents, metrics net.Addr) `toml:"-"`
	onServer func(*server)                  // for tests
}

// LeaseConfig is the policy of upstream leases.
type LeaseConfig struct {
	Warmup       config.Duration `toml:"warmup" comment:"How long after its start the tracker says \"wait\" of blobs that it does not know, because agents reconnect and announce anew within that time. Default 2s, the longest pause between an agent's attempts to reconnect. While agents still connect and announce it lasts up to twice as long; more than 5s in all defeats its purpose, because agents wait no longer for a first byte before they go upstream by themselves. 0s: none."`
	Lookup       config.Duration `toml:"lookup" comment:"When no node has a blob, the three origins that it would belong to are asked whether they have it in their storage. This is how long they have to answer before one of the nodes gets the lease; nodes wait meanwhile. Default 100ms; 0s: they are not asked."`
	LookupAgain  config.Duration `toml:"lookup_again" comment:"After how long origins are asked again for a blob that is still wanted and that none of them had; at once when another origin connects. Default 30s; 0s means the default."`
	MaxUnstarted int             `toml:"max_unstarted" comment:"How many leases a node may hold that it has not started to use. Default 3, as many layers as containerd downloads at once (max_concurrent_downloads); 0 means the default."`
	Unstarted    config.Duration `toml:"unstarted" comment:"A lease that its holder has not started to use for so long moves to another waiting node. Default 3s, below the 5s that waiting nodes wait for a first byte; 0s means the default."`
	Stall        config.Duration `toml:"stall" comment:"A lease without a further byte from upstream for so long moves to another waiting node. Holders report once a second. Default 3s; 0s means the default."`
	AddBelow     config.Rate     `toml:"add_below" comment:"While nodes wait and all holders of a blob's lease together bring less than this per second, another one gets the lease as well, and the blob leaves the registry once more. Default 128KiB/s: only when a holder is far slower than any plausible registry. 0: never."`
	AddWindow    config.Duration `toml:"add_window" comment:"Time over which add_below is measured. Default 10s; 0s means the default."`
	MaxHolders   int             `toml:"max_holders" comment:"How many nodes hold the lease of one blob at once, through add_below. Default 4; 0 means the default."`
	Backoff      config.Duration `toml:"backoff" comment:"Pause after the registry refused a holder or broke off, before another node gets the lease; doubled at each failure in a row. Default 500ms; 0s means the default."`
	MaxFailures  int             `toml:"max_failures" comment:"So many failures in a row of one node, which may have a registry of its own, give it no lease of that blob for a while; of so many nodes, and the tracker says \"nobody\" to all, so that each goes to the registry by itself. Default 3; 0 means the default."`
	NobodyFor    config.Duration `toml:"nobody_for" comment:"For how long it says so. Default 30s; 0s means the default."`
}

// PeersConfig is the policy of telling agents of each other.
type PeersConfig struct {
	Sample      int             `toml:"sample" comment:"How many peers a node is told of for a blob that it wants; more are found as these leave. Default 40; 0 means the default."`
	OutsideZone int             `toml:"outside_zone" comment:"How many of them are from other zones, if there are any. Default 10; 0 means the default."`
	MinComplete int             `toml:"min_complete" comment:"How many of them have the whole blob, if there are that many. Default 3; 0 means the default."`
	Flush       config.Duration `toml:"flush" comment:"News about a blob's peers are collected for so long, and 50us more per waiting node, before they are sent. Verdicts and leases are sent at once. Default 100ms; 0s means the default."`
	Enough      int             `toml:"enough" comment:"How many nodes with the whole blob are kept; further ones are told not to announce it for a while. Default 300; 0 means the default."`
	EnoughAgain config.Duration `toml:"enough_again" comment:"After how long these may announce it again (up to half of it more, at random). Default 30m; 0s means the default."`
}

// LimitsConfig bounds memory.
type LimitsConfig struct {
	BlobsPerNode  int `toml:"blobs_per_node" comment:"Blobs that one node announces or wants. Default 20000; 0 means the default."`
	WantsPerNode  int `toml:"wants_per_node" comment:"Blobs that one node wants at once. Default 1000; 0 means the default."`
	Announcements int `toml:"announcements" comment:"Pairs of node and blob in all, at about 30 bytes each. Default 16000000; 0 means the default."`
	Blobs         int `toml:"blobs" comment:"Blobs in all, at about 500 bytes each. Default 1000000; 0 means the default."`
}

// Notes adds to the comments of common keys.
func (Config) Notes() map[string]string {
	return map[string]string{
		"cluster":   "Agents that name another one are refused.",
		"log_level": "Each lease is logged at debug.",
		"identity":  "Agents and origins can then announce only themselves. The certificate needs the role tracker.",
	}
}

// DefaultConfig returns the defaults, which serve agents on the same machine.
func DefaultConfig() Config {
	d := state.Config{}.WithDefaults()
	return Config{
		Listen:     "127.0.0.1:7470",
		Common:     daemon.DefaultCommon("127.0.0.1:7471"),
		MaxStreams: 50000,
		Lease: LeaseConfig{
			Warmup:       config.Duration(d.Warmup),
			Lookup:       config.Duration(d.Lookup),
			LookupAgain:  config.Duration(d.LookupAgain),
			MaxUnstarted: d.MaxUnstarted,
			Unstarted:    config.Duration(d.Unstarted),
			Stall:        config.Duration(d.Stall),
			AddBelow:     config.Rate(d.AddBelow),
			AddWindow:    config.Duration(d.AddWindow),
			MaxHolders:   d.MaxHolders,
			Backoff:      config.Duration(d.Backoff),
			MaxFailures:  d.MaxFailures,
			NobodyFor:    config.Duration(d.NobodyFor),
		},
		Peers: PeersConfig{
			Sample:      d.Sample,
			OutsideZone: d.OutsideZone,
			MinComplete: d.MinComplete,
			Flush:       config.Duration(d.FlushInterval),
			Enough:      d.Enough,
			EnoughAgain: config.Duration(d.EnoughAgain),
		},
		Limits: LimitsConfig{
			BlobsPerNode:  d.MaxBlobs,
			WantsPerNode:  d.MaxWants,
			Announcements: d.MaxEntries,
			Blobs:         d.MaxSwarms,
		},
	}
}

// Validate reports every value that cannot work.
func (c *Config) Validate() error {
	errs := slices.Concat(c.CheckListen("listen", c.Listen, c.Listener), c.Common.Check())
	if c.Listener == nil {
		errs = append(errs, daemon.CheckPorts(daemon.Address{Key: "listen", Addr: c.Listen}, daemon.Address{Key: "metrics", Addr: c.Metrics})...)
	}
	bad := func(key, format string, args ...any) { errs = append(errs, config.Invalid(key, format, args...)) }
	if c.MaxStreams < 1 {
		bad("max_streams", "must be at least 1, is %d", c.MaxStreams)
	}
	for _, d := range []struct {
		key string
		v   config.Duration
	}{
		{"lease.warmup", c.Lease.Warmup}, {"lease.lookup", c.Lease.Lookup}, {"lease.lookup_again", c.Lease.LookupAgain}, {"lease.unstarted",
			c.Lease.Unstarted}, {"lease.stall", c.Lease.Stall},
		{"lease.add_window", c.Lease.AddWindow}, {"lease.backoff", c.Lease.Backoff}, {"lease.nobody_for", c.Lease.NobodyFor},
		{"peers.flush", c.Peers.Flush}, {"peers.enough_again", c.Peers.EnoughAgain},
	} {
		if d.v < 0 {
			bad(d.key, "must not be negative, is %v", d.v)
		}
	}
	if c.Lease.AddBelow < 0 {
		bad("lease.add_below", "must not be negative, is %v", c.Lease.AddBelow)
	}
	for _, n := range []struct {
		key    string
		v, max int
	}{
		{"lease.max_unstarted", c.Lease.MaxUnstarted, 1000}, {"lease.max_holders", c.Lease.MaxHolders, 1000},
		{"lease.max_failures", c.Lease.MaxFailures, 16},
		{"peers.sample", c.Peers.Sample, 200}, {"peers.outside_zone", c.Peers.OutsideZone, 200},
		{"peers.min_complete", c.Peers.MinComplete, 200}, {"peers.enough", c.Peers.Enough, 1 << 20},
		{"limits.blobs_per_node", c.Limits.BlobsPerNode, 1 << 24}, {"limits.wants_per_node", c.Limits.WantsPerNode, 1 << 24},
		{"limits.announcements", c.Limits.Announcements, 1 << 30}, {"limits.blobs", c.Limits.Blobs, 1 << 30},
	} {
		if n.v < 0 || n.v > n.max {
			bad(n.key, "must be in 0..%d, is %d", n.max, n.v)
		}
	}
	return errors.Join(errs...)
}

// policy returns the state machine's configuration.
func (c *Config) policy(software string) state.Config {
	s := state.Config{
		Cluster:       c.Cluster,
		Software:      software,
		PingInterval:  pingInterval,
		Warmup:        c.Lease.Warmup.D(),
		Lookup:        c.Lease.Lookup.D(),
		LookupAgain:   c.Lease.LookupAgain.D(),
		MaxUnstarted:  c.Lease.MaxUnstarted,
		Unstarted:     c.Lease.Unstarted.D(),
		Stall:         c.Lease.Stall.D(),
		AddBelow:      int64(c.Lease.AddBelow),
		AddWindow:     c.Lease.AddWindow.D(),
		MaxHolders:    c.Lease.MaxHolders,
		Backoff:       c.Lease.Backoff.D(),
		MaxFailures:   c.Lease.MaxFailures,
		NobodyFor:     c.Lease.NobodyFor.D(),
		Sample:        c.Peers.Sample,
		OutsideZone:   c.Peers.OutsideZone,
		MinComplete:   c.Peers.MinComplete,
		FlushInterval: c.Peers.Flush.D(),
		Enough:        c.Peers.Enough,
		EnoughAgain:   c.Peers.EnoughAgain.D(),
		MaxBlobs:      c.Limits.BlobsPerNode,
		MaxWants:      c.Limits.WantsPerNode,
		MaxEntries:    c.Limits.Announcements,
		MaxSwarms:     c.Limits.Blobs,
	}
	// Zero means "off" in these, which the machine says with -1.
	if s.Warmup == 0 {
		s.Warmup = -1
	}
	if s.Lookup == 0 {
		s.Lookup = -1
	}
	if s.AddBelow == 0 {
		s.AddBelow = -1
	}
	return s
}
