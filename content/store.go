package content

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/keylock"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Defaults of [Config].
const (
	DefaultCacheBytes = 32 << 30
	DefaultFreeFloor  = 0.20
)

// Config says where a [Store] is and how much it may keep.
type Config struct {
	// Root is containerd's content directory; blobs/, ingest/, cache/ and swarm/
	// are below it, on one file system. It is made if missing, mode 0700.
	Root string

	// CacheBytes bounds what is kept beyond containerd's own blobs: cache/ and
	// unfinished blobs that nobody has open. The least recently used go first. 0:
	// DefaultCacheBytes. Negative: nothing; what containerd deletes is unlinked,
	// and what is prefetched or unfinished goes 10 minutes after its last use.
	CacheBytes int64

	// FreeFloor is the fraction of the file system, 0 to 1, that is kept free by
	// evicting the same things, whatever CacheBytes says. It should be above the
	// threshold at which kubelet collects images (0.15 by default). What was used
	// in the last 2 minutes goes only when the disk is full. 0: DefaultFreeFloor.
	// Negative: none.
	FreeFloor float64

	// Observer is told what changes. It may be nil.
	Observer Observer

	// Report, if not nil, is called with errors of background work that no caller
	// waits for, from Run's goroutines.
	Report func(error)
}

// Observer is told of changes, whoever made them. Its methods are called from
// many goroutines, without locks held, and must not block.
type Observer interface {
	// PiecesAdded: pieces from..to-1 of id were added by a sequential writer (or
	// became verifiable because ComputeSums reached them); states are the
	// chaining states after each of them, without the digest, which follows from
	// id. For one blob the calls come one at a time and in order of addition.
	PiecesAdded(id piece.ID, from, to int, states []byte)
	// BlobAdded: id is now complete, in blobs/ or cache/, whoever committed it;
	// or its size was learned after Open. It may be called more than once.
	BlobAdded(id piece.ID)
	// BlobGone: id was evicted, deleted for good, or quarantined.
	BlobGone(id piece.ID)
}

// Presence says how much of a blob there is.
type Presence int

// The values of [Presence].
const (
	Absent    Presence = iota
	Partial            // some pieces, or none yet
	Cached             // complete, unknown to containerd
	Committed          // complete, containerd's
)

func (p Presence) String() string {
	return [...]string{"absent", "partial", "cached", "committed"}[p]
}

// Store is the content directory of one node. See the package comment.
type Store struct {
	cfg    Config
	lock   *os.File
	stock  ctrdcontent.Store // containerd's own, for sequential writers
	labels *labelStore
	places keylock.Locks[digest.Digest] // held while a digest's files are renamed or opened
	files  fileCache
	syncs  sync.Map // directory → *dirSync
	dirs   sync.Map // directories known to exist
	memory bool     // the root is on a tmpfs

	refs ingests

	trashSeq atomic.Uint64
	kick     chan struct{} // to Run: something is to be unlinked or evicted
	ckick    chan struct{} // to Run: a partial wants a checkpoint now

	// mu guards what follows, and the fields of entries and partials. It is held
	// for map operations only, never over I/O or callbacks. A state's mutex is
	// never held when taking it.
	mu        sync.Mutex
	closed    bool
	index     map[digest.Digest]*entry
	committed int // entries of index that are Committed
	parts     map[piece.ID]*partial
	evictable list.List // of *entry and *partial, least recently used first
	kept      int64     // bytes in evictable
	dirty     map[*state]struct{}
	trash     []string // paths to unlink
	junk      []string // small files that are of no more use; unlinked like trash
	unsized   []digest.Digest
}

// entry is a complete blob. Times are Unix nanoseconds.
type entry struct {
	dgst     digest.Digest
	place    Presence      // Cached or Committed
	sums     bool          // there is a sums file
	bad      bool          // quarantined
	unsynced bool          // its name in blobs/ may not survive a power cut
	size     int64         // -1: not known yet
	created  int64         // modification time
	updated  int64         // access time, as containerd's stock store has it
	open     *state        // not nil while somebody has it open
	el       *list.Element // in evictable
	counted  int64         // bytes it counts for there
}

// partial is a blob that is not complete.
type partial struct {
	id      piece.ID
	used    time.Time
	bytes   int64         // that it takes on disk while it is idle
	open    *state        // not nil while in use, or while its map is not written yet
	el      *list.Element // in evictable
	counted int64
}

const formatLine = "capelin content 1\n"

