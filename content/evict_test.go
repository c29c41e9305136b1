package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/swarm/piece"
)

func TestEvictionByBytes(t *testing.T) {
	root := t.TempDir()
	rec := newRecorder()
	s := openStore(t, Config{Root: root, CacheBytes: 1_000_000, FreeFloor: -1, Observer: rec})
	ids := make([]piece.ID, 4)
	blobs := make([][]byte, 4)
	for i := range ids {
		ids[i], blobs[i] = testBlob(t, piece.SHA256, 300_000, byte(i))
		fetch(t, s, ids[i], blobs[i]).Close()
	}
	mustBlob(t, s, ids[0], false).Close() // used last
	s.sweep(t.Context())
	check := func(what string, want ...Presence) {
		t.Helper()
		for i, w := range want {
			if got := s.Presence(ids[i]); got != w {
				t.Errorf("%s: blob %d is %v, want %v", what, i, got, w)
			}
		}
	}
	check("over the budget", Cached, Absent, Cached, Cached)
	if rec.gone[ids[1]] != 1 || len(rec.gone) != 1 {
		t.Errorf("told gone: %v", rec.gone)
	}
	if got := places(t, root, ids[1]); len(got) != 0 {
		t.Errorf("the evicted blob is in %v", got)
	}
	if _, err := os.Stat(s.sumsPath(digest.Digest(ids[1].Digest()))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its sums: %v", err)
	}

	// What is open stays, and does not count.
	b := mustBlob(t, s, ids[2], false)
	fetch(t, s, ids[1], blobs[1]).Close()
	s.sweep(t.Context())
	check("one is open", Cached, Cached, Cached, Cached)
	b.Close()
	s.sweep(t.Context())
	check("it was closed", Cached, Cached, Cached, Absent)

	// Published ones are containerd's; deleted ones are ours again.
	b = mustBlob(t, s, ids[0], false)
	b.Publish(t.Context())
	b.Close()
	fetch(t, s, ids[3], blobs[3]).Close()
	s.sweep(t.Context())
	check("one is published", Committed, Cached, Cached, Cached)
	s.Delete(t.Context(), digest.Digest(ids[0].Digest()))
	s.sweep(t.Context())
	check("it was deleted", Cached, Absent, Cached, Cached)

	// Partials count as well.
	p, pdata := testBlob(t, piece.SHA256, 500_000, 9)
	pb := mustBlob(t, s, p, true)
	for i := range 7 { // of 8; its bytes count, not its size
		if err := pb.WritePiece(piece.NewClaim(sumsOf(t, p, pdata), i, pieceOf(p, pdata, i))); err != nil {
			t.Fatal(err)
		}
	}
	pb.Close()
	s.writeMaps(true)
	s.sweep(t.Context())
	check("a partial came", Cached, Absent, Absent, Absent)
	if s.Presence(p) != Partial {
		t.Error("the partial, used last, is gone")
	}
	for i := range 3 {
		fetch(t, s, ids[i+1], blobs[i+1]).Close()
	}
	s.sweep(t.Context())
	if got := places(t, root, p); s.Presence(p) != Absent || len(got) != 0 {
		t.Errorf("the partial is %v, in %v", s.Presence(p), got)
	}
	if trash, _ := os.ReadDir(filepath.Join(root, "swarm/trash")); len(trash) != 0 {
		t.Errorf("trash: %v", trash)
	}
}

// A blob that is opened after the eviction has chosen it, and before it is renamed, stays.
func TestOpenedWhileEvicted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, Config{Root: t.TempDir(), FreeFloor: -1})
		id, data := testBlob(t, piece.SHA256, 300_000, 1)
		fetch(t, s, id, data).Close()
		unlock := s.places.Lock(digest.Digest(id.Digest()))
		freed := make(chan int64, 1)
		go func() {
			n, _ := s.evictOne(0)
			freed <- n
		}()
		synctest.Wait() // it has chosen, and waits for the digest
		type opened struct {
			b   *Blob
			err error
		}
		open := make(chan opened, 1)
		go func() {
			b, err := s.Blob(t.Context(), id, false)
			open <- opened{b, err}
		}()
		synctest.Wait() // it is open, but for its file
		unlock()
		o := <-open
		if o.err != nil {
			t.Fatalf("opening: %v", o.err)
		}
		defer o.b.Close()
		if n := <-freed; n != 0 || s.Presence(id) != Cached {
			t.Errorf("freed %d bytes, and the open blob is %v; want none, and %v", n, s.Presence(id), Cached)
		}
	})
}

