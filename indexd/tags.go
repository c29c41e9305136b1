package indexd

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/indexd/replicate"
)

const (
	maxPrevious = 16
	// A compare-and-swap is tried so often: with pauses of up to 5, 10, 20… and at
	// most 640 ms about 5 s, in which many other processes get through.
	maxTries  = 20
	firstWait = 5 * time.Millisecond
	maxWait   = 640 * time.Millisecond
)

// tagState is what listings need of a version of a tag.
type tagState struct {
	version string
	digest  digest.Digest // empty: deleted
}

func checkTag(repo, name string) error {
	if err := index.CheckRepository(repo); err != nil {
		return err
	}
	return index.CheckTag(name)
}

// Tag returns a tag.
func (x *Index) Tag(ctx context.Context, repo, name string) (index.Tag, error) {
	if err := checkTag(repo, name); err != nil {
		return index.Tag{}, err
	}
	t, _, err := x.readTag(ctx, repo, name)
	if err == nil && (t.Version == 0 || t.Deleted) {
		err = fmt.Errorf("tag %s:%s: %w", repo, name, errdefs.ErrNotFound)
	}
	if err != nil {
		return index.Tag{}, err
	}
	return t.tag(), nil
}

// TagState is Tag for whoever wants to know what became of one: it returns those that were deleted, too.
func (x *Index) TagState(ctx context.Context, repo, name string) (index.Tag, error) {
	if err := checkTag(repo, name); err != nil {
		return index.Tag{}, err
	}
	t, _, err := x.readTag(ctx, repo, name)
	if err == nil && t.Version == 0 {
		err = fmt.Errorf("tag %s:%s: %w", repo, name, errdefs.ErrNotFound)
	}
	return t.tag(), err
}

// readTag returns a zero object and no version if the tag was never written.
func (x *Index) readTag(ctx context.Context, repo, name string) (tagObject, string, error) {
	var t tagObject
	info, err := x.read(ctx, tagKey(repo, name), &t)
	if errdefs.IsNotFound(err) {
		return tagObject{}, "", nil
	}
	return t, info.Version, err
}

// PutTag makes a tag name a manifest of the repository that is complete
// (index.MissingError otherwise). desc needs only its digest; what else it says must be
// true. The tag is durable when PutTag returns.
func (x *Index) PutTag(ctx context.Context, repo, name string, desc ocispec.Descriptor) (index.Tag, error) {
	return x.PutTagOnce(ctx, repo, name, desc, x.newID())
}

// PutTagOnce is PutTag for who may ask again, here or at another index, because there was no answer: if the write of that
// id is the tag's last one, nothing is written. If others have written the tag since it is written again.
func (x *Index) PutTagOnce(ctx context.Context, repo, name string, desc ocispec.Descriptor, id string) (index.Tag, error) {
	return x.putTag(ctx, repo, name, desc, tagWrite{id: id})
}

// PutTagFrom is PutTagOnce for a tag that comes from another cluster. If what is there is later nothing is written, and the answer is
// that, superseded. A stamp that is too far ahead of this index's clock is errdefs.ErrConflict.
func (x *Index) PutTagFrom(
	ctx context.Context, repo, name string, desc ocispec.Descriptor, id string, from index.Source,
) (index.Tag, error) {
	return x.putTag(ctx, repo, name, desc, tagWrite{id: id, source: &from})
}

// tagWrite is one write of a tag.
type tagWrite struct {
	// id is of this write, and in the object, so that no two of them are ever the same bytes, and a write whose answer got
	// lost is known when it is read.
	id     string
	source *index.Source // nil: it is written here
}

func (x *Index) putTag(ctx context.Context, repo, name string, desc ocispec.Descriptor, w tagWrite) (index.Tag, error) {
	id := w.id
	if err := checkTag(repo, name); err != nil {
		return index.Tag{}, err
	}
	if err := index.CheckWrite(id); err != nil {
		return index.Tag{}, err
	}
	m, err := x.Manifest(ctx, repo, desc.Digest)
	if errdefs.IsNotFound(err) {
		err = notPushed(repo, desc.Digest)
	}
	if err != nil {
		return index.Tag{}, err
	}
	has := m.Descriptor
	if desc.MediaType != "" && desc.MediaType != has.MediaType || desc.Size != 0 && desc.Size != has.Size {
		return index.Tag{}, fmt.Errorf("tag %s:%s: manifest %s is %s of %d bytes, not %.300q of %d bytes: %w",
			repo, name, has.Digest, has.MediaType, has.Size, desc.MediaType, desc.Size, errdefs.ErrInvalidArgument)
	}
	if err := x.complete(ctx, repo, &m); err != nil {
		return index.Tag{}, err
	}
	t, err := x.update(ctx, repo, name, w, func(t *tagObject) error {
		t.Descriptor, t.Deleted = has, false
		return nil
	})
	if errors.Is(err, errSuperseded) {
		is := t.tag()
		is.Superseded = true
		return is, nil
	}
	if err != nil {
		return index.Tag{}, err
	}
	// Who deletes the manifest first removes it and then looks for tags that name it.
	// So either it sees this one, or it has removed the manifest by now.
	there, err := x.exists(ctx, manifestKey(repo, has.Digest))
	if err != nil {
		return index.Tag{}, err
	}
	if !there {
		err := x.untag(ctx, repo, name, has.Digest)
		if err == nil {
			err = notPushed(repo, has.Digest)
		}
		return index.Tag{}, err
	}
	return t.tag(), nil
}

