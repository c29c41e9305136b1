package indexd

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/backends"
	"github.com/capelin-io/capelin/fetcher/file"
	"github.com/capelin-io/capelin/internal/daemon"
	"github.com/capelin-io/capelin/internal/daemon/config"
)

// Config is the configuration of `capelin indexd`; [DefaultConfig] has the
// defaults, and `capelin indexd config` prints both.
type Config struct {
	Listen string `toml:"listen" comment:"Address of the API, host:port. The default is reached from this machine only; \":7490\" for all interfaces, with identity."`
	daemon.Common

	Storage backends.IndexStorage `toml:"storage" comment:"Where tags and records of manifests are kept. Several indexes may share it."`
	Next    backends.IndexStorage `toml:"next" like:"storage" comment:"Where they go when \"capelin index move\" moves them: all indexes that share the storage are told, before it begins. No kind: nowhere."`

	Origins []string `toml:"origins" comment:"Addresses of the origins' APIs, host:port each; of a ring one that answers is enough. Tags and manifests are accepted only if an origin has what they refer to. Default 127.0.0.1:7480."`

	Replicate []index.Rule `toml:"replicate" comment:"What is brought to other registries, beside what \"capelin index replicate rule set\" says: rules of these names are what they are here whenever an index starts, and stay when they go from here. Give it to all indexes over the storage."`

	// Listener, if not nil, is used instead of Listen. Run closes it.
	Listener net.Listener `toml:"-"`
	// Backend, if not nil, is used instead of Storage. Run does not close it.
	Backend fetcher.Backend `toml:"-"`
	// Origin, if not nil, is used instead of Origins.
	Origin Origin `toml:"-"`
	// TLS, if not nil, is used for the API instead of Identity's, and Listen may then
	// be any address: it must verify the certificates of clients, and demand them.
	TLS *tls.Config `toml:"-"`
	// OnListen, if not nil, is called once the listeners are open, with their
	// addresses; metrics is nil if off.
	OnListen func(api, metrics net.Addr) `toml:"-"`
	// OnReady, if not nil, is called once the storage is there, and known to compare and swap.
	OnReady func() `toml:"-"`
}

// Notes adds to the comments of common keys.
func (Config) Notes() map[string]string {
	return map[string]string{
		"cluster":   "It is written into every tag.",
		"log_level": "Each write of a tag or manifest is logged at info.",
		"identity": "Nodes, gateways, operators and other indexes then need a certificate of the cluster, and only the last three may " +
			"write. This one's needs the role index.",
	}
}

// DefaultConfig returns the defaults, which serve this machine.
func DefaultConfig() Config {
	return Config{
		Listen:  "127.0.0.1:7490",
		Common:  daemon.DefaultCommon("127.0.0.1:7491"),
		Origins: []string{"127.0.0.1:7480"},
		Storage: backends.IndexStorage{Kind: backends.KindFile, File: file.Config{Path: "/var/lib/capelin/index"}},
	}
}

// Validate reports every value that cannot work.
func (c *Config) Validate() error {
	errs := c.Common.Check()
	if c.Listener == nil {
		errs = append(errs, daemon.CheckPorts(daemon.Address{Key: "listen", Addr: c.Listen}, daemon.Address{Key: "metrics", Addr: c.Metrics})...)
	}
	bad := func(key, format string, args ...any) { errs = append(errs, config.Invalid(key, format, args...)) }
	if c.TLS == nil {
		errs = append(errs, c.CheckListen("listen", c.Listen, c.Listener)...)
	}
	if c.Backend == nil {
		errs = append(errs, c.Storage.Check("storage.")...)
		if c.Next.Kind != "" {
			errs = append(errs, c.Next.Check("next.")...)
		}
	}
	if c.Origin == nil {
		if len(c.Origins) == 0 {
			bad("origins", "must name at least one")
		} else if o, err := origin.New(origin.Config{Origins: c.Origins}); err != nil {
			bad("origins", "%v", err)
		} else {
			o.Close()
		}
	}
	names := map[string]bool{}
	for i := range c.Replicate {
		r := &c.Replicate[i]
		errs = append(errs, r.Check(fmt.Sprintf("replicate[%d].", i))...)
		if names[r.Name] {
			bad(fmt.Sprintf("replicate[%d].name", i), "%q is another rule's name, too", r.Name)
		}
		names[r.Name] = true
	}
	return errors.Join(errs...)
}
