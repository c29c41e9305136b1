package origind

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/backends"
	"github.com/capelin-io/capelin/internal/daemon"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
)

// Config is the configuration of `capelin origind`; [DefaultConfig] has the
// defaults, and `capelin origind config` prints both.
type Config struct {
	Root   string   `toml:"root" comment:"Directory for everything the origin keeps. All of it must be on one file system. Must be an absolute path."`
	Data   []string `toml:"data" comment:"Several directories instead of root, each on a disk of its own, and made by hand: each has a part of the blobs, and a disk that fails costs what is on it, not the origin. Absolute paths."`
	Listen string   `toml:"listen" comment:"Address of the HTTP API, host:port. The default is for trying Capelin on one machine."`
	daemon.Common

	Node     string   `toml:"node" comment:"Name of this origin, unique in the cluster, among its nodes too. Empty: the certificate's, or without identity \"origin-\" and the host's name."`
	Zone     string   `toml:"zone" comment:"Where this origin is, such as a rack or an availability zone. May be empty."`
	Trackers []string `toml:"trackers" comment:"Trackers, as host:port, or dns+host:port for all addresses of a name; written as agents have them. Empty: none; then blobs are served over HTTP only."`

	Durability string `toml:"durability" comment:"When a push is acknowledged. \"origin\": when it is fsynced here; the backend gets it later, from a queue that survives restarts. \"backend\": when the backend has it."`

	Swarm   SwarmConfig   `toml:"swarm" comment:"Seeding to nodes."`
	Cache   CacheConfig   `toml:"cache" comment:"Blobs that a backend has. What no backend has (yet) is kept in any case."`
	Uploads UploadsConfig `toml:"uploads" comment:"Pushes under way."`
	Lookup  LookupConfig  `toml:"lookup" comment:"Finding blobs that are not here."`
	Cold    ColdConfig    `toml:"cold" comment:"Reading blobs from a backend, while nodes and clients already read them here."`
	Queue   QueueConfig   `toml:"queue" comment:"Writing pushed blobs to their backend."`
	Ring    RingConfig    `toml:"ring" comment:"Origins that keep blobs together, so that one of them can be lost."`

	Backends []backends.Config `toml:"backend" comment:"Where blobs live; a push whose namespace belongs to none is refused. Without any, this origin keeps everything itself. Each is a table such as this one."`

	// Stores, if not nil, is used instead of Backends. Run does not close it.
	Stores Backends `toml:"-"`
	// Listener and SwarmListener, if not nil, are used instead of Listen and
	// Swarm.Listen. Run closes them.
	Listener      net.Listener `toml:"-"`
	SwarmListener net.Listener `toml:"-"`
	// Reload, if not nil, brings configurations whose Swarm.Upload applies from now on.
	Reload <-chan Config `toml:"-"`
	// OnListen, if not nil, is called once the listeners are open, with their
	// addresses; metrics is nil if off.
	OnListen func(api, swarm, metrics net.Addr) `toml:"-"`
}

// Backends are the storages of an origin: a backends.Set.
type Backends interface {
	// Match returns the backend that blobs of a namespace live in, and its name,
	// which records keep. A nil Backend: the origin itself. ok is false if nothing
	// takes the namespace.
	Match(namespace string) (name string, b fetcher.Backend, ok bool)
	// Get returns the backend of a name; nil and true is the origin itself.
	Get(name string) (b fetcher.Backend, ok bool)
	// All returns every backend by its name, but not the origin itself.
	All() map[string]fetcher.Backend
}

// SwarmConfig is Config.Swarm.
type SwarmConfig struct {
	Listen    string      `toml:"listen" comment:"Address on which nodes connect, host:port. All nodes must reach it."`
	Advertise string      `toml:"advertise" comment:"host:port that nodes are told. Empty: listen, which then must not be all addresses (0.0.0.0)."`
	Upload    config.Rate `toml:"upload" live:"true" comment:"To all nodes together, such as \"300MB/s\". 0: no limit."`
}

// CacheConfig is Config.Cache.
type CacheConfig struct {
	Size      config.Bytes `toml:"size" comment:"What is kept at most, on all disks together, each of which has an equal part. The least recently used goes first. Negative: nothing beyond what is in use."`
	FreeFloor float64      `toml:"free_floor" comment:"Fraction of each file system that is kept free by evicting from the cache, whatever size says. Negative: none."`
}

