package origind

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/swarm/piece"
)

// blobDisks are the blobs' bytes, for those who read and keep them: disks, or one content.Store.
type blobDisks interface {
	blobBytes
	Presence(id piece.ID) content.Presence
	Blob(ctx context.Context, id piece.ID, create bool) (*content.Blob, error)
	Lend(ctx context.Context, id piece.ID, create bool) (*content.Blob, error)
	StoredSums(id piece.ID) (*piece.Sums, error)
	Blobs(fn func(id piece.ID, p content.Presence) bool)
	Wrong() map[piece.ID][]int
	WrongOf(id piece.ID) []int
}

// The methods of a content.Store, of all together.

// PresenceOf is content.Store's.
func (ds *disks) PresenceOf(d digest.Digest) (p content.Presence) {
	for _, o := range ds.inUse() {
		p = max(p, o.store.PresenceOf(d))
	}
	return p
}

// Presence is content.Store's.
func (ds *disks) Presence(id piece.ID) (p content.Presence) {
	for _, o := range ds.inUse() {
		p = max(p, o.store.Presence(id))
	}
	return p
}

// Find is content.Store's.
func (ds *disks) Find(d digest.Digest) (piece.ID, content.Presence) {
	return ds.either(ds.home(d)).store.Find(d)
}

// Pin is content.Store's.
func (ds *disks) Pin(d digest.Digest) error {
	o := ds.either(ds.home(d))
	return ds.after(o, o.store.Pin(d))
}

// Unpin is content.Store's.
func (ds *disks) Unpin(ctx context.Context, d digest.Digest) error {
	var errs []error
	for _, o := range ds.inUse() {
		errs = append(errs, ds.after(o, o.store.Unpin(ctx, d)))
	}
	return errors.Join(errs...)
}

// DropCached is content.Store's.
func (ds *disks) DropCached(id piece.ID) error {
	var errs []error
	for _, o := range ds.inUse() {
		if o.store.Presence(id) > content.Absent {
			errs = append(errs, ds.after(o, o.store.DropCached(id)))
		}
	}
	return errors.Join(errs...)
}

// Whole is content.Store's.
func (ds *disks) Whole() (all map[digest.Digest]content.Presence) {
	for _, o := range ds.inUse() {
		some := o.store.Whole()
		if len(some) > len(all) {
			all, some = some, all
		}
		for d, p := range some {
			all[d] = max(all[d], p)
		}
	}
	return all
}

// MakeRoom is content.Store's: so much on each disk.
func (ds *disks) MakeRoom(ctx context.Context, need int64) (freed int64) {
	for _, o := range ds.inUse() {
		freed += o.store.MakeRoom(ctx, need)
	}
	return freed
}

// makeRoomAt is MakeRoom on the disk that a path is on.
func (ds *disks) makeRoomAt(ctx context.Context, path string, need int64) (freed int64) {
	if o := ds.of(path); o != nil {
		return o.store.MakeRoom(ctx, need)
	}
	return 0
}

// Blob is content.Store's.
func (ds *disks) Blob(ctx context.Context, id piece.ID, create bool) (*content.Blob, error) {
	return ds.open(ctx, id, create, (*content.Store).Blob)
}

// Lend is content.Store's.
func (ds *disks) Lend(ctx context.Context, id piece.ID, create bool) (*content.Blob, error) {
	return ds.open(ctx, id, create, (*content.Store).Lend)
}

func (ds *disks) open(
	ctx context.Context, id piece.ID, create bool, open func(*content.Store, context.Context, piece.ID, bool) (*content.Blob, error),
) (*content.Blob, error) {
	o := ds.homeOf(id)
	if o == nil && create {
		defer ds.creating.Lock(id)() // or it would be begun on two
		if o = ds.homeOf(id); o == nil {
			o = ds.pick()
		}
	}
	o = ds.either(o)
	b, err := open(o.store, ctx, id, create)
	if err != nil {
		err = ds.after(o, err)
	}
	return b, err
}

// StoredSums is content.Store's.
func (ds *disks) StoredSums(id piece.ID) (*piece.Sums, error) {
	o := ds.either(ds.homeOf(id))
	sums, err := o.store.StoredSums(id)
	return sums, ds.after(o, err)
}

// Blobs is content.Store's.
func (ds *disks) Blobs(fn func(id piece.ID, p content.Presence) bool) {
	on := true
	for _, o := range ds.inUse() {
		o.store.Blobs(func(id piece.ID, p content.Presence) bool {
			on = on && fn(id, p)
			return on
		})
	}
}

// Wrong is content.Store's.
func (ds *disks) Wrong() map[piece.ID][]int {
	all := map[piece.ID][]int{}
	for _, o := range ds.inUse() {
		maps.Copy(all, o.store.Wrong())
	}
	return all
}

// WrongOf is content.Store's.
func (ds *disks) WrongOf(id piece.ID) []int { return ds.either(ds.homeOf(id)).store.WrongOf(id) }

// Usage is content.Store's.
func (ds *disks) Usage() (all content.Usage) {
	for _, o := range ds.inUse() {
		u := o.store.Usage()
		all.Committed, all.Cached, all.Partial = all.Committed+u.Committed, all.Cached+u.Cached, all.Partial+u.Partial
		all.CacheBytes += u.CacheBytes
	}
	return all
}

// Import is content.Store's. The blob comes on the disk that the file is on, if no other one has it.
func (ds *disks) Import(ctx context.Context, path string, sums *piece.Sums) error {
	o := ds.of(path)
	if o == nil {
		return fmt.Errorf("importing %s: its disk has failed: %w", path, errdefs.ErrUnavailable)
	}
	d := digest.Digest(sums.ID().Digest())
	other := ds.home(d)
	if other != nil && other != o && other.store.Presence(sums.ID()) >= content.Cached && len(other.store.WrongOf(sums.ID())) == 0 &&
		ds.after(other, other.store.Pin(d)) == nil {
		return disk.Remove(path)
	}
	err := ds.after(o, o.store.Import(ctx, path, sums))
	if err == nil {
		if gone := o.same(); gone != nil && len(ds.inUse()) > 1 { // it was written to what is below
			ds.fail(o, gone)
			return fmt.Errorf("importing %s: %w: %w", path, gone, errdefs.ErrUnavailable)
		}
	}
	if err == nil && other != nil && other != o { // that one is wrong
		err = ds.after(other, other.store.Unpin(ctx, d))
	}
	return err
}
