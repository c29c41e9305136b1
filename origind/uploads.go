package origind

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	lru "github.com/hashicorp/golang-lru/v2"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/diskfull"
	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/origind/ringstate/mirror"
	"github.com/capelin-io/capelin/swarm/piece"
)

// uploads are pushes under way: uploads/<id>/data, a sequential file whose length
// is the upload's offset, and uploads/<id>/upload.json. The hash goes on in memory
// from one append to the next; after a restart the file is read once. The data are
// synced at commit. What an earlier boot of the machine wrote counts for nothing: a power cut
// may have made anything of it, and other members go by where an upload stands here.
type uploads struct {
	uploadsConfig
	mu sync.Mutex
	m  map[string]*upload
	// shares says how many of m clients have begun here, by whose they are, that are no blobs.
	shares map[string]int
	// became are those of m that are blobs, for clients that missed the answer. The eldest go first.
	became *lru.Cache[string, *upload]
	ended  *lru.Cache[string, error] // why uploads are none any more, for clients that come back
	freed  atomic.Int64              // bytes of what made room
	next   atomic.Int64              // when tick is called again, Unix nanoseconds
	sooner chan struct{}             // that is too late
}

// uploadsConfig is what uploads are given.
type uploadsConfig struct {
	dirs    []string      // where they are, one on each disk
	place   func() string // the one of them for a new upload
	boot    string        // durable.BootID
	max     int
	mirror  mirror.Config // but for the key
	members func() []mirror.Member
	peers   *peers
	// room makes room where a path is; failed is told of errors there, and reports whether the disk is not used any more because of that.
	room   func(ctx context.Context, path string, need int64) (freed int64)
	failed func(path string, err error) (gone bool)
	// keep makes a blob of a verified upload, durable and visible. It takes the file.
	keep func(ctx context.Context, u *upload, d digest.Digest, sums *piece.Sums) error
	// kept says that such a blob is still here; errdefs.ErrNotFound if it is not.
	kept func(d digest.Digest) error
	// blob opens the bytes of such a blob.
	blob  func(ctx context.Context, d digest.Digest, size int64) (*os.File, error)
	tasks *tasks
}

// uploadMeta is upload.json.
type uploadMeta struct {
	Namespace string `json:"namespace"`
	// Owner stands for whose the upload is. Empty: nobody has said, or an earlier release began it.
	Owner string `json:"owner,omitempty"`
	// Key places the upload's mirrors: the digest that the client has named. Empty: its id.
	Key string `json:"key,omitempty"`
	// Boot is the boot of the machine in which all of the data were written. Empty: an earlier release began
	// the upload. All its data count, as they did there, and the digest finds out.
	Boot string `json:"boot,omitempty"`
}

// share names whose share of the uploads one takes: its owner's, and if it has none its namespace's, by the first element of the name.
func (m *uploadMeta) share() string {
	if m.Owner != "" {
		return "owner " + m.Owner
	}
	first, _, _ := strings.Cut(m.Namespace, "/")
	return "namespace " + first
}

const (
	maxBecame = 4096
	maxEnded  = 4096
	// idleFor is for how long nothing has happened to an upload that makes room for others.
	idleFor = time.Minute
)

func openUploads(cfg uploadsConfig) (*uploads, error) {
	s := &uploads{uploadsConfig: cfg, m: map[string]*upload{}, shares: map[string]int{}, sooner: make(chan struct{}, 1)}
	var err error
	s.became, err = lru.NewWithEvict(maxBecame, func(id string, _ *upload) {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.m, id)
	})
	if err != nil {
		return nil, err
	}
	if s.ended, err = lru.New[string, error](maxEnded); err != nil {
		return nil, err
	}
	for _, dir := range s.dirs {
		if err := s.loadAll(dir); err != nil && !s.failed(dir, err) {
			return nil, err
		}
	}
	return s, nil
}

// loadAll finds the uploads of an earlier process in a directory.
func (s *uploads) loadAll(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		u, err := s.load(filepath.Join(dir, e.Name()))
		if err == nil && s.m[u.id] == nil {
			s.m[u.id] = u
			s.take(u) // be it a mirror's: whoever led it is not there to ask
		} else if err := disk.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// load finds an upload of an earlier process.
func (s *uploads) load(dir string) (*upload, error) {
	id := filepath.Base(dir)
	if err := origin.CheckUploadID(id); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(dir, "upload.json"))
	if err != nil {
		return nil, err
	}
	var meta uploadMeta
	if err := json.Unmarshal(b, &meta); err != nil {
		return nil, err
	}
	fi, err := os.Stat(filepath.Join(dir, "data"))
	if err != nil {
		return nil, err
	}
	size := fi.Size()
	if meta.Boot != "" && meta.Boot != s.boot {
		size = 0
		if err := s.again(dir, &meta); err != nil {
			return nil, err
		}
	}
	return s.new(dir, meta, size, fi.ModTime()), nil
}

