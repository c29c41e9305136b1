package backup

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/walk"
)

const (
	restoreKey = "capelin-restore"
	// casTries is how often a tag is written that others write, and sendTries how often an upload goes on after a failure.
	casTries  = 20
	sendTries = 5
	// nameBatch is after how many names of blobs it is remembered how far a restore is.
	nameBatch = 200
)

// Target is what a Restore asks of the origins; control/origin has a client.
type Target interface {
	Stat(ctx context.Context, ref origin.Ref) (origin.Info, error)
	StartUpload(ctx context.Context, namespace string, d digest.Digest) (id string, err error)
	UploadOffset(ctx context.Context, id string) (int64, error)
	Append(ctx context.Context, id string, off int64, r io.Reader) (end int64, err error)
	Commit(ctx context.Context, id string, d digest.Digest) (origin.Info, error)
	Cancel(ctx context.Context, id string) error
}

// Restore puts a back-up into a cluster: the blobs to the origins, then the index's objects into its storage, tags last. It is
// done with indexes and origins running.
type Restore struct {
	From    fetcher.Backend
	Origins Target
	Index   fetcher.Backend // the index's storage
	// Merge: the index may have objects. What is there stays, but tags whose revision is lower than the back-up's.
	Merge bool
	// Incomplete: a back-up may be used that is not whole.
	Incomplete bool
	Say        func(Report) // if not nil, is called now and then, from one goroutine at a time

	mu    sync.Mutex // of rep
	rep   Report
	state restoring
	batch int // nameBatch, but in tests
}

// restoring is kept in the index's storage until all is restored.
type restoring struct {
	Format  int       `json:"format"`
	Started time.Time `json:"started"` // when the back-up was begun
	After   string    `json:"after"`   // blobs whose names are not after this one are at the origins
}

// Run restores. It may be called again after an error, with a new value, and goes on where it was.
func (r *Restore) Run(ctx context.Context) (Report, error) {
	r.rep = Report{Format: format, Started: time.Now().UTC().Round(time.Second)}
	if err := r.begin(ctx); err != nil {
		return r.rep, err
	}
	for _, step := range []func(context.Context) error{r.blobs, r.objects, r.tags} {
		if err := step(ctx); err != nil {
			return r.rep, err
		}
	}
	if err := r.Index.Delete(ctx, restoreKey); err != nil {
		return r.rep, err
	}
	r.rep.Phase, r.rep.Finished, r.rep.Whole = "done", time.Now().UTC().Round(time.Second), r.rep.MissingBlobs == 0
	return r.rep, nil
}

func (r *Restore) begin(ctx context.Context) error {
	made, err := readReport(ctx, r.From)
	switch {
	case err != nil:
		return err
	case made == nil:
		return fmt.Errorf("%s is no back-up: it has no object %s: %w", r.From.Name(), markKey, errdefs.ErrFailedPrecondition)
	case !made.Whole && !r.Incomplete:
		return fmt.Errorf("the back-up in %s is not whole (begun at %s, %d blobs are missing): make it again, or restore what there is: %w",
			r.From.Name(), made.Started.Format(time.RFC3339), made.MissingBlobs, errdefs.ErrFailedPrecondition)
	}
	data, _, err := read(ctx, r.Index, restoreKey)
	if err != nil {
		return err
	}
	if data != nil {
		err := json.Unmarshal(data, &r.state)
		if err == nil && r.state.Format != format {
			err = fmt.Errorf("format %d instead of %d", r.state.Format, format)
		}
		if err != nil {
			return fmt.Errorf("%s: object %s is not of this release: %w: %w", r.Index.Name(), restoreKey, err, errdefs.ErrDataLoss)
		}
		if !r.state.Started.Equal(made.Started) { // another back-up, or the same after it was brought up to date
			r.state.After = ""
		}
	} else if !r.Merge {
		for info, err := range walk.All(ctx, r.Index, indexPrefix, "") {
			if err != nil {
				return err
			}
			if !isProof(info.Key) {
				return fmt.Errorf("%s has an index already (%s); to restore into it nevertheless is to merge: %w",
					r.Index.Name(), info.Key, errdefs.ErrFailedPrecondition)
			}
		}
	}
	r.state.Format, r.state.Started = format, made.Started
	return r.save(ctx)
}

func (r *Restore) save(ctx context.Context) error {
	data, err := json.Marshal(&r.state)
	if err != nil {
		return err
	}
	_, err = r.Index.Write(ctx, restoreKey, int64(len(data)), bytes.NewReader(data))
	return err
}

func (r *Restore) update(change func(r *Report)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.rep)
	if r.Say != nil {
		r.Say(r.rep)
	}
}

// named are names of blobs that are restored together.
type named struct {
	key string
	parsed
}

