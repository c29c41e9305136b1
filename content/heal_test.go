package content

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"unsafe"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/swarm/piece"
)

// sick is a store with a pinned blob of 11 pieces, of which a test spoils some.
type sick struct {
	t     *testing.T
	s     *Store
	rec   *recorder
	id    piece.ID
	data  []byte
	sums  *piece.Sums
	found []int
}

func newSick(t *testing.T) *sick {
	k := &sick{t: t, rec: newRecorder()}
	k.id, k.data = testBlob(t, piece.SHA256, 700_000, 1)
	k.sums = sumsOf(t, k.id, k.data)
	k.open(t.TempDir())
	k.bring()
	return k
}

func (k *sick) open(root string) {
	s, err := Open(k.t.Context(), Config{Root: root, FreeFloor: -1, Observer: k.rec, Wrong: func(id piece.ID, i int) {
		if id != k.id {
			k.t.Errorf("told of %v", id)
		}
		k.found = append(k.found, i)
	}})
	must(k.t, err)
	k.s = s
	k.t.Cleanup(func() { s.Close() })
}

// bring imports the blob.
func (k *sick) bring() {
	path := filepath.Join(k.s.Root(), "upload")
	must(k.t, os.WriteFile(path, k.data, 0o600))
	must(k.t, k.s.Import(k.t.Context(), path, k.sums))
}

// spoil changes a byte of each piece.
func (k *sick) spoil(pieces ...int) {
	path := k.s.blobPath(digest.Digest(k.id.Digest()), Committed)
	must(k.t, os.Chmod(path, 0o600))
	for _, i := range pieces {
		at := k.id.Offset(i) + 5
		overwrite(k.t, path, []byte{k.data[at] ^ 1}, at)
	}
	must(k.t, os.Chmod(path, 0o444))
}

func (k *sick) blob() *Blob {
	b := mustBlob(k.t, k.s, k.id, false)
	k.t.Cleanup(func() { b.Close() })
	return b
}

func (k *sick) claim(i int) *piece.Claim {
	return piece.NewClaim(k.sums, i, pieceOf(k.id, k.data, i))
}

// wrong checks which pieces do not count, and that all others are right.
func (k *sick) wrong(when string, b *Blob, want ...int) {
	k.t.Helper()
	var got []int
	for i, have := 0, b.Have(); i < k.id.Pieces(); i++ {
		if !have.Has(i) {
			got = append(got, i)
		}
	}
	if known := k.s.WrongOf(k.id); !slices.Equal(got, want) || !slices.Equal(known, want) || !slices.Equal(k.s.Wrong()[k.id], want) {
		k.t.Errorf("%s: pieces %v do not count, %v are known to be wrong, want %v", when, got, known, want)
	}
	checkTrue(k.t, b, k.data)
	if k.s.Presence(k.id) != Pinned || !b.Completed() {
		k.t.Errorf("%s: the blob is %v, complete %t", when, k.s.Presence(k.id), b.Completed())
	}
	mark := k.s.sumsPath(digest.Digest(k.id.Digest())) + ".bad"
	if _, err := os.Stat(mark); (err == nil) != (len(want) > 0) {
		k.t.Errorf("%s: the mark: %v", when, err)
	}
}

