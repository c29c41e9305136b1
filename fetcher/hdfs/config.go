package hdfs

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/daemon/config"
)

// Config is a directory of a Hadoop file system.
type Config struct {
	Namenodes []string `toml:"namenodes" comment:"URLs of the namenodes' WebHDFS, such as [\"http://nn1:9870\", \"http://nn2:9870\"], or of HttpFS (\"http://httpfs:14000\"). The one that is active is found, and found again. With https the datanodes must have it, too."`
	Path      string   `toml:"path" comment:"Directory of the objects, an absolute path such as \"/capelin\", which the user may read, write and list. Several processes may share it."`
	User      string   `toml:"user" comment:"Who asks, without Kerberos (user.name). Empty: whom the cluster takes for nobody (dr.who)."`

	Principal string `toml:"principal" comment:"Who asks, with Kerberos and a keytab: \"capelin@EXAMPLE.COM\" or \"capelin/host@EXAMPLE.COM\"."`
	Keytab    string `toml:"keytab" comment:"File with the principal's keys. Read when needed."`
	CCache    string `toml:"ccache" comment:"Instead of principal and keytab: a file with tickets that something else (kinit, k5start) renews. Read when needed."`
	Krb5Conf  string `toml:"krb5_conf" comment:"Kerberos' configuration. Default /etc/krb5.conf."`
	CA        string `toml:"ca" comment:"File with the certificates (PEM) that namenodes' and datanodes' are checked against. Empty: the system's."`

	Replication int          `toml:"replication" comment:"How many datanodes keep each block. 0: as the cluster has it."`
	BlockSize   config.Bytes `toml:"block_size" comment:"Size of the blocks that files are cut into, at least 1 MiB and a multiple of 512 bytes. 0: as the cluster has it."`

	Timeout config.Duration `toml:"timeout" comment:"How long a namenode may take to answer, and a datanode to begin. Default 30s; 0s means the default."`
	Stall   config.Duration `toml:"stall" comment:"A transfer by which nothing moves for so long is given up; a datanode that replaces one that died in mid-write needs a minute. Default 2m; 0s means the default."`
	Retry   config.Duration `toml:"retry" comment:"For how long in all a request is repeated when no namenode is active, reachable or out of safe mode. Default 15s; 0s means the default."`
}

func (c Config) withDefaults() Config {
	c.Timeout = cmp.Or(c.Timeout, config.Duration(30*time.Second))
	c.Stall = cmp.Or(c.Stall, config.Duration(2*time.Minute))
	c.Retry = cmp.Or(c.Retry, config.Duration(15*time.Second))
	c.Krb5Conf = cmp.Or(c.Krb5Conf, "/etc/krb5.conf")
	return c
}

// kerberos reports whether there is anything to prove oneself with.
func (c Config) kerberos() bool { return c.Keytab != "" || c.CCache != "" }

// Check reports what is wrong, as config.Invalid errors whose keys begin with
// prefix, such as "backend[0].hdfs.".
func (c Config) Check(prefix string) (errs []error) {
	bad := func(key, format string, args ...any) {
		errs = append(errs, config.Invalid(prefix+key, format, args...))
	}
	if len(c.Namenodes) == 0 {
		bad("namenodes", "must name at least one, such as \"http://namenode:9870\"")
	}
	for _, n := range c.Namenodes {
		if _, err := parseNamenode(n); err != nil {
			bad("namenodes", "%q %v", n, err)
		}
	}
	if !plainPath.MatchString(c.Path) || c.Path != path.Clean(c.Path) || len(c.Path) > 1000 {
		bad("path", "%q is not an absolute path below \"/\" of letters, digits and \"._=-\"", c.Path)
	}
	c.checkWho(bad)
	if c.CA != "" && !filepath.IsAbs(c.CA) {
		bad("ca", "%q is not an absolute path", c.CA)
	}
	if c.Replication < 0 || c.Replication > 512 {
		bad("replication", "%d is not 0 to 512", c.Replication)
	}
	if c.BlockSize < 0 || c.BlockSize > 0 && (c.BlockSize < 1<<20 || c.BlockSize%512 != 0) {
		bad("block_size", "%v is not a multiple of 512 bytes, 1 MiB at least", c.BlockSize)
	}
	for _, d := range []struct {
		key   string
		value config.Duration
	}{{"timeout", c.Timeout}, {"stall", c.Stall}, {"retry", c.Retry}} {
		if d.value < 0 {
			bad(d.key, "must not be negative, is %v", d.value)
		}
	}
	return errs
}

// plainPath has nothing in it that servers and redirects escape in ways of their own.
var plainPath = regexp.MustCompile(`^(/[A-Za-z0-9._=-]+)+$`)

func (c Config) checkWho(bad func(key, format string, args ...any)) {
	for _, p := range []struct{ key, value string }{{"keytab", c.Keytab}, {"ccache", c.CCache}, {"krb5_conf", c.Krb5Conf}} {
		if p.value != "" && !filepath.IsAbs(p.value) {
			bad(p.key, "%q is not an absolute path", p.value)
		}
	}
	switch name, realm, ok := strings.Cut(c.Principal, "@"); {
	case c.Keytab != "" && c.CCache != "":
		bad("ccache", "is instead of a keytab")
	case c.Keytab != "" && (!ok || name == "" || realm == "" || strings.Contains(realm, "@")):
		bad("principal", "%q is not name@REALM, which a keytab needs", c.Principal)
	case c.Keytab == "" && c.Principal != "":
		bad("principal", "needs a keytab")
	}
	if c.kerberos() && c.User != "" {
		bad("user", "is for clusters without Kerberos; with it, the principal says who asks")
	}
	if !config.IsText(c.User) || len(c.User) > 200 {
		bad("user", "%q is no user's name", c.User)
	}
}

// parseNamenode returns a namenode's URL without a path.
func parseNamenode(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" ||
		u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("is not http(s)://host:port")
	}
	u.Path = ""
	return u, nil
}

// tlsConfig returns what connections are checked against. It reads the file of certificates.
func (c Config) tlsConfig() (*tls.Config, error) {
	if c.CA == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(c.CA)
	if err != nil {
		return nil, fmt.Errorf("ca: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("ca: %s has no certificate in it: %w", c.CA, errdefs.ErrInvalidArgument)
	}
	return &tls.Config{RootCAs: pool}, nil
}
