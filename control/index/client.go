package index

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/internal/httpclient"
)

// How long one index may take to answer before the next one is asked. The index
// itself ends an operation a little earlier.
const (
	dialTimeout  = 3 * time.Second
	readTimeout  = 20 * time.Second
	writeTimeout = 70 * time.Second
)

// What Client.Referrers gathers at most.
const (
	maxReferrers      = 10000
	maxReferrersBytes = 64 << 20 // of annotations
)

// Config says where the indexes are.
type Config struct {
	// Indexes are host:port, or http(s)://host:port; at least one.
	Indexes []string
	// TLS is for indexes that are named by host:port (nil: plain HTTP) or https.
	TLS *tls.Config
}

// Client asks one of several indexes; if it is unavailable, the others.
type Client struct {
	http    *httpclient.Client
	indexes []*httpclient.Server
	// current is the index that answered last; all calls begin with it.
	current atomic.Int32
}

// New returns a client. It does not connect yet.
func New(cfg Config) (*Client, error) {
	h, err := httpclient.New(httpclient.Options{
		What: "index", Servers: cfg.Indexes, TLS: cfg.TLS, DialTimeout: dialTimeout, MaxIdle: 16,
	})
	if err != nil {
		return nil, err
	}
	return &Client{http: h, indexes: h.Servers()}, nil
}

// Close closes idle connections. Calls that are under way go on.
func (c *Client) Close() { c.http.Close() }

// Tag returns a tag. Whoever asks after a write was acknowledged sees it.
func (c *Client) Tag(ctx context.Context, repo, name string) (Tag, error) {
	var t Tag
	err := c.do(ctx, "GET", PathTag, params("repository", repo, "name", name), nil, &t)
	return t, err
}

// PutTag makes a tag name the manifest desc.Digest, which the repository must have,
// with all that it refers to (MissingError otherwise). Media type and size may be
// left out of desc. The tag that is returned is durable.
func (c *Client) PutTag(ctx context.Context, repo, name string, desc ocispec.Descriptor) (Tag, error) {
	var t Tag
	err := c.do(ctx, "PUT", PathTag, params("repository", repo, "name", name, "write", rand.Text()), content(desc), &t)
	return t, err
}

// PutTagFrom is PutTag for a tag that comes from another cluster. If what is there is later, that is the answer, superseded.
// errdefs.ErrConflict: the source's clock is too far ahead.
func (c *Client) PutTagFrom(ctx context.Context, repo, name string, desc ocispec.Descriptor, from Source) (Tag, error) {
	var t Tag
	query := params("repository", repo, "name", name, "write", rand.Text(), ParamSource, from.String())
	err := c.do(ctx, "PUT", PathTag, query, content(desc), &t)
	return t, tooOld(t, from, err)
}

// DeleteTagFrom is DeleteTag as another cluster has it, as in PutTagFrom. A tag that is not there is remembered to be deleted.
func (c *Client) DeleteTagFrom(ctx context.Context, repo, name string, from Source) (Tag, error) {
	var t Tag
	err := c.do(ctx, "DELETE", PathTag, params("repository", repo, "name", name, ParamSource, from.String()), nil, &t)
	return t, tooOld(t, from, err)
}

// tooOld: an index that knows no sources has written something else.
func tooOld(t Tag, from Source, err error) error {
	if err == nil && !t.Superseded && t.Source() != from {
		err = fmt.Errorf("an index is of a release that takes no tags of other clusters, update it: %w", errdefs.ErrNotImplemented)
	}
	return err
}

// TagState is Tag for who wants to know what became of one: those that were deleted are returned, too.
func (c *Client) TagState(ctx context.Context, repo, name string) (Tag, error) {
	var t Tag
	err := c.do(ctx, "GET", PathTag, params("repository", repo, "name", name, ParamState, "true"), nil, &t)
	return t, err
}

// DeleteTag removes a tag.
func (c *Client) DeleteTag(ctx context.Context, repo, name string) error {
	return c.do(ctx, "DELETE", PathTag, params("repository", repo, "name", name), nil, nil)
}

// Tags lists the tags of a repository in lexical order: at most limit (1..1000,
// otherwise 1000) that come after the string after. more says that there are others.
func (c *Client) Tags(ctx context.Context, repo, after string, limit int) (names []string, more bool, err error) {
	return c.names(ctx, PathTags, repo, after, limit)
}

