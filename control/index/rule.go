package index

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"strings"

	"github.com/capelin-io/capelin/internal/daemon/config"
)

// Rule says which tags an index brings where. It is an object in the index's storage, so that all indexes over it know it.
type Rule struct {
	Name          string      `json:"name" toml:"name" comment:"1 to 40 lower case letters, digits and -."`
	URL           string      `json:"url" toml:"url" comment:"The registry: https://host[:port], or http:// in a network where that is safe. Another cluster's is its gateway's."`
	Namespaces    []string    `json:"namespaces" toml:"namespaces" comment:"Which repositories: regular expressions (RE2) of which one matches the whole name."`
	Tags          []string    `json:"tags" toml:"tags" comment:"Which of their tags, in the same way. None: all."`
	RewritePrefix string      `json:"rewritePrefix,omitempty" toml:"rewrite_prefix" comment:"FROM=TO: what a repository's name begins with there instead. Empty: names are the same."`
	NoReferrers   bool        `json:"noReferrers,omitempty" toml:"no_referrers" comment:"Signatures and all else that refers to an image stays here; otherwise it goes with it, later ones too."`
	Deletes       string      `json:"deletes" toml:"deletes" comment:"\"tags\" (if empty, too): a tag that is deleted here is deleted there. \"none\": it stays."`
	Forward       bool        `json:"forward,omitempty" toml:"forward" comment:"What came from another cluster is passed on."`
	DockerConfig  string      `json:"dockerConfig,omitempty" toml:"docker_config" comment:"File of Docker's configuration with the registry's credentials (auths, credHelpers, credsStore), on each machine with an index. Empty: none."`
	TokenFile     string      `json:"tokenFile,omitempty" toml:"token_file" comment:"File with a bearer token, such as a gateway's, on each machine with an index. Empty: none."`
	CA            string      `json:"ca,omitempty" toml:"ca" comment:"PEM file of the authorities that the registry's certificate is from, on each machine with an index. Empty: the system's."`
	Cert          string      `json:"cert,omitempty" toml:"cert" comment:"PEM file of a certificate to show, on each machine with an index. Empty: none."`
	Key           string      `json:"key,omitempty" toml:"key" comment:"PEM file of its private key."`
	Bandwidth     config.Rate `json:"bandwidth,omitempty" toml:"bandwidth" comment:"Bytes per second that are sent at most. 0: no limit."`
	Parallel      int         `json:"parallel" toml:"parallel" comment:"Tags that are delivered at once, 1 to 64. 0: 8."`
	Reconcile     int         `json:"reconcile" toml:"reconcile" comment:"Tags per second that are compared with those there, all the time, 1 to 10000. 0: 20."`
}

// Example is what a printed configuration shows.
func (Rule) Example() any {
	return Rule{Name: "west", URL: "https://registry.west.example", Namespaces: []string{"team/.*"}}.Filled()
}

// Filled returns a rule with its defaults for what is empty.
func (r Rule) Filled() Rule {
	if len(r.Tags) == 0 {
		r.Tags = []string{".*"}
	}
	r.Deletes = cmp.Or(r.Deletes, DeleteTags)
	r.Parallel = cmp.Or(r.Parallel, 8)
	r.Reconcile = cmp.Or(r.Reconcile, 20)
	return r
}

// What becomes of tags at the remote that were deleted.
const (
	DeleteTags = "tags"
	DeleteNone = "none"
)

const maxRuleLists = 100

var ruleName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

// CheckRuleName reports what is wrong with a rule's name.
func CheckRuleName(name string) error {
	if !ruleName.MatchString(name) {
		return fmt.Errorf("%s is no name of a rule: 1 to 40 lower case letters, digits and -", quote(name))
	}
	return nil
}

// Check returns all that is wrong with a rule, each by its key, which begins with prefix. It reads no files.
func (r Rule) Check(prefix string) (errs []error) {
	r = r.Filled()
	bad := func(key, format string, args ...any) {
		errs = append(errs, config.Invalid(prefix+key, format, args...))
	}
	if err := CheckRuleName(r.Name); err != nil {
		bad("name", "%v", err)
	}
	u, err := url.Parse(r.URL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || strings.Trim(u.Path, "/") != "" ||
		u.RawQuery != "" || u.User != nil {
		bad("url", "%.200q is not https://host[:port]; a part of a repository's name is put before it with rewrite_prefix", r.URL)
	}
	for _, l := range []struct {
		key  string
		list []string
	}{{"namespaces", r.Namespaces}, {"tags", r.Tags}} {
		if len(l.list) == 0 || len(l.list) > maxRuleLists {
			bad(l.key, "has %d expressions, not 1 to %d", len(l.list), maxRuleLists)
		}
		for _, p := range l.list {
			if _, err := config.Pattern(p); err != nil {
				bad(l.key, "%q: %v", p, err)
			}
		}
	}
	if r.RewritePrefix != "" {
		from, to, ok := strings.Cut(r.RewritePrefix, "=")
		if !ok || strings.Contains(to, "=") || strings.HasPrefix(to, "/") || strings.HasPrefix(from, "/") {
			bad("rewrite_prefix", "%q is not FROM=TO, such as team/=mirror/team/", r.RewritePrefix)
		}
	}
	if r.Deletes != DeleteTags && r.Deletes != DeleteNone {
		bad("deletes", "%q is not %q or %q", r.Deletes, DeleteTags, DeleteNone)
	}
	if r.TokenFile != "" && r.DockerConfig != "" {
		bad("token_file", "is used instead of docker_config: leave one of them out")
	}
	if (r.Cert == "") != (r.Key == "") {
		bad("cert", "needs key, and key needs cert")
	}
	if r.Bandwidth < 0 {
		bad("bandwidth", "%v is negative", r.Bandwidth)
	}
	if r.Parallel < 1 || r.Parallel > 64 {
		bad("parallel", "%d is not 1 to 64", r.Parallel)
	}
	if r.Reconcile < 1 || r.Reconcile > 10000 {
		bad("reconcile", "%d is not 1 to 10000", r.Reconcile)
	}
	return errs
}

// CheckFiles returns which of a rule's files cannot be read on this machine.
func (r *Rule) CheckFiles(prefix string) error {
	var errs []error
	for _, f := range []struct{ key, path string }{
		{"docker_config", r.DockerConfig}, {"token_file", r.TokenFile}, {"ca", r.CA}, {"cert", r.Cert}, {"key", r.Key},
	} {
		if f.path == "" {
			continue
		}
		if _, err := os.ReadFile(f.path); err != nil {
			errs = append(errs, config.Unreadable(prefix+f.key, f.path, err))
		}
	}
	return errors.Join(errs...)
}
