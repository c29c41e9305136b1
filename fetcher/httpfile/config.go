package httpfile

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/internal/daemon/config"
)

// Config is a web server with blobs.
type Config struct {
	URL        string `toml:"url" comment:"Where a blob is: {alg} is its digest's algorithm, such as sha256, {hex} its digits, {hex2} the first two of them. Such as \"https://files.example.com/blobs/{alg}/{hex}\", or, for what the registry \"distribution\" keeps, \".../docker/registry/v2/blobs/{alg}/{hex2}/{hex}/data\". No user and no password here: see header_file."`
	HeaderFile string `toml:"header_file" comment:"File with headers for each request, one a line, such as \"Authorization: Bearer ...\". Only the host of url is told them. Read with each request, so that a new secret counts at once. Empty: none."`
	CA         string `toml:"ca" comment:"PEM file with certificates of authorities for the server's own, instead of the system's. Empty: the system's."`

	Timeout config.Duration `toml:"timeout" comment:"How long the server may take to begin its answer. Default 30s; 0s means the default."`
	Stall   config.Duration `toml:"stall" comment:"A download without a byte for so long is begun anew where it was. Default 30s; 0s means the default."`
	Retry   config.Duration `toml:"retry" comment:"For how long in all a request is repeated that failed or was put off (429, 5xx). Default 15s; 0s means the default."`
}

func (c Config) withDefaults() Config {
	c.Timeout = cmp.Or(c.Timeout, config.Duration(30*time.Second))
	c.Stall = cmp.Or(c.Stall, config.Duration(30*time.Second))
	c.Retry = cmp.Or(c.Retry, config.Duration(15*time.Second))
	return c
}

// Check reports what is wrong, as config.Invalid errors whose keys begin with
// prefix, such as "backend[0].http.".
func (c Config) Check(prefix string) (errs []error) {
	bad := func(key, format string, args ...any) {
		errs = append(errs, config.Invalid(prefix+key, format, args...))
	}
	if err := checkTemplate(c.URL); err != nil {
		bad("url", "%v", err)
	}
	for _, p := range []struct{ key, value string }{{"header_file", c.HeaderFile}, {"ca", c.CA}} {
		if p.value != "" && !filepath.IsAbs(p.value) {
			bad(p.key, "%q is not an absolute path", p.value)
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

var placeholder = regexp.MustCompile(`\{[^{}]*\}`)

// expand puts a digest into a template.
func expand(template string, d digest.Digest) string {
	hex := d.Encoded()
	return strings.NewReplacer("{alg}", d.Algorithm().String(), "{hex}", hex, "{hex2}", hex[:2]).Replace(template)
}

// checkTemplate reports what is wrong with a template. It tells nothing of it that may be a
// secret.
func checkTemplate(template string) error {
	if template == "" {
		return errors.New("is empty: it must be a URL with {hex} in it")
	}
	known := []string{"{alg}", "{hex}", "{hex2}"}
	for _, p := range placeholder.FindAllString(template, -1) {
		if !slices.Contains(known, p) {
			return fmt.Errorf("%s is not %s", p, strings.Join(known, ", "))
		}
	}
	if !strings.Contains(template, "{hex}") {
		return errors.New("must have {hex} in it, so that each blob has a URL of its own")
	}
	u, err := url.Parse(expand(template, probe))
	switch {
	case err != nil:
		return errors.New("is not a URL")
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return errors.New("must begin with https:// or http:// and a host")
	case u.User != nil:
		return errors.New("must not have a user or a password in it: put an Authorization header into header_file")
	case u.Fragment != "" || strings.Contains(template, "#"):
		return errors.New("must not have a # in it")
	}
	if host, _, _ := strings.Cut(strings.SplitN(template, "://", 2)[1], "/"); strings.ContainsAny(host, "{}") {
		return errors.New("must not have a placeholder in its host")
	}
	return nil
}