// After a restart the order is that of the last use as the file system has it.
func TestEvictionOrderAfterRestart(t *testing.T) {
	root := t.TempDir()
	s, err := Open(t.Context(), Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	var ids []piece.ID
	for i := range 5 {
		id, data := testBlob(t, piece.SHA256, 100_000, byte(i))
		fetch(t, s, id, data).Close()
		ids = append(ids, id)
		at := time.Now().Add(time.Duration((i*3)%5-10) * time.Hour) // 0 3 1 4 2
		if err := os.Chtimes(s.blobPath(digest.Digest(id.Digest()), Cached), at, at); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	s = openStore(t, Config{Root: root, CacheBytes: 250_000, FreeFloor: -1})
	s.fill(t.Context())
	s.sweep(t.Context())
	for i, want := range []Presence{Absent, Cached, Absent, Cached, Absent} {
		if got := s.Presence(ids[i]); got != want {
			t.Errorf("blob %d is %v, want %v", i, got, want)
		}
	}
}

func TestNoCache(t *testing.T) {
	root := t.TempDir()
	rec := newRecorder()
	s := openStore(t, Config{Root: root, CacheBytes: -1, FreeFloor: -1, Observer: rec})
	id, data := testBlob(t, piece.SHA256, 300_000, 1)
	b := fetch(t, s, id, data)
	b.Publish(t.Context())
	b.Close()
	if err := s.Delete(t.Context(), digest.Digest(id.Digest())); err != nil {
		t.Fatal(err)
	}
	if got := places(t, root, id); s.Presence(id) != Absent || len(got) != 0 || rec.gone[id] != 1 {
		t.Errorf("%v in %v, gone told %d times", s.Presence(id), got, rec.gone[id])
	}
	// What a pull has just brought, or left unfinished, has its time of grace.
	fetch(t, s, id, data).Close()
	s.sweep(t.Context())
	if s.Presence(id) != Cached {
		t.Error("no grace")
	}
	s.mu.Lock()
	e := s.index[digest.Digest(id.Digest())]
	e.created, e.updated = 0, 0
	s.mu.Unlock()
	s.sweep(t.Context())
	if s.Presence(id) != Absent {
		t.Error("grace without end")
	}
}

func TestFreeFloor(t *testing.T) {
	s := openStore(t, Config{Root: t.TempDir(), FreeFloor: 1}) // never met
	id, data := testBlob(t, piece.SHA256, 300_000, 1)
	b := fetch(t, s, id, data)
	s.sweep(t.Context())
	if s.Presence(id) != Cached {
		t.Error("an open blob was evicted")
	}
	b.Close()
	s.sweep(t.Context())
	if s.Presence(id) != Cached {
		t.Error("a blob used just now was evicted")
	}
	s.mu.Lock()
	e := s.index[digest.Digest(id.Digest())]
	e.created, e.updated = 0, 0
	s.mu.Unlock()
	s.sweep(t.Context())
	if s.Presence(id) != Absent {
		t.Error("the free floor evicts nothing")
	}
}

func TestDrop(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, Config{Root: root})
	id, data := testBlob(t, piece.SHA256, 300_000, 1)
	sums := sumsOf(t, id, data)
	b := mustBlob(t, s, id, true)
	b2 := mustBlob(t, s, id, true)
	b.WritePiece(piece.NewClaim(sums, 0, pieceOf(id, data, 0)))
	b.st.checkpoint()
	changed := b2.Changed()
	if err := b.Drop(); err != nil {
		t.Fatal(err)
	}
	<-changed
	if err := b2.WritePiece(piece.NewClaim(sums, 1, pieceOf(id, data, 1))); !errors.Is(err, ErrDropped) {
		t.Errorf("writing to a dropped blob: %v", err)
	}
	if s.Presence(id) != Absent || len(places(t, root, id)) != 0 {
		t.Errorf("%v in %v", s.Presence(id), places(t, root, id))
	}
	b3 := fetch(t, s, id, data) // a new one, beside the old handles
	if err := errors.Join(b.Close(), b2.Close(), b3.Drop()); err != nil {
		t.Error(err)
	}
	if s.Presence(id) != Cached {
		t.Error("Drop of a complete blob")
	}
	b3.Close()
	// An empty partial leaves nothing.
	other, _ := testBlob(t, piece.SHA256, 300_000, 2)
	mustBlob(t, s, other, true).Close()
	if s.Presence(other) != Absent || len(places(t, root, other)) != 0 {
		t.Errorf("empty: %v in %v", s.Presence(other), places(t, root, other))
	}
}

// smallDisk mounts a tmpfs of that many bytes. Without root it skips.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	err := unix.Mount("capelin-test", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size))
	if err != nil {
		if os.Getuid() != 0 {
			t.Skipf("mounting a tmpfs needs root: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := unix.Unmount(dir, 0)
		if err == nil {
			return
		}
		// containerd's check for fsverity leaves a file open until the next garbage
		// collection; nothing of ours may be.
		fds, _ := filepath.Glob("/proc/self/fd/*")
		for _, fd := range fds {
			if p, _ := os.Readlink(fd); strings.HasPrefix(p, dir) && !strings.Contains(p, ".fsverity-check-") {
				t.Errorf("unmounting: %v: %s is open", err, p)
			}
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	return dir
}

func TestDiskFull(t *testing.T) {
	root := smallDisk(t, 4<<20)
	s := openStore(t, Config{Root: root, FreeFloor: -1})
	ctx := t.Context()
	var ids []piece.ID
	for i := range 3 { // 3 MB of 4 MiB
		id, data := testBlob(t, piece.SHA256, 1_000_000, byte(i))
		b := fetch(t, s, id, data)
		if i == 0 {
			b.Publish(ctx)
		}
		b.Close()
		ids = append(ids, id)
	}
	// Too large whatever is evicted: refused at the first byte, and nothing is
	// evicted for it.
	huge, hugeData := testBlob(t, piece.SHA256, 5_000_000, 8)
	b := mustBlob(t, s, huge, true)
	err := b.WritePiece(piece.NewClaim(sumsOf(t, huge, hugeData), 0, pieceOf(huge, hugeData, 0)))
	if !errors.Is(err, ErrNoSpace) || !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), huge.Hex()) ||
		!strings.Contains(err.Error(), "5000000 bytes to come") {
		t.Errorf("a blob larger than the disk: %v", err)
	}
	b.Close()
	if s.Presence(ids[1]) != Cached || s.Presence(ids[2]) != Cached {
		t.Error("it evicted what could not make room for it")
	}
	// Fits once the cache is gone.
	id, data := testBlob(t, piece.SHA256, 2_500_000, 9)
	sums := sumsOf(t, id, data)
	b = mustBlob(t, s, id, true)
	a, err := b.Append(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Write(data[:1_250_000]); err != nil {
		t.Fatal(err)
	}
	for i := b.Have().NextClear(0); i >= 0; i = b.Have().NextClear(0) {
		if err := b.WritePiece(piece.NewClaim(sums, i, pieceOf(id, data, i))); err != nil {
			t.Fatal(err)
		}
	}
	a.Close()
	if err := errors.Join(b.Complete(ctx), b.Publish(ctx)); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if s.Presence(ids[1]) != Absent || s.Presence(ids[0]) != Committed {
		t.Errorf("cached %v, committed %v", s.Presence(ids[1]), s.Presence(ids[0]))
	}
	if !bytes.Equal(readBlob(t, s, id), data) || len(readBlob(t, s, ids[0])) != 1_000_000 {
		t.Error("reads differ")
	}
	// Now the disk is full of containerd's own: a pull fails, the store lives on,
	// and space comes back.
	next, nextData := testBlob(t, piece.SHA256, 2_000_000, 10)
	nb := mustBlob(t, s, next, true)
	a, _ = nb.Append(t.Context(), 0)
	if _, err := a.Write(nextData); !errors.Is(err, ErrNoSpace) {
		t.Errorf("a full disk: %v", err)
	}
	a.Close()
	s.Delete(ctx, digest.Digest(id.Digest()))
	a, _ = nb.Append(t.Context(), nb.Prefix())
	if _, err := a.Write(nextData[a.Offset():]); err != nil {
		t.Errorf("after a Delete: %v", err)
	}
	if err := a.Finish(ctx); err != nil {
		t.Error(err)
	}
	a.Close()
	nb.Close()
	s.Delete(ctx, digest.Digest(ids[0].Digest()))
	s.makeRoom(ctx, 4<<20)
	free, _, _ := s.Space()
	if free < 4<<20-200_000 {
		t.Errorf("%d bytes free in the end", free)
	}
}

// Run unlinks, evicts and writes maps, and ends with its context.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		s, err := Open(context.Background(), Config{Root: root, CacheBytes: 400_000, FreeFloor: -1, Report: func(err error) { t.Error(err) }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		id, data := testBlob(t, piece.SHA256, 300_000, 1)
		sums := sumsOf(t, id, data)
		b := mustBlob(t, s, id, true)
		b.WritePiece(piece.NewClaim(sums, 1, pieceOf(id, data, 1)))
		time.Sleep(2 * checkpointEvery)
		r, err := readRecord(s.partialPath(id, ".map"), kindMap, id)
		if err != nil || !r.have.Has(1) || r.have.Count() != 1 {
			t.Errorf("no map: %v", err)
		}
		b.WritePiece(piece.NewClaim(sums, 2, pieceOf(id, data, 2)))
		b.Close()
		synctest.Wait()
		r, err = readRecord(s.partialPath(id, ".map"), kindMap, id)
		if err != nil || r.have.Count() != 2 {
			t.Errorf("no map after Close: %v", err)
		}
		var ids []piece.ID
		for i := range 3 {
			id, data := testBlob(t, piece.SHA256, 200_000, byte(i+5))
			ids = append(ids, id)
			fetch(t, s, id, data).Close()
		}
		synctest.Wait()
		if s.Presence(id) != Absent || s.Presence(ids[0]) != Absent || s.Presence(ids[2]) != Cached {
			t.Errorf("%v %v %v", s.Presence(id), s.Presence(ids[0]), s.Presence(ids[2]))
		}
		if trash, _ := os.ReadDir(filepath.Join(root, "swarm/trash")); len(trash) != 0 {
			t.Errorf("trash: %v", trash)
		}
		cancel()
		if err := errors.Join(<-done, s.Close()); err != nil {
			t.Error(err)
		}
	})
}

