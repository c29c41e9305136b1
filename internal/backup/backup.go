package backup

import (
	"bytes"
	"context"
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
	"github.com/capelin-io/capelin/internal/keylock"
)

// Source is what a Backup asks of the origins; control/origin has a client.
type Source interface {
	Open(ctx context.Context, ref origin.Ref, off, n int64) (io.ReadCloser, origin.Info, error)
}

// Backup makes a back-up, or brings one up to date.
type Backup struct {
	Index   fetcher.Backend // the index's storage, which is only read
	Origins Source
	To      fetcher.Backend
	Verify  bool         // what is in the back-up already is read and compared
	Say     func(Report) // if not nil, is called now and then, from one goroutine at a time

	busy keylock.Locks[digest.Digest] // one worker copies a blob at a time

	mu     sync.Mutex
	rep    Report
	silent int // blobs in a row of which the origins could not say anything
}

// tooSilent is after how many such blobs it is given up: one may be where nobody can ask, so many say that no origin answers.
const tooSilent = 20

// Run makes the back-up. It may be called again after an error, with a new value, and copies what is missing. The Report says
// whether the back-up is whole also if there is no error: a blob that nobody has is none.
func (b *Backup) Run(ctx context.Context) (Report, error) {
	b.rep = Report{Format: format, Started: time.Now().UTC().Round(time.Second)}
	if c := b.To.Capabilities(); !c.Write || !c.List || !c.Delete {
		return b.rep, fmt.Errorf("%s cannot keep a back-up: it must write, list and delete: %w", b.To.Name(), errdefs.ErrFailedPrecondition)
	}
	if _, err := readReport(ctx, b.To); err != nil {
		return b.rep, err
	}
	page, _, err := b.Index.List(ctx, indexPrefix, "", 1)
	if err == nil && len(page) == 0 { // or all of the back-up would be removed
		err = fmt.Errorf("%s has no index, or an empty one: is that its storage?: %w", b.Index.Name(), errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return b.rep, err
	}
	if err := b.rep.write(ctx, b.To); err != nil { // not whole until it ends
		return b.rep, err
	}
	for _, step := range []func(context.Context) error{
		func(ctx context.Context) error { return b.objects(ctx, "objects", false) },
		b.tags,
		func(ctx context.Context) error { return b.objects(ctx, "new objects", true) },
		b.blobs,
	} {
		if err := step(ctx); err != nil {
			return b.rep, err
		}
	}
	b.rep.Phase, b.rep.Finished, b.rep.Whole = "done", time.Now().UTC().Round(time.Second), b.rep.MissingBlobs == 0
	return b.rep, b.rep.write(ctx, b.To)
}

// update changes the report, and tells it.
func (b *Backup) update(change func(r *Report)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(&b.rep)
	if b.Say != nil {
		b.Say(b.rep)
	}
}

// pairs visits the index's objects of some kind beside those of the back-up, many at once.
func (b *Backup) pairs(ctx context.Context, wanted func(parsed) bool, visit func(context.Context, walk.Pair) error) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for p, err := range walk.Both(gctx, b.Index, b.To, indexPrefix, "") {
		if err != nil {
			g.Go(func() error { return err })
			break
		}
		if isProof(p.Key) || !wanted(parse(p.Key)) {
			continue
		}
		g.Go(func() error { return visit(gctx, p) })
	}
	return g.Wait()
}

// objects copies all but tags. The second time it removes what the index has no more.
func (b *Backup) objects(ctx context.Context, phase string, again bool) error {
	b.update(func(r *Report) { r.Phase = phase })
	return b.pairs(ctx, func(p parsed) bool { return again || p.kind != tag }, func(ctx context.Context, p walk.Pair) error {
		switch {
		case p.A == nil:
			if !again {
				return nil
			}
			return b.remove(ctx, p.Key)
		case parse(p.Key).kind == tag: // it has been copied
			return nil
		case p.B != nil && p.A.Size == p.B.Size && p.A.Size >= 0 && (again || !b.Verify): // what is in it follows from its key
			if !again {
				b.update(func(r *Report) { r.Objects++ })
			}
			return nil
		}
		b.update(func(r *Report) { r.Objects++ })
		return b.object(ctx, p.Key)
	})
}

// tags copies the tags. Many are the same as they were, and as large as others, so that they are read.
func (b *Backup) tags(ctx context.Context) error {
	b.update(func(r *Report) { r.Phase = "tags" })
	return b.pairs(ctx, func(p parsed) bool { return p.kind == tag }, func(ctx context.Context, p walk.Pair) error {
		if p.A == nil {
			return nil
		}
		b.update(func(r *Report) { r.Tags++ })
		return b.object(ctx, p.Key)
	})
}

