package indexd

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
)

// Where things are in the storage; FORMAT.md, "Keys". The names of repositories
// have no element that begins with "_".
const (
	catalogPrefix = "index/catalog/"
	repoPrefix    = "index/repositories/"
	provedPrefix  = "index/proved/"

	// A secret: neither a back-up nor a move takes it along, which look below index/.
	tokenKeysKey = "capelin-tokens/keys"
)

func tagsPrefix(repo string) string      { return repoPrefix + repo + "/_tags/" }
func manifestsPrefix(repo string) string { return repoPrefix + repo + "/_manifests/" }

func tagKey(repo, name string) string { return tagsPrefix(repo) + name }
func manifestKey(repo string, d digest.Digest) string {
	return manifestsPrefix(repo) + digestPath(d)
}
func blobKey(repo string, d digest.Digest) string {
	return repoPrefix + repo + "/_blobs/" + digestPath(d)
}
func referrersPrefix(repo string, subject digest.Digest) string {
	return repoPrefix + repo + "/_referrers/" + digestPath(subject) + "/"
}
func referrerKey(repo string, subject, d digest.Digest) string {
	return referrersPrefix(repo, subject) + digestPath(d)
}

// digestPath is "sha256/<hex>": it sorts as digests do.
func digestPath(d digest.Digest) string { return strings.Replace(string(d), ":", "/", 1) }

// digestOf is the reverse of digestPath, of a key below prefix.
func digestOf(prefix, key string) (digest.Digest, error) {
	d := digest.Digest(strings.Replace(strings.TrimPrefix(key, prefix), "/", ":", 1))
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("index storage: unknown object %q: %w", key, errdefs.ErrDataLoss)
	}
	return d, nil
}

// The catalog has one element per repository, so that it can be listed without
// walking through tags, and in the order of the names: "/" sorts between "." and
// digits, so each of the three takes the place of the one before it.
var (
	toCatalog   = strings.NewReplacer("/", ".", ".", "-", "-", ",")
	fromCatalog = strings.NewReplacer(".", "/", "-", ".", ",", "-")
)

// A name that is too long for an element goes on in a second one. "~" is in no name.
const catalogElement = 199

// catalogPath returns the catalog's path of a repository's name, or of a string that
// names are compared with. The order of paths is that of names.
func catalogPath(repo string) string {
	s := toCatalog.Replace(repo)
	if len(s) > catalogElement {
		s = s[:catalogElement] + "~/" + s[catalogElement:]
	}
	return s
}

// catalogName is the reverse of catalogPath, of a key.
func catalogName(key string) string {
	s := strings.TrimPrefix(key, catalogPrefix)
	return fromCatalog.Replace(strings.Replace(s, "~/", "", 1))
}