// UploadsConfig is Config.Uploads.
type UploadsConfig struct {
	Expire config.Duration `toml:"expire" comment:"An upload to which nothing was added for so long is removed."`
	Max    int             `toml:"max" comment:"How many there may be at once. Half of them may be one user's (where nobody is told from anybody: one namespace's, by the first element). Beyond, one that nobody has come to for a minute makes room for a new one; if there is none, that is refused (429)."`
}

// LookupConfig is Config.Lookup.
type LookupConfig struct {
	Budget     config.Duration `toml:"budget" comment:"How long somebody who names a digest alone waits for all backends together."`
	Repository config.Duration `toml:"repository" comment:"The same with a repository given, which may be looked up in a registry far away."`
	Negative   config.Duration `toml:"negative" comment:"How long the origin remembers that no backend has a blob. A push here ends that."`
}

// ColdConfig is Config.Cold.
type ColdConfig struct {
	Max      int             `toml:"max" comment:"How many blobs are read from backends at once, each with up to 10 MiB of memory. Others are answered \"unavailable\"."`
	Attempts int             `toml:"attempts" comment:"How often a backend is tried without a byte in between before readers are told that it is unavailable."`
	Grace    config.Duration `toml:"grace" comment:"How long reading goes on when nobody wants the blob any more."`
}

// QueueConfig is Config.Queue.
type QueueConfig struct {
	Workers int             `toml:"workers" comment:"How many blobs are written at once."`
	Backoff config.Duration `toml:"backoff" comment:"Pause after a failure; it doubles with each."`
	Max     config.Duration `toml:"max_backoff" comment:"The longest pause."`
	Standby config.Duration `toml:"standby" comment:"In a ring, how long another member that has a blob leaves it to the one that took the push to write it, although that one is up."`
}

// Notes adds to the comments of common keys.
func (Config) Notes() map[string]string {
	return map[string]string{
		"identity": "Nodes and indexes may then read, and gateways, origins and operators may read and write. The certificate needs the role " +
			"origin, and its name must be the origin's.",
	}
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Root:       "/var/lib/capelin/origin",
		Data:       []string{},
		Listen:     "127.0.0.1:7480",
		Common:     daemon.DefaultCommon("127.0.0.1:7482"),
		Trackers:   []string{},
		Durability: "origin",
		Swarm:      SwarmConfig{Listen: "127.0.0.1:7481"},
		Cache:      CacheConfig{Size: 100 << 30, FreeFloor: 0.05},
		Uploads:    UploadsConfig{Expire: config.Duration(24 * time.Hour), Max: 1024},
		Lookup: LookupConfig{
			Budget:     config.Duration(100 * time.Millisecond),
			Repository: config.Duration(10 * time.Second),
			Negative:   config.Duration(10 * time.Second),
		},
		Cold: ColdConfig{Max: 64, Attempts: 5, Grace: config.Duration(5 * time.Second)},
		Queue: QueueConfig{
			Workers: 4, Backoff: config.Duration(time.Second), Max: config.Duration(5 * time.Minute),
			Standby: config.Duration(10 * time.Minute),
		},
		Ring: defaultRing(),
	}
}