// Open opens the content directory, which no other process may have open
// ([ErrLocked]). It reads directory names only, so that it takes well under a
// second with 100,000 blobs and a cold cache; sizes are learned later. What a
// crash or another program left behind is put right (FORMAT.md section 4). The
// caller should run [Store.Run], and must call [Store.Close].
func Open(ctx context.Context, cfg Config) (_ *Store, err error) {
	if cfg.Root == "" {
		return nil, errors.New("content: no root directory given")
	}
	if cfg.CacheBytes == 0 {
		cfg.CacheBytes = DefaultCacheBytes
	}
	if cfg.FreeFloor == 0 {
		cfg.FreeFloor = DefaultFreeFloor
	}
	s := &Store{
		cfg:   cfg,
		kick:  make(chan struct{}, 1),
		ckick: make(chan struct{}, 1),
		index: make(map[digest.Digest]*entry),
		parts: make(map[piece.ID]*partial),
		dirty: make(map[*state]struct{}),
	}
	for _, d := range []string{
		"", "blobs", "blobs/sha256", "ingest", "cache", "cache/sha256", "cache/sha512",
		"swarm", "swarm/partial", "swarm/trash", "swarm/sums", "swarm/sums/sha256", "swarm/sums/sha512", "swarm/labels",
	} {
		if err := s.mkdir(s.path(d)); err != nil {
			return nil, err
		}
	}
	s.memory = inMemory(cfg.Root)
	if err := s.oneFileSystem(); err != nil {
		return nil, err
	}
	if err := s.acquire(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.lock.Close()
		}
	}()
	if err := s.checkFormat(); err != nil {
		return nil, err
	}
	s.labels = newLabelStore(s.path("swarm/labels"))
	s.files.init(readerFiles)
	s.refs.init()
	if err := s.load(ctx); err != nil {
		return nil, err
	}
	if s.stock, err = local.NewLabeledStore(cfg.Root, s.labels); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.cfg.Root}, elem...)...)
}

// mkdir makes a directory of the store unless it is known to be there.
func (s *Store) mkdir(p string) error {
	if _, ok := s.dirs.Load(p); ok {
		return nil
	}
	if err := os.MkdirAll(p, 0o700); err != nil {
		return err
	}
	s.dirs.Store(p, true)
	return nil
}

// oneFileSystem refuses directories between which blobs cannot be renamed.
func (s *Store) oneFileSystem() error {
	var dev uint64
	for i, d := range []string{"blobs/sha256", "cache/sha256", "cache/sha512", "swarm/partial", "swarm/trash", "ingest"} {
		var st unix.Stat_t
		if err := unix.Stat(s.path(d), &st); err != nil {
			return fmt.Errorf("%s: %w", s.path(d), err)
		}
		if i == 0 {
			dev = st.Dev
		} else if st.Dev != dev {
			return fmt.Errorf("%s and %s are on different file systems, and blobs move between them by rename", s.path("blobs/sha256"), s.path(d))
		}
	}
	return nil
}

func (s *Store) acquire() error {
	p := s.path("swarm/lock")
	f, err := os.OpenFile(p, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		b := make([]byte, 32)
		n, _ := f.ReadAt(b, 0)
		f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("locking %s: %w", p, err)
		}
		return fmt.Errorf("%s is locked by process %s: stop that agent, or give this one another content root: %w",
			p, strings.TrimSpace(string(b[:n])), ErrLocked)
	}
	// For whoever is refused, see above. The lock holds without it.
	_ = f.Truncate(0)
	_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	s.lock = f
	return nil
}

func (s *Store) checkFormat() error {
	p := s.path("swarm/format")
	b, err := os.ReadFile(p)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return durable.WriteFile(p, []byte(formatLine), 0o600)
	case err != nil:
		return err
	case string(b) != formatLine:
		return fmt.Errorf("%s says %q, this version writes %q: %w", p, b, formatLine, ErrFormat)
	}
	return nil
}