func notPushed(repo string, d digest.Digest) error {
	return &index.MissingError{Repository: repo, Missing: []index.Missing{{
		Digest: d, Kind: "manifest", Why: notInRepository}}}
}

// DeleteTag removes a tag. Its object stays, so that revisions never go back.
func (x *Index) DeleteTag(ctx context.Context, repo, name string) error {
	_, err := x.deleteTag(ctx, repo, name, nil)
	return err
}

// DeleteTagFrom is DeleteTag as another cluster has it: what is not there is remembered to be deleted, too, so that nothing earlier
// is written any more. It is superseded as in PutTagFrom.
func (x *Index) DeleteTagFrom(ctx context.Context, repo, name string, from index.Source) (index.Tag, error) {
	return x.deleteTag(ctx, repo, name, &from)
}

func (x *Index) deleteTag(ctx context.Context, repo, name string, from *index.Source) (index.Tag, error) {
	if err := checkTag(repo, name); err != nil {
		return index.Tag{}, err
	}
	t, err := x.update(ctx, repo, name, tagWrite{x.newID(), from}, func(t *tagObject) error {
		if from == nil && (t.Version == 0 || t.Deleted) {
			return fmt.Errorf("tag %s:%s: %w", repo, name, errdefs.ErrNotFound)
		}
		t.Descriptor, t.Deleted = ocispec.Descriptor{}, true
		return nil
	})
	is := t.tag()
	if errors.Is(err, errSuperseded) {
		is.Superseded, err = true, nil
	}
	return is, err
}

// errSuperseded ends an update with something earlier than what is there.
var errSuperseded = errors.New("superseded")

// errSame ends an update that has nothing to change.
var errSame = errors.New("nothing to change")

// untag removes a tag if it names the manifest.
func (x *Index) untag(ctx context.Context, repo, name string, d digest.Digest) error {
	_, err := x.update(ctx, repo, name, tagWrite{id: x.newID()}, func(t *tagObject) error {
		if t.Descriptor.Digest != d {
			return errSame
		}
		t.Descriptor, t.Deleted = ocispec.Descriptor{}, true
		return nil
	})
	if errors.Is(err, errSame) {
		return nil
	}
	return err
}

// untagAll removes all tags that name the manifest.
func (x *Index) untagAll(ctx context.Context, repo string, d digest.Digest) error {
	var names []string
	size := func() int { return index.MaxPage }
	err := x.eachTag(ctx, repo, "", size, func(name string, s tagState) bool {
		if s.digest == d {
			names = append(names, name)
		}
		return true
	})
	for _, name := range names {
		if err == nil {
			err = x.untag(ctx, repo, name, d)
		}
	}
	return err
}

