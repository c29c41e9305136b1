package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/control/origin"
)

// fakeOrigin keeps blobs in memory.
type fakeOrigin struct {
	mu      sync.Mutex
	blobs   map[digest.Digest][]byte
	uploads map[string]*fakeUpload
	refuse  string // a namespace that no storage takes
	err     error  // of everything
	lost    error  // of commits
	opens   int
	body    func(io.Reader) io.Reader // of blobs that are read, if not nil
	started int
	hints   []digest.Digest // of uploads that were begun
}

type fakeUpload struct {
	origin.NewUpload
	data []byte
}

func newFakeOrigin() *fakeOrigin {
	return &fakeOrigin{blobs: map[digest.Digest][]byte{}, uploads: map[string]*fakeUpload{}}
}

func (o *fakeOrigin) Open(_ context.Context, ref origin.Ref, off, n int64) (io.ReadCloser, origin.Info, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.opens++
	b, ok := o.blobs[ref.Digest]
	switch {
	case o.err != nil:
		return nil, origin.Info{}, o.err
	case !ok:
		return nil, origin.Info{}, fmt.Errorf("blob %s: %w", ref, errdefs.ErrNotFound)
	case n < 0:
		n = int64(len(b)) - off
	}
	var r io.Reader = bytes.NewReader(b[off:min(off+n, int64(len(b)))])
	if o.body != nil {
		r = o.body(r)
	}
	return io.NopCloser(r), origin.Info{Size: int64(len(b))}, nil
}

func (o *fakeOrigin) BeginUpload(_ context.Context, u origin.NewUpload) (string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return "", o.err
	}
	if u.Namespace == o.refuse {
		return "", fmt.Errorf("no backend takes namespace %q: %w", u.Namespace, errdefs.ErrFailedPrecondition)
	}
	o.started++
	o.hints = append(o.hints, u.Digest)
	id := fmt.Sprintf("upload-%d", o.started)
	o.uploads[id] = &fakeUpload{u, nil}
	return id, nil
}

func (o *fakeOrigin) at(id string) (*fakeUpload, error) {
	b, ok := o.uploads[id]
	if !ok {
		return nil, fmt.Errorf("upload %q: %w", id, errdefs.ErrNotFound)
	}
	return b, o.err
}

func (o *fakeOrigin) Append(_ context.Context, id string, off int64, r io.Reader) (int64, error) {
	data, err := io.ReadAll(r)
	o.mu.Lock()
	defer o.mu.Unlock()
	u, uerr := o.at(id)
	switch {
	case uerr != nil:
		return 0, uerr
	case off != int64(len(u.data)):
		return int64(len(u.data)), fmt.Errorf("upload %q is at %d: %w", id, len(u.data), errdefs.ErrOutOfRange)
	}
	u.data = append(u.data, data...)
	return int64(len(u.data)), err
}

func (o *fakeOrigin) Upload(_ context.Context, id string) (origin.Upload, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	u, err := o.at(id)
	if err != nil {
		return origin.Upload{}, err
	}
	return origin.Upload{Offset: int64(len(u.data)), Namespace: u.Namespace, Owner: u.Owner}, nil
}

func (o *fakeOrigin) Commit(_ context.Context, id string, d digest.Digest) (origin.Info, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	u, err := o.at(id)
	if err == nil {
		err = o.lost
	}
	if err != nil {
		return origin.Info{}, err
	}
	b := u.data
	if d.Validate() != nil || d.Algorithm().FromBytes(b) != d {
		return origin.Info{}, fmt.Errorf("upload %q is not %s: %w", id, d, errdefs.ErrInvalidArgument)
	}
	delete(o.uploads, id)
	o.blobs[d] = b
	return origin.Info{Size: int64(len(b)), Durable: true}, nil
}

func (o *fakeOrigin) Cancel(_ context.Context, id string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, err := o.at(id)
	delete(o.uploads, id)
	return err
}

// fakeIndex keeps names in memory, and checks completeness one level deep.
type fakeIndex struct {
	origin *fakeOrigin

	mu      sync.Mutex
	repos   map[string]*fakeRepo
	sources map[string]index.Source // of tags, by repository:tag
	keys    []index.TokenKey        // "": the index is older than these
	asked   int                     // for keys
}

func (x *fakeIndex) TokenKeys(context.Context) ([]index.TokenKey, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.asked++; len(x.keys) == 0 {
		return nil, fmt.Errorf("status 404 without an index's answer: %w", errdefs.ErrUnavailable)
	}
	return slices.Clone(x.keys), nil
}

// key makes a key that signs from now on.
func (x *fakeIndex) key(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.keys = slices.Insert(x.keys, 0, index.TokenKey{ID: id, Secret: bytes.Repeat([]byte(id), 32)[:32], Made: time.Now()})
}

