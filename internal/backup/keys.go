package backup

import (
	"strings"

	digest "github.com/opencontainers/go-digest"
)

const (
	indexPrefix  = "index/"
	repoPrefix   = "index/repositories/"
	provedPrefix = "index/proved/" // says something of one storage, and is not copied
)

// kind is what an index's object is.
type kind int

const (
	other kind = iota
	tag
	blob // names bytes that origins have
)

// parsed is what an object's key says (indexd/FORMAT.md, "Keys").
type parsed struct {
	kind   kind
	repo   string
	digest digest.Digest // of a blob
}

func parse(key string) parsed {
	rest, ok := strings.CutPrefix(key, repoPrefix)
	if !ok {
		return parsed{}
	}
	repo, rest, ok := strings.Cut(rest, "/_") // no element of a repository's name begins so
	if !ok {
		return parsed{}
	}
	what, name, _ := strings.Cut(rest, "/")
	switch what {
	case "tags":
		return parsed{kind: tag, repo: repo}
	case "blobs", "manifests":
		d := digest.Digest(strings.Replace(name, "/", ":", 1))
		if d.Validate() == nil {
			return parsed{blob, repo, d}
		}
	}
	return parsed{repo: repo}
}

func isProof(key string) bool { return strings.HasPrefix(key, provedPrefix) }