// update writes a tag's next revision: change is called with the present one, as often
// as others write it in between. Before each try an intent is written for whoever is to bring it elsewhere (package replicate).
func (x *Index) update(ctx context.Context, repo, name string, w tagWrite, change func(*tagObject) error) (tagObject, error) {
	id, key := w.id, tagKey(repo, name)
	lock := x.locks[maphash.String(seed, key)%uint64(len(x.locks))]
	select {
	case lock <- struct{}{}:
		defer func() { <-lock }()
	case <-ctx.Done():
		return tagObject{}, fmt.Errorf("tag %s:%s: waiting for other writers: %w: %w", repo, name, ctx.Err(), errdefs.ErrUnavailable)
	}
	// At random from nothing to twice the interval: writers who met once do not meet again.
	pause := backoff.ExponentialBackOff{InitialInterval: firstWait / 2, MaxInterval: maxWait / 2, Multiplier: 2, RandomizationFactor: 1}
	for range maxTries {
		t, version, err := x.readTag(ctx, repo, name)
		if err != nil || t.Write == id {
			return t, err
		}
		before, was := t.Descriptor.Digest, t.source()
		if w.source != nil && !w.source.Later(was) {
			if *w.source != was {
				return t, errSuperseded
			}
			return t, nil // it has come already
		}
		if err := change(&t); err != nil {
			return t, err
		}
		if before != "" && before != t.Descriptor.Digest {
			t.Previous = append([]digest.Digest{before}, t.Previous...)
			t.Previous = t.Previous[:min(len(t.Previous), maxPrevious)]
		}
		t.Version, t.Repository, t.Name = formatVersion, repo, name
		now := x.now().UTC().Round(0)
		t.Revision, t.Write, t.Updated = t.Revision+1, id, now
		t.Cluster, t.Stamp = x.cluster, max(index.Stamp(now), was.Stamp+1)
		if w.source != nil {
			t.Cluster, t.Stamp = w.source.Cluster, w.source.Stamp
			if w.source.Time().After(now.Add(index.MaxAhead)) {
				return t, fmt.Errorf("tag %s:%s: what cluster %s wrote at %s is more than %v ahead of this index's clock, which says %s: %w",
					repo, name, t.Cluster, w.source.Time().Format(time.RFC3339), index.MaxAhead, now.Format(time.RFC3339), errdefs.ErrConflict)
			}
		}
		if err := x.outbox.Announce(ctx, replicate.Announcement{Key: replicate.Key{Repository: repo, Tag: name},
			Revision: t.Revision, Deleted: t.Deleted, Foreign: w.source != nil}); err != nil {
			return t, err
		}
		err = x.writeIf(ctx, key, &t, version)
		if err == nil {
			x.outbox.Written()
			return t, nil
		}
		if !errdefs.IsConflict(err) {
			if is, _, rerr := x.readTag(ctx, repo, name); rerr == nil && is.Write == id { // only the answer got lost
				x.outbox.Written()
				return is, nil
			}
			return t, err
		}
		x.conflicts.Add(1)
		select {
		case <-time.After(pause.NextBackOff()):
		case <-ctx.Done():
			return t, fmt.Errorf("tag %s:%s: %w: %w", repo, name, ctx.Err(), errdefs.ErrUnavailable)
		}
	}
	return tagObject{}, fmt.Errorf("tag %s:%s: others wrote it %d times in between, try again: %w",
		repo, name, maxTries, errdefs.ErrUnavailable)
}

var seed = maphash.MakeSeed()

// Tags lists the tags of a repository after the string after in lexical order, at
// most limit (1..1000, otherwise 1000).
func (x *Index) Tags(ctx context.Context, repo, after string, limit int) (names []string, more bool, err error) {
	if err := index.CheckRepository(repo); err != nil {
		return nil, false, err
	}
	if err := checkAfter(after, ""); err != nil {
		return nil, false, err
	}
	limit = index.Limit(limit)
	names = []string{}
	// One more than the page, to know whether there are others; deleted ones may come
	// in between.
	size := func() int { return min(limit-len(names)+10, index.MaxPage) }
	err = x.eachTag(ctx, repo, after, size, func(name string, s tagState) bool {
		if s.digest == "" {
			return true
		}
		if len(names) == limit {
			more = true
			return false
		}
		names = append(names, name)
		return true
	})
	if err == nil && len(names) == 0 && after == "" {
		err = x.checkKnown(ctx, repo)
	}
	if err != nil {
		return nil, false, err
	}
	return names, more, nil
}

// TagNames is Tags for who wants to know of deleted ones, too. Of a repository that nobody knows there are none.
func (x *Index) TagNames(ctx context.Context, repo, after string, limit int) (names []string, more bool, err error) {
	if err := index.CheckRepository(repo); err != nil {
		return nil, false, err
	}
	if err := checkAfter(after, ""); err != nil {
		return nil, false, err
	}
	prefix := tagsPrefix(repo)
	page, more, err := x.list(ctx, prefix, prefix+after, index.Limit(limit))
	for _, info := range page {
		names = append(names, info.Key[len(prefix):])
	}
	return names, more, err
}

// eachTag visits the tags of a repository after a string, the deleted ones included,
// until visit says that it is enough. It reads size of them at once.
func (x *Index) eachTag(ctx context.Context, repo, after string, size func() int, visit func(name string, s tagState) bool) error {
	prefix := tagsPrefix(repo)
	for after = prefix + after; ; {
		page, more, err := x.list(ctx, prefix, after, size())
		if err != nil {
			return err
		}
		states, err := x.states(ctx, page)
		if err != nil {
			return err
		}
		for i, info := range page {
			if !visit(info.Key[len(prefix):], states[i]) {
				return nil
			}
		}
		if !more {
			return nil
		}
		after = page[len(page)-1].Key
	}
}

// states reads the tag objects of a listing, those excepted that are known in the
// version that was listed.
func (x *Index) states(ctx context.Context, page []fetcher.Info) ([]tagState, error) {
	states := make([]tagState, len(page))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, info := range page {
		s, ok := x.tags.Get(info.Key)
		if ok && s.version == info.Version && s.version != "" {
			states[i] = s
			continue
		}
		g.Go(func() error {
			var t tagObject
			info, err := x.read(ctx, info.Key, &t)
			if err != nil {
				if errdefs.IsNotFound(err) {
					err = nil
				}
				return err
			}
			states[i] = tagState{info.Version, t.Descriptor.Digest}
			x.tags.Add(info.Key, states[i])
			return nil
		})
	}
	return states, g.Wait()
}