// object copies an object, if it is there and another one than the back-up has.
func (b *Backup) object(ctx context.Context, key string) error {
	data, _, err := read(ctx, b.Index, key)
	if err != nil || data == nil { // deleted meanwhile
		return err
	}
	has, _, err := read(ctx, b.To, key)
	if err != nil {
		return err
	}
	if has != nil && bytes.Equal(has, data) {
		return nil
	}
	if _, err := b.To.Write(ctx, key, int64(len(data)), bytes.NewReader(data)); err != nil {
		return err
	}
	b.update(func(r *Report) { r.Written++ })
	return nil
}

// remove removes an object that the index has no more, if it still has not.
func (b *Backup) remove(ctx context.Context, key string) error {
	if _, err := b.Index.Stat(ctx, key); !errdefs.IsNotFound(err) {
		return err
	}
	b.update(func(r *Report) { r.Removed++ })
	return b.To.Delete(ctx, key)
}

// blobs copies what the objects of the back-up name.
func (b *Backup) blobs(ctx context.Context) error {
	b.update(func(r *Report) { r.Phase = "blobs" })
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(streams)
	for info, err := range walk.All(gctx, b.To, repoPrefix, "") {
		if err != nil {
			g.Go(func() error { return err })
			break
		}
		if p := parse(info.Key); p.kind == blob {
			g.Go(func() error { return b.blob(gctx, info.Key, p) })
		}
	}
	return g.Wait()
}

// blob has the back-up have a blob that an object names. That nobody has it is in the report, and no error.
func (b *Backup) blob(ctx context.Context, name string, p parsed) error {
	b.update(func(r *Report) { r.Blobs++ })
	defer b.busy.Lock(p.digest)()
	key, err := fetcher.BlobKey(p.digest)
	if err != nil {
		return err
	}
	bad, err := b.has(ctx, key, p.digest)
	if err == nil && !bad {
		return nil
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	r, info, err := b.Origins.Open(ctx, origin.Ref{Namespace: p.repo, Digest: p.digest}, 0, -1)
	if err == nil {
		in := &verified{r: r, d: p.digest, v: p.digest.Verifier(), size: info.Size}
		_, err = b.To.Write(ctx, key, info.Size, in)
		r.Close()
		if err != nil && in.failed == nil { // the back-up's fault
			return err
		}
	}
	switch {
	case err == nil:
		b.update(func(r *Report) {
			b.silent = 0
			r.BlobsCopied++
			r.Bytes += info.Size
			if bad {
				r.Mended++
			}
		})
		return nil
	case ctx.Err() != nil:
		return err
	case errdefs.IsNotFound(err):
		// It may have been deleted since its name was copied.
		if _, serr := b.Index.Stat(ctx, name); errdefs.IsNotFound(serr) {
			return b.remove(ctx, name)
		}
	}
	over := false
	b.update(func(r *Report) {
		r.miss(p, err)
		if b.silent++; !errdefs.IsUnavailable(err) {
			b.silent = 0
		}
		over = b.silent >= tooSilent
	})
	if over {
		return err
	}
	return nil
}

// has is errdefs.ErrNotFound if the back-up does not have a blob. With Verify it reads it; bad: it has other bytes.
func (b *Backup) has(ctx context.Context, key string, d digest.Digest) (bad bool, err error) {
	if !b.Verify {
		_, err := b.To.Stat(ctx, key)
		return false, err
	}
	r, _, err := b.To.Open(ctx, key, 0, -1)
	if err != nil {
		return false, err
	}
	defer r.Close()
	v := d.Verifier()
	if _, err := io.Copy(v, r); err != nil {
		return false, err
	}
	return !v.Verified(), nil
}

// verified reads a blob, and fails at its end if it is another one.
type verified struct {
	r      io.Reader
	d      digest.Digest
	v      digest.Verifier
	size   int64
	n      int64
	failed error
}

func (v *verified) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.n += int64(n)
	_, _ = v.v.Write(p[:n]) // never fails
	switch {
	case (v.n == v.size || err == io.EOF) && !v.v.Verified():
		err = fmt.Errorf("%s: the origins sent other bytes: %w", v.d, errdefs.ErrDataLoss)
		v.failed = err
	case err != nil && err != io.EOF:
		v.failed = err
	}
	return n, err
}