// blobs brings the blobs to the origins, each for every repository that has it.
func (r *Restore) blobs(ctx context.Context) error {
	r.update(func(r *Report) { r.Phase = "blobs" })
	var batch []named
	flush := func() error {
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(streams)
		for _, n := range batch {
			g.Go(func() error { return r.blob(gctx, n) })
		}
		if err := g.Wait(); err != nil || len(batch) == 0 {
			return err
		}
		last := batch[len(batch)-1].key
		batch = batch[:0]
		if last <= r.state.After { // it is where it was before it ended, and not yet further
			return nil
		}
		r.state.After = last
		return r.save(ctx)
	}
	for info, err := range walk.All(ctx, r.From, repoPrefix, "") {
		if err != nil {
			return err
		}
		if p := parse(info.Key); p.kind == blob {
			if batch = append(batch, named{info.Key, p}); len(batch) == cmp.Or(r.batch, nameBatch) {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	return flush()
}

// blob has an origin have a blob for a repository. That the back-up does not have it is in the report, and no error.
func (r *Restore) blob(ctx context.Context, n named) error {
	r.update(func(r *Report) { r.Blobs++ })
	ref := origin.Ref{Namespace: n.repo, Digest: n.digest}
	known := n.key <= r.state.After
	if !known {
		_, err := r.Index.Stat(ctx, n.key) // it is there after its blob is
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		known = err == nil
	}
	if known {
		_, err := r.Origins.Stat(ctx, ref)
		if err == nil || !errdefs.IsNotFound(err) {
			return err
		}
	}
	key, err := fetcher.BlobKey(n.digest)
	if err != nil {
		return err
	}
	size, err := r.push(ctx, key, ref)
	switch {
	case err == nil:
		r.update(func(r *Report) { r.BlobsCopied++; r.Bytes += size })
	case errdefs.IsNotFound(err) && ctx.Err() == nil:
		if _, serr := r.From.Stat(ctx, key); errdefs.IsNotFound(serr) {
			r.update(func(r *Report) { r.miss(n.parsed, err) })
			return nil
		}
	}
	return err
}

// push sends a blob to an origin.
func (r *Restore) push(ctx context.Context, key string, ref origin.Ref) (size int64, err error) {
	info, err := r.From.Stat(ctx, key)
	if err != nil {
		return 0, err
	}
	id, err := r.Origins.StartUpload(ctx, ref.Namespace, ref.Digest)
	if err != nil {
		return 0, err
	}
	off := int64(0)
	for try := 1; ; try++ {
		err = r.send(ctx, id, key, off)
		if err == nil {
			var has origin.Info
			if has, err = r.Origins.Commit(ctx, id, ref.Digest); err == nil {
				return has.Size, nil
			}
		}
		again := errdefs.IsUnavailable(err) || errdefs.IsOutOfRange(err) || errdefs.IsConflict(err)
		if !again || try == sendTries || ctx.Err() != nil {
			_ = r.Origins.Cancel(context.WithoutCancel(ctx), id) // or it ends by itself
			return 0, fmt.Errorf("restoring %s of %d bytes: %w", ref, info.Size, err)
		}
		at, oerr := r.Origins.UploadOffset(ctx, id)
		if oerr != nil {
			return 0, fmt.Errorf("restoring %s: %w: %w", ref, err, oerr)
		}
		off = at
	}
}

// send appends what an upload lacks.
func (r *Restore) send(ctx context.Context, id, key string, off int64) error {
	in, info, err := r.From.Open(ctx, key, off, -1)
	if err != nil {
		return err
	}
	defer in.Close()
	if info.Size == off {
		return nil
	}
	_, err = r.Origins.Append(ctx, id, off, in)
	return err
}

// each visits the back-up's objects of the index, many at once.
func (r *Restore) each(ctx context.Context, tags bool, visit func(ctx context.Context, key string) error) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for info, err := range walk.All(gctx, r.From, indexPrefix, "") {
		if err != nil {
			g.Go(func() error { return err })
			break
		}
		if !isProof(info.Key) && (parse(info.Key).kind == tag) == tags {
			g.Go(func() error { return visit(gctx, info.Key) })
		}
	}
	return g.Wait()
}

// objects restores all but tags. What is there already says the same: it follows from its key.
func (r *Restore) objects(ctx context.Context) error {
	r.update(func(r *Report) { r.Phase = "objects" })
	return r.each(ctx, false, func(ctx context.Context, key string) error {
		r.update(func(r *Report) { r.Objects++ })
		if _, err := r.Index.Stat(ctx, key); !errdefs.IsNotFound(err) {
			return err
		}
		data, _, err := read(ctx, r.From, key)
		if err != nil || data == nil {
			return err
		}
		if _, err := r.Index.Write(ctx, key, int64(len(data)), bytes.NewReader(data)); err != nil {
			return err
		}
		r.update(func(r *Report) { r.Written++ })
		return nil
	})
}

// tags restores the tags, but those of which the index has the same revision or a later one.
func (r *Restore) tags(ctx context.Context) error {
	r.update(func(r *Report) { r.Phase = "tags" })
	return r.each(ctx, true, func(ctx context.Context, key string) error {
		r.update(func(r *Report) { r.Tags++ })
		data, _, err := read(ctx, r.From, key)
		if err != nil || data == nil {
			return err
		}
		ours, err := revision(r.From, key, data)
		if err != nil {
			return err
		}
		for range casTries {
			has, info, err := read(ctx, r.Index, key)
			if err != nil {
				return err
			}
			if has != nil {
				theirs, err := revision(r.Index, key, has)
				if err != nil {
					return err
				}
				if theirs >= ours {
					r.update(func(r *Report) { r.Kept++ })
					return nil
				}
			}
			_, err = r.Index.WriteIf(ctx, key, data, info.Version)
			if err == nil {
				r.update(func(r *Report) { r.Written++ })
			}
			if !errdefs.IsConflict(err) {
				return err
			}
		}
		return fmt.Errorf("%s: tag %s was written %d times by others meanwhile: %w", r.Index.Name(), key, casTries, errdefs.ErrUnavailable)
	})
}

// revision returns which of a tag's revisions an object is.
func revision(b fetcher.Backend, key string, data []byte) (uint64, error) {
	var t struct {
		Version  int    `json:"version"`
		Revision uint64 `json:"revision"`
	}
	if err := json.Unmarshal(data, &t); err != nil {
		return 0, fmt.Errorf("%s: object %s is damaged: %w: %w", b.Name(), key, err, errdefs.ErrDataLoss)
	}
	if t.Version != 1 {
		return 0, fmt.Errorf("%s: object %s has format version %d, and only 1 is known here: %w", b.Name(), key, t.Version, errdefs.ErrDataLoss)
	}
	return t.Revision, nil
}