// Pieces that are found wrong do not count, the others do, over restarts, until the right bytes are written.
func TestHeal(t *testing.T) {
	k := newSick(t)
	k.spoil(3, 9)
	b := k.blob()
	if err := b.Recheck(2); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := b.Recheck(9); !errors.Is(err, piece.ErrMismatch) && !errors.Is(err, ErrIncomplete) {
			t.Errorf("Recheck says %v", err)
		}
	}
	sc, err := b.Scan()
	must(t, err)
	read := 0
	for i := range k.id.Pieces() {
		n, err := sc.Check(i)
		if errors.Is(err, piece.ErrMismatch) != (i == 3) || i != 3 && err != nil {
			t.Errorf("scanning piece %d: %v", i, err)
		}
		read += n
	}
	must(t, sc.Close())
	if want := int(k.id.Size) - k.id.PieceSize(9); read != want {
		t.Errorf("%d bytes were scanned, want %d", read, want)
	}
	k.wrong("found out", b, 3, 9)
	if !slices.Equal(k.found, []int{9, 3}) || len(k.rec.gone) > 0 {
		t.Errorf("told of %v, gone %v", k.found, k.rec.gone)
	}
	if n := b.Readable(10, 1<<20); n != k.id.Offset(3)-10 {
		t.Errorf("%d bytes can be read", n)
	}
	if n := b.Readable(k.id.Offset(3)+10, 1000); n != 0 {
		t.Errorf("%d bytes of a wrong piece can be read", n)
	}
	if n := b.Readable(k.id.Offset(10), 1<<20); n != k.id.Size-k.id.Offset(10) {
		t.Errorf("%d bytes can be read of the end", n)
	}
	if _, err := b.ReadAt(make([]byte, 10), k.id.Offset(3)); !errors.Is(err, ErrIncomplete) {
		t.Errorf("reading it: %v", err)
	}

	root := k.s.Root()
	must(t, k.s.Close())
	k.open(root)
	b = k.blob()
	k.wrong("after a restart", b, 3, 9)

	bad := pieceOf(k.id, flip(k.data, int(k.id.Offset(3))), 3)
	if err := b.Heal(piece.NewClaim(k.sums, 3, bad)); !errors.Is(err, piece.ErrMismatch) {
		t.Errorf("wrong bytes: %v", err)
	}
	other := flip(k.data, int(k.id.Offset(3)))
	lie := piece.NewClaim(sumsFor(k.id, sumsOf(t, mustID(t, other), other)), 3, bad)
	if err := b.Heal(lie); !errors.Is(err, piece.ErrMismatch) {
		t.Errorf("sums of something else: %v", err)
	}
	if err := b.Mend(3); !errors.Is(err, piece.ErrMismatch) {
		t.Errorf("Mend says %v", err)
	}
	k.wrong("after wrong bytes", b, 3, 9)
	must(t, b.Heal(k.claim(3)))
	k.wrong("one is healed", b, 9)
	k.spoilRight(9)
	must(t, b.Mend(9))
	must(t, b.Heal(k.claim(9)))
	must(t, b.Heal(k.claim(5)))
	k.wrong("all are healed", b)
	if fi, err := os.Stat(k.s.blobPath(digest.Digest(k.id.Digest()), Committed)); err != nil || fi.Mode().Perm() != 0o444 {
		t.Errorf("the file is %v, %v", fi, err)
	}
	got := k.rec.pieces[k.id]
	if got.Count() != 2 || !got.Has(3) || !got.Has(9) ||
		!bytes.Equal(k.rec.states[k.id], slices.Concat(k.sums.Range(3, 1), k.sums.Range(9, 1))) {
		t.Errorf("%d pieces were offered again", got.Count())
	}
}

// spoilRight puts the right bytes of a piece back, behind the store's back.
func (k *sick) spoilRight(i int) {
	path := k.s.blobPath(digest.Digest(k.id.Digest()), Committed)
	must(k.t, os.Chmod(path, 0o600))
	overwrite(k.t, path, pieceOf(k.id, k.data, i), k.id.Offset(i))
	must(k.t, os.Chmod(path, 0o444))
}

// Who finds a piece wrong while it is being healed looks again before it counts no more.
func TestRecheckWhileHealing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newSick(t)
		k.spoil(3)
		b := k.blob()
		b.st.op <- struct{}{} // as if it were being healed
		checked := make(chan error, 2)
		go func() { checked <- b.Recheck(3) }()
		sc, err := b.Scan()
		must(t, err)
		defer sc.Close()
		go func() {
			_, err := sc.Check(3)
			checked <- err
		}()
		synctest.Wait() // both have read it
		k.spoilRight(3)
		<-b.st.op
		for range 2 {
			if err := <-checked; err != nil {
				t.Errorf("it is said to be wrong: %v", err)
			}
		}
		k.wrong("afterwards", b)
	})
}

