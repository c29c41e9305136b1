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
	Members []string `toml:"members" comment:"All members, this one too, written the same at all of them: name=host:port (the name that its certificate has, or node; its listen), or dns+host:port for whoever answers at the addresses of a name. An origin stays a member, although it is taken out here, until it was drained, or until \"capelin origin ring rm\". Empty: this origin is alone."`
	Address string   `toml:"address" comment:"host:port at which the other members and clients reach this one's API. Empty: what members says of it, or else listen."`

	Replicas    int `toml:"replicas" comment:"How many members keep each blob that no backend has (yet). The same at all members."`
	MinReplicas int `toml:"min_replicas" comment:"How many members have a blob on disk before its push is acknowledged. With 2, any one of them can be lost at once. The same at all members. With no more members than that, pushes wait whenever one restarts."`

	Probe    config.Duration `toml:"probe" comment:"How often each member asks each other one how it is."`
	Down     config.Duration `toml:"down" comment:"When nobody has heard of a member for so long it is down, and others copy what has fewer than min_replicas copies without it."`
	Gone     config.Duration `toml:"gone" comment:"When nobody has heard of it for so long others take its place for good: all that it kept is copied. What takes less time, such as a restart, copies next to nothing."`
	Exchange config.Duration `toml:"exchange" comment:"How often members compare what they keep, beside each change among them."`

	RepairRate     config.Rate `toml:"repair_rate" comment:"At which this member copies blobs from others, all together. 0: no limit."`
	RepairParallel int         `toml:"repair_parallel" comment:"How many blobs it copies at once; four times as many of those that have fewer than min_replicas copies."`
	Scrub          config.Rate `toml:"scrub" comment:"At which what is kept is read again and compared with its digests; what is wrong is replaced from other members. 0: not at all."`
}

func defaultRing() RingConfig {
	return RingConfig{
		Members: []string{}, Replicas: 3, MinReplicas: 2,
		Probe: config.Duration(time.Second), Down: config.Duration(10 * time.Second), Gone: config.Duration(15 * time.Minute),
		Exchange: config.Duration(10 * time.Minute), RepairRate: 100e6, RepairParallel: 4, Scrub: 20e6,
	}
}

// RingMember is one of RingConfig.Members.
type RingMember struct {
	Name    string // "": all that Address, a name of the DNS, has
	Address string // host:port, or http(s)://host:port
}

// List returns the members that are configured, as far as c is valid.
func (c *RingConfig) List() (all []RingMember) {
	for _, text := range c.Members {
		name, addr, ok := strings.Cut(text, "=")
		if !ok {
			name, addr = "", strings.TrimPrefix(text, "dns+")
		}
		all = append(all, RingMember{name, addr})
	}
	return all
}

// Static reports whether all members are named.
func (c *RingConfig) Static() bool {
	return !slices.ContainsFunc(c.List(), func(m RingMember) bool { return m.Name == "" })
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
		host, port, err := net.SplitHostPort(strings.TrimPrefix(strings.TrimPrefix(addr, "https://"), "http://"))
		if !given || err != nil || host == "" || port == "" {
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
	for _, m := range c.List() {
		if m.Name == self {
			return m.Address
		}
	}
	return listen
}

// checkAddress reports that others would be told an address of this member at which they cannot reach it; self is its name, "" if
// that is not known yet.
func (c *RingConfig) checkAddress(self, listen string) error {
	host, _, _ := net.SplitHostPort(listen) // what is wrong with it is said elsewhere
	if c.alone() || c.Address != "" || listen == "" || !unspecified(host) {
		return nil
	}
	for _, m := range c.List() {
		if m.Name != "" && (m.Name == self || self == "") { // that may be this one
			return nil
		}
	}
	return config.Invalid("ring.address", "must be set, because ring.members does not say where this origin is, and listen (%s) "+
		"is no address that others could connect to", listen)
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
	for _, m := range r.List() {
		if m.Name != "" {
			cfg.Members = append(cfg.Members, m.Name)
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
