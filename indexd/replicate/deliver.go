package replicate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"cuelabs.dev/go/oci/ociregistry"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/control/origin"
)

// Index is what is asked of the index; *indexd.Index has it.
type Index interface {
	TagState(ctx context.Context, repo, name string) (index.Tag, error)
	// TagNames lists the tags of a repository after a string, the deleted ones included.
	TagNames(ctx context.Context, repo, after string, limit int) (names []string, more bool, err error)
	Repositories(ctx context.Context, after string, limit int) (names []string, more bool, err error)
	Manifest(ctx context.Context, repo string, d digest.Digest) (index.Manifest, error)
	ReferrersPage(
		ctx context.Context, repo string, d digest.Digest, artifactType string, after digest.Digest, limit int) (index.Referrers, error)
}

// Origin is what is asked of the origins.
type Origin interface {
	Open(ctx context.Context, ref origin.Ref, off, n int64) (io.ReadCloser, origin.Info, error)
}

const (
	maxDepth    = 8  // of indexes, and of what refers to what refers
	blobsAtOnce = 3  // of one manifest
	maxRounds   = 10 // in which referrers are looked for once more
)

var errSameName = errors.New("the other cluster has this one's name: every cluster needs a name of its own (key cluster)")

// delivery is that of one key.
type delivery struct {
	index   Index
	origin  Origin
	cluster string // this one
	o       *remote
	repo    string
	to      string // the repository there
	foreign bool   // it is no other cluster's gateway
	deep    bool   // what the remote says that it has is looked into
	done    map[digest.Digest]bool
}

func newDelivery(ctx context.Context, x Index, or Origin, cluster string, o *remote, repo string) (*delivery, error) {
	who, err := o.who(ctx)
	if err != nil {
		return nil, err
	}
	if who == cluster {
		return nil, errSameName
	}
	d := &delivery{index: x, origin: or, cluster: cluster, o: o, repo: repo, to: o.rule.Remote(repo), foreign: who == "",
		done: map[digest.Digest]bool{}}
	if err := index.CheckRepository(d.to); err != nil {
		return nil, fmt.Errorf("rewrite_prefix: %w", err)
	}
	return d, nil
}

// tag brings a tag to the remote, unless it is of a revision that is there. It returns the revision that it has read; 0: none was ever
// written.
func (d *delivery) tag(ctx context.Context, name string, known uint64) (revision uint64, err error) {
	t, err := d.index.TagState(ctx, d.repo, name)
	if errdefs.IsNotFound(err) {
		return 0, nil
	}
	if err != nil || t.Revision == known {
		return t.Revision, err
	}
	return t.Revision, d.state(ctx, &t)
}

// state brings a tag's state to the remote.
func (d *delivery) state(ctx context.Context, t *index.Tag) error {
	is, about := d.o.rule.wants(t, d.cluster)
	if !is {
		return nil
	}
	if about {
		m := cosignTag.FindStringSubmatch(t.Name)
		if there, err := d.o.has(ctx, d.to, digest.Digest(m[1]+":"+m[2])); err != nil || !there {
			return err // it comes with the manifest, if that comes
		}
	}
	if t.Deleted {
		return d.deleteTag(ctx, t)
	}
	err := d.whole(ctx, t)
	if he, ok := errors.AsType[ociregistry.HTTPError](err); ok && lacks(he) && !d.deep {
		d.deep, d.done = true, map[digest.Digest]bool{} // it has lost what it said that it has
		err = d.whole(ctx, t)
	}
	return err
}

// lacks reports whether a registry says that it lacks what a manifest needs.
func lacks(err ociregistry.HTTPError) bool {
	return errors.Is(err, ociregistry.ErrManifestBlobUnknown) || errors.Is(err, ociregistry.ErrBlobUnknown) ||
		errors.Is(err, ociregistry.ErrManifestUnknown)
}

// whole brings all that a tag reaches, what refers to it, and then the tag.
func (d *delivery) whole(ctx context.Context, t *index.Tag) error {
	root := t.Descriptor.Digest
	m, err := d.index.Manifest(ctx, d.repo, root)
	if err != nil {
		return err
	}
	reached := []digest.Digest{root}
	if err := d.manifest(ctx, root, 0, &reached); err != nil {
		return err
	}
	if _, err := d.referrers(ctx, reached); err != nil {
		return err
	}
	if err := d.putTag(ctx, t, &m); err != nil {
		return err
	}
	for range maxRounds { // those that came meanwhile
		if again, err := d.referrers(ctx, reached); err != nil || !again {
			return err
		}
	}
	return nil
}

