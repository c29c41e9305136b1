package gcs

import (
	"cmp"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/internal/daemon/config"
)

// Config is a bucket, or a part of one.
type Config struct {
	Bucket      string       `toml:"bucket" comment:"Name of the bucket, which must be there."`
	Prefix      string       `toml:"prefix" comment:"Put before the names of all objects, such as \"capelin/\". Empty: the bucket is used from its top."`
	Credentials string       `toml:"credentials" comment:"File with a service account's key or a workload identity configuration, as gcloud writes them. Read when the bucket is first asked. Empty: Google's application default credentials (GOOGLE_APPLICATION_CREDENTIALS, a workload identity, the machine's service account)."`
	Endpoint    string       `toml:"endpoint" comment:"Where the API is, such as \"https://storage-capelin.p.googleapis.com\" for Private Service Connect. Over http:// no credentials are sent. Empty: \"https://storage.googleapis.com\"."`
	Memory      config.Bytes `toml:"memory" comment:"What all uploads together hold in memory, at least 8MiB. Large objects are sent in chunks of 8MiB, one after the other. 0: 32MiB."`
}

func (c Config) withDefaults() Config {
	c.Endpoint = strings.TrimSuffix(cmp.Or(c.Endpoint, "https://storage.googleapis.com"), "/")
	c.Memory = cmp.Or(c.Memory, defaultMemory)
	return c
}

const (
	// chunkSize is how much of an object is sent at once, in bytes: a multiple of 256 KiB.
	chunkSize     = 8 << 20
	defaultMemory = 32 << 20
)

// Google's rules of names, without those that only it can check.
var bucketPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{1,220}[a-z0-9]$`)

// Check reports what is wrong, as config.Invalid errors whose keys begin with
// prefix, such as "backend[0].gcs.".
func (c Config) Check(prefix string) (errs []error) {
	bad := func(key, format string, args ...any) {
		errs = append(errs, config.Invalid(prefix+key, format, args...))
	}
	if !bucketPattern.MatchString(c.Bucket) {
		bad("bucket", "%q is not 3 to 222 characters of a-z, 0-9, \"-\", \"_\" and \".\"", c.Bucket)
	}
	if c.Prefix != "" && (!strings.HasSuffix(c.Prefix, "/") || fetcher.CheckKey(strings.TrimSuffix(c.Prefix, "/")) != nil) {
		bad("prefix", "%q is not the beginning of an object's name, up to a \"/\"", c.Prefix)
	}
	if c.Credentials != "" && !filepath.IsAbs(c.Credentials) {
		bad("credentials", "%q is not an absolute path", c.Credentials)
	}
	if c.Endpoint != "" {
		u, err := url.Parse(c.Endpoint)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || strings.Trim(u.Path, "/") != "" ||
			u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			bad("endpoint", "it is not http(s)://host or http(s)://host:port")
		}
	}
	if c.Memory != 0 && c.Memory < chunkSize {
		bad("memory", "%v is less than a chunk, which has %v", c.Memory, config.Bytes(chunkSize))
	}
	return errs
}
