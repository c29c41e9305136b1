package origind

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/internal/keylock"
	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/origind/ringstate"
	"github.com/capelin-io/capelin/swarm/piece"
)

// objects does what the ring decides about objects in backends, and about the record beside each (beside.go). It may be
// used by any goroutine.
//
// # Requests
//
//	Stat   object, and its record if the object is there                                 1 or 2
//	Write  the object is written, its record is created                                  2
//	       if there is a record already, it is read, and replaced if it lacks something  3 or 4
//	Note   the record is read, and replaced if it lacks something                        1 or 2
//	Erase  the record is read, and replaced by one that knows the removals;
//	       the object is deleted; the record is deleted                                  4
//	       without a record                                                              2
//	       the blob still lives there: as Note                                           1 or 2
//
// Each try more at a record costs two more. Without compare-and-swap, Write reads the record before it writes it: 3.
//
// # What a crash leaves, and a race
//
// Write has the object there before its record, so that a record never speaks of an object that was not there. Erase has
// the removals there before it deletes anything, and the record goes last, so that an object that is to go has them beside it
// until it is gone: whoever looks at both takes it neither for pushed nor for durable. If Erase ends early it is done again:
// the ring keeps that it has to be (ringstate.Local.Wrote).
//
// A push that comes to the record between Erase's look and the removals makes Erase look again, by compare-and-swap.
// No backend deletes under a condition, so one that comes after that may lose its object or its record. What protects it is
// the ring: before an Erase so many members were asked that it knows all pushes of before, and whoever pushes after that
// unpins only when all members have said that they erase nothing any more, and it has then seen both, object and record.
//
// What one member does to the objects of a digest in a backend is done one after the other, a Stat apart: an Erase waits for a
// Write that has begun before, however long that takes, so that no object comes after its erasure.
//
// # Time
//
// A small request has requestLimit. A Write of an object may take any time, but is given up when the backend takes nothing for
// stallLimit.
type objects struct {
	backends namedBackends
	blobs    blobStore
	known    objectMemory
	metrics  writeMetrics
	locks    keylock.Locks[besideID]
}

// namedBackends are Backends, for objects.
type namedBackends interface {
	Get(name string) (b fetcher.Backend, ok bool)
}

// blobStore opens what is here of a blob: a content.Store, for objects.
type blobStore interface {
	Blob(ctx context.Context, id piece.ID, create bool) (*content.Blob, error)
}

// objectMemory is what is remembered of backends' objects: a finder, for objects.
type objectMemory interface {
	// condemned returns what is wrong with an object, as far as is known.
	condemned(d digest.Digest, backend, key string) error
	// forget ends all that is remembered of a blob.
	forget(d digest.Digest)
}

// writeMetrics counts blobs that were written, for objects.
type writeMetrics interface {
	wrote(size int64, took time.Duration)
}

// besideID is one record beside objects.
type besideID struct {
	backend string
	digest  digest.Digest
}

const (
	// requestLimit is how long is waited for an answer to a request without a blob's bytes.
	requestLimit = 30 * time.Second
	// stallLimit is how long a backend may take no byte of a blob, or not answer after the last one. Storages that take bytes in
	// parts of many megabytes take none for minutes on a slow line.
	stallLimit = 5 * time.Minute
)

