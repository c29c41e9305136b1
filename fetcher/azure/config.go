package azure

import (
	"cmp"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/internal/daemon/config"
)

// Config is a container, or the part of one below a prefix.
type Config struct {
	Account     string       `toml:"account" comment:"Name of the storage account, which has no hierarchical namespace."`
	Container   string       `toml:"container" comment:"Name of the container, which must be there."`
	Prefix      string       `toml:"prefix" comment:"Put before the name of each object, such as \"capelin/\". It ends in \"/\". Empty: nothing."`
	Credentials string       `toml:"credentials" comment:"File with a shared access signature (sv=...&sig=...), which is read with each request, or with the account's key. Empty: Microsoft Entra ID as in the environment (AZURE_CLIENT_ID and others), by workload identity or managed identity."`
	Endpoint    string       `toml:"endpoint" comment:"URL of the account, for other clouds. Empty: \"https://ACCOUNT.blob.core.windows.net\"."`
	Memory      config.Bytes `toml:"memory" comment:"What all uploads together hold in memory, at least 8MiB. Large objects are sent in blocks of 8MiB or more, up to 4 at once as they fit. 0: 32MiB."`
}

const (
	// blockSize is how many bytes are sent by one request at least, if there are more.
	blockSize     = 8 << 20
	defaultMemory = 32 << 20
	// maxBlocks is how many blocks an object has at most.
	maxBlocks = 50_000
	// parallel is how many blocks of one object are sent at once at most.
	parallel = 4
)

func (c Config) withDefaults() Config {
	c.Endpoint = strings.TrimSuffix(cmp.Or(c.Endpoint, "https://"+c.Account+".blob.core.windows.net"), "/")
	c.Memory = cmp.Or(c.Memory, defaultMemory)
	return c
}

var (
	accountPattern   = regexp.MustCompile(`^[a-z0-9]{3,24}$`)
	containerPattern = regexp.MustCompile(`^[a-z0-9](-?[a-z0-9]){2,62}$`)
)

// Check reports what is wrong, as config.Invalid errors whose keys begin with
// prefix, such as "backend[0].azure.".
func (c Config) Check(prefix string) (errs []error) {
	bad := func(key, format string, args ...any) {
		errs = append(errs, config.Invalid(prefix+key, format, args...))
	}
	if !accountPattern.MatchString(c.Account) {
		bad("account", "%q is not 3 to 24 characters of a-z and 0-9", c.Account)
	}
	if len(c.Container) > 63 || !containerPattern.MatchString(c.Container) {
		bad("container", "%q is not 3 to 63 characters of a-z, 0-9 and single \"-\"", c.Container)
	}
	if dir, ok := strings.CutSuffix(c.Prefix, "/"); c.Prefix != "" && (!ok || fetcher.CheckKey(dir) != nil) {
		bad("prefix", "%q is not the beginning of an object's name, up to a \"/\"", c.Prefix)
	}
	if c.Credentials != "" && !filepath.IsAbs(c.Credentials) {
		bad("credentials", "%q is not an absolute path", c.Credentials)
	}
	if c.Endpoint != "" {
		u, err := url.Parse(c.Endpoint)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			bad("endpoint", "it is not http(s)://host or http(s)://host/account")
		}
	}
	if c.Memory != 0 && c.Memory < blockSize {
		bad("memory", "%v is less than a block, which has %v", c.Memory, config.Bytes(blockSize))
	}
	return errs
}