// manifest brings a manifest with all that it reaches, the deepest first.
func (d *delivery) manifest(ctx context.Context, at digest.Digest, depth int, reached *[]digest.Digest) error {
	if d.done[at] {
		return nil
	}
	if depth > maxDepth {
		return fmt.Errorf("manifest %s has indexes within each other, more than %d deep: %w", at, maxDepth, errdefs.ErrInvalidArgument)
	}
	there, err := d.o.has(ctx, d.to, at)
	if err != nil {
		return err
	}
	m, err := d.index.Manifest(ctx, d.repo, at)
	if err != nil {
		return err
	}
	for _, c := range m.Manifests {
		*reached = append(*reached, c.Digest)
	}
	if !there || d.deep {
		for _, c := range m.Manifests {
			if err := d.manifest(ctx, c.Digest, depth+1, reached); err != nil {
				return err
			}
		}
		if err := d.blobs(ctx, &m); err != nil {
			return err
		}
	}
	if !there {
		if err := d.putManifest(ctx, &m); err != nil {
			return err
		}
	}
	d.done[at] = true
	return nil
}

func (d *delivery) blobs(ctx context.Context, m *index.Manifest) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(blobsAtOnce)
	for _, b := range m.Blobs {
		if !index.NeedsBlob(b) {
			continue
		}
		g.Go(func() error {
			desc := ociregistry.Descriptor{Digest: b.Digest, Size: b.Size, MediaType: b.MediaType}
			err := d.o.pushBlob(ctx, d.to, desc, func(off int64) (io.ReadCloser, error) {
				r, _, err := d.origin.Open(ctx, origin.Ref{Namespace: d.repo, Digest: b.Digest}, off, -1)
				return r, err
			})
			if err != nil {
				return fmt.Errorf("blob %s: %w", b.Digest, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// bytes reads a manifest's.
func (d *delivery) bytes(ctx context.Context, m *index.Manifest) ([]byte, error) {
	at := m.Descriptor.Digest
	if at.Algorithm() != digest.SHA256 {
		return nil, fmt.Errorf("manifest %s: only those with sha256 are brought elsewhere: %w", at, errdefs.ErrNotImplemented)
	}
	r, _, err := d.origin.Open(ctx, origin.Ref{Namespace: d.repo, Digest: at}, 0, -1)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", at, err)
	}
	defer r.Close()
	raw, err := io.ReadAll(io.LimitReader(r, index.MaxManifest+1))
	if err == nil && digest.FromBytes(raw) != at {
		err = errors.New("an origin sent other bytes")
	}
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w: %w", at, err, errdefs.ErrUnavailable)
	}
	return raw, nil
}

func (d *delivery) putManifest(ctx context.Context, m *index.Manifest) error {
	raw, err := d.bytes(ctx, m)
	if err != nil {
		return err
	}
	x := &exchange{}
	if _, err := d.o.reg.PushManifest(withExchange(ctx, x), d.to, "", raw, m.Descriptor.MediaType); err != nil {
		return fmt.Errorf("manifest %s: %w", m.Descriptor.Digest, err)
	}
	if m.Subject != nil && !x.subject {
		return d.o.refer(ctx, d.to, m)
	}
	return nil
}

func (d *delivery) putTag(ctx context.Context, t *index.Tag, m *index.Manifest) error {
	raw, err := d.bytes(ctx, m)
	if err != nil {
		return err
	}
	x := &exchange{}
	if !d.foreign {
		x.source = t.Source().String()
	}
	if _, err := d.o.reg.PushManifest(withExchange(ctx, x), d.to, t.Name, raw, m.Descriptor.MediaType); err != nil {
		return fmt.Errorf("tag %s: %w", t.Name, err)
	}
	return nil
}

// deleteTag never deletes a manifest: other registries would remove all tags that name it.
func (d *delivery) deleteTag(ctx context.Context, t *index.Tag) error {
	x := &exchange{}
	if !d.foreign {
		x.source = t.Source().String()
	}
	err := d.o.reg.DeleteTag(withExchange(ctx, x), d.to, t.Name)
	if notThere(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("deleting tag %s: %w", t.Name, err)
	}
	return nil
}

// referrers brings what refers to manifests, and what refers to that. It reports whether there was something new.
func (d *delivery) referrers(ctx context.Context, of []digest.Digest) (isNew bool, err error) {
	if d.o.rule.NoReferrers {
		return false, nil
	}
	seen := map[digest.Digest]bool{}
	for depth := 0; len(of) > 0 && depth < maxDepth; depth++ {
		var next []digest.Digest
		for _, subject := range of {
			if seen[subject] {
				continue
			}
			seen[subject] = true
			all, err := index.AllReferrers(d.repo, subject, func(after digest.Digest) (index.Referrers, error) {
				return d.index.ReferrersPage(ctx, d.repo, subject, "", after, 0)
			})
			if err != nil {
				return isNew, err
			}
			for _, r := range all {
				isNew = isNew || !d.done[r.Digest]
				if err := d.manifest(ctx, r.Digest, 0, &next); err != nil {
					return isNew, fmt.Errorf("referrer of %s: %w", subject, err)
				}
				next = append(next, r.Digest)
			}
			tagged, err := d.cosigned(ctx, subject)
			if err != nil {
				return isNew, err
			}
			isNew = isNew || tagged
		}
		of = next
	}
	return isNew, nil
}

// cosigned brings the tags by which something is said of a manifest.
func (d *delivery) cosigned(ctx context.Context, subject digest.Digest) (isNew bool, err error) {
	name := strings.Replace(string(subject), ":", "-", 1)
	tags, _, err := d.index.TagNames(ctx, d.repo, name[:len(name)-1], 8)
	if err != nil {
		return false, err
	}
	for _, tag := range tags {
		if !strings.HasPrefix(tag, name) || !cosignTag.MatchString(tag) {
			continue
		}
		t, err := d.index.TagState(ctx, d.repo, tag)
		if err != nil {
			return isNew, err
		}
		if is, _ := d.o.rule.wants(&t, d.cluster); !is {
			continue
		}
		is, from, err := d.o.tag(ctx, d.to, tag)
		if err != nil {
			return isNew, err
		}
		if is == t.Descriptor.Digest && (d.foreign || !t.Source().Later(from)) {
			continue
		}
		isNew = true
		if err := d.signature(ctx, &t); err != nil {
			return isNew, err
		}
	}
	return isNew, nil
}

// signature brings such a tag, without looking for what refers to it.
func (d *delivery) signature(ctx context.Context, t *index.Tag) error {
	if t.Deleted {
		return d.deleteTag(ctx, t)
	}
	m, err := d.index.Manifest(ctx, d.repo, t.Descriptor.Digest)
	if err != nil {
		return err
	}
	var reached []digest.Digest
	if err := d.manifest(ctx, t.Descriptor.Digest, 0, &reached); err != nil {
		return err
	}
	return d.putTag(ctx, t, &m)
}

// referrer brings a manifest to where its subject is. It reports whether it is recorded.
func (d *delivery) referrer(ctx context.Context, at digest.Digest) (recorded bool, err error) {
	m, err := d.index.Manifest(ctx, d.repo, at)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil || m.Subject == nil {
		return true, err
	}
	// If the subject is still on its way, who brings it looks for referrers after it has come there, and sees this one.
	there, err := d.o.has(ctx, d.to, m.Subject.Digest)
	if err != nil || !there {
		return true, err
	}
	var reached []digest.Digest
	return true, d.manifest(ctx, at, 0, &reached)
}

// refer adds a manifest to its subject's list of referrers, at a registry that does not do it by itself: the tag that OCI's
// specification has for that.
func (o *remote) refer(ctx context.Context, repo string, m *index.Manifest) error {
	tag := strings.Replace(string(m.Subject.Digest), ":", "-", 1)
	defer o.subjects.Lock(repo + ":" + tag)()
	list := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	r, err := o.reg.GetTag(ctx, repo, tag)
	switch {
	case err == nil:
		var raw []byte
		raw, err = io.ReadAll(io.LimitReader(r, index.MaxManifest))
		r.Close()
		if err == nil {
			err = json.Unmarshal(raw, &list)
		}
	case notThere(err):
		err = nil
	}
	if err != nil {
		return fmt.Errorf("referrers of %s: %w", m.Subject.Digest, err)
	}
	for _, d := range list.Manifests {
		if d.Digest == m.Descriptor.Digest {
			return nil
		}
	}
	list.Manifests = append(list.Manifests, m.Referrer())
	raw, err := json.Marshal(&list)
	if err == nil {
		_, err = o.reg.PushManifest(ctx, repo, tag, raw, list.MediaType)
	}
	if err != nil {
		return fmt.Errorf("referrers of %s: %w", m.Subject.Digest, err)
	}
	return nil
}

// differs reports whether a tag is not at the remote as it is here, and not later either.
func (d *delivery) differs(ctx context.Context, t *index.Tag) (bool, error) {
	there, from, err := d.o.tag(ctx, d.to, t.Name)
	if err != nil {
		return false, err
	}
	if !d.foreign {
		return t.Source().Later(from), nil
	}
	return there != t.Descriptor.Digest, nil
}

// lacking reports whether the remote lacks something that a tag reaches, or that refers to it.
func (d *delivery) lacking(ctx context.Context, at digest.Digest, depth int) (bool, error) {
	if d.done[at] || depth > maxDepth {
		return false, nil
	}
	d.done[at] = true
	if there, err := d.o.has(ctx, d.to, at); err != nil || !there {
		return true, err
	}
	m, err := d.index.Manifest(ctx, d.repo, at)
	if err != nil {
		return false, err
	}
	for _, b := range m.Blobs {
		if !index.NeedsBlob(b) {
			continue
		}
		if _, err := d.o.reg.ResolveBlob(ctx, d.to, b.Digest); notThere(err) {
			return true, nil
		} else if err != nil {
			return false, err
		}
	}
	below := m.Manifests
	if !d.o.rule.NoReferrers {
		all, err := index.AllReferrers(d.repo, at, func(after digest.Digest) (index.Referrers, error) {
			return d.index.ReferrersPage(ctx, d.repo, at, "", after, 0)
		})
		if err != nil {
			return false, err
		}
		below = append(below, all...)
	}
	for _, c := range below {
		if is, err := d.lacking(ctx, c.Digest, depth+1); err != nil || is {
			return is, err
		}
	}
	return false, nil
}
