package plugin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/capelin-io/capelin/internal/daemon"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/plugin/shim"
)

// Config configures the node agent. Its zero value is not usable; start from
// [DefaultConfig]. The comments are those of the configuration file.
type Config struct {
	Root       string `toml:"root" comment:"containerd's content directory. It stays in containerd's own format; removing the drop-in is all it takes to go back. Must be an absolute path."`
	Socket     string `toml:"socket" comment:"Unix socket on which containerd finds the agent, as in the drop-in that \"capelin agent containerd-config\" prints. With systemd's socket activation, the socket unit must name the same path."`
	Containerd string `toml:"containerd" comment:"containerd's own socket. The agent asks there which registry an image is pulled from, to know what that registry gives and can do; no pull depends on it. Empty: all registries are taken for one."`
	Admin      string `toml:"admin" comment:"Unix socket for \"capelin status\" on this node. Empty: none."`
	daemon.Common

	Node     string   `toml:"node" comment:"Name of this node, unique in the cluster. Empty: the host's name."`
	Zone     string   `toml:"zone" comment:"Where this node is, such as a rack or an availability zone. What comes from other zones comes in once, whatever the number of nodes. May be empty: then all peers are equal."`
	Trackers []string `toml:"trackers" comment:"Trackers, as host:port, or dns+host:port for all addresses of a name. Empty: none; then blobs come from the registry, and from no peer."`

	Listen    string `toml:"listen" comment:"Address on which peers connect, host:port. Other nodes must reach it: the default is for trying Capelin on one machine. With [identity] mutual TLS; without, neither encrypted nor authenticated: for a network of the cluster's own."`
	Advertise string `toml:"advertise" comment:"host:port that other nodes are told. Empty: listen; if that is all addresses (0.0.0.0), one of each address family that this node has, never loopback if there is another."`

	Authorize string `toml:"authorize" comment:"What makes a pull legitimate. \"manifest\": who gets an image's manifest from the registry may have its layers from the swarm; knowing a digest is enough, as under containerd's shared content policy on one node. \"blob\": the registry decides for each blob, because containerd fetches the last 64 KiB of each itself, with the pull's own credentials; the shim fetches them for its clients likewise. For clusters of several tenants."`

	Cache  CacheConfig  `toml:"cache" comment:"Blobs that containerd does not hold (any more)."`
	Limits LimitsConfig `toml:"limits" comment:"Bandwidth of the swarm, in bytes per second."`
	Wait   WaitConfig   `toml:"wait" comment:"How long containerd waits for the swarm before it downloads a blob itself."`

	Shim shim.MirrorConfig `toml:"shim" comment:"A registry on loopback to pull from, for clients that are not this containerd's."`

	Unpack       bool `toml:"unpack" comment:"Unpack layers in the agent, faster than containerd does, for containerd's transfer service (CRI) and diff service. The agent then writes to the snapshotters' directories: it must run as root in a mount namespace that has them where containerd sees them (see contrib/systemd/capelin-agent-unpack.conf). After a change run \"capelin agent install\" again, and restart both. Default true."`
	UnpackLayers int  `toml:"unpack_layers" comment:"How many layers of an image are unpacked at once: containerd's max_concurrent_unpacks, which takes effect with snapshotters that can rebase (overlayfs). One layer keeps several processors busy, so 1, the default, is rarely slower; and with more, directories that a layer does not mention no longer inherit owner and mode from the layers below. Needs containerd 2.2.9, 2.3.7, 2.4.2 or newer: some before them forget what a layer deletes. After a change as with unpack."`

	// Workers is how many pieces of the swarm are verified and written at once; 0:
	// as many as the process has processors (GOMAXPROCS). Fewer leave processors
	// to containerd's calls.
	Workers int `toml:"-"`
	// DecodeZstd is the command line of a process that decodes layers that take much
	// memory: see unpack.Options.Child. nil: they are refused.
	DecodeZstd []string `toml:"-"`
	// Reload, if not nil, brings configurations whose Limits apply from now on.
	Reload <-chan Config `toml:"-"`
	// Alone, if not empty, is why the agent takes no part in the swarm: it has no
	// identity, asks no tracker, listens to no peer, and the registry decides for each
	// blob. See [Survive].
	Alone string `toml:"-"`
	// Up, if not nil, is called when the agent answers containerd.
	Up func() `toml:"-"`
	// Working, if not nil, is called once, when all that the configuration asks for is up;
	// not if the agent is Alone.
	Working func() `toml:"-"`
}

// CacheConfig is Config.Cache.
type CacheConfig struct {
	Size      config.Bytes `toml:"size" comment:"What is kept at most, to seed it and to have it again; unfinished downloads count, what containerd holds does not. The least recently used goes first. Negative: nothing."`
	FreeFloor float64      `toml:"free_floor" comment:"Fraction of the file system that is kept free by evicting from the cache, whatever size says. It should be more than the disk that kubelet wants free (imagefs.available, 0.15 by default). Negative: none."`
}

// LimitsConfig is Config.Limits.
type LimitsConfig struct {
	Upload   config.Rate `toml:"upload" live:"true" comment:"To all peers together, such as \"300MB/s\". 0: no limit."`
	Download config.Rate `toml:"download" live:"true" comment:"From all peers together. 0: no limit."`
}