type fakeRepo struct {
	blobs     map[digest.Digest]ocispec.Descriptor
	manifests map[digest.Digest]index.Manifest
	tags      map[string]ocispec.Descriptor
}

func newFakeIndex(o *fakeOrigin) *fakeIndex {
	x := &fakeIndex{origin: o, repos: map[string]*fakeRepo{}}
	x.key("one")
	return x
}

// repo returns a repository, made if need be; x.mu is held.
func (x *fakeIndex) repo(name string) *fakeRepo {
	r := x.repos[name]
	if r == nil {
		r = &fakeRepo{map[digest.Digest]ocispec.Descriptor{}, map[digest.Digest]index.Manifest{}, map[string]ocispec.Descriptor{}}
		x.repos[name] = r
	}
	return r
}

func missing(what string) error { return fmt.Errorf("%s: %w", what, errdefs.ErrNotFound) }

func (x *fakeIndex) Tag(_ context.Context, repo, name string) (index.Tag, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	d, ok := x.repo(repo).tags[name]
	if !ok {
		return index.Tag{}, missing("tag " + name)
	}
	return index.Tag{Repository: repo, Name: name, Descriptor: d}, nil
}

func (x *fakeIndex) PutTag(_ context.Context, repo, name string, d ocispec.Descriptor) (index.Tag, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.repo(repo).tags[name] = d
	return index.Tag{}, nil
}

func (x *fakeIndex) DeleteTag(_ context.Context, repo, name string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.repo(repo).tags, name)
	return nil
}

func page(names []string, after string, limit int) ([]string, bool, error) {
	slices.Sort(names)
	names = slices.DeleteFunc(names, func(n string) bool { return n <= after })
	if len(names) > limit {
		return names[:limit], true, nil
	}
	return names, false, nil
}

func (x *fakeIndex) Tags(_ context.Context, repo, after string, limit int) ([]string, bool, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	r := x.repos[repo]
	if r == nil {
		return nil, false, missing("repository " + repo)
	}
	var names []string
	for n := range r.tags {
		names = append(names, n)
	}
	return page(names, after, limit)
}

func (x *fakeIndex) Repositories(_ context.Context, after string, limit int) ([]string, bool, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	var names []string
	for n := range x.repos {
		names = append(names, n)
	}
	return page(names, after, limit)
}

func (x *fakeIndex) Manifest(_ context.Context, repo string, d digest.Digest) (index.Manifest, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	m, ok := x.repo(repo).manifests[d]
	if !ok {
		return m, missing("manifest " + d.String())
	}
	return m, nil
}

func (x *fakeIndex) PutManifest(ctx context.Context, repo string, m index.Manifest) error {
	r, _, err := x.origin.Open(ctx, origin.Ref{Digest: m.Descriptor.Digest}, 0, -1)
	if err != nil {
		return err
	}
	raw, _ := io.ReadAll(r)
	desc := m.Descriptor
	if m, err = index.ParseManifest(desc.MediaType, raw); err != nil {
		return err
	}
	m.Descriptor = desc
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, b := range m.Blobs {
		if _, ok := x.repo(repo).blobs[b.Digest]; !ok && index.NeedsBlob(b) {
			return fmt.Errorf("blob %s is missing: %w", b.Digest, errdefs.ErrFailedPrecondition)
		}
	}
	x.repo(repo).manifests[m.Descriptor.Digest] = m
	return nil
}

func (x *fakeIndex) DeleteManifest(_ context.Context, repo string, d digest.Digest) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.repo(repo).manifests, d)
	return nil
}

func (x *fakeIndex) ReferrersPage(
	_ context.Context, repo string, d digest.Digest, artifactType string, after digest.Digest, limit int,
) (page index.Referrers, _ error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, m := range x.repo(repo).manifests {
		if m.Subject != nil && m.Subject.Digest == d && (artifactType == "" || m.ArtifactType == artifactType) && m.Descriptor.Digest > after {
			page.Referrers = append(page.Referrers, m.Referrer())
		}
	}
	slices.SortFunc(page.Referrers, func(a, b ocispec.Descriptor) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	if page.More = len(page.Referrers) > limit; page.More {
		page.Referrers = page.Referrers[:limit]
	}
	return page, nil
}

func (x *fakeIndex) LinkBlob(_ context.Context, repo string, d ocispec.Descriptor) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.repo(repo).blobs[d.Digest] = d
	return nil
}

func (x *fakeIndex) Blob(_ context.Context, repo string, d digest.Digest) (ocispec.Descriptor, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	b, ok := x.repo(repo).blobs[d]
	if !ok {
		return b, missing("blob " + d.String())
	}
	return b, nil
}

func (x *fakeIndex) UnlinkBlob(_ context.Context, repo string, d digest.Digest) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.repo(repo).blobs, d)
	return nil
}
