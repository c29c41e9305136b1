package origind

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/swarm/piece"
)

// writer brings blobs, and then their records, to the backends where they live.
type writer struct {
	blobs   *holdings
	homes   homes
	objects knownObjects
	metrics *metrics
}

// knownObjects is what is remembered of backends' objects: a finder, for a writer.
type knownObjects interface {
	// condemned returns what is wrong with an object, as far as is known.
	condemned(d digest.Digest, backend, key string) error
	// forget ends all that is remembered of a blob.
	forget(d digest.Digest)
}

// write brings a blob to every home that does not have it.
func (w *writer) write(ctx context.Context, d digest.Digest) error {
	r, err := w.blobs.records.get(d)
	if err != nil || r == nil {
		return err
	}
	var errs []error
	for _, h := range r.Homes {
		if h.pending() {
			errs = append(errs, w.writeTo(ctx, r, h))
		}
	}
	return errors.Join(errs...)
}

// writeTo brings a blob, and then its record, to one home.
func (w *writer) writeTo(ctx context.Context, r *record, h home) error {
	b, _ := w.homes.Get(h.Backend)
	if b == nil {
		return fmt.Errorf("backend %q of %s is not configured any more", h.Backend, r.Digest)
	}
	id, err := piece.ParseID(string(r.Digest), r.Size)
	if err != nil {
		return err
	}
	blob, err := w.blobs.store.Blob(ctx, id, false)
	if err != nil {
		return err
	}
	defer blob.Close()
	return w.written(ctx, r.Digest, h, w.copy(ctx, b, r, h, blob))
}

// copy writes a blob to a backend that does not have it, and then its record.
func (w *writer) copy(ctx context.Context, b fetcher.Backend, r *record, h home, blob *content.Blob) error {
	if !w.there(ctx, b, r, h) {
		start := time.Now()
		if _, err := b.Write(ctx, h.Key, r.Size, newChecked(blob)); err != nil {
			return err
		}
		w.metrics.wrote(r.Size, time.Since(start))
	}
	told := *r
	told.Homes = []home{h}
	told.Homes[0].Written = true
	text, err := json.Marshal(&told)
	if err != nil {
		return err
	}
	_, err = b.Write(ctx, recordKey(r.Digest), int64(len(text)), bytes.NewReader(text))
	return err
}

// there reports whether the backend has the blob already, from another push, or
// from another origin.
func (w *writer) there(ctx context.Context, b fetcher.Backend, r *record, h home) bool {
	if w.objects.condemned(r.Digest, h.Backend, h.Key) != nil {
		return false // what is there is to be replaced
	}
	info, err := b.Stat(ctx, h.Key)
	return err == nil && info.Size == r.Size
}

// written notes that a blob is where the home h says, and unpins it when nothing
// else needs it here; or that writing it there ended with an error, which it returns.
// What was deleted meanwhile does not stay behind in either case.
func (w *writer) written(ctx context.Context, d digest.Digest, h home, failed error) error {
	unlock := w.blobs.records.lock(d)
	defer unlock()
	r, err := w.blobs.records.get(d)
	if err != nil {
		return err
	}
	i := -1
	if r != nil {
		i = slices.IndexFunc(r.Homes, func(o home) bool { return o.Backend == h.Backend && o.Key == h.Key })
	}
	if i < 0 { // deleted while it was being written
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), eraseWithin)
		defer cancel()
		return w.homes.erase(ctx, h, d)
	}
	if failed != nil {
		return failed
	}
	r.Homes[i].Written = true
	if err := w.blobs.put(ctx, r); err != nil {
		return err
	}
	w.objects.forget(d)
	if !r.pinned() {
		w.blobs.unpin(ctx, d)
	}
	return nil
}

// eraseWithin is how long an origin that stops takes at most to remove what nothing
// else will know of.
const eraseWithin = 5 * time.Second

// checked reads a blob of ours and verifies its digest on the way. If the disk has
// spoiled it, the last bytes are withheld, so that no backend takes it for whole.
type checked struct {
	b   *content.Blob
	h   hash.Hash
	off int64
}

func newChecked(b *content.Blob) *checked {
	return &checked{b: b, h: digest.Digest(b.ID().Digest()).Algorithm().Hash()}
}

func (c *checked) Read(p []byte) (int, error) {
	id := c.b.ID()
	if c.off == id.Size {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), id.Size-c.off)]
	n, err := c.b.ReadAt(p, c.off)
	if err != nil {
		return 0, err
	}
	c.h.Write(p[:n])
	c.off += int64(n)
	if d := digest.Digest(id.Digest()); c.off == id.Size && digest.NewDigest(d.Algorithm(), c.h) != d {
		return 0, fmt.Errorf("%s on this origin's disk is not what its digest says: %w", d, errdefs.ErrDataLoss)
	}
	return n, nil
}