// Validate reports everything that is wrong with c, by key.
func (c *Config) Validate() error {
	errs := slices.Concat(c.Common.Check(),
		c.CheckListen("listen", c.Listen, c.Listener), c.CheckListen("swarm.listen", c.Swarm.Listen, c.SwarmListener))
	bad := func(key, format string, args ...any) { errs = append(errs, config.Invalid(key, format, args...)) }
	if !filepath.IsAbs(c.Root) && len(c.Data) == 0 {
		bad("root", "%q is not an absolute path", c.Root)
	}
	errs = append(errs, c.checkData()...)
	if c.Swarm.Advertise != "" {
		if host, port, err := net.SplitHostPort(c.Swarm.Advertise); err != nil || host == "" || port == "" {
			bad("swarm.advertise", "%q is not host:port", c.Swarm.Advertise)
		}
	} else if host, _, err := net.SplitHostPort(c.Swarm.Listen); err == nil && c.SwarmListener == nil && len(c.Trackers) > 0 &&
		unspecified(host) {
		bad("swarm.advertise", "must be set, because swarm.listen (%s) is no address that nodes could connect to", c.Swarm.Listen)
	}
	if c.Swarm.Upload < 0 {
		bad("swarm.upload", "%v is negative", c.Swarm.Upload)
	}
	if len(c.Node) > 253 {
		bad("node", "%q has more than 253 bytes", c.Node)
	}
	if len(c.Zone) > 64 {
		bad("zone", "%q has more than 64 bytes", c.Zone)
	}
	for _, t := range c.Trackers {
		if host, port, err := net.SplitHostPort(strings.TrimPrefix(t, "dns+")); err != nil || host == "" || port == "" {
			bad("trackers", "%q is not host:port or dns+host:port", t)
		}
	}
	if c.Durability != "origin" && c.Durability != "backend" {
		bad("durability", "%q is neither \"origin\" nor \"backend\"", c.Durability)
	}
	if c.Cache.FreeFloor >= 1 {
		bad("cache.free_floor", "%v is not a fraction below 1", c.Cache.FreeFloor)
	}
	for _, d := range []struct {
		key string
		d   config.Duration
	}{
		{"uploads.expire", c.Uploads.Expire},
		{"lookup.budget", c.Lookup.Budget},
		{"lookup.repository", c.Lookup.Repository},
		{"lookup.negative", c.Lookup.Negative},
		{"cold.grace", c.Cold.Grace},
		{"queue.backoff", c.Queue.Backoff},
		{"queue.max_backoff", c.Queue.Max},
		{"queue.standby", c.Queue.Standby},
	} {
		if d.d <= 0 {
			bad(d.key, "%v is not positive", d.d)
		}
	}
	for _, n := range []struct {
		key string
		n   int
	}{
		{"uploads.max", c.Uploads.Max},
		{"cold.max", c.Cold.Max},
		{"cold.attempts", c.Cold.Attempts},
		{"queue.workers", c.Queue.Workers},
	} {
		if n.n < 1 {
			bad(n.key, "%d is not positive", n.n)
		}
	}
	errs = append(errs, c.Ring.check()...)
	if err := c.Ring.checkAddress(c.Node, c.Listen); err != nil && c.Listener == nil {
		errs = append(errs, err)
	}
	errs = append(errs, backends.Check(c.Backends, "backend")...)
	return errors.Join(errs...)
}

// checkData reports what is wrong with the disks' directories.
func (c *Config) checkData() (errs []error) {
	bad := func(format string, args ...any) { errs = append(errs, config.Invalid("data", format, args...)) }
	if len(c.Data) > maxDisks {
		bad("%d disks are more than %d", len(c.Data), maxDisks)
	}
	for i, a := range c.Data {
		if !filepath.IsAbs(a) {
			bad("%q is not an absolute path", a)
		}
		for j, b := range c.Data {
			if rel, err := filepath.Rel(b, a); i != j && err == nil && filepath.IsLocal(rel) && (rel != "." || i > j) {
				bad("%q is %q, or below it", a, b)
			}
		}
	}
	return errs
}

// Roots returns the directories in which everything is kept, each on a disk of its own.
func (c *Config) Roots() []string {
	if len(c.Data) > 0 {
		return c.Data
	}
	return []string{c.Root}
}

func unspecified(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// CheckIdentity reports whether this origin may be called what its certificate says.
func (c *Config) CheckIdentity(id identity.ID) error {
	switch {
	case !id.Has(identity.RoleOrigin):
		return fmt.Errorf("the certificate is for %s: it needs the role origin", id)
	case c.Node != "" && c.Node != id.Name:
		return fmt.Errorf("the certificate is for %s, but this origin is called %q", id, c.Node)
	}
	return nil
}

// node returns the origin's name; id is its identity, or nil.
func (c *Config) node(id *identity.Source) (string, error) {
	switch {
	case id != nil:
		if err := c.CheckIdentity(id.ID()); err != nil {
			return "", err
		}
		return id.ID().Name, nil
	case c.Node != "":
		return c.Node, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("the name of this origin: %w", err)
	}
	return "origin-" + host, nil
}

// here are Backends of an origin that keeps everything itself.
type here struct{}

func (here) Match(string) (string, fetcher.Backend, bool) { return "none", nil, true }
func (here) Get(name string) (fetcher.Backend, bool)      { return nil, name == "none" }
func (here) All() map[string]fetcher.Backend              { return nil }
