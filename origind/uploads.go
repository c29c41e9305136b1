package origind

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	lru "github.com/hashicorp/golang-lru/v2"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/diskfull"
	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/swarm/piece"
)

// uploads are pushes under way: uploads/<id>/data, a sequential file whose length
// is the upload's offset, and uploads/<id>/upload.json. The hash goes on in memory
// from one append to the next; after a restart the file is read once. The data are
// synced at commit; what a power cut makes of them before, the digest finds out.
type uploads struct {
	dir    string
	max    int
	expire time.Duration
	room   func(ctx context.Context, need int64) (freed int64)

	mu sync.Mutex
	m  map[string]*upload
	// committed remembers what became of uploads, for clients that missed the answer.
	committed *lru.Cache[string, digest.Digest]
}

// upload is one push.
type upload struct {
	id, namespace string
	dir           string
	busy          chan struct{} // holds a token while somebody writes or commits
	size          atomic.Int64
	used          atomic.Int64 // Unix nanoseconds
	h             *hasher      // of size bytes; nil after a restart. The token's.
}

// uploadMeta is upload.json.
type uploadMeta struct {
	Namespace string `json:"namespace"`
}

func openUploads(dir string, max int, expire time.Duration, room func(context.Context, int64) int64) (*uploads, error) {
	committed, err := lru.New[string, digest.Digest](4096)
	if err != nil {
		return nil, err
	}
	s := &uploads{dir: dir, max: max, expire: expire, room: room, m: map[string]*upload{}, committed: committed}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		u, err := s.load(e.Name())
		if err == nil {
			s.m[u.id] = u
		} else if err := disk.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *uploads) new(id, namespace string) *upload {
	return &upload{id: id, namespace: namespace, dir: filepath.Join(s.dir, id), busy: make(chan struct{}, 1)}
}

// load finds an upload of an earlier process.
func (s *uploads) load(id string) (*upload, error) {
	if err := origin.CheckUploadID(id); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(s.dir, id, "upload.json"))
	if err != nil {
		return nil, err
	}
	var meta uploadMeta
	if err := json.Unmarshal(b, &meta); err != nil {
		return nil, err
	}
	fi, err := os.Stat(filepath.Join(s.dir, id, "data"))
	if err != nil {
		return nil, err
	}
	u := s.new(id, meta.Namespace)
	u.size.Store(fi.Size())
	u.used.Store(fi.ModTime().UnixNano())
	return u, nil
}

func (u *upload) path() string { return filepath.Join(u.dir, "data") }

// start begins an upload.
func (s *uploads) start(namespace string) (id string, err error) {
	var b [origin.UploadIDLen / 2]byte
	rand.Read(b[:])
	u := s.new(hex.EncodeToString(b[:]), namespace)
	u.used.Store(time.Now().UnixNano())
	u.h = newHasher()
	s.mu.Lock()
	full := len(s.m) >= s.max
	if !full {
		s.m[u.id] = u
	}
	s.mu.Unlock()
	if full {
		return "", fmt.Errorf("starting an upload: there are %d already (uploads.max): %w", s.max, errdefs.ErrResourceExhausted)
	}
	meta, err := json.Marshal(uploadMeta{namespace})
	if err == nil {
		err = disk.Mkdir(u.dir, 0o700)
	}
	if err == nil {
		err = os.WriteFile(u.path(), nil, 0o600)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(u.dir, "upload.json"), meta, 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("starting an upload: %w", errors.Join(diskfull.Classed(err), s.forget(u)))
	}
	return u.id, nil
}

// forget removes an upload. Nobody writes to it.
func (s *uploads) forget(u *upload) error {
	s.mu.Lock()
	delete(s.m, u.id)
	s.mu.Unlock()
	return disk.RemoveAll(u.dir)
}

func (s *uploads) get(id string) (*upload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.m[id]; u != nil {
		return u, nil
	}
	return nil, fmt.Errorf("no such upload: %s: %w", id, errdefs.ErrNotFound)
}

// take gives an upload to the caller alone, until it calls free.
func (s *uploads) take(id string) (u *upload, free func(), err error) {
	if u, err = s.get(id); err != nil {
		return nil, nil, err
	}
	select {
	case u.busy <- struct{}{}:
	default:
		return nil, nil, fmt.Errorf("upload %s: another request writes to it: %w", id, errdefs.ErrConflict)
	}
	free = func() {
		u.used.Store(time.Now().UnixNano())
		<-u.busy
	}
	if _, err := s.get(id); err != nil { // it was committed or removed meanwhile
		free()
		return nil, nil, err
	}
	return u, free, nil
}

// offset returns where an upload's next byte goes.
func (s *uploads) offset(id string) (int64, error) {
	u, err := s.get(id)
	if err != nil {
		return 0, err
	}
	return u.size.Load(), nil
}

// cancel removes an upload.
func (s *uploads) cancel(id string) error {
	u, free, err := s.take(id)
	if err != nil {
		return err
	}
	defer free()
	return s.forget(u)
}

