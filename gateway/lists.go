package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"cuelabs.dev/go/oci/ociregistry"
	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/internal/ociapi"
)

// Limits of one answer. What does not fit is on the next page, which the header Link names.
const (
	maxNames     = 10000   // tags, repositories
	maxReferrers = 1000    // descriptors
	maxBytes     = 3 << 20 // of descriptors; clients take 4 MiB for a manifest's most
	indexPage    = 1000
)

func writeJSON(w http.ResponseWriter, mediaType string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body) // whoever does not read it has gone
	return nil
}

// more names the next page, which begins after last.
func more(w http.ResponseWriter, r *request, last string) {
	q := url.Values{}
	for k, v := range r.query {
		q[k] = v
	}
	q.Set("last", last)
	w.Header().Set("Link", fmt.Sprintf(`<%s>; rel="next"`, (&url.URL{Path: r.URL.Path, RawQuery: q.Encode()}).String()))
}

// limit is how many names a client wants.
func limit(r *request) (int, error) {
	text := r.query.Get("n")
	if text == "" {
		return maxNames, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, ociapi.Refuse(http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", "n=%.100q is no number of names", text)
	}
	return min(n, maxNames), nil
}

// pager returns at most limit names that come after one.
type pager func(ctx context.Context, after string, limit int) (names []string, more bool, err error)

// gather collects at most n names that are to be shown, of pages that come after a name each.
func gather(
	ctx context.Context, n int, after string, page pager, show func(string) bool,
) (names []string, others bool, err error) {
	names = []string{}
	for n > 0 {
		found, others, err := page(ctx, after, min(indexPage, n+1))
		if err != nil {
			return nil, false, err
		}
		for _, name := range found {
			if after = name; !show(name) {
				continue
			}
			if len(names) == n {
				return names, true, nil
			}
			names = append(names, name)
		}
		if !others || len(found) == 0 {
			break
		}
	}
	return names, false, nil
}

func (g *Gateway) tags(w http.ResponseWriter, r *request) error {
	if err := allow(r.Context(), Pull, r.Repository); err != nil {
		return err
	}
	n, err := limit(r)
	if err != nil {
		return err
	}
	unknown := notFound(ociregistry.ErrNameUnknown, "nobody has pushed to %s", r.Repository)
	if n == 0 { // of a repository that is there
		_, _, err := g.store.index.Tags(r.Context(), r.Repository, "", 1)
		if err != nil {
			return translate(err, unknown)
		}
	}
	ofRepo := func(ctx context.Context, after string, limit int) ([]string, bool, error) {
		return g.store.index.Tags(ctx, r.Repository, after, limit)
	}
	names, others, err := gather(r.Context(), n, r.query.Get("last"), ofRepo, func(string) bool { return true })
	if err != nil {
		return translate(err, unknown)
	}
	if others {
		more(w, r, names[len(names)-1])
	}
	return writeJSON(w, "application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{r.Repository, names})
}

// catalog lists the repositories that the caller may pull.
func (g *Gateway) catalog(w http.ResponseWriter, r *request) error {
	c := callerOf(r.Context())
	if g.guarded && c.user == Anonymous && !c.shown { // who is logged in would not say so otherwise
		g.refuse(w, r.Request, errAsked)
		return nil
	}
	if err := allow(r.Context(), List, ""); err != nil {
		return err
	}
	n, err := limit(r)
	if err != nil {
		return err
	}
	names, others, err := gather(r.Context(), n, r.query.Get("last"), g.store.index.Repositories, c.shows)
	if err != nil {
		return translate(err, notFound(ociregistry.ErrNameUnknown, "there are no repositories"))
	}
	if others {
		more(w, r, names[len(names)-1])
	}
	return writeJSON(w, "application/json", struct {
		Repositories []string `json:"repositories"`
	}{names})
}

func (g *Gateway) referrers(w http.ResponseWriter, r *request) error {
	if err := allow(r.Context(), Pull, r.Repository); err != nil {
		return err
	}
	last, artifactType := r.query.Get("last"), r.query.Get("artifactType")
	page, err := g.store.index.ReferrersPage(r.Context(), r.Repository, r.Digest, artifactType, digest.Digest(last), maxReferrers)
	if err != nil {
		return translate(err, notFound(ociregistry.ErrNameUnknown, "nobody has pushed to %s", r.Repository))
	}
	shown := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{},
	}
	size := 0
	for i, d := range page.Referrers {
		one, err := json.Marshal(d)
		if err != nil {
			return err
		}
		if size += len(one); size > maxBytes && i > 0 {
			page.More = true
			break
		}
		shown.Manifests = append(shown.Manifests, d)
	}
	if n := len(shown.Manifests); n > 0 && page.More {
		more(w, r, shown.Manifests[n-1].Digest.String())
	}
	if artifactType != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	return writeJSON(w, ocispec.MediaTypeImageIndex, shown)
}