// again has an upload begin again in this boot of the machine.
func (s *uploads) again(dir string, meta *uploadMeta) error {
	f, err := disk.OpenFile(filepath.Join(dir, "data"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	meta.Boot = s.boot
	text, err := json.Marshal(meta)
	if err == nil {
		err = disk.Truncate(f, 0)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, "upload.json"), text, 0o600) // whole, if this process is killed
}

// begin makes an upload, of a new id if that is empty. One that is there already is what
// another request has begun.
func (s *uploads) begin(id string, meta uploadMeta) (*upload, error) {
	mine := id == ""
	if mine {
		var b [origin.UploadIDLen / 2]byte
		rand.Read(b[:])
		id = hex.EncodeToString(b[:])
	}
	meta.Boot = s.boot
	u := s.new(filepath.Join(s.place(), id), meta, 0, time.Now())
	u.h = newHasher()
	old, full := s.enter(u, mine)
	for full != nil && s.giveUp("", full) {
		old, full = s.enter(u, mine)
	}
	switch {
	case old != nil:
		return old, nil
	case full != nil:
		return nil, fmt.Errorf("starting an upload: %w, and none that was idle for %v: %w", full, idleFor, origin.ErrBusy)
	}
	text, err := json.Marshal(meta)
	if err == nil {
		err = disk.Mkdir(u.dir, 0o700)
	}
	if err == nil {
		err = os.WriteFile(u.path(), nil, 0o600)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(u.dir, "upload.json"), text, 0o600)
	}
	if err != nil {
		gone := s.failed(u.dir, err)
		if err = errors.Join(diskfull.Classed(err), s.forget(u)); gone {
			if mine {
				id = ""
			}
			return s.begin(id, meta) // on another disk
		}
		return nil, fmt.Errorf("starting an upload: %w", err)
	}
	return u, nil
}

// fullError is why there is no room for one more upload.
type fullError struct {
	n     int
	share string // whose share is taken; "": all are
}

func (e *fullError) Error() string {
	if e.share == "" {
		return fmt.Sprintf("there are %d already (uploads.max)", e.n)
	}
	return fmt.Sprintf("there are %d already of one user or namespace, half of uploads.max", e.n)
}

// enter makes u one of the uploads, unless there is one of its id already, or too many: at all, or, if a client begins it here (mine),
// of the same share.
func (s *uploads) enter(u *upload, mine bool) (old *upload, full *fullError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	share, half := u.meta.share(), max(s.max/2, 1)
	switch old = s.m[u.id]; {
	case old != nil:
		return old, nil
	case mine && s.shares[share] >= half:
		return nil, &fullError{half, share}
	case len(s.m)-s.became.Len() >= s.max:
		return nil, &fullError{s.max, ""}
	}
	s.m[u.id] = u
	if mine {
		s.take(u)
	}
	return nil, nil
}

// take has an upload take a place of its share; s.mu is held, or nobody else is there yet.
func (s *uploads) take(u *upload) {
	u.counts = true
	s.shares[u.meta.share()]++
}

// leave is called when an upload is over; s.mu is held.
func (s *uploads) leave(u *upload) {
	if !u.counts {
		return
	}
	u.counts = false
	share := u.meta.share()
	if s.shares[share]--; s.shares[share] == 0 {
		delete(s.shares, share)
	}
}

// counting returns the uploads that count to a share.
func (s *uploads) counting(share string) (all []*upload) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.m {
		if u.counts && u.meta.share() == share {
			all = append(all, u)
		}
	}
	return all
}

// giveUp has an upload go that is idle, at its mirrors, too: the one to which nothing has happened for longest, of those that are empty,
// if there are some. If a share is full it is one of that. Without full there is no room for bytes below root, and it is one that has some
// there. It reports whether it found one.
func (s *uploads) giveUp(root string, full *fullError) bool {
	for {
		now := time.Now()
		var first *upload
		var empty bool
		var since time.Time
		all := s.all
		if full != nil && full.share != "" {
			all = func() []*upload { return s.counting(full.share) }
		}
		for _, u := range all() {
			at, idle := u.idle()
			none := u.size.Load() == 0
			if !idle || !u.below(root) || now.Sub(at) < idleFor || none && full == nil ||
				first != nil && (empty && !none || empty == none && !at.Before(since)) {
				continue
			}
			first, empty, since = u, none, at
		}
		if first == nil {
			return false
		}
		if first.step(now, mirror.EvMakeRoom{}) { // else somebody has come to it
			s.freed.Add(first.size.Load())
			log.G(s.tasks.ctx).WithFields(log.Fields{"upload": first.id, "namespace": first.meta.Namespace, "size": first.size.Load()}).
				WithField("idle", now.Sub(since).Round(time.Second)).Info("an upload that nobody came back to has made room for others")
			return true
		}
	}
}

