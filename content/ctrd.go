package content

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/swarm/piece"
)

// This file is containerd's side of the Store, but for sequential writers, which
// are in ingest.go. containerd calls these methods under its own locks: the
// write transaction of its database, or the lock of its garbage collection.

var _ ctrdcontent.Store = (*Store)(nil)

// stat fills in what a blob's inode says. s.mu is held.
func (e *entry) stat(fi fs.FileInfo) {
	e.size = fi.Size()
	e.created = fi.ModTime().UnixNano()
	e.updated = e.created
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		e.updated = time.Unix(st.Atim.Unix()).UnixNano()
	}
}

// info is what containerd is told, without labels. s.mu is held.
func (e *entry) info() ctrdcontent.Info {
	return ctrdcontent.Info{
		Digest:    e.dgst,
		Size:      e.size,
		CreatedAt: time.Unix(0, e.created),
		UpdatedAt: time.Unix(0, e.updated),
	}
}

func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w: %w", string(d), err, errdefs.ErrInvalidArgument)
	}
	return nil
}

func notFound(d digest.Digest) error { return fmt.Errorf("content %s: %w", d, ErrNotFound) }

// Info returns what is known of a complete blob, from memory. With the shared
// policy containerd adopts a blob after a mere Info, with no further call: so a
// blob of cache/ is moved into blobs/, durably, before Info answers.
func (s *Store) Info(ctx context.Context, d digest.Digest) (ctrdcontent.Info, error) {
	if err := checkDigest(d); err != nil {
		return ctrdcontent.Info{}, err
	}
	s.mu.Lock()
	e := s.index[d]
	if e == nil {
		s.mu.Unlock()
		return ctrdcontent.Info{}, notFound(d)
	}
	ready := e.place == Committed && !e.unsynced && e.size >= 0
	info := e.info()
	s.mu.Unlock()
	if !ready {
		var err error
		if info, err = s.publish(d); err != nil {
			return ctrdcontent.Info{}, err
		}
	}
	var err error
	info.Labels, err = s.labels.Get(d)
	return info, err
}

// Pin keeps a complete blob from eviction until Unpin, durably: for a store that no
// containerd uses, blobs/ are those that are pinned. [ErrNotFound] if it is not there.
func (s *Store) Pin(d digest.Digest) error {
	_, err := s.publish(d)
	return err
}

// Unpin lets a blob be evicted. It is not synced: after a power cut the blob may be
// pinned again. What is not there, or not pinned, is left alone without an error.
func (s *Store) Unpin(ctx context.Context, d digest.Digest) error { return s.Delete(ctx, d) }

// publish makes a complete blob containerd's, durably, and returns its info.
func (s *Store) publish(d digest.Digest) (ctrdcontent.Info, error) {
	var info ctrdcontent.Info
	var gone int64
	err := s.withRoom(context.Background(), nil, 1<<20, func() (err error) { // for its name
		defer s.places.Lock(d)()
		info, gone, err = s.publishLocked(d)
		return err
	})
	if gone > 0 {
		s.blobGone(d, gone)
	}
	return info, err
}

