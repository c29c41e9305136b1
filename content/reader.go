package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"

	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	lru "github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// readerFiles bounds the files kept open for containerd, which opens a
// ReaderAt for each 32 KiB that it reads.
const readerFiles = 256

// fileCache keeps recently read blobs open. A file of a digest never changes,
// so one that is renamed or unlinked meanwhile still reads right.
type fileCache struct {
	mu  sync.Mutex
	lru *lru.LRU[digest.Digest, *openFile]
}

type openFile struct {
	f    *os.File
	size int64
	refs int // fileCache.mu; the cache's own included
}

func (c *fileCache) init(n int) {
	c.lru, _ = lru.NewLRU(n, func(_ digest.Digest, o *openFile) { c.drop(o) })
}

// drop gives a reference up. c.mu is held.
func (c *fileCache) drop(o *openFile) {
	if o.refs--; o.refs == 0 {
		o.f.Close()
	}
}

// get returns d's file, with a reference for the caller.
func (c *fileCache) get(d digest.Digest) *openFile {
	c.mu.Lock()
	defer c.mu.Unlock()
	o, ok := c.lru.Get(d)
	if !ok {
		return nil
	}
	o.refs++
	return o
}

// add puts a file in, unless there is one already, and returns the one that is
// in, with a reference for the caller.
func (c *fileCache) add(d digest.Digest, f *os.File, size int64) *openFile {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o, ok := c.lru.Get(d); ok {
		f.Close()
		o.refs++
		return o
	}
	o := &openFile{f, size, 2}
	c.lru.Add(d, o)
	return o
}

func (c *fileCache) release(o *openFile) {
	c.mu.Lock()
	c.drop(o)
	c.mu.Unlock()
}

func (c *fileCache) remove(d digest.Digest) {
	c.mu.Lock()
	c.lru.Remove(d)
	c.mu.Unlock()
}

func (c *fileCache) purge() {
	c.mu.Lock()
	c.lru.Purge()
	c.mu.Unlock()
}

// ReaderAt returns a reader of a blob in blobs/. Only desc.Digest is used. It
// costs no system call when the blob was read lately, and a read costs one
// pread. The reader goes on reading when the blob is deleted.
func (s *Store) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (ctrdcontent.ReaderAt, error) {
	d := desc.Digest
	if err := checkDigest(d); err != nil {
		return nil, err
	}
	s.mu.Lock()
	e := s.index[d]
	found := e != nil && e.place == Committed
	s.mu.Unlock()
	if !found {
		return nil, notFound(d)
	}
	if o := s.files.get(d); o != nil {
		return &reader{c: &s.files, o: o}, nil
	}
	// Under the digest's lock, so that a Delete that comes now takes the file out
	// of the cache after we have put it in.
	unlock := s.places.Lock(d)
	f, err := os.Open(s.blobPath(d, Committed))
	if errors.Is(err, fs.ErrNotExist) {
		s.mu.Lock()
		e := s.index[d]
		gone := e != nil && e.place == Committed
		if gone {
			s.forget(e) // somebody unlinked it behind our back
		}
		s.mu.Unlock()
		unlock()
		if gone {
			s.blobGone(d, e.size)
		}
		return nil, notFound(d)
	}
	defer unlock()
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", d, err)
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("reading %s: %w", d, err)
	}
	return &reader{c: &s.files, o: s.files.add(d, f, fi.Size())}, nil
}

type reader struct {
	c      *fileCache
	o      *openFile
	closed atomic.Bool
}

func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	if r.closed.Load() {
		return 0, fs.ErrClosed
	}
	return r.o.f.ReadAt(p, off)
}

func (r *reader) Size() int64 { return r.o.size }

func (r *reader) Close() error {
	if !r.closed.Swap(true) {
		r.c.release(r.o)
	}
	return nil
}

// Reader reads the blob once from its beginning (what containerd's NewReader
// asks for).
func (r *reader) Reader() io.Reader { return io.NewSectionReader(r, 0, r.o.size) }