// A partial that nobody uses takes the space of its pieces only.
func TestIdleSpaceComesBack(t *testing.T) {
	root := smallDisk(t, 16<<20)
	s := openStore(t, Config{Root: root, FreeFloor: -1})
	s.memory = false // as on a disk
	id, data := testBlob(t, piece.SHA256, 10<<20, 1)
	sums := sumsOf(t, id, data)
	b := mustBlob(t, s, id, true)
	for _, i := range []int{3, 70} {
		if err := b.WritePiece(piece.NewClaim(sums, i, pieceOf(id, data, i))); err != nil {
			t.Fatal(err)
		}
	}
	if n := allocated(s.partialPath(id, ".data")); n < 10<<20 {
		t.Errorf("%d bytes are allocated while it arrives", n)
	}
	b.Close()
	s.writeMaps(true)
	if n := allocated(s.partialPath(id, ".data")); n != 2*id.Length() {
		t.Errorf("%d bytes are allocated while it is idle", n)
	}
	if u := s.Usage(); u != (Usage{Partial: 1, CacheBytes: 2 * id.Length()}) {
		t.Errorf("usage %+v", u)
	}
	b = mustBlob(t, s, id, false)
	checkHave(t, b, data, []int{3, 70})
	b.Close()
}

// An observer may call the Store.
func TestObserverMayCall(t *testing.T) {
	o := &caller{}
	s := openStore(t, Config{Root: t.TempDir(), CacheBytes: -1, Observer: o})
	o.s = s
	id, data := testBlob(t, piece.SHA256, 100_000, 1)
	b := mustBlob(t, s, id, true)
	a, err := b.Append(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.Finish(t.Context()), b.Publish(t.Context()), a.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	d := digest.Digest(id.Digest())
	os.Remove(s.blobPath(d, Committed)) // behind our back
	if _, err := s.ReaderAt(t.Context(), descriptor(id)); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	fetch(t, s, id, data).Close()
	os.Remove(s.blobPath(d, Cached))
	if _, err := s.Info(t.Context(), d); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	b = fetch(t, s, id, data)
	b.Publish(t.Context())
	b.Close()
	if err := s.Delete(t.Context(), d); err != nil {
		t.Error(err)
	}
	if o.n != 8 {
		t.Errorf("called %d times", o.n)
	}
}

type caller struct {
	s *Store
	n int
}

func (c *caller) call(id piece.ID) {
	c.n++
	c.s.Presence(id)
	if b, err := c.s.Blob(context.Background(), id, false); err == nil {
		b.Prefix()
		b.Close()
	}
	c.s.Delete(context.Background(), digest.FromString("another"))
}

func (c *caller) PiecesAdded(id piece.ID, from, to int, states []byte) { c.call(id) }
func (c *caller) BlobAdded(id piece.ID)                                { c.call(id) }
func (c *caller) BlobGone(id piece.ID)                                 { c.call(id) }

func TestDropCached(t *testing.T) {
	root := t.TempDir()
	rec := newRecorder()
	s := openStore(t, Config{Root: root, Observer: rec})
	cached, data := testBlob(t, piece.SHA256, 300_000, 1)
	open := fetch(t, s, cached, data)
	committed, data2 := testBlob(t, piece.SHA256, 300_000, 2)
	b := fetch(t, s, committed, data2)
	if err := errors.Join(b.Publish(t.Context()), b.Close()); err != nil {
		t.Fatal(err)
	}
	other := cached
	other.Size++
	for _, id := range []piece.ID{committed, other, {Alg: piece.SHA256, Size: 5}} {
		if err := s.DropCached(id); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	if s.Presence(cached) != Cached || s.Presence(committed) != Committed || len(rec.gone) != 0 {
		t.Errorf("%v and %v, gone: %v", s.Presence(cached), s.Presence(committed), rec.gone)
	}
	if err := s.DropCached(cached); err != nil {
		t.Fatal(err)
	}
	if got := places(t, root, cached); s.Presence(cached) != Absent || len(got) != 0 || rec.gone[cached] != 1 {
		t.Errorf("%v in %v, gone told %d times", s.Presence(cached), got, rec.gone[cached])
	}
	p := make([]byte, 100)
	if n, err := open.ReadAt(p, 0); n != 100 || !bytes.Equal(p, data[:100]) {
		t.Errorf("who had it open reads %d bytes, %v", n, err)
	}
	fetch(t, s, cached, data).Close() // it can come again, beside the old handle
	open.Close()
	if s.Presence(cached) != Cached {
		t.Errorf("%v", s.Presence(cached))
	}
	s.sweep(t.Context())
	if trash, _ := os.ReadDir(filepath.Join(root, "swarm/trash")); len(trash) != 0 {
		t.Errorf("trash: %v", trash)
	}
}

// borrower is a seeder of a test: it has blobs open, and closes them when it is asked to.
type borrower struct {
	t     *testing.T
	s     *Store
	open  map[piece.ID]*Blob
	asked []int64 // for so many bytes
}

func borrow(t *testing.T, cfg Config) *borrower {
	l := &borrower{t: t, open: map[piece.ID]*Blob{}}
	cfg.Unlend = func(_ context.Context, ids []piece.ID, need int64) {
		l.asked = append(l.asked, need)
		for _, id := range ids {
			if b := l.open[id]; b != nil && need > 0 {
				delete(l.open, id)
				b.Close()
				need -= id.Size
			}
		}
	}
	l.s = openStore(t, cfg)
	return l
}

// lend has a cached blob of that size open.
func (l *borrower) lend(size int, seed byte) (piece.ID, []byte) {
	l.t.Helper()
	id, data := testBlob(l.t, piece.SHA256, size, seed)
	fetch(l.t, l.s, id, data).Close()
	b, err := l.s.Lend(l.t.Context(), id, false)
	if err != nil {
		l.t.Fatal(err)
	}
	l.open[id] = b
	return id, data
}

// What is open only to be seeded counts for the cache, and is closed and evicted when more
// is kept than may be: not more than that, and not what somebody needs.
func TestLentBlobsKeepToTheBudget(t *testing.T) {
	l := borrow(t, Config{Root: t.TempDir(), CacheBytes: 700_000, FreeFloor: -1})
	var ids []piece.ID
	for i := range 3 {
		id, _ := l.lend(300_000, byte(i))
		ids = append(ids, id)
	}
	if u := l.s.Usage(); u.CacheBytes != 900_000 {
		t.Errorf("%d bytes count", u.CacheBytes)
	}
	needed := mustBlob(t, l.s, ids[0], false)
	l.s.sweep(t.Context())
	if u := l.s.Usage(); u.CacheBytes != 600_000 || u.Cached != 3 || l.asked != nil {
		t.Errorf("while somebody needs the first: %+v, asked for %v", u, l.asked)
	}
	needed.Close()
	select {
	case <-l.s.kick:
	default:
		t.Error("Run does not look at once")
	}
	l.s.sweep(t.Context())
	for i, want := range []Presence{Cached, Absent, Cached} { // the first was used last
		if got := l.s.Presence(ids[i]); got != want {
			t.Errorf("blob %d is %v, want %v", i, got, want)
		}
	}
	if len(l.asked) != 1 || l.asked[0] != 200_000 || len(l.open) != 2 {
		t.Errorf("asked for %v, and %d are open", l.asked, len(l.open))
	}
	l.s.Info(t.Context(), digest.Digest(ids[0].Digest())) // it is containerd's
	if u := l.s.Usage(); u.CacheBytes != 300_000 {
		t.Errorf("%d bytes count, of which containerd has some", u.CacheBytes)
	}
	l.s.Delete(t.Context(), digest.Digest(ids[0].Digest()))
	if u := l.s.Usage(); u.CacheBytes != 600_000 {
		t.Errorf("%d bytes count when containerd has deleted it", u.CacheBytes)
	}
}

// When the disk is full what is lent is closed and evicted: before a blob is refused, and
// while one is written. For the free floor, what has just come stays.
func TestLentBlobsMakeRoom(t *testing.T) {
	l := borrow(t, Config{Root: smallDisk(t, 4<<20), FreeFloor: -1})
	fill := func(seed byte) {
		t.Helper()
		for i := range byte(3) {
			l.lend(1_000_000, seed+i)
		}
	}
	fill(10)
	if freed := l.s.evict(t.Context(), 1, forFloor); freed != 0 || l.asked != nil {
		t.Errorf("for the floor %d bytes were freed, and %d times something was closed", freed, len(l.asked))
	}
	id, data := testBlob(t, piece.SHA256, 2_500_000, 9)
	fetch(t, l.s, id, data).Close()
	l.s.makeRoom(t.Context(), 4<<20)
	l.asked = nil
	fill(20)
	for id, b := range l.open {
		b.Close()
		delete(l.open, id)
		break
	}
	if freed := l.s.makeRoom(t.Context(), 1_500_000); freed != 2_000_000 || len(l.asked) != 1 || l.asked[0] != 500_000 {
		t.Errorf("freed %d bytes, asked for %v; want the one that was closed, and another", freed, l.asked)
	}
}

// Below the free floor what containerd deletes is gone when Delete answers, and what it
// deleted before: without Run, and although it is being seeded. What was fetched ahead stays.
func TestDeleteBelowTheFloor(t *testing.T) {
	root := t.TempDir()
	rec := newRecorder()
	l := borrow(t, Config{Root: root, FreeFloor: -1, Observer: rec})
	var ids []piece.ID
	for i := range 4 {
		id, _ := l.lend(300_000, byte(i))
		ids = append(ids, id)
	}
	ahead := ids[3]
	for _, id := range ids[:3] {
		if _, err := l.s.Info(t.Context(), digest.Digest(id.Digest())); err != nil {
			t.Fatal(err)
		}
	}
	check := func(what string, want ...Presence) {
		t.Helper()
		for i, w := range want {
			if got := l.s.Presence(ids[i]); got != w {
				t.Errorf("%s: blob %d is %v, want %v", what, i, got, w)
			}
			if w == Absent && (len(places(t, root, ids[i])) != 0 || rec.gone[ids[i]] != 1 || l.open[ids[i]] != nil) {
				t.Errorf("%s: blob %d is in %v, told gone %d times", what, i, places(t, root, ids[i]), rec.gone[ids[i]])
			}
		}
	}
	del := func(id piece.ID) {
		t.Helper()
		if err := l.s.Delete(t.Context(), digest.Digest(id.Digest())); err != nil {
			t.Fatal(err)
		}
	}
	del(ids[0])
	check("above the floor", Cached, Committed, Committed, Cached)
	l.s.cfg.FreeFloor = 1 // never met
	del(ids[1])
	check("below the floor", Absent, Absent, Committed, Cached)
	if trash, _ := os.ReadDir(filepath.Join(root, "swarm/trash")); len(trash) != 0 {
		t.Errorf("trash: %v", trash)
	}
	del(ids[2])
	check("another", Absent, Absent, Absent, Cached)
	l.s.Info(t.Context(), digest.Digest(ahead.Digest()))
	l.s.cfg.FreeFloor = -1
	del(ahead)
	l.s.cfg.FreeFloor = 1
	l.s.sweep(t.Context())
	check("the floor is looked at", Absent, Absent, Absent, Absent)
}

// A part whose map was not written yet makes room: on a full disk it could not be.
func TestUnsavedPartMakesRoom(t *testing.T) {
	root := smallDisk(t, 16<<20)
	s := openStore(t, Config{Root: root, FreeFloor: -1})
	s.memory = false // as on a disk: all of its space is reserved
	id, data := testBlob(t, piece.SHA256, 10<<20, 1)
	b := mustBlob(t, s, id, true)
	part := func() {
		t.Helper()
		if err := b.WritePiece(piece.NewClaim(sumsOf(t, id, data), 3, pieceOf(id, data, 3))); err != nil {
			t.Fatal(err)
		}
	}
	part()
	if freed := s.makeRoom(t.Context(), 1); freed != 0 {
		t.Errorf("%d bytes were freed of a part that is open", freed)
	}
	b.Close()
	s.mu.Lock()
	st := s.parts[id].open
	s.mu.Unlock()
	st.ck <- struct{}{} // its map is being written
	if freed := s.makeRoom(t.Context(), 1); freed != 0 {
		t.Errorf("%d bytes were freed of a part whose map is being written", freed)
	}
	<-st.ck
	if freed := s.makeRoom(t.Context(), 1); freed < 10<<20 || s.Presence(id) != Absent || len(places(t, root, id)) != 0 {
		t.Errorf("%d bytes were freed, the part is %v, in %v", freed, s.Presence(id), places(t, root, id))
	}
	s.writeMaps(true)
	if got := places(t, root, id); len(got) != 0 {
		t.Errorf("it is back, in %v", got)
	}
	b = mustBlob(t, s, id, true) // anew
	part()
	b.Close()
	b = mustBlob(t, s, id, false) // in use again
	if freed := s.makeRoom(t.Context(), 1); freed != 0 {
		t.Errorf("%d bytes were freed of a part that is open again", freed)
	}
	b.Close()
}

// crowd is a full disk, most of which one blob has that is open.
type crowd struct {
	*testing.T
	s      *Store
	other  *Blob
	gaveUp int // how often others were asked to give something up
	seed   byte
}

func crowded(t *testing.T) *crowd {
	c := &crowd{T: t}
	c.s = openStore(t, Config{Root: smallDisk(t, 4<<20), FreeFloor: -1, GiveUp: func(context.Context) { c.gaveUp++ }})
	id, data := testBlob(t, piece.SHA256, 3_500_000, 1)
	c.other = mustBlob(t, c.s, id, true)
	sums := sumsOf(t, id, data)
	for i := range id.Pieces() - 1 {
		must(t, c.other.WritePiece(piece.NewClaim(sums, i, pieceOf(id, data, i))))
	}
	return c
}

// blob returns a new one for which there is no room beside the other.
func (c *crowd) blob() (*Blob, []byte) {
	c.seed++
	id, data := testBlob(c.T, piece.SHA256, 1_000_000, c.seed+1)
	return mustBlob(c.T, c.s, id, true), data
}

func (c *crowd) write(b *Blob, data []byte) error { return c.piece(b, data, 0) }

func (c *crowd) piece(b *Blob, data []byte, i int) error {
	return b.WritePiece(piece.NewClaim(sumsOf(c.T, b.ID(), data), i, pieceOf(b.ID(), data, i)))
}

// fill leaves nothing free.
func (c *crowd) fill() {
	c.Helper()
	file := filepath.Join(c.s.Root(), "pods")
	if err := os.WriteFile(file, make([]byte, 4<<20), 0o600); !isNoSpace(err) {
		c.Fatal(err)
	}
	c.Cleanup(func() { os.Remove(file) }) // before the store is closed, which writes maps
}

// unpack is what others write.
func (c *crowd) unpack() error {
	file := filepath.Join(c.s.Root(), "unpacked")
	return c.s.WithRoom(c.Context(), 1<<20, func() error { return os.WriteFile(file, make([]byte, 1_000_000), 0o600) })
}

// takes checks that f fails for want of room after so long, or does not fail then.
func (c *crowd) takes(what string, want time.Duration, fails bool, f func() error) {
	c.Helper()
	before := time.Now()
	err := f()
	if errors.Is(err, ErrNoSpace) != fails || !fails && err != nil {
		c.Errorf("%s: %v", what, err)
	}
	if took := time.Since(before); took < want || took > want+2*lookAgain {
		c.Errorf("%s: that took %v, want %v", what, took, want)
	}
}

// A pull that failed for want of space a moment ago has its other blobs open still: the
// next one waits for them, and for what others are asked to give up, but not for ever.
func TestFullDiskIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := crowded(t)
		b, data := c.blob()
		defer b.Close()
		c.takes("while the other is open", patience, true, func() error { return c.write(b, data) })
		if c.gaveUp == 0 {
			t.Error("nobody was asked to give something up")
		}
		c.takes("the same blob again", 0, true, func() error { return c.write(b, data) })
		b, data = c.blob()
		defer b.Close()
		time.AfterFunc(patience/2, func() { c.other.Drop(); c.other.Close() })
		c.takes("when the other was dropped", patience/2, false, func() error { return c.write(b, data) })
		c.fill()
		c.takes("there was room in between", patience, true, func() error { return c.piece(b, data, 1) })
	})
}

