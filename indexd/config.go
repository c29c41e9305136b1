package indexd

import (
	"crypto/tls"
	"errors"
	"net"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/backends"
	"github.com/capelin-io/capelin/fetcher/file"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/daemon/ops"
)

// Config is the configuration of `capelin indexd`; [DefaultConfig] has the
// defaults, and `capelin indexd config` prints both.
type Config struct {
	Listen  string `toml:"listen" comment:"Address of the API, host:port. Default 127.0.0.1:7490, which only this machine reaches; \":7490\" for all interfaces, with identity."`
	Metrics string `toml:"metrics" comment:"Address of /metrics (Prometheus), /healthz and /readyz over HTTP. Default 127.0.0.1:7491. Empty: none."`
	Pprof   bool   `toml:"pprof" comment:"Serve /debug/pprof on the metrics address, which then must be a loopback address. Default false."`
	Cluster string `toml:"cluster" comment:"Name of the cluster, 1 to 64 bytes; it is written into every tag. Default \"default\"."`

	LogLevel string `toml:"log_level" comment:"trace, debug, info, warn or error. Each write of a tag or manifest is logged at info. Default info."`

	Storage StorageConfig `toml:"storage" comment:"Where tags and records of manifests are kept. Several indexes may share it."`

	Identity identity.Config `toml:"identity" comment:"Who this index is. With it, nodes, gateways, operators and other indexes need a certificate of the cluster, and only the last three may write."`
	Insecure bool            `toml:"insecure" comment:"Without identity: listen on addresses that other machines reach, all the same. Everybody on that network may then do everything. Default false."`

	Origins []string `toml:"origins" comment:"Addresses of the origins' APIs, host:port each. Tags and manifests are accepted only if an origin has what they refer to. Default 127.0.0.1:7480."`

	// Listener, if not nil, is used instead of Listen. Run closes it.
	Listener net.Listener `toml:"-"`
	// Backend, if not nil, is used instead of Storage. Run does not close it.
	Backend fetcher.Backend `toml:"-"`
	// Origin, if not nil, is used instead of Origins.
	Origin Origin `toml:"-"`
	// TLS, if not nil, is used for the API instead of Identity's: it must verify the
	// certificates of clients, and demand them.
	TLS *tls.Config `toml:"-"`
	// OnListen, if not nil, is called once the listeners are open, with their
	// addresses; metrics is nil if off.
	OnListen func(api, metrics net.Addr) `toml:"-"`
}

// StorageConfig names the storage.
type StorageConfig struct {
	Kind string      `toml:"kind" comment:"\"file\": a directory. It must be a storage that can compare and swap. Default \"file\"."`
	File file.Config `toml:"file" comment:"If kind is \"file\"."`
}

// DefaultConfig returns the defaults, which serve this machine.
func DefaultConfig() Config {
	return Config{
		Listen:   "127.0.0.1:7490",
		Metrics:  "127.0.0.1:7491",
		Cluster:  "default",
		LogLevel: "info",
		Origins:  []string{"127.0.0.1:7480"},
		Storage:  StorageConfig{Kind: backends.KindFile, File: file.Config{Path: "/var/lib/capelin/index"}},
	}
}

// Validate reports every value that cannot work.
func (c *Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) { errs = append(errs, config.Invalid(key, format, args...)) }
	if c.Listener == nil {
		if _, _, err := net.SplitHostPort(c.Listen); err != nil {
			bad("listen", "%q is not host:port", c.Listen)
		} else if c.TLS == nil {
			errs = append(errs, c.Identity.CheckListen("listen", c.Listen, c.Insecure)...)
		}
	}
	errs = append(errs, c.Identity.Check("identity.")...)
	if c.Backend == nil {
		switch c.Storage.Kind {
		case backends.KindFile:
			errs = append(errs, c.Storage.File.Check("storage.file.")...)
		case backends.KindRegistry:
			bad("storage.kind", "a registry cannot compare and swap, and keeps no index; use \"file\"")
		default:
			bad("storage.kind", "%q is not \"file\"", c.Storage.Kind)
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
	errs = append(errs, ops.Check(c.Metrics, c.Pprof)...)
	if n := len(c.Cluster); n < 1 || n > 64 {
		bad("cluster", "must have 1 to 64 bytes, has %d", n)
	}
	switch c.LogLevel {
	case "trace", "debug", "info", "warn", "error":
	default:
		bad("log_level", "%q is not trace, debug, info, warn or error", c.LogLevel)
	}
	return errors.Join(errs...)
}