// do does one thing with the object at a place. rec is what is known here of the blob, with the one home that it is
// about (ringstate.Only); it is never nil: of a blob of which nothing is known it has the digest only.
//
// found: of Stat and Write, the object is there. beside: the record that lies beside it then, or nil, with its homes in
// this backend; of an Erase, what it said of removals, even if it is gone now. Write and Note of a blob that does not live
// there any more do nothing. After any error all can be done again. Errors name the blob and the backend:
// errdefs.ErrFailedPrecondition if it is not configured any more, or cannot be written; errdefs.ErrNotImplemented if
// it cannot delete; errdefs.ErrResourceExhausted if the record has become too large; errdefs.ErrDataLoss if the bytes here are wrong;
// errdefs.ErrUnavailable, and those of fetcher.
func (o *objects) do(ctx context.Context, do ringstate.BackendDo, rec *record.Record, at record.Place) (
	found bool, beside *record.Record, err error,
) {
	b, err := o.backend(rec.Digest, at)
	if err != nil {
		return false, nil, err
	}
	j := &job{o, &recordBeside{b, rec.Digest, at}, ringstate.Only(rec, at)}
	var what string
	if do != ringstate.Stat {
		defer o.locks.Lock(besideID{at.Backend, rec.Digest})()
	}
	switch do {
	case ringstate.Stat:
		what = "looking for"
		found, beside, err = j.stat(ctx)
	case ringstate.Write:
		what = "writing"
		found, beside, err = j.write(ctx)
	case ringstate.Note:
		what = "noting a push of"
		beside, err = j.note(ctx)
	case ringstate.Erase:
		what = "erasing"
		beside, err = j.erase(ctx)
	default:
		return false, nil, fmt.Errorf("nothing known to do with an object: %d: %w", do, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return found, nil, fmt.Errorf("%s %s in backend %s: %w", what, rec.Digest, at.Backend, err)
	}
	return found, inBackend(beside, at.Backend), nil
}

// alive reports whether an object that is there may be served. rec is what is known here of the blob: if that was removed, and
// does not live at the place, the object may be what is still to be erased, or that of a later push of which all members
// have lost what they knew. Then the record beside it decides: 1 request. If there is none, nobody pushed it. A
// backend that cannot be written has no pushes: what is there is somebody else's.
func (o *objects) alive(ctx context.Context, rec *record.Record, at record.Place) (bool, error) {
	if rec == nil || len(rec.Removed) == 0 || livesAt(ringstate.Only(rec, at), at.Key) {
		return true, nil
	}
	b, err := o.backend(rec.Digest, at)
	if err != nil {
		return false, err
	}
	if !b.Capabilities().Write {
		return rec.Home(at) == nil, nil
	}
	rec = ringstate.Only(rec, at)
	was, err := (&recordBeside{b, rec.Digest, at}).read(ctx, rec)
	if err != nil {
		return false, fmt.Errorf("looking whether %s in backend %s was deleted: %w", rec.Digest, at.Backend, err)
	}
	return livesAt(record.Merge(rec, was.record), at.Key), nil
}

// backend returns the backend of a place.
func (o *objects) backend(d digest.Digest, at record.Place) (fetcher.Backend, error) {
	if at.Kept() {
		return nil, fmt.Errorf("%s is kept by the origins, and no object of a backend: %w", d, errdefs.ErrInvalidArgument)
	}
	b, _ := o.backends.Get(at.Backend)
	if b == nil {
		return nil, fmt.Errorf("%s lives in backend %q, which is not configured any more: %w", d, at.Backend, errdefs.ErrFailedPrecondition)
	}
	return b, nil
}

// job is one do.
type job struct {
	*objects
	beside *recordBeside
	rec    *record.Record
}

// stat looks for the object. The record beside one that is not there is read, too, if the blob does not live there by what is
// known here: then somebody wants to delete it, and the removal has to be later than every push, as far as anybody has
// ever said. (If it lives here it is about to be written, and what is written is read again.)
func (j *job) stat(ctx context.Context) (found bool, beside *record.Record, err error) {
	b, at := j.beside.b, j.beside.at
	info, err := small(ctx, func(ctx context.Context) (fetcher.Info, error) { return b.Stat(ctx, at.Key) })
	if err != nil && !errdefs.IsNotFound(err) {
		return false, nil, err
	}
	there := err == nil
	sized := j.rec.Size == 0 || info.Size < 0 || info.Size == j.rec.Size
	found = there && sized && j.known.condemned(j.rec.Digest, at.Backend, at.Key) == nil
	if !b.Capabilities().Write || !there && livesAt(j.rec, at.Key) {
		return found, nil, nil
	}
	was, err := j.beside.read(ctx, j.rec)
	return found, was.record, err
}

// write writes the object from the bytes that are here, and then its record.
func (j *job) write(ctx context.Context) (found bool, beside *record.Record, err error) {
	if err := j.writable(); err != nil || !livesAt(j.rec, j.beside.at.Key) {
		return false, nil, err
	}
	id, err := piece.ParseID(string(j.rec.Digest), j.rec.Size)
	if err != nil {
		return false, nil, err
	}
	blob, err := j.blobs.Blob(ctx, id, false)
	if err != nil {
		return false, nil, err
	}
	defer blob.Close()
	start := time.Now()
	if err := send(ctx, j.beside.b, j.beside.at.Key, id.Size, newChecked(blob)); err != nil {
		return false, nil, err
	}
	j.metrics.wrote(id.Size, time.Since(start))
	j.known.forget(j.rec.Digest)
	beside, err = j.beside.created(ctx, j.rec)
	return true, beside, err
}

func (j *job) note(ctx context.Context) (*record.Record, error) {
	if err := j.writable(); err != nil || !livesAt(j.rec, j.beside.at.Key) {
		return nil, err
	}
	return j.beside.merged(ctx, j.rec)
}

func (j *job) writable() error {
	if !j.beside.b.Capabilities().Write {
		return fmt.Errorf("the backend is read only: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// erase removes the object, and the record with the last object that it is beside, unless the blob lives there after all.
func (j *job) erase(ctx context.Context) (beside *record.Record, err error) {
	b, at := j.beside.b, j.beside.at
	caps := b.Capabilities()
	if !caps.Delete {
		return nil, fmt.Errorf("the backend cannot delete: %w", errdefs.ErrNotImplemented)
	}
	if caps.Write {
		beside, err = j.beside.removed(ctx, j.rec)
	}
	if err != nil || livesAt(record.Merge(j.rec, beside), at.Key) {
		return beside, err
	}
	defer j.known.forget(j.rec.Digest)
	if err := remove(ctx, b, at.Key); err != nil {
		return nil, err
	}
	if beside != nil && len(beside.Homes) == 0 {
		err = remove(ctx, b, recordKey(j.rec.Digest))
	}
	return beside, err
}

// livesAt reports whether an object is to be there by a record of those in one backend: under whatever name somebody has
// configured that.
func livesAt(r *record.Record, key string) bool {
	for i := range r.Homes {
		if h := &r.Homes[i]; h.Key == key && r.Lives(h) {
			return true
		}
	}
	return false
}

// small makes a request that does not carry a blob's bytes.
func small[T any](ctx context.Context, request func(ctx context.Context) (T, error)) (T, error) {
	limited, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	v, err := request(limited)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = fmt.Errorf("no answer within %v: %w: %w", requestLimit, err, errdefs.ErrUnavailable)
	}
	return v, err
}

func remove(ctx context.Context, b fetcher.Backend, key string) error {
	_, err := small(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, b.Delete(ctx, key) })
	return err
}

// send writes an object, as long as the backend goes on taking bytes.
func send(ctx context.Context, b fetcher.Backend, key string, size int64, r io.Reader) error {
	stalled := fmt.Errorf("the backend took nothing for %v: %w", stallLimit, errdefs.ErrUnavailable)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t := time.AfterFunc(stallLimit, func() { cancel(stalled) })
	defer t.Stop()
	_, err := b.Write(ctx, key, size, &taken{r, t})
	if err != nil && context.Cause(ctx) == stalled {
		err = fmt.Errorf("%w: %w", stalled, err)
	}
	return err
}

// taken is a reader that puts off a timer whenever it is read.
type taken struct {
	r io.Reader
	t *time.Timer
}

func (t *taken) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.t.Reset(stallLimit)
	return n, err
}