// load builds the index from directory names and puts right what it finds.
func (s *Store) load(ctx context.Context) error {
	var blobs, cache, sums, labels map[string][]string // by algorithm
	var parts, trash []string
	g, _ := errgroup.WithContext(ctx)
	tree := func(dst *map[string][]string, dir string) {
		g.Go(func() (err error) {
			*dst, err = readTree(s.path(dir))
			return err
		})
	}
	tree(&blobs, "blobs")
	tree(&cache, "cache")
	tree(&sums, "swarm/sums")
	tree(&labels, "swarm/labels")
	g.Go(func() (err error) {
		if parts, err = readNames(s.path("swarm/partial")); err == nil {
			trash, err = readNames(s.path("swarm/trash"))
		}
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	n := 0
	for _, names := range blobs {
		n += len(names)
	}
	s.index = make(map[digest.Digest]*entry, n+n/8)
	for _, t := range trash {
		s.trash = append(s.trash, s.path("swarm/trash", t))
	}
	for alg, names := range blobs {
		for _, name := range names {
			if d, ok := blobDigest(alg, name); ok {
				s.put(&entry{dgst: d, place: Committed, size: -1})
			}
		}
	}
	for alg, names := range cache {
		for _, name := range names {
			d, ok := blobDigest(alg, name)
			if !ok || s.index[d] != nil {
				s.report(s.toTrash(s.path("cache", alg, name)))
				continue
			}
			e := &entry{dgst: d, place: Cached, size: -1}
			s.put(e)
			s.keep(e)
		}
	}
	for alg, names := range sums {
		for _, name := range names {
			hex, bad := strings.CutSuffix(name, ".bad")
			d, ok := blobDigest(alg, hex)
			e := s.index[d]
			switch {
			case !ok || e == nil:
				s.junk = append(s.junk, s.path("swarm/sums", alg, name))
			case bad:
				e.bad = true
			default:
				e.sums = true
			}
		}
	}
	for alg, names := range labels {
		for _, name := range names {
			d, ok := blobDigest(alg, name)
			if e := s.index[d]; !ok || e == nil || e.place != Committed {
				os.Remove(s.path("swarm/labels", alg, name))
			} else {
				s.labels.known(d)
			}
		}
	}
	s.loadPartials(parts)
	s.unsized = make([]digest.Digest, 0, len(s.index))
	for _, place := range []Presence{Cached, Committed} { // eviction needs those of cache/ first
		for d, e := range s.index {
			if e.place == place {
				s.unsized = append(s.unsized, d)
			}
		}
	}
	return nil
}

func (s *Store) loadPartials(names []string) {
	have := make(map[string]bool, len(names))
	for _, name := range names {
		have[name] = true
	}
	whole := func(id piece.ID) bool {
		e := s.index[digest.Digest(id.Digest())]
		return e != nil && !e.bad
	}
	for _, name := range names {
		base, isData := strings.CutSuffix(name, ".data")
		base, isMap := strings.CutSuffix(base, ".map")
		id, ok := parsePartial(base)
		switch {
		case !ok || !isData && !isMap:
			s.junk = append(s.junk, s.path("swarm/partial", name))
		case isMap:
			if !have[base+".data"] || whole(id) {
				os.Remove(s.path("swarm/partial", name))
			}
		case !have[base+".map"] || whole(id):
			s.report(s.toTrash(s.path("swarm/partial", name)))
		default:
			p := &partial{id: id, bytes: allocated(s.partialPath(id, ".data"))}
			if fi, err := os.Stat(s.path("swarm/partial", base+".map")); err == nil {
				p.used = fi.ModTime()
			}
			s.parts[id] = p
			s.keep(p)
		}
	}
}

// put adds a new entry to the index. s.mu is held.
func (s *Store) put(e *entry) {
	s.index[e.dgst] = e
	if e.place == Committed {
		s.committed++
	}
}

// move notes that e's file is in another place. s.mu is held.
func (s *Store) move(e *entry, to Presence) {
	if s.index[e.dgst] == e && e.place != to {
		if to == Committed {
			s.committed++
		} else {
			s.committed--
		}
	}
	e.place = to
}

func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// readTree returns the names in each subdirectory that an algorithm may have.
func readTree(dir string) (map[string][]string, error) {
	algs, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	t := make(map[string][]string)
	for _, a := range algs {
		if !a.IsDir() || !digest.Algorithm(a.Name()).Available() {
			continue
		}
		if t[a.Name()], err = readNames(filepath.Join(dir, a.Name())); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// blobDigest is digest.NewDigestFromEncoded and Validate without a regular
// expression per blob.
func blobDigest(alg, name string) (digest.Digest, bool) {
	a := digest.Algorithm(alg)
	if !a.Available() || len(name) != 2*a.Size() {
		return "", false
	}
	for _, c := range []byte(name) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", false
		}
	}
	return digest.Digest(alg + ":" + name), true
}

// swarmID returns the ID of a blob, unless it is one that no swarm can carry: an
// empty one, or one of an algorithm without chaining states.
func swarmID(d digest.Digest, size int64) (piece.ID, bool) {
	id, err := piece.ParseID(string(d), size)
	return id, err == nil
}

func (s *Store) blobPath(d digest.Digest, place Presence) string {
	dir := "blobs"
	if place == Cached {
		dir = "cache"
	}
	return s.path(dir, string(d.Algorithm()), d.Encoded())
}

func (s *Store) sumsPath(d digest.Digest) string {
	return s.path("swarm/sums", string(d.Algorithm()), d.Encoded())
}

func (s *Store) partialPath(id piece.ID, ext string) string {
	return s.path("swarm/partial", fmt.Sprintf("%v-%s-%d%s", id.Alg, id.Hex(), id.Size, ext))
}

func parsePartial(base string) (piece.ID, bool) {
	f := strings.Split(base, "-")
	if len(f) != 3 {
		return piece.ID{}, false
	}
	n, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil || strconv.FormatInt(n, 10) != f[2] {
		return piece.ID{}, false
	}
	id, err := piece.ParseID(f[0]+":"+f[1], n)
	return id, err == nil
}

// Close writes the maps of partial blobs, closes every file, Blobs that are
// still open included, and unlocks the directory. Run must have returned.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	open := make(map[*state]struct{})
	for _, e := range s.index {
		if e.open != nil {
			open[e.open] = struct{}{}
		}
	}
	for _, p := range s.parts {
		if p.open != nil {
			open[p.open] = struct{}{}
		}
	}
	s.mu.Unlock()
	var errs []error
	for st := range open {
		<-st.ready
		if st.err == nil {
			errs = append(errs, st.checkpoint(), st.trim())
		}
		st.shut(ErrClosed)
	}
	s.files.purge()
	return errors.Join(append(errs, s.lock.Close())...)
}

// Presence reports how much of id there is, from memory. A complete blob of
// another size is Absent under this one, and one in quarantine does not count.
func (s *Store) Presence(id piece.ID) Presence {
	d := digest.Digest(id.Digest())
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.index[d]; e != nil && !e.bad {
		if e.size >= 0 && e.size != id.Size {
			return Absent
		}
		return e.place
	}
	if s.parts[id] != nil {
		return Partial
	}
	return Absent
}

// Blobs calls fn, until it returns false, with each complete blob that a swarm
// can carry and whose size is known; those in quarantine excepted. Those whose
// size Run has yet to learn are reported through Observer.BlobAdded.
func (s *Store) Blobs(fn func(id piece.ID, p Presence) bool) {
	type blob struct {
		d    digest.Digest
		size int64
		p    Presence
	}
	s.mu.Lock()
	all := make([]blob, 0, len(s.index))
	for d, e := range s.index {
		if e.size >= 0 && !e.bad {
			all = append(all, blob{d, e.size, e.place})
		}
	}
	s.mu.Unlock()
	for _, b := range all {
		if id, ok := swarmID(b.d, b.size); ok && !fn(id, b.p) {
			return
		}
	}
}

// Partials returns the blobs that are not complete.
func (s *Store) Partials() []piece.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]piece.ID, 0, len(s.parts))
	for id := range s.parts {
		ids = append(ids, id)
	}
	return ids
}