// WaitConfig is Config.Wait.
type WaitConfig struct {
	Find     config.Duration `toml:"find" comment:"For a tracker that is connected to say whether anybody could have a blob. It answers in milliseconds, but in seconds when thousands of nodes ask at once. At most 5s, which is the default, and never longer than wait.stall."`
	Stall    config.Duration `toml:"stall" comment:"Without a verified byte, while somebody could."`
	Prefetch config.Duration `toml:"prefetch" comment:"A layer that is fetched ahead of containerd is abandoned when nothing of its image was opened for this long."`
	Stop     config.Duration `toml:"stop" comment:"For the swarm to go on with what containerd waits for when the agent is stopped; then containerd downloads the rest. Calls that run, such as unpacking, are served to their end, and so are new ones meanwhile, for five minutes at most."`
}

// maxFind is for how long a tracker's answer is waited for in any case.
const maxFind = 5 * time.Second

// Notes adds to the comments of common keys.
func (Config) Notes() map[string]string {
	return map[string]string{
		"identity": "The certificate needs the role node, and its name must be the node's.",
	}
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Root:       "/var/lib/containerd/io.containerd.content.v1.content",
		Socket:     "/run/capelin/content.sock",
		Containerd: "/run/containerd/containerd.sock",
		Admin:      "/run/capelin/admin.sock",
		Trackers:   []string{},
		Listen:     "127.0.0.1:7401",
		Authorize:  "manifest",
		Cache:      CacheConfig{Size: 32 << 30, FreeFloor: 0.20},
		Wait: WaitConfig{
			Find:     config.Duration(maxFind),
			Stall:    config.Duration(5 * time.Second),
			Prefetch: config.Duration(time.Minute),
			Stop:     config.Duration(10 * time.Second),
		},
		Shim:   shim.DefaultMirrorConfig(),
		Unpack: true, UnpackLayers: 1,
		Common: daemon.DefaultCommon("127.0.0.1:7403"),
	}
}

// Validate reports everything that is wrong with c, by key.
func (c *Config) Validate() error {
	errs := slices.Concat(c.Common.Check(), c.CheckListen("listen", c.Listen, nil), daemon.CheckPorts(
		daemon.Address{Key: "listen", Addr: c.Listen}, daemon.Address{Key: "metrics", Addr: c.Metrics},
		daemon.Address{Key: "shim.listen", Addr: c.Shim.Listen}))
	bad := func(key, format string, args ...any) { errs = append(errs, config.Invalid(key, format, args...)) }
	abs := func(key, path string) {
		switch {
		case !filepath.IsAbs(path):
			bad(key, "%q is not an absolute path", path)
		case key != "root" && len(path) > 100:
			bad(key, "%q is longer than the 100 bytes that a Unix socket's path can have", path)
		}
	}
	abs("root", c.Root)
	abs("socket", c.Socket)
	if c.Containerd != "" {
		abs("containerd", c.Containerd)
		if c.Containerd == c.Socket {
			bad("containerd", "%q is the agent's own socket", c.Containerd)
		}
	}
	if c.Admin != "" {
		abs("admin", c.Admin)
		if c.Admin == c.Socket {
			bad("admin", "%q is containerd's socket", c.Admin)
		}
	}
	if c.UnpackLayers < 1 || c.UnpackLayers > 64 {
		bad("unpack_layers", "%d is not 1 to 64", c.UnpackLayers)
	}
	for _, s := range []struct {
		key, text string
		most      int
	}{{"node", c.Node, 253}, {"zone", c.Zone, 64}} {
		switch {
		case len(s.text) > s.most:
			bad(s.key, "%q has more than %d bytes", s.text, s.most)
		case !config.IsText(s.text):
			bad(s.key, "%q has characters that are not to be seen", s.text)
		}
	}
	for i, t := range c.Trackers {
		switch {
		case !config.IsAddress(strings.TrimPrefix(t, "dns+")):
			bad("trackers", "%q is not host:port or dns+host:port", t)
		case slices.Contains(c.Trackers[:i], t):
			bad("trackers", "%q is there twice", t)
		}
	}
	if c.Advertise != "" && !config.IsAddress(c.Advertise) {
		bad("advertise", "%q is not host:port", c.Advertise)
	}
	if c.Authorize != "manifest" && c.Authorize != "blob" {
		bad("authorize", "%q is neither \"manifest\" nor \"blob\"", c.Authorize)
	}
	if c.Cache.FreeFloor >= 1 {
		bad("cache.free_floor", "%v is not a fraction below 1", c.Cache.FreeFloor)
	}
	if c.Limits.Upload < 0 {
		bad("limits.upload", "%v is negative", c.Limits.Upload)
	}
	if c.Limits.Download < 0 {
		bad("limits.download", "%v is negative", c.Limits.Download)
	}
	for key, d := range map[string]config.Duration{
		"wait.find": c.Wait.Find, "wait.stall": c.Wait.Stall, "wait.prefetch": c.Wait.Prefetch, "wait.stop": c.Wait.Stop,
	} {
		if d <= 0 {
			bad(key, "%v is not positive", d)
		}
	}
	if c.Wait.Find.D() > maxFind {
		bad("wait.find", "%v is more than %v, after which trackers are given up anyway", c.Wait.Find, maxFind)
	}
	errs = append(errs, c.Shim.Check("shim.", c.Insecure)...)
	return errors.Join(errs...)
}

// node returns the node's name.
func (c *Config) node() (string, error) {
	if c.Node != "" {
		return c.Node, nil
	}
	return os.Hostname()
}

// CheckIdentity reports whether this node may be called what its certificate says.
func (c *Config) CheckIdentity(id identity.ID) error {
	name, err := c.node()
	if err != nil {
		return fmt.Errorf("the name of this node: %w", err)
	}
	if id.Name != name || !id.Has(identity.RoleNode) {
		return config.Invalid("identity.cert", "%s is for %s, and this is node %q: issue one with that name and the role node, or set node",
			c.Identity.Cert, id, name)
	}
	return nil
}
