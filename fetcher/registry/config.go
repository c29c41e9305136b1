package registry

import (
	"cmp"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"cuelabs.dev/go/oci/ociregistry/ociref"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher/registry/ecr"
	"github.com/capelin-io/capelin/internal/daemon/config"
)

// Config is another registry.
type Config struct {
	Host         string `toml:"host" comment:"The registry: a host with an optional port, as in image names, such as \"docker.io\" or \"registry.example.com:5000\"."`
	StripPrefix  string `toml:"strip_prefix" comment:"Removed from the beginning of a namespace to make the repository's name at the registry: with \"hub/\", hub/library/nginx is library/nginx there. Namespaces without it are refused. Empty: namespaces are repositories."`
	AddPrefix    string `toml:"add_prefix" comment:"Put before the repository's name after that, such as \"mirrors/\". Empty: nothing. Docker Hub's one-word names get their \"library/\" in any case."`
	HostsDir     string `toml:"hosts_dir" comment:"Directory with containerd's hosts.toml files (mirrors, certificates, headers), such as /etc/containerd/certs.d. Read again every 5m. Empty: the registry is asked itself, over HTTPS."`
	DockerConfig string `toml:"docker_config" comment:"A Docker config.json with credentials, such as /var/lib/capelin/config.json or a mounted pull secret. The helper programs that it names (docker-credential-...) are run. Read when needed. Empty: no credentials."`
	Auth         string `toml:"auth" comment:"\"ecr\": the registry is Amazon's (a private one at ECR), and AWS gives the tokens for it. AWS's own chain finds the credentials (environment, ~/.aws, web identity, the role of the pod or the machine): none are configured here. docker_config is for mirrors in hosts.toml then. Empty: as docker_config says."`
	Region       string `toml:"region" comment:"With auth = \"ecr\", the region of AWS whose ECR gives the tokens, if it is not in the name of the host. Empty: as the host says."`
	PlainHTTP    bool   `toml:"plain_http" comment:"Use HTTP, where hosts.toml does not say otherwise. Default false; a registry on this machine (localhost, 127.0.0.1) with a port other than 443 is asked over HTTP if it does not speak HTTPS."`

	Timeout config.Duration `toml:"timeout" comment:"How long the registry may take to begin its answer. Default 30s; 0s means the default."`
	Stall   config.Duration `toml:"stall" comment:"A download without a byte for so long is begun anew where it was. Default 30s; 0s means the default."`
	Retry   config.Duration `toml:"retry" comment:"For how long in all a request is repeated that failed or was put off (429, 5xx). Default 15s; 0s means the default."`
}

func (c Config) withDefaults() Config {
	c.Timeout = cmp.Or(c.Timeout, config.Duration(30*time.Second))
	c.Stall = cmp.Or(c.Stall, config.Duration(30*time.Second))
	c.Retry = cmp.Or(c.Retry, config.Duration(15*time.Second))
	switch c.Host {
	case "registry-1.docker.io", "index.docker.io":
		c.Host = dockerHub
	}
	return c
}

// Check reports what is wrong, as config.Invalid errors whose keys begin with
// prefix, such as "backend[0].registry.".
func (c Config) Check(prefix string) (errs []error) {
	bad := func(key, format string, args ...any) {
		errs = append(errs, config.Invalid(prefix+key, format, args...))
	}
	if !ociref.IsValidHost(c.Host) && c.Host != "localhost" {
		bad("host", "%q is not a host with an optional port", c.Host)
	}
	for _, p := range []struct{ key, value string }{{"strip_prefix", c.StripPrefix}, {"add_prefix", c.AddPrefix}} {
		if p.value != "" && (!strings.HasSuffix(p.value, "/") || !ociref.IsValidRepository(strings.TrimSuffix(p.value, "/"))) {
			bad(p.key, "%q is not the beginning of a repository's name, up to a \"/\"", p.value)
		}
	}
	for _, p := range []struct{ key, value string }{{"hosts_dir", c.HostsDir}, {"docker_config", c.DockerConfig}} {
		if p.value != "" && !filepath.IsAbs(p.value) {
			bad(p.key, "%q is not an absolute path", p.value)
		}
	}
	switch {
	case c.Auth == "":
		if c.Region != "" {
			bad("region", "is for auth = \"ecr\" only")
		}
	case c.Auth != authECR:
		bad("auth", "%q is not \"ecr\"", c.Auth)
	default:
		if _, ok := c.ecr(); !ok {
			bad("region", "must be set, because %q is not the host of a private registry at ECR, such as "+
				"\"123456789012.dkr.ecr.eu-west-1.amazonaws.com\"", c.Host)
		}
		if c.PlainHTTP && !docker.IsLocalhost(c.Host) {
			bad("plain_http", "must be false, so that nobody on the way gets the token")
		}
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

const (
	dockerHub = "docker.io"
	authECR   = "ecr"
)

// ecr returns which registry at ECR it is.
func (c Config) ecr() (r ecr.Registry, ok bool) {
	r, ok = ecr.Parse(c.Host)
	if c.Region != "" {
		r.Region, ok = c.Region, true
	}
	return r, ok && regionPattern.MatchString(r.Region)
}

var regionPattern = regexp.MustCompile(`^[a-z0-9-]{1,63}$`)

// repository returns a namespace's name at the registry.
func (c Config) repository(namespace string) (string, error) {
	bad := func(why string) (string, error) {
		return "", fmt.Errorf("namespace %q %s: %w", namespace, why, errdefs.ErrInvalidArgument)
	}
	if namespace == "" {
		return bad("is empty, and without a repository the registry " + c.Host + " finds nothing")
	}
	repo, ok := strings.CutPrefix(namespace, c.StripPrefix)
	if !ok {
		return bad("does not begin with strip_prefix " + c.StripPrefix)
	}
	repo = c.AddPrefix + repo
	if c.Host == dockerHub && !strings.Contains(repo, "/") {
		repo = "library/" + repo
	}
	if len(repo) > 255 || !ociref.IsValidRepository(repo) {
		return bad("makes no repository's name")
	}
	return repo, nil
}