// A blob with a wrong piece is not kept when it is unpinned, and its bytes are replaced when they are pushed again. It
// is in quarantine for a store that does not heal, and if its sums are lost.
func TestWrongAndElsewhere(t *testing.T) {
	spoil := func(t *testing.T) (*sick, *Blob) {
		k := newSick(t)
		k.spoil(3)
		b := k.blob()
		if err := b.Recheck(3); !errors.Is(err, piece.ErrMismatch) {
			t.Fatal(err)
		}
		k.wrong("found out", b, 3)
		return k, b
	}
	t.Run("unpinned", func(t *testing.T) {
		k, b := spoil(t)
		must(t, k.s.Unpin(t.Context(), digest.Digest(k.id.Digest())))
		if p := k.s.Presence(k.id); p != Absent || len(k.s.Wrong()) > 0 {
			t.Errorf("the blob is %v, %v are wrong", p, k.s.Wrong())
		}
		if err := b.Heal(k.claim(3)); !errors.Is(err, ErrDropped) {
			t.Errorf("healing it: %v", err)
		}
		k.s.emptyTrash(t.Context())
		if left, _ := filepath.Glob(filepath.Join(k.s.Root(), "swarm/sums/sha256/*")); len(left) > 0 {
			t.Errorf("%v are left", left)
		}
	})
	t.Run("pushed again", func(t *testing.T) {
		k, _ := spoil(t)
		k.bring()
		k.wrong("after that", k.blob())
	})
	t.Run("cached", func(t *testing.T) {
		k := newSick(t)
		must(t, k.s.Unpin(t.Context(), digest.Digest(k.id.Digest())))
		b := k.blob()
		path := k.s.blobPath(digest.Digest(k.id.Digest()), Cached)
		must(t, os.Chmod(path, 0o600))
		overwrite(t, path, []byte("rotten"), k.id.Offset(3))
		if err := b.Recheck(3); !errors.Is(err, piece.ErrMismatch) || k.s.Presence(k.id) != Absent || len(k.found) > 0 {
			t.Errorf("%v, the blob is %v, told of %v", err, k.s.Presence(k.id), k.found)
		}
	})
	t.Run("unpinned while it is found out", func(t *testing.T) {
		k := newSick(t)
		b := k.blob()
		err := b.st.spoil(3, piece.ErrMismatch, func() error {
			must(t, k.s.Unpin(t.Context(), digest.Digest(k.id.Digest())))
			return piece.ErrMismatch
		})
		if p := k.s.Presence(k.id); !errors.Is(err, piece.ErrMismatch) || p != Absent || len(k.found) > 0 {
			t.Errorf("%v, the blob is %v, told of %v", err, p, k.found)
		}
	})
	t.Run("for a store that does not heal", func(t *testing.T) {
		k, b := spoil(t)
		b.Close()
		root := k.s.Root()
		must(t, k.s.Close())
		s := openStore(t, Config{Root: root})
		if _, err := s.Blob(t.Context(), k.id, false); !errors.Is(err, ErrQuarantined) {
			t.Errorf("opening it: %v", err)
		}
	})
	t.Run("without sums", func(t *testing.T) {
		k := newSick(t)
		k.spoil(3)
		root := k.s.Root()
		must(t, k.s.Close())
		must(t, os.Remove(k.s.sumsPath(digest.Digest(k.id.Digest()))))
		k.open(root)
		if err := k.blob().ComputeSums(t.Context()); !errors.Is(err, piece.ErrMismatch) {
			t.Errorf("computing them: %v", err)
		}
		if n := len(k.s.Wrong()[k.id]); n != k.id.Pieces() {
			t.Errorf("%d pieces are wrong, want all", n)
		}
	})
	t.Run("a mark that nobody wrote", func(t *testing.T) {
		for _, text := range []string{"", "3\n2\n", "3\n3\n", "-1\n", "x\n", "1 2\n"} {
			path := filepath.Join(t.TempDir(), "x.bad")
			must(t, os.WriteFile(path, []byte(text), 0o600))
			if got := readWrong(path); got != nil {
				t.Errorf("%q is read as %v", text, got)
			}
		}
	})
}

// A scan reads the disk, and nothing of it is in the page cache afterwards.
func TestScanPastCache(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "capelin-scan-") // no tmpfs
	must(t, err)
	defer os.RemoveAll(dir)
	f, err := os.OpenFile(filepath.Join(dir, "probe"), os.O_CREATE|os.O_RDWR|unix.O_DIRECT, 0o600)
	if err != nil {
		t.Skipf("%s cannot be read past the page cache: %v", dir, err)
	}
	f.Close()
	k := &sick{t: t, rec: newRecorder()}
	k.id, k.data = testBlob(t, piece.SHA256, 5_000_000, 1)
	k.sums = sumsOf(t, k.id, k.data)
	k.open(dir)
	k.bring()
	b := k.blob()
	resident := func() (n int) {
		m, err := unix.Mmap(int(b.File().Fd()), 0, int(k.id.Size), unix.PROT_READ, unix.MAP_SHARED)
		must(t, err)
		defer unix.Munmap(m)
		in := make([]byte, (len(m)+os.Getpagesize()-1)/os.Getpagesize())
		_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&in[0])))
		if errno != 0 {
			t.Fatal(errno)
		}
		for _, p := range in {
			n += int(p & 1)
		}
		return n
	}
	must(t, unix.Fadvise(int(b.File().Fd()), 0, 0, unix.FADV_DONTNEED))
	before := resident()
	sc, err := b.Scan()
	must(t, err)
	for i := range k.id.Pieces() {
		if _, err := sc.Check(i); err != nil {
			t.Error(err)
		}
	}
	if !sc.direct {
		t.Error("it was read as everybody does")
	}
	must(t, sc.Close())
	if n := resident(); n > before {
		t.Errorf("%d pages are in the page cache, %d were before", n, before)
	}
}
