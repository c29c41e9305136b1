package gateway

import (
	"context"
	"fmt"
	"net/http"

	"cuelabs.dev/go/oci/ociregistry"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/internal/ociapi"
)

// Tags that another cluster's index brings. Its requests name the write that a tag is (index.HeaderSource); "?" in a read asks for that,
// of deleted ones, too. The header is obeyed for users who may replicate, and is refused for others: to take such a tag for one that
// was pushed here would send it back.

// provenance is where a request's tag comes from.
type provenance struct {
	source *index.Source // nil: it is pushed here
	asks   bool          // for the source of a tag that is read
	answer http.Header   // of the request
}

const asksSource = "?"

func whence(r *http.Request, w http.ResponseWriter) (provenance, error) {
	text := r.Header.Get(index.HeaderSource)
	o := provenance{asks: text != "", answer: w.Header()}
	if text == "" || text == asksSource {
		return o, nil
	}
	from, err := index.ParseSource(text)
	if err != nil {
		return o, ociapi.Refuse(http.StatusBadRequest, ociregistry.ErrUnsupported.Code(), "%s: %w", index.HeaderSource, err)
	}
	o.source = &from
	return o, nil
}

// mayBring is an error if the request brings something from another cluster, and its caller may not.
func mayBring(ctx context.Context, repo string) error {
	if callerOf(ctx).from.source == nil {
		return nil
	}
	return allow(ctx, Replicate, repo)
}

// tag reads one, and says which write it is if that was asked for.
func (s *store) tag(ctx context.Context, repo, tag string) (index.Tag, error) {
	from := callerOf(ctx).from
	if !from.asks {
		return s.index.Tag(ctx, repo, tag)
	}
	t, err := s.index.TagState(ctx, repo, tag)
	if err != nil {
		return t, err
	}
	from.answer.Set(index.HeaderSource, t.Source().String())
	if t.Deleted {
		return t, fmt.Errorf("tag %s:%s was deleted: %w", repo, tag, errdefs.ErrNotFound)
	}
	return t, nil
}

func (s *store) putTag(ctx context.Context, repo, tag string, desc ocispec.Descriptor) error {
	from := callerOf(ctx).from
	if from.source == nil {
		_, err := s.index.PutTag(ctx, repo, tag, desc)
		return err
	}
	t, err := s.index.PutTagFrom(ctx, repo, tag, desc, *from.source)
	return from.say(t, err)
}

// deleteTagFrom also deletes what is not there: nothing that is earlier is to come afterwards.
func (s *store) deleteTagFrom(ctx context.Context, repo, tag string) (err error) {
	if err := mayBring(ctx, repo); err != nil {
		return err
	}
	from := callerOf(ctx).from
	defer func() { audit(ctx, Delete, repo, tag, "", err) }()
	t, err := s.index.DeleteTagFrom(ctx, repo, tag, *from.source)
	return translate(from.say(t, err), noTag(repo, tag))
}

// say says in the answer what a tag is that was written, or was not because that is later.
func (o *provenance) say(t index.Tag, err error) error {
	if err != nil {
		return err
	}
	o.answer.Set(index.HeaderSource, t.Source().String())
	if t.Superseded {
		o.answer.Set(index.HeaderSuperseded, "true")
	}
	return nil
}