// Repositories lists the repositories in lexical order, like Tags.
func (c *Client) Repositories(ctx context.Context, after string, limit int) (names []string, more bool, err error) {
	return c.names(ctx, PathRepositories, "", after, limit)
}

// Manifests lists the manifests of a repository in the order of their digests, like
// Tags.
func (c *Client) Manifests(ctx context.Context, repo string, after digest.Digest, limit int) ([]digest.Digest, bool, error) {
	names, more, err := c.names(ctx, PathManifests, repo, string(after), limit)
	digests := make([]digest.Digest, len(names))
	for i, n := range names {
		digests[i] = digest.Digest(n)
	}
	return digests, more, err
}

func (c *Client) names(ctx context.Context, path, repo, after string, limit int) ([]string, bool, error) {
	var page Names
	err := c.do(ctx, "GET", path, params("repository", repo, "after", after, "limit", strconv.Itoa(limit)), nil, &page)
	return page.Names, page.More, err
}

// Manifest returns a manifest of a repository.
func (c *Client) Manifest(ctx context.Context, repo string, d digest.Digest) (Manifest, error) {
	var m Manifest
	err := c.do(ctx, "GET", PathManifest, params("repository", repo, "digest", string(d)), nil, &m)
	return m, err
}

// PutManifest records a manifest in a repository. Its bytes must be at an origin; the
// index reads them, so that only the Descriptor of m is looked at: digest and media
// type. MissingError if something that it refers to is not there.
func (c *Client) PutManifest(ctx context.Context, repo string, m Manifest) error {
	return c.do(ctx, "PUT", PathManifest, params("repository", repo, "digest", string(m.Descriptor.Digest)), content(m.Descriptor), nil)
}

// DeleteManifest removes a manifest, its entry among the referrers of its subject, and
// all tags that name it.
func (c *Client) DeleteManifest(ctx context.Context, repo string, d digest.Digest) error {
	return c.do(ctx, "DELETE", PathManifest, params("repository", repo, "digest", string(d)), nil, nil)
}

// Referrers returns the manifests of a repository whose subject is d, in the order of
// their digests; if artifactType is not empty, only those that have it. There are none of
// a digest that nobody knows. More than 10,000 of them are errdefs.ErrResourceExhausted.
func (c *Client) Referrers(ctx context.Context, repo string, d digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	return AllReferrers(repo, d, func(after digest.Digest) (Referrers, error) {
		return c.ReferrersPage(ctx, repo, d, artifactType, after, MaxPage)
	})
}

// ReferrersPage returns those of Referrers that come after a digest, at most limit (1..1000, otherwise 1000), and fewer if
// their annotations are long.
func (c *Client) ReferrersPage(
	ctx context.Context, repo string, d digest.Digest, artifactType string, after digest.Digest, limit int,
) (page Referrers, err error) {
	query := params("repository", repo, "digest", string(d), "artifactType", artifactType, "after", string(after),
		"limit", strconv.Itoa(limit))
	err = c.do(ctx, "GET", PathReferrers, query, nil, &page)
	return page, err
}

// AllReferrers gathers the pages of the referrers of d, those after a digest each.
func AllReferrers(repo string, d digest.Digest, page func(after digest.Digest) (Referrers, error)) ([]ocispec.Descriptor, error) {
	all := []ocispec.Descriptor{}
	var after digest.Digest
	size := 0
	for {
		p, err := page(after)
		if err != nil {
			return nil, err
		}
		for _, r := range p.Referrers {
			for k, v := range r.Annotations {
				size += len(k) + len(v)
			}
		}
		all = append(all, p.Referrers...)
		if size > maxReferrersBytes || len(all) > maxReferrers {
			return nil, fmt.Errorf("repository %s has too many referrers of %s: %w", repo, d, errdefs.ErrResourceExhausted)
		}
		if !p.More || len(p.Referrers) == 0 {
			return all, nil
		}
		after = all[len(all)-1].Digest
	}
}

// LinkBlob makes a blob part of a repository. It must be at an origin.
func (c *Client) LinkBlob(ctx context.Context, repo string, desc ocispec.Descriptor) error {
	return c.do(ctx, "PUT", PathBlob, params("repository", repo, "digest", string(desc.Digest)), content(desc), nil)
}