// publishLocked is publish with d locked. If the file has vanished, it returns
// what its size was.
func (s *Store) publishLocked(d digest.Digest) (_ ctrdcontent.Info, gone int64, _ error) {
	if _, err := s.learn(d); err != nil {
		return ctrdcontent.Info{}, 0, err
	}
	s.mu.Lock()
	e := s.index[d]
	if e == nil {
		s.mu.Unlock()
		return ctrdcontent.Info{}, 0, notFound(d)
	}
	place := e.place
	s.unkeep(e)
	s.mu.Unlock()
	to := s.blobPath(d, Committed)
	if place == Cached {
		if err := s.dirs.Make(filepath.Dir(to)); err != nil {
			return ctrdcontent.Info{}, 0, err
		}
		now := time.Now()
		from := s.blobPath(d, Cached)
		err := disk.Chtimes(from, now, now) // as the stock store does at commit
		if err == nil {
			err = disk.Rename(from, to)
		}
		if err != nil {
			s.mu.Lock()
			if _, gone := os.Lstat(from); errors.Is(err, fs.ErrNotExist) && errors.Is(gone, fs.ErrNotExist) { // it, and no directory
				s.forget(e)
				s.mu.Unlock()
				return ctrdcontent.Info{}, e.size, notFound(d)
			}
			s.keep(e)
			s.mu.Unlock()
			return ctrdcontent.Info{}, 0, fmt.Errorf("publishing %s: %w", d, err)
		}
		s.mu.Lock()
		s.move(e, Committed)
		e.unsynced = true
		e.created, e.updated = now.UnixNano(), now.UnixNano()
		s.mu.Unlock()
	}
	s.mu.Lock()
	unsynced := e.unsynced
	s.mu.Unlock()
	if unsynced {
		if err := s.syncDir(filepath.Dir(to)); err != nil {
			return ctrdcontent.Info{}, 0, fmt.Errorf("publishing %s: %w", d, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e.unsynced = false
	return e.info(), 0, nil
}

// Delete takes a blob from containerd, which calls it under its garbage
// collection's lock: the blob is renamed into cache/, or into the trash if
// nothing is cached, and Run does the rest. While the disk is below the free floor
// the blob is unlinked before Delete answers, as the stock store does always, and
// what else is to be evicted then goes with it: kubelet, which wants space, has images
// removed and measures at once. It is not synced: after a power cut
// the blob may be back, and containerd deletes it again. Deleting what is not
// there is no error, since containerd's collection stops at the first.
func (s *Store) Delete(ctx context.Context, d digest.Digest) error {
	if err := checkDigest(d); err != nil {
		return err
	}
	s.mu.Lock()
	e := s.index[d]
	gone := e == nil || e.place != Committed
	open := !gone && e.open != nil
	s.mu.Unlock()
	if gone {
		return nil
	}
	short := s.short(s.cfg.FreeFloor)
	size, err := s.delete(d, short > 0)
	if short > 0 {
		ctx, cancel := context.WithTimeout(ctx, deleteWithin)
		defer cancel()
		if id, ok := swarmID(d, size); ok && open { // its space is free when it is closed
			s.unlend(ctx, []piece.ID{id}, size)
		}
		if short -= max(size, 0); short > 0 {
			s.evict(ctx, short, forFloor)
		}
	}
	if size >= 0 {
		s.blobGone(d, size)
	}
	return err
}

// deleteWithin is for how long Delete waits for what else takes space below the free
// floor, or has the blob open.
const deleteWithin = 500 * time.Millisecond

// delete is Delete with a lock. If the blob is gone for good it returns its size,
// otherwise -1. If now, it is, and its space is free.
func (s *Store) delete(d digest.Digest, now bool) (int64, error) {
	unlock := s.places.Lock(d)
	defer unlock()
	s.mu.Lock()
	e := s.index[d]
	if e == nil || e.place != Committed {
		s.mu.Unlock()
		return -1, nil
	}
	size := e.size
	if size < 0 {
		size = 1 // not known yet; it is any
	}
	_, swarm := swarmID(d, size)
	bad := e.bad
	spoiled := bad || len(e.wrong) > 0
	cache := swarm && !spoiled && !now && s.cfg.CacheBytes > 0 && e.size <= s.cfg.CacheBytes
	s.mu.Unlock()

	s.files.remove(d)
	if err := s.labels.Delete(d); err != nil {
		return -1, fmt.Errorf("deleting %s: %w", d, err)
	}
	from := s.blobPath(d, Committed)
	var err error
	if cache {
		err = disk.Rename(from, s.blobPath(d, Cached))
		if errors.Is(err, fs.ErrNotExist) {
			cache, err = false, nil // somebody else has unlinked it
		}
	} else {
		if spoiled {
			_ = disk.Remove(s.sumsPath(d) + ".bad")
		}
		if now = now || s.cfg.CacheBytes < 0 && s.short(DefaultFreeFloor) > 0; now {
			err = s.unlinkNow(from)
		} else {
			err = s.toTrash(from)
		}
	}
	if err != nil {
		return -1, fmt.Errorf("deleting %s: %w", d, err)
	}
	s.mu.Lock()
	if cache {
		s.move(e, Cached)
		e.unsynced, e.spent = false, true
		e.updated = time.Now().UnixNano()
		s.keep(e)
		over := s.over() > 0
		s.mu.Unlock()
		if over {
			s.wake()
		}
		return -1, nil
	}
	s.forget(e)
	size = e.size
	s.mu.Unlock()
	s.wake()
	if bad {
		size = -1 // it was told to be gone when it was found out
	}
	return size, nil
}

// Update changes a blob's labels, durably.
func (s *Store) Update(ctx context.Context, info ctrdcontent.Info, fieldpaths ...string) (ctrdcontent.Info, error) {
	if err := checkDigest(info.Digest); err != nil {
		return ctrdcontent.Info{}, err
	}
	set := map[string]string{}
	all := len(fieldpaths) == 0
	for _, path := range fieldpaths {
		if key, ok := strings.CutPrefix(path, "labels."); ok {
			set[key] = info.Labels[key]
		} else if path == "labels" {
			all = true
		} else {
			return ctrdcontent.Info{}, fmt.Errorf("updating field %q of %s: %w", path, info.Digest, errdefs.ErrInvalidArgument)
		}
	}
	d := info.Digest
	unlock := s.places.Lock(d)
	defer unlock()
	s.mu.Lock()
	e := s.index[d]
	found := e != nil && e.place == Committed
	s.mu.Unlock()
	if !found {
		return ctrdcontent.Info{}, notFound(d)
	}
	if _, err := s.learn(d); err != nil {
		return ctrdcontent.Info{}, err
	}
	var labels map[string]string
	var err error
	if all {
		labels = info.Labels
		err = s.labels.Set(d, labels)
	} else {
		labels, err = s.labels.Update(d, set)
	}
	if err != nil {
		return ctrdcontent.Info{}, fmt.Errorf("updating labels of %s: %w", d, err)
	}
	now := time.Now()
	s.mu.Lock()
	e.updated = now.UnixNano()
	res := e.info()
	s.mu.Unlock()
	res.Labels = labels
	if err := disk.Chtimes(s.blobPath(d, Committed), now, res.CreatedAt); err != nil {
		return ctrdcontent.Info{}, err
	}
	return res, nil
}

// Walk calls fn with every blob in blobs/, in order of digest. It works on a
// snapshot: blobs that come or go while it runs may be listed or not.
func (s *Store) Walk(ctx context.Context, fn ctrdcontent.WalkFunc, fs ...string) error {
	filter, err := filters.ParseAll(fs...)
	if err != nil {
		return err
	}
	s.mu.Lock()
	all := make([]digest.Digest, 0, len(s.index))
	for d, e := range s.index {
		if e.place == Committed {
			all = append(all, d)
		}
	}
	s.mu.Unlock()
	slices.Sort(all)
	for _, d := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := s.learn(d); err != nil {
			return err
		}
		s.mu.Lock()
		e := s.index[d]
		if e == nil || e.place != Committed {
			s.mu.Unlock()
			continue
		}
		info := e.info()
		s.mu.Unlock()
		if info.Labels, err = s.labels.Get(d); err != nil {
			return err
		}
		if !filter.Match(ctrdcontent.AdaptInfo(info)) {
			continue
		}
		if err := fn(info); err != nil {
			return err
		}
	}
	return nil
}