// Of what is being given up the space is sure to come: it is waited for until whoever has the
// blob open still has closed it, though its file be unlinked before.
func TestGivenUpIsWaitedFor(t *testing.T) {
	for name, giveUp := range map[string]func(*Blob){
		"given up": (*Blob).GiveUp,
		"dropped":  func(b *Blob) { b.Drop() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := crowded(t)
				defer c.other.Close()
				giveUp(c.other)
				b, data := c.blob()
				defer b.Close()
				c.takes("while it is open", endsWithin, true, func() error { return c.write(b, data) })
				b, data = c.blob()
				defer b.Close()
				time.AfterFunc(3*patience, func() { c.other.Close() })
				c.takes("when it was closed", 3*patience, false, func() error { return c.write(b, data) })
			})
		})
	}
}

// Everybody who finds the disk full waits for what others give up: who unpacks, and
// containerd's own writers.
func TestAllWaitForRoom(t *testing.T) {
	for name, do := range map[string]func(*crowd) error{
		"others": (*crowd).unpack,
		"a writer is opened": func(c *crowd) error {
			w, err := c.s.Writer(c.Context(), ctrdcontent.WithRef("r"))
			if err == nil {
				err = w.Close()
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := crowded(t)
				c.fill()
				time.AfterFunc(patience/2, func() { c.other.Drop(); c.other.Close() })
				c.takes(name, patience/2, false, func() error { return do(c) })
			})
		})
	}
}

