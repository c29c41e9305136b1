package gateway

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/capelin-io/capelin/internal/daemon"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
)

// Config is the configuration of `capelin gateway`; [DefaultConfig]
// has the defaults, and `capelin gateway config` prints both.
type Config struct {
	Listen string `toml:"listen" comment:"Address of the registry API, host:port. The default is reached from this machine only; \":7500\" for all interfaces, with identity or a certificate."`
	daemon.Common

	Origins []string `toml:"origins" comment:"Addresses of the origins' APIs, host:port each, where blobs are. Of a ring one that answers is enough: it names the others. Default 127.0.0.1:7480."`
	Indexes []string `toml:"indexes" comment:"Addresses of the indexes' APIs, host:port each, where tags are. Default 127.0.0.1:7490."`

	Cert string `toml:"cert" comment:"PEM file with the certificate that Docker, containerd and other clients see. Empty: the identity's, whose --host then must be the name by which they know the gateway. A changed file is read again."`
	Key  string `toml:"key" comment:"PEM file with its private key."`

	Users  string       `toml:"users" comment:"File of users and the bcrypt hashes of their passwords, as \"htpasswd -B\" writes it. A changed file is read again. Empty: nobody can log in by name."`
	Tokens string       `toml:"tokens" comment:"TOML file of bearer tokens: [[token]] tables with user, sha256 (of the token, hexadecimal) and expires. A changed file is read again. Empty: none."`
	OIDC   []OIDCConfig `toml:"oidc" comment:"Whose tokens do for a login, of CI systems and Kubernetes: see docs/access.md."`
	Rules  []RuleConfig `toml:"rule" comment:"What users may do. What no rule allows is refused. Without identity, users, tokens and oidc there must be no rules, and everybody may do everything."`

	// Listener, if not nil, is used instead of Listen. Run closes it.
	Listener net.Listener `toml:"-"`
	// OnListen, if not nil, is called once the listeners are open, with their
	// addresses; metrics is nil if off.
	OnListen func(api, metrics net.Addr) `toml:"-"`
}

// Notes adds to the comments of common keys.
func (Config) Notes() map[string]string {
	return map[string]string{
		"log_level": "Pushes, deletions and refusals are logged as \"audit\".",
		"identity":  "The certificate needs the role gateway.",
		"insecure":  "It is also needed to listen there without TLS, where passwords can be read by others, or without users.",
	}
}

// DefaultConfig returns the defaults, which serve this machine.
func DefaultConfig() Config {
	return Config{
		Listen: "127.0.0.1:7500", Common: daemon.DefaultCommon("127.0.0.1:7501"),
		Origins: []string{"127.0.0.1:7480"}, Indexes: []string{"127.0.0.1:7490"},
		OIDC: []OIDCConfig{}, Rules: []RuleConfig{},
	}
}

// Validate reports every value that cannot work.
func (c *Config) Validate() error {
	errs := slices.Concat(c.Common.Check(), c.checkListen())
	if c.Listener == nil {
		errs = append(errs, daemon.CheckPorts(daemon.Address{Key: "listen", Addr: c.Listen}, daemon.Address{Key: "metrics", Addr: c.Metrics})...)
	}
	bad := func(key, format string, args ...any) { errs = append(errs, config.Invalid(key, format, args...)) }
	if len(c.Origins) == 0 {
		bad("origins", "must name at least one")
	}
	if len(c.Indexes) == 0 {
		bad("indexes", "must name at least one")
	}
	if (c.Cert == "") != (c.Key == "") {
		bad("cert", "needs key, and key needs cert")
	}
	for i := range c.OIDC {
		errs = append(errs, c.OIDC[i].check(fmt.Sprintf("oidc[%d].", i))...)
	}
	_, rules := readRules(c.Rules, "rule")
	errs = append(errs, rules...)
	if !c.Guarded() && len(c.Rules) > 0 {
		bad("rule", "nobody can be told from anybody without identity, users, tokens or oidc")
	}
	return errors.Join(errs...)
}

// checkListen is Common's CheckListen, but a certificate for clients does for TLS, and
// users or tokens for knowing who is who.
func (c *Config) checkListen() []error {
	if _, _, err := net.SplitHostPort(c.Listen); err != nil || c.Listener != nil || c.Insecure || identity.IsLoopback(c.Listen) {
		return (&daemon.Common{Insecure: true}).CheckListen("listen", c.Listen, c.Listener)
	}
	switch {
	case c.Cert == "" && !c.Identity.Enabled():
		return []error{config.Invalid("listen", "%q is reached from other machines without TLS: configure [identity] or cert and key, or say "+
			"insecure = true", c.Listen)}
	case !c.Guarded():
		return []error{config.Invalid("listen", "%q is reached from other machines, and everybody may do everything: configure [identity], "+
			"users, tokens or oidc, or say insecure = true", c.Listen)}
	}
	return nil
}

// Guarded reports whether callers are told apart.
func (c *Config) Guarded() bool {
	return c.Identity.Enabled() || c.Users != "" || c.Tokens != "" || len(c.OIDC) > 0
}