// Blob returns the descriptor of a blob that a repository has.
func (c *Client) Blob(ctx context.Context, repo string, d digest.Digest) (ocispec.Descriptor, error) {
	var b Content
	err := c.do(ctx, "GET", PathBlob, params("repository", repo, "digest", string(d)), nil, &b)
	return b.Descriptor, err
}

// UnlinkBlob makes a blob no longer part of a repository.
func (c *Client) UnlinkBlob(ctx context.Context, repo string, d digest.Digest) error {
	return c.do(ctx, "DELETE", PathBlob, params("repository", repo, "digest", string(d)), nil, nil)
}

// Prove has an index find out whether its storage really compares and swaps, by writers that race. It is errdefs.ErrFailedPrecondition if
// it does not, with what it did; the index then ends.
func (c *Client) Prove(ctx context.Context) (Proof, error) {
	var p Proof
	err := c.do(ctx, "POST", PathProve, nil, nil, &p)
	return p, err
}

// TokenKeys returns the keys of the cluster's gateways, which the index makes if there are none. Nodes do not get them.
func (c *Client) TokenKeys(ctx context.Context) ([]TokenKey, error) {
	var k TokenKeys
	err := c.do(ctx, "PUT", PathTokenKeys, nil, nil, &k)
	if err == nil && len(k.Keys) == 0 {
		err = fmt.Errorf("the index has answered without a key for tokens: %w", errdefs.ErrUnavailable)
	}
	return k.Keys, err
}

// content leaves out of a descriptor what the index does not look at.
func content(d ocispec.Descriptor) *Content {
	return &Content{ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}}
}

func params(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			v.Set(pairs[i], pairs[i+1])
		}
	}
	return v
}

// do asks the indexes in turn until one can say.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("index client: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		if len(body) > MaxRequest {
			return fmt.Errorf("index client: a request of %d bytes is too large: %w", len(body), errdefs.ErrInvalidArgument)
		}
	}
	var errs []error
	current := int(c.current.Load())
	order := slices.Concat(c.indexes[current:], c.indexes[:current])
	r := &httpclient.Request{Method: method, Path: path + "?" + query.Encode()}
	if in != nil {
		r.Header = http.Header{"Content-Type": {"application/json"}}
	}
	for x := range c.http.Turns(ctx, order, true) { // all writes may be repeated
		answer, err := c.ask(ctx, x, r, body)
		switch {
		case err == nil:
			c.current.Store(int32(slices.Index(c.indexes, x)))
			if out == nil || len(answer) == 0 {
				return nil
			}
			if err := json.Unmarshal(answer, out); err != nil {
				return fmt.Errorf("index %s: the answer to %s %s: %w: %w", x.Base, method, path, err, errdefs.ErrUnavailable)
			}
			return nil
		case method == "DELETE" && len(errs) > 0 && errdefs.IsNotFound(err):
			return nil // an index that did not answer may have done it
		case !errdefs.IsUnavailable(err):
			return err
		}
		errs = append(errs, err)
	}
	return c.http.LastRound(errs)
}

// ask asks one index.
func (c *Client) ask(ctx context.Context, x *httpclient.Server, r *httpclient.Request, body []byte) ([]byte, error) {
	timeout := writeTimeout
	if r.Method == "GET" {
		timeout = readTimeout
	}
	ctx, cancel := httpclient.Within(ctx, timeout)
	defer cancel()
	r.Body = bytes.NewReader(body)
	resp, err := c.http.Do(ctx, x, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, MaxResponse+1))
	if err == nil && len(answer) > MaxResponse {
		err = errors.New("the answer is too large")
	}
	if err != nil {
		return nil, fmt.Errorf("index %s: %s %s: %w: %w", x.Base, r.Method, r.Path, err, errdefs.ErrUnavailable)
	}
	if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusNoContent {
		return answer, nil
	}
	if err, ok := readError(x.Base, answer); ok {
		return nil, err
	}
	return nil, c.http.Stranger(x, r, fmt.Sprintf("status %d without an index's answer", resp.StatusCode))
}

// Limit returns what the limit n of a page means.
func Limit(n int) int {
	if n < 1 || n > MaxPage {
		return MaxPage
	}
	return n
}
