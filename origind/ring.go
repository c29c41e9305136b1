package origind

import (
	"net"
	"slices"
	"strings"
	"time"

	"github.com/capelin-io/capelin/control/ring"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/origind/ringstate"
	"github.com/capelin-io/capelin/origind/ringstate/mirror"
)

// RingConfig is Config.Ring.
type RingConfig struct {
	Members []string `toml:"members" comment:"All members, this one may be among them: name=host:port, the name as its certificate has it, or dns+host:port for all addresses of a name. Names that were once learnt stay until \"capelin origin ring rm\" or a drain. Empty: this origin is alone."`
	Address string   `toml:"address" comment:"host:port of the API, as the other members and clients are told it. Empty: the one that members has, or listen."`

	Replicas    int `toml:"replicas" comment:"How many members keep a blob that is in no backend (yet). The same at all members."`
	MinReplicas int `toml:"min_replicas" comment:"How many of them have it before a push is acknowledged. The same at all members. With as many members as that, pushes wait while one restarts."`

	Probe    config.Duration `toml:"probe" comment:"How often each member asks each other one how it is."`
	Down     config.Duration `toml:"down" comment:"A member of which nobody has heard for so long is down: what has too few copies without it is copied."`
	Gone     config.Duration `toml:"gone" comment:"After so long others keep what it kept."`
	Exchange config.Duration `toml:"exchange" comment:"How often members compare what they keep."`

	RepairRate     config.Rate `toml:"repair_rate" comment:"At which this member copies blobs from others, all together. 0: no limit."`
	RepairParallel int         `toml:"repair_parallel" comment:"How many blobs it copies at once; four times as many of those that have too few copies."`
	Scrub          config.Rate `toml:"scrub" comment:"At which what is kept is read again and compared with its digests; what is wrong is replaced from other members. 0: not at all."`
}

func defaultRing() RingConfig {
	return RingConfig{
		Members: []string{}, Replicas: 3, MinReplicas: 2,
		Probe: config.Duration(time.Second), Down: config.Duration(10 * time.Second), Gone: config.Duration(15 * time.Minute),
		Exchange: config.Duration(10 * time.Minute), RepairRate: 100e6, RepairParallel: 4, Scrub: 20e6,
	}
}

// listedMember is one of RingConfig.Members.
type listedMember struct {
	name string // "": all that addr, a name of the DNS, has
	addr string
}

// list returns the members that are configured.
func (c *RingConfig) list() (all []listedMember) {
	for _, text := range c.Members {
		name, addr, ok := strings.Cut(text, "=")
		if !ok {
			name, addr = "", strings.TrimPrefix(text, "dns+")
		}
		all = append(all, listedMember{name, addr})
	}
	return all
}

// static reports whether all members are named.
func (c *RingConfig) static() bool {
	return !slices.ContainsFunc(c.list(), func(m listedMember) bool { return m.name == "" })
}

// check returns all that is wrong with c, by key.
func (c *RingConfig) check() (errs []error) {
	bad := func(key, format string, args ...any) {
		errs = append(errs, config.Invalid("ring."+key, format, args...))
	}
	names := map[string]bool{}
	for _, text := range c.Members {
		name, addr, given := strings.Cut(text, "=")
		if !given {
			addr, given = strings.CutPrefix(text, "dns+")
			name = ""
		} else if name == "" || names[name] {
			bad("members", "%q has no name of its own", text)
		}
		names[name] = true
		if host, port, err := net.SplitHostPort(strings.TrimPrefix(strings.TrimPrefix(addr, "https://"), "http://")); !given || err != nil || host == "" || port == "" {
			bad("members", "%q is neither name=host:port nor dns+host:port", text)
		}
	}
	if c.Address != "" {
		if host, port, err := net.SplitHostPort(c.Address); err != nil || host == "" || port == "" {
			bad("address", "%q is not host:port", c.Address)
		}
	}
	for _, n := range []struct {
		key string
		n   int
	}{{"replicas", c.Replicas}, {"min_replicas", c.MinReplicas}, {"repair_parallel", c.RepairParallel}} {
		if n.n < 1 {
			bad(n.key, "%d is not positive", n.n)
		}
	}
	if c.MinReplicas > c.Replicas {
		bad("min_replicas", "%d are more than ring.replicas, %d", c.MinReplicas, c.Replicas)
	}
	for _, d := range []struct {
		key string
		d   config.Duration
	}{{"probe", c.Probe}, {"down", c.Down}, {"gone", c.Gone}, {"exchange", c.Exchange}} {
		if d.d <= 0 {
			bad(d.key, "%v is not positive", d.d)
		}
	}
	if c.Down < 3*c.Probe || c.Gone < c.Down {
		bad("down", "%v is not between three times ring.probe, %v, and ring.gone, %v", c.Down, c.Probe, c.Gone)
	}
	for _, r := range []struct {
		key string
		r   config.Rate
	}{{"repair_rate", c.RepairRate}, {"scrub", c.Scrub}} {
		if r.r < 0 {
			bad(r.key, "%v is negative", r.r)
		}
	}
	return errs
}

// alone reports whether there is no ring: an origin without one is the only member of its own.
func (c *RingConfig) alone() bool { return len(c.Members) == 0 }

// copies returns how many members keep a blob, and how many acknowledge a push.
func (c *RingConfig) copies() (replicas, minReplicas int) {
	if c.alone() {
		return 1, 1
	}
	return c.Replicas, c.MinReplicas
}

// address returns where others reach this member's API; listen is where it listens.
func (c *RingConfig) address(self, listen string) string {
	if c.Address != "" {
		return c.Address
	}
	for _, m := range c.list() {
		if m.name == self {
			return m.addr
		}
	}
	return listen
}

// ringState is what the ring is told of the configuration.
func (c *Config) ringState(incarnation uint64, listen string) ringstate.Config {
	r := &c.Ring
	replicas, minReplicas := r.copies()
	cfg := ringstate.Config{
		Name: c.Node, Addr: r.address(c.Node, listen), Zone: c.Zone, Incarnation: incarnation,
		Replicas: replicas, MinReplicas: minReplicas,
		Probe: r.Probe.D(), Down: r.Down.D(), Gone: r.Gone.D(), Exchange: r.Exchange.D(), Ask: askTimeout,
		Standby: c.Queue.Standby.D(), Retry: c.Queue.Backoff.D(), RetryMax: c.Queue.Max.D(), Parallel: r.RepairParallel,
		Push: commitWait,
	}
	for _, m := range r.list() {
		if m.name != "" {
			cfg.Members = append(cfg.Members, m.name)
		}
	}
	return cfg
}

// mirror is what uploads are told of the ring.
func (c *Config) mirror() mirror.Config {
	replicas, minReplicas := c.Ring.copies()
	return mirror.Config{
		Self: ring.Member{Name: c.Node, Zone: c.Zone}, Replicas: replicas, MinReplicas: minReplicas, Expire: c.Uploads.Expire.D(),
	}
}

// mirrors returns the members that a push can be copied to, as uploads know them.
func mirrors(self ring.Member, peers []ringstate.Peer) []mirror.Member {
	all := []mirror.Member{{Member: self, Up: true}}
	for _, p := range peers {
		if !p.Self && !p.Removed && !p.Gone && p.Mode < ringstate.Draining {
			all = append(all, mirror.Member{Member: p.Member, Up: p.Takes})
		}
	}
	return all
}