// Who waits for room for a blob that nobody wants any more ends at once, so that the blob can
// be closed, and its own space given to others; and so does a session whose client has gone.
func TestNobodyWaitsForWhatIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := crowded(t)
		defer c.other.Close()
		b, data := c.blob()
		defer b.Close()
		time.AfterFunc(patience/10, b.GiveUp)
		c.takes("it is given up", patience/10, true, func() error { return c.write(b, data) })
		again := mustBlob(t, c.s, b.ID(), false)
		again.Close()
		b.st.full = time.Time{} // as if there had been room meanwhile
		c.takes("it is opened again", patience, true, func() error { return c.write(b, data) })

		b, data = c.blob()
		defer b.Close()
		ctx, cancel := context.WithTimeout(t.Context(), patience/10)
		defer cancel()
		a, err := b.Append(ctx, 0)
		must(t, err)
		defer a.Close()
		c.takes("the client has gone", patience/10, true, func() error {
			_, err := a.Write(data)
			return err
		})
		a, err = b.Append(t.Context(), 0)
		must(t, err)
		defer a.Close()
		b.st.full = time.Time{}
		time.AfterFunc(patience/10, b.GiveUp)
		c.takes("the blob that a client writes is given up", patience/10, true, func() error {
			_, err := a.Write(data)
			return err
		})

		id, data := testBlob(t, piece.SHA256, 300_000, 99)
		b = mustBlob(t, c.s, id, true)
		defer b.Close()
		must(t, c.write(b, data)) // there is room for all of it, and then there is not
		c.fill()
		time.AfterFunc(patience/10, b.GiveUp)
		c.takes("it is given up with some of it here", patience/10, true, func() error { return c.piece(b, data, 1) })
	})
}

