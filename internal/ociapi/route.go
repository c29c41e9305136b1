package ociapi

import (
	"fmt"
	"net/http"
	"strings"

	"cuelabs.dev/go/oci/ociregistry"
	"cuelabs.dev/go/oci/ociregistry/ociref"
	digest "github.com/opencontainers/go-digest"
)

// Kind is an endpoint of the API.
type Kind int

// The endpoints.
const (
	Ping      Kind = iota + 1 // /v2/
	Catalog                   // /v2/_catalog
	Token                     // /v2/_token: a gateway's own, where it gives tokens
	Tags                      // /v2/<name>/tags/list
	Referrers                 // /v2/<name>/referrers/<digest>
	Manifest                  // /v2/<name>/manifests/<tag or digest>
	Blob                      // /v2/<name>/blobs/<digest>
	Uploads                   // /v2/<name>/blobs/uploads/
	Upload                    // /v2/<name>/blobs/uploads/<id>
)

// Route is what a request's path names.
type Route struct {
	Kind       Kind
	Repository string
	Digest     digest.Digest // of Referrers and Blob, and of a Manifest that is not named by a tag
	Tag        string
	ID         string // of an Upload, as whoever gave it out has written it
}

// maxName is the longest name of a repository, in bytes.
const maxName = 255

// Parse reads a request's path by the API's grammar; none of it needs an escape. The error is one of the API's. Digests are of
// any algorithm.
func Parse(path string) (Route, error) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	switch {
	case path == "/v2", path == "/v2/":
		return Route{Kind: Ping}, nil
	case !ok:
		return Route{}, noPath(path)
	case rest == "_catalog":
		return Route{Kind: Catalog}, nil
	case path == TokenPath:
		return Route{Kind: Token}, nil
	}
	elems := strings.Split(rest, "/")
	if strings.HasSuffix(rest, "/blobs/uploads") { // without the slash, as Docker's registry takes it
		elems = append(elems, "")
	}
	n := len(elems)
	if n < 3 {
		return Route{}, noPath(path)
	}
	r, name, last := Route{}, elems[:n-2], elems[n-1]
	switch what := elems[n-2]; {
	case what == "uploads" && n > 3 && elems[n-3] == "blobs":
		r.Kind, r.ID, name = Upload, last, elems[:n-3]
		if last == "" {
			r.Kind = Uploads
		}
	case what == "tags" && last == "list":
		r.Kind = Tags
	case what == "referrers":
		r.Kind, r.Digest = Referrers, digest.Digest(last)
	case what == "blobs":
		r.Kind, r.Digest = Blob, digest.Digest(last)
	case what == "manifests" && strings.Contains(last, ":"):
		r.Kind, r.Digest = Manifest, digest.Digest(last)
	case what == "manifests":
		r.Kind, r.Tag = Manifest, last
	default:
		return Route{}, noPath(path)
	}
	r.Repository = strings.Join(name, "/")
	return r, r.check()
}

// check reports which name cannot be one.
func (r *Route) check() error {
	switch {
	case len(r.Repository) > maxName || !ociref.IsValidRepository(r.Repository):
		return Refuse(http.StatusBadRequest, ociregistry.ErrNameInvalid.Code(), "%.300q is no name of a repository", r.Repository)
	case (r.Digest != "" || r.Kind == Blob || r.Kind == Referrers) && !digest.DigestRegexpAnchored.MatchString(string(r.Digest)):
		return Refuse(http.StatusBadRequest, ociregistry.ErrDigestInvalid.Code(), "%.300q is no digest", r.Digest)
	case r.Kind == Manifest && r.Digest == "" && (r.Tag == "" || !ociref.IsValidTag(r.Tag)): // which panics without one
		return Refuse(http.StatusBadRequest, "TAG_INVALID", "%.300q is no tag", r.Tag)
	}
	return nil
}

func noPath(path string) error {
	return Refuse(http.StatusNotFound, ociregistry.ErrUnsupported.Code(), "%.300q is no path of the distribution API", path)
}

// Refuse returns an error with a status, a code and a text of its own.
func Refuse(status int, code, format string, args ...any) error {
	return WithStatus(status, code, fmt.Errorf(format, args...))
}
