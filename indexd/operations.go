package indexd

// The operations of the API (control/INDEX.md): each reads a request, asks the Index, and
// says in the log what was changed by whom.

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/index"
)

func (s *server) repositories(ctx context.Context, r *request) (any, error) {
	return names(r, func(limit int) ([]string, bool, error) { return s.index.Repositories(ctx, r.after(), limit) })
}

func (s *server) tags(ctx context.Context, r *request) (any, error) {
	return names(r, func(limit int) ([]string, bool, error) { return s.index.Tags(ctx, r.repo(), r.after(), limit) })
}

func (s *server) manifests(ctx context.Context, r *request) (any, error) {
	return names(r, func(limit int) ([]digest.Digest, bool, error) {
		return s.index.Manifests(ctx, r.repo(), digest.Digest(r.after()), limit)
	})
}

// names answers with a page.
func names[T ~string](r *request, list func(limit int) ([]T, bool, error)) (any, error) {
	limit, err := r.limit()
	if err != nil {
		return nil, err
	}
	page, more, err := list(limit)
	n := index.Names{Names: make([]string, len(page)), More: more}
	for i, v := range page {
		n.Names[i] = string(v)
	}
	return n, err
}

func (s *server) referrers(ctx context.Context, r *request) (any, error) {
	limit, err := r.limit()
	if err != nil {
		return nil, err
	}
	return s.index.ReferrersPage(ctx, r.repo(), r.digest(), r.query.Get("artifactType"), digest.Digest(r.after()), limit)
}

func (s *server) tag(ctx context.Context, r *request) (any, error) {
	if r.query.Get(index.ParamState) != "" {
		return s.index.TagState(ctx, r.repo(), r.name())
	}
	return s.index.Tag(ctx, r.repo(), r.name())
}

func (s *server) putTag(ctx context.Context, r *request) (any, error) {
	desc, err := r.content()
	if err != nil {
		return nil, err
	}
	id := r.query.Get("write")
	if id == "" {
		id = s.index.newID()
	}
	w := tagWrite{id: id}
	if w.source, err = r.source(); err != nil {
		return nil, err
	}
	t, err := s.index.putTag(ctx, r.repo(), r.name(), desc, w)
	if err != nil {
		return nil, err
	}
	r.logTag(ctx, "tag written", t)
	return t, nil
}

// source is where a write comes from; nil: from here.
func (r *request) source() (*index.Source, error) {
	text := r.query.Get(index.ParamSource)
	if text == "" {
		return nil, nil
	}
	from, err := index.ParseSource(text)
	return &from, err
}

func (r *request) logTag(ctx context.Context, what string, t index.Tag) {
	if t.Superseded {
		what = "tag of another cluster is superseded"
	}
	r.log(ctx, what, log.Fields{"tag": t.Name, "digest": t.Descriptor.Digest, "revision": t.Revision, "source": t.Source().String()})
}

func (s *server) deleteTag(ctx context.Context, r *request) (any, error) {
	from, err := r.source()
	if err != nil {
		return nil, err
	}
	t, err := s.index.deleteTag(ctx, r.repo(), r.name(), from)
	if err != nil {
		return nil, err
	}
	r.logTag(ctx, "tag deleted", t)
	if from == nil {
		return nil, nil
	}
	return t, nil
}

// prove finds out by hand whether the storage compares and swaps.
func (s *server) prove(ctx context.Context, r *request) (any, error) {
	if s.proof == nil {
		return nil, fmt.Errorf("this index does not prove its storage: %w", errdefs.ErrNotImplemented)
	}
	r.log(ctx, "the storage is proved by hand", nil)
	return s.proof.again(ctx)
}

func (s *server) manifest(ctx context.Context, r *request) (any, error) {
	return s.index.Manifest(ctx, r.repo(), r.digest())
}

func (s *server) putManifest(ctx context.Context, r *request) (any, error) {
	desc, err := r.content()
	if err != nil {
		return nil, err
	}
	if err := s.index.PutManifest(ctx, r.repo(), index.Manifest{Descriptor: desc}); err != nil {
		return nil, err
	}
	r.log(ctx, "manifest recorded", log.Fields{"digest": desc.Digest})
	return nil, nil
}

func (s *server) deleteManifest(ctx context.Context, r *request) (any, error) {
	err := s.index.DeleteManifest(ctx, r.repo(), r.digest())
	if err == nil {
		r.log(ctx, "manifest deleted", log.Fields{"digest": r.digest()})
	}
	return nil, err
}

func (s *server) blob(ctx context.Context, r *request) (any, error) {
	desc, err := s.index.Blob(ctx, r.repo(), r.digest())
	return index.Content{Descriptor: desc}, err
}

func (s *server) linkBlob(ctx context.Context, r *request) (any, error) {
	desc, err := r.content()
	if err != nil {
		return nil, err
	}
	return nil, s.index.LinkBlob(ctx, r.repo(), desc)
}

func (s *server) unlinkBlob(ctx context.Context, r *request) (any, error) {
	err := s.index.UnlinkBlob(ctx, r.repo(), r.digest())
	if err == nil {
		r.log(ctx, "blob unlinked", log.Fields{"digest": r.digest()})
	}
	return nil, err
}