// What somebody else evicts is in no list for a moment, and its space comes.
func TestEvictionIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &crowd{T: t, s: openStore(t, Config{Root: smallDisk(t, 4<<20), FreeFloor: -1})}
		id, data := testBlob(t, piece.SHA256, 3_500_000, 1)
		fetch(t, c.s, id, data).Close()
		unlock := c.s.places.Lock(digest.Digest(id.Digest()))
		evicted := make(chan struct{})
		go func() {
			defer close(evicted)
			c.s.makeRoom(t.Context(), 1)
		}()
		synctest.Wait() // it has chosen, and waits for the digest
		time.AfterFunc(2*patience, unlock)
		c.takes("meanwhile", 2*patience, false, c.unpack)
		<-evicted
	})
}

// A part for whose map there is no room, and that nobody uses, is given up: its map could
// not be written again and again, while it took the room.
func TestNoRoomForTheMap(t *testing.T) {
	root := smallDisk(t, 4<<20)
	s := openStore(t, Config{Root: root, FreeFloor: -1})
	id, data := testBlob(t, piece.SHA256, 1_000_000, 1)
	b := mustBlob(t, s, id, true)
	if err := b.WritePiece(piece.NewClaim(sumsOf(t, id, data), 3, pieceOf(id, data, 3))); err != nil {
		t.Fatal(err)
	}
	fill := filepath.Join(root, "fill")
	if err := os.WriteFile(fill, make([]byte, 8<<20), 0o600); !isNoSpace(err) {
		t.Fatal(err)
	}
	s.writeMaps(true)
	if s.Presence(id) != Partial {
		t.Error("it was given up although it is in use")
	}
	b.Close()
	s.writeMaps(true)
	s.sweep(t.Context())
	if got := places(t, root, id); s.Presence(id) != Absent || len(got) != 0 || len(s.dirty) != 0 {
		t.Errorf("%v, in %v, and %d maps are due", s.Presence(id), got, len(s.dirty))
	}
}