// blobAdded and blobGone tell the observer. Not with s.mu held.
func (s *Store) blobAdded(d digest.Digest, size int64) {
	if id, ok := swarmID(d, size); ok && s.cfg.Observer != nil {
		s.cfg.Observer.BlobAdded(id)
	}
}

func (s *Store) blobGone(d digest.Digest, size int64) {
	if id, ok := swarmID(d, size); ok && s.cfg.Observer != nil {
		s.cfg.Observer.BlobGone(id)
	}
}

func (s *Store) report(err error) {
	if err != nil && s.cfg.Report != nil {
		s.cfg.Report(err)
	}
}

// dirSync lets callers that want one directory synced at once share a sync: each
// gets one that began after it asked.
type dirSync struct {
	mu            sync.Mutex
	running, next *syncCall
}

type syncCall struct {
	done chan struct{}
	err  error
}

func (s *Store) syncDir(dir string) error {
	v, ok := s.syncs.Load(dir)
	if !ok {
		v, _ = s.syncs.LoadOrStore(dir, new(dirSync))
	}
	d := v.(*dirSync)
	d.mu.Lock()
	if c := d.next; c != nil {
		d.mu.Unlock()
		<-c.done
		return c.err
	}
	c := &syncCall{done: make(chan struct{})}
	if prev := d.running; prev != nil {
		d.next = c
		d.mu.Unlock()
		<-prev.done
		d.mu.Lock()
		d.next = nil
	}
	d.running = c
	d.mu.Unlock()
	c.err = durable.SyncDir(dir)
	d.mu.Lock()
	if d.running == c {
		d.running = nil
	}
	d.mu.Unlock()
	close(c.done)
	return c.err
}