// append writes what r has to the upload's end, which must be at off, and returns
// where it ends then. What came before an error stays.
func (s *uploads) append(ctx context.Context, id string, off int64, r io.Reader) (end int64, err error) {
	u, free, err := s.take(id)
	if err != nil {
		return 0, err
	}
	defer free()
	if off != u.size.Load() {
		return u.size.Load(), fmt.Errorf("upload %s: it is at %d, not at %d: %w", id, u.size.Load(), off, errdefs.ErrOutOfRange)
	}
	if err := u.rehash(ctx); err != nil {
		return u.size.Load(), err
	}
	f, err := disk.OpenFile(u.path(), os.O_WRONLY, 0)
	if err != nil {
		return u.size.Load(), fmt.Errorf("upload %s: %w", id, diskfull.Classed(err))
	}
	err = s.copy(ctx, u, f, r)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		err = fmt.Errorf("upload %s at %d: %w", id, u.size.Load(), diskfull.Classed(err))
	}
	return u.size.Load(), err
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 1<<20); return &b }}

func (s *uploads) copy(ctx context.Context, u *upload, f *os.File, r io.Reader) error {
	bp := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	for {
		n, rerr := fill(r, *bp)
		if err := s.write(ctx, u, f, (*bp)[:n]); err != nil {
			return err
		}
		switch {
		case rerr == io.EOF:
			return nil
		case rerr != nil:
			return fmt.Errorf("%w: %w", rerr, errdefs.ErrUnavailable)
		}
	}
}

// fill is io.ReadFull, but for its error, which is r's own: a body that breaks off
// must not look like one that ends.
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

// write appends p, making room if the disk is full.
func (s *uploads) write(ctx context.Context, u *upload, f *os.File, p []byte) error {
	if int64(len(p)) > origin.MaxSize-u.h.n {
		return fmt.Errorf("blobs have at most %d bytes: %w", int64(origin.MaxSize), errdefs.ErrInvalidArgument)
	}
	for try := 0; len(p) > 0; try++ {
		n, err := disk.WriteAt(f, p, u.h.n)
		u.h.Write(p[:n])
		u.size.Store(u.h.n)
		u.used.Store(time.Now().UnixNano())
		p = p[n:]
		if err != nil && (!diskfull.Is(err) || try > 10 || s.room(ctx, max(int64(len(p)), 16<<20)) == 0) {
			return err
		}
	}
	return nil
}

// rehash reads the upload if its hash was lost with an earlier process. u is
// taken.
func (u *upload) rehash(ctx context.Context) error {
	if u.h != nil {
		return nil
	}
	f, err := os.Open(u.path())
	if err != nil {
		return fmt.Errorf("resuming upload %s: %w", u.id, err)
	}
	defer f.Close()
	bp := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	h := newHasher()
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("resuming upload %s: %w", u.id, err)
		}
		n, err := f.Read(*bp)
		h.Write((*bp)[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("resuming upload %s: %w", u.id, err)
		}
	}
	u.h = h
	u.size.Store(h.n)
	return nil
}

// verify returns the sums of an upload that is the blob d; nil if that is empty.
// errdefs.ErrInvalidArgument if it is another. u is taken.
func (u *upload) verify(ctx context.Context, d digest.Digest) (*piece.Sums, error) {
	if err := u.rehash(ctx); err != nil {
		return nil, err
	}
	size := u.h.n
	if size == 0 && origin.IsEmpty(d) {
		return nil, nil
	}
	if d.Algorithm() == digest.SHA256 || size == 0 {
		if is := u.h.digest(); is != d {
			return nil, fmt.Errorf("upload %s: its %d bytes have the digest %s, not %s: %w", u.id, size, is, d, errdefs.ErrInvalidArgument)
		}
		return u.h.sums()
	}
	// Others are rare enough for a second pass.
	id, err := piece.ParseID(string(d), size)
	if err != nil {
		return nil, fmt.Errorf("upload %s: %w: %w", u.id, err, errdefs.ErrInvalidArgument)
	}
	f, err := os.Open(u.path())
	if err != nil {
		return nil, fmt.Errorf("upload %s: %w", u.id, err)
	}
	defer f.Close()
	sums, err := sumsOf(contextReader{ctx, f}, id)
	if errors.Is(err, piece.ErrMismatch) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, fmt.Errorf("upload %s: %w", u.id, err)
	}
	return sums, nil
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// sweep removes uploads to which nothing was added for too long.
func (s *uploads) sweep(now time.Time) (removed int, err error) {
	s.mu.Lock()
	var old []string
	for id, u := range s.m {
		if now.Sub(time.Unix(0, u.used.Load())) > s.expire {
			old = append(old, id)
		}
	}
	s.mu.Unlock()
	for _, id := range old {
		// One that is busy is not old, after all.
		switch cerr := s.cancel(id); {
		case cerr == nil:
			removed++
		case !errdefs.IsConflict(cerr) && !errdefs.IsNotFound(cerr):
			err = errors.Join(err, cerr)
		}
	}
	return removed, err
}

// count returns how many uploads there are, and their bytes.
func (s *uploads) count() (n int, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.m {
		bytes += u.size.Load()
	}
	return len(s.m), bytes
}