// free has uploads below root go that are idle until there is room for need bytes, or none is left.
func (s *uploads) free(root string, need int64) {
	for before := s.freed.Load(); s.freed.Load()-before < need && s.giveUp(root, nil); {
	}
}

// idle returns how many bytes below root may make room.
func (s *uploads) idle(root string, now time.Time) (bytes int64) {
	for _, u := range s.all() {
		if since, idle := u.idle(); idle && u.below(root) && now.Sub(since) >= idleFor {
			bytes += u.size.Load()
		}
	}
	return bytes
}

// forget removes an upload: its name last, so that nothing of a later one goes with it.
func (s *uploads) forget(u *upload) error {
	err := disk.RemoveAll(u.dir)
	s.became.Remove(u.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leave(u)
	delete(s.m, u.id)
	return err
}

// isBlob notes that an upload became a blob.
func (s *uploads) isBlob(u *upload) {
	s.mu.Lock()
	s.leave(u)
	s.mu.Unlock()
	s.became.Add(u.id, u)
}

// below reports whether an upload is below a directory; "" is any.
func (u *upload) below(root string) bool {
	rel, err := filepath.Rel(root, u.dir)
	return root == "" || err == nil && filepath.IsLocal(rel)
}

// lose forgets the uploads below a directory, which is on a disk that has failed. Their mirrors have them.
func (s *uploads) lose(root string) {
	for _, u := range s.all() {
		if !u.below(root) || u.committed() != "" {
			continue
		}
		s.mu.Lock()
		delete(s.m, u.id)
		s.leave(u)
		s.mu.Unlock()
	}
}

func (s *uploads) get(id string) (*upload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.m[id]; u != nil {
		return u, nil
	}
	return nil, s.missing(id)
}

// missing says that there is no such upload, and why, if it was here.
func (s *uploads) missing(id string) error {
	if why, ok := s.ended.Get(id); ok {
		return fmt.Errorf("no such upload: %s: %w: %w", id, why, errdefs.ErrNotFound)
	}
	return fmt.Errorf("no such upload: %s: %w", id, errdefs.ErrNotFound)
}

// all returns the uploads, with those that became blobs.
func (s *uploads) all() []*upload {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.m))
}

// membersChanged tells all uploads who the members are.
func (s *uploads) membersChanged() {
	for _, u := range s.all() {
		u.step(time.Now(), mirror.EvMembers{Members: s.members()})
	}
}

// tick does what is due. It returns how many uploads went because of their age, and when
// something is due again, unless sooner says otherwise.
func (s *uploads) tick(now time.Time) (removed int, next time.Time) {
	next = now.Add(time.Minute)
	s.next.Store(next.UnixNano())
	for _, u := range s.all() {
		if due := u.due.Load(); due != 0 && due <= now.UnixNano() && u.step(now, mirror.EvTick{}) && u.committed() == "" {
			removed++
		}
		if due := u.due.Load(); due != 0 && due < next.UnixNano() {
			next = time.Unix(0, due)
		}
	}
	s.next.Store(next.UnixNano())
	return removed, next
}

// wake has tick called at a time.
func (s *uploads) wake(at time.Time) {
	if at.UnixNano() < s.next.Load() {
		select {
		case s.sooner <- struct{}{}:
		default:
		}
	}
}

// count returns how many uploads there are that are no blobs, and their bytes.
func (s *uploads) count() (n int, bytes int64) {
	for _, u := range s.all() {
		if u.committed() == "" {
			n, bytes = n+1, bytes+u.size.Load()
		}
	}
	return n, bytes
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 1<<20); return &b }}

// errStopped: another request takes the upload over.
var errStopped = fmt.Errorf("another request takes the upload over: %w", errdefs.ErrConflict)

// copy writes a body to the end of the upload's file, until it is told to stop.
func (s *uploads) copy(ctx context.Context, u *upload, f *os.File, r io.Reader, stopped *atomic.Bool) error {
	bp := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	for {
		n, rerr := fill(r, *bp)
		err := s.write(ctx, u, f, (*bp)[:n])
		u.step(time.Now(), mirror.EvWrote{Size: u.size.Load()})
		if err != nil {
			return err
		}
		switch {
		case stopped.Load():
			return errStopped
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
		p = p[n:]
		if err != nil && (!diskfull.Is(err) || try > 10 || s.room(ctx, u.dir, max(int64(len(p)), 16<<20)) == 0) {
			s.failed(u.dir, err)
			return err
		}
	}
	return nil
}
