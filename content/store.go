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
	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/durable/disk"
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
	// threshold at which kubelet collects images (0.15 by default). What came in the
	// last 2 minutes, and containerd has not deleted since, goes only when the disk is
	// full. What containerd deletes below the floor is unlinked before Delete answers.
	// 0: DefaultFreeFloor. Negative: none.
	FreeFloor float64

	// Unlend, if not nil, closes those of ids that it has open from [Store.Lend], need
	// bytes of them or all that there are, and returns when they are closed, or ctx is
	// done. It is called without locks held, by whoever needs the room.
	Unlend func(ctx context.Context, ids []piece.ID, need int64)

	// GiveUp, if not nil, is called when the disk is full and nothing is left to evict:
	// whoever has blobs open that nobody waits for closes them, and returns then. It is
	// called like Unlend.
	GiveUp func(ctx context.Context)

	// Wrong, if not nil, is told of each piece of a blob of blobs/ that is found to be wrong, by whoever reads it
	// again. The piece does not count any more, and whoever is told sees to it that Blob.Heal replaces it, while
	// the others go on to count; so it is after a restart (Store.Wrong). It must not block, or use the blob. Nil:
	// such a blob is quarantined, since containerd, which reads it, knows no pieces.
	Wrong func(id piece.ID, i int)

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

	// Pinned is Committed in the words of a store that no containerd uses.
	Pinned = Committed
)

func (p Presence) String() string {
	return [...]string{"absent", "partial", "cached", "committed"}[p]
}

// Store is the content directory of one node. See the package comment.
//
// # Locks
//
// They are taken in this order, each only while those before it are held or free:
//
//	state.op      one Complete or ComputeSums of a blob
//	state.ck      one replacement of its map, or of its data file
//	state.drain   waits until no piece of it is being written, and keeps new ones off
//	places        a digest: its files are renamed, opened, or removed
//	labels.wmu    a labels file is replaced
//	Store.mu      the index, entries and partials
//	state.mu      what a blob has
//
// The first five are held over I/O, the last two never, and fileCache.mu, ingests.mu
// and labels.mu are taken last and alone. A claim of a piece (state.claims) is held while
// the piece is hashed and written, and nothing is waited for meanwhile but room on a full
// disk.
type Store struct {
	cfg    Config
	lock   *os.File
	stock  ctrdcontent.Store // containerd's own, for sequential writers
	labels *labelStore
	places keylock.Locks[digest.Digest] // held while a digest's files are renamed or opened
	files  fileCache
	syncs  sync.Map      // directory → *dirSync
	dirs   *durable.Dirs // makes directories, all that there are
	memory bool          // the root is on a tmpfs

	refs ingests

	trashSeq  atomic.Uint64
	unlinking chan struct{} // holds a token while the trash is being emptied
	unlinked  atomic.Uint64 // things that were in the trash
	kick      chan struct{} // to Run: something is to be unlinked or evicted
	ckick     chan struct{} // to Run: a partial wants a checkpoint now

	// mu guards what follows, and the fields of entries and partials. It is held
	// for map operations only, never over I/O or callbacks. A state's mutex is
	// never held when taking it.
	mu        sync.Mutex
	closed    bool
	index     map[digest.Digest]*entry
	committed int // entries of index that are Committed
	parts     map[piece.ID]*partial
	evictable list.List // of *entry and *partial, least recently used first
	lent      list.List // of *entry that only borrowers have open, in the order in which that began
	kept      int64     // bytes in evictable and lent
	dirty     map[*state]struct{}
	dropped   map[*state]struct{} // partials that are gone, and still open
	evicting  int                 // things that are neither in evictable any more nor in trash yet
	trash     []string            // paths to unlink
	junk      []string            // small files that are of no more use; unlinked like trash
	unsized   []digest.Digest
}

// entry is a complete blob. Times are Unix nanoseconds.
type entry struct {
	dgst     digest.Digest
	place    Presence      // Cached or Committed
	sums     bool          // there is a sums file, or was none to write: its one piece was verified
	bad      bool          // quarantined
	wrong    []int         // pieces that were found wrong; never changed in place
	unsynced bool          // its name in blobs/ may not survive a power cut
	spent    bool          // containerd had it, and has deleted it
	size     int64         // -1: not known yet
	created  int64         // modification time
	updated  int64         // access time, as containerd's stock store has it
	open     *state        // not nil while somebody has it open
	el       *list.Element // in evictable or lent
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

// dirMode is the mode of directories.
const dirMode = 0o700

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
		dirs:  durable.NewDirs(cfg.Root, dirMode),
		kick:  make(chan struct{}, 1),
		ckick: make(chan struct{}, 1), unlinking: make(chan struct{}, 1),
		index: make(map[digest.Digest]*entry),
		parts: make(map[piece.ID]*partial),
		dirty: make(map[*state]struct{}), dropped: make(map[*state]struct{}),
	}
	if err := durable.MkdirAll(cfg.Root, dirMode); err != nil {
		return nil, err
	}
	for _, d := range []string{
		"blobs", "blobs/sha256", "ingest", "cache", "cache/sha256", "cache/sha512",
		"swarm", "swarm/partial", "swarm/trash", "swarm/sums", "swarm/sums/sha256", "swarm/sums/sha512", "swarm/labels",
	} {
		if err := s.dirs.Make(s.path(d)); err != nil {
			return nil, err
		}
	}
	s.memory = inMemory(cfg.Root)
	if err := s.oneFileSystem(); err != nil {
		return nil, err
	}
	if s.lock, err = acquire(cfg.Root); err != nil {
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
	s.labels = newLabelStore(s.path("swarm/labels"), s.dirs)
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

// Root returns the directory that the store was opened in.
func (s *Store) Root() string { return s.cfg.Root }

// Lock keeps others from opening a content directory until unlock is called, for whoever looks at it without opening it. If it
// is open the error is [ErrLocked].
func Lock(root string) (unlock func() error, err error) {
	f, err := acquire(root)
	if err != nil {
		return nil, err
	}
	return f.Close, nil
}

func acquire(root string) (*os.File, error) {
	p := filepath.Join(root, "swarm/lock")
	f, err := disk.OpenFile(p, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		b := make([]byte, 32)
		n, _ := f.ReadAt(b, 0)
		f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking %s: %w", p, err)
		}
		return nil, fmt.Errorf("%s is locked by process %s: stop that agent, or give this one another content root: %w",
			p, strings.TrimSpace(string(b[:n])), ErrLocked)
	}
	// For whoever is refused, see above. The lock holds without it.
	_ = f.Truncate(0)
	_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return f, nil
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
