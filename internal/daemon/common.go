package daemon

import (
	"net"
	"slices"

	"github.com/containerd/log"

	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/daemon/ops"
)

// Common is embedded in the configuration of every role. The addresses on which a
// role is reached are the role's own keys, because each has others; [Common.CheckListen]
// checks them.
type Common struct {
	Cluster string `toml:"cluster" comment:"Name of the cluster, 1 to 64 bytes. All roles of one cluster must agree on it."`

	Metrics string `toml:"metrics" comment:"Address of /metrics (Prometheus), /healthz and /readyz over plain HTTP, host:port. Empty: none."`
	Pprof   bool   `toml:"pprof" comment:"Serve /debug/pprof on the metrics address, which then must be a loopback address."`

	LogLevel  string `toml:"log_level" live:"true" comment:"trace, debug, info, warn or error."`
	LogFormat string `toml:"log_format" live:"true" comment:"text or json."`

	Identity identity.Config `toml:"identity" comment:"Who this is. With identity everything between nodes and servers is mutual TLS, and the certificate says who may do what."`
	Insecure bool            `toml:"insecure" comment:"Listen on addresses that other machines reach without identity: everybody on that network may then do everything."`

	// Shown, if not nil, is where the role shows its readiness, and its metrics if
	// Metrics is empty.
	Shown *ops.Role `toml:"-"`
	// File, if not nil, is where the configuration is from.
	File *File `toml:"-"`
	// Patient roles run although their certificate cannot be used, or the address of
	// their metrics: what of them needs that waits for it. See [Daemon.Identify].
	Patient bool `toml:"-"`
}

// DefaultCommon returns the defaults; the address of the metrics is each role's own.
func DefaultCommon(metrics string) Common {
	return Common{Cluster: "default", Metrics: metrics, LogLevel: "info", LogFormat: "text"}
}

func (c *Common) common() *Common { return c }

// maxCluster is how many bytes the name of a cluster may have: what fits into Hello
// messages and certificates.
const maxCluster = 64

var (
	levels  = []string{"trace", "debug", "info", "warn", "error"}
	formats = []string{string(log.TextFormat), string(log.JSONFormat)}
)

// Check returns all that is wrong with c, by key.
func (c *Common) Check() []error {
	errs := slices.Concat(c.Identity.Check("identity."), ops.Check(c.Metrics, c.Pprof))
	if n := len(c.Cluster); n < 1 || n > maxCluster {
		errs = append(errs, config.Invalid("cluster", "%.100q has %d bytes, not 1 to %d", c.Cluster, n, maxCluster))
	} else if !config.IsText(c.Cluster) {
		errs = append(errs, config.Invalid("cluster", "%q has characters that are not to be seen", c.Cluster))
	}
	if !slices.Contains(levels, c.LogLevel) {
		errs = append(errs, config.Invalid("log_level", "%q is not trace, debug, info, warn or error", c.LogLevel))
	}
	if !slices.Contains(formats, c.LogFormat) {
		errs = append(errs, config.Invalid("log_format", "%q is not text or json", c.LogFormat))
	}
	return errs
}

// CheckListen returns what is wrong with an address to listen on, which must be of
// this machine alone unless there is an identity or Insecure. given is the listener
// that a test has in its place, or nil.
func (c *Common) CheckListen(key, addr string, given net.Listener) []error {
	if given != nil {
		return nil
	}
	if !config.IsListen(addr) {
		return []error{config.Invalid(key, "%q is not host:port", addr)}
	}
	return c.Identity.CheckListen(key, addr, c.Insecure)
}
