package record

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/internal/durable/disk"
)

// dying is a disk on which every operation fails from one on, or that one alone.
type dying struct {
	mu   sync.Mutex
	left int // operations that work; negative: all
	err  error
	once bool
	hit  bool // one has failed
}

func (d *dying) Do(op disk.Op, do func(int) error) error {
	d.mu.Lock()
	fails := d.left == 0 && !(d.once && d.hit)
	d.hit = d.hit || fails
	if d.left > 0 {
		d.left--
	}
	d.mu.Unlock()
	if fails {
		return &os.PathError{Op: string(op.Kind), Path: op.Path, Err: d.err}
	}
	return do(op.Bytes)
}

// mirrored is what three directories have.
type mirrored struct {
	t       testing.TB
	all     []string
	dirs    *Dirs
	store   *Store
	log     *Deletions
	noted   [][]string
	lost    []string
	entries map[digest.Digest]*Entry
	removed uint64
}

func openMirrored(t testing.TB, dirs ...string) (*mirrored, error) {
	m := &mirrored{t: t, all: dirs, entries: map[digest.Digest]*Entry{}}
	m.dirs = NewDirs(dirs, func(live []string) []error {
		m.noted = append(m.noted, live)
		return make([]error, len(live))
	}, func(dir string, _ error) { m.lost = append(m.lost, dir) })
	var err error
	if m.log, err = OpenDeletions(m.dirs, "deletions"); err != nil {
		return nil, err
	}
	t.Cleanup(func() { m.log.Close() })
	if m.store, err = OpenStore(m.dirs, "records"); err != nil {
		return nil, err
	}
	t.Cleanup(func() { m.store.Close() })
	return m, nil
}

// use puts, removes, compacts and retires.
func (m *mirrored) use() error {
	for n := range 8 {
		e := entry(n, n)
		if err := m.store.Put(e); err != nil {
			return err
		}
		m.entries[e.Record.Digest] = e
		if err := m.same("an entry was put"); err != nil {
			return err
		}
		if n == 4 {
			if err := m.store.Compact(); err != nil {
				return err
			}
		}
		d := deletion(uint64(n) + 1)
		d.Namespace = strings.Repeat("n", 180) + "/" + strings.Repeat("n", 60)
		if _, err := m.log.Append(d); err != nil {
			return err
		}
		m.removed++
		if err := m.same("a deletion was appended"); err != nil {
			return err
		}
	}
	gone := entry(2, 0).Record.Digest
	if err := m.store.Remove(gone); err != nil {
		return err
	}
	delete(m.entries, gone)
	if err := m.log.Retire(8); err != nil {
		return err
	}
	return m.same("all was done")
}

// same reports a directory that lacks something, and that nothing has said so of.
func (m *mirrored) same(when string) error {
	live := m.all
	if len(m.noted) > 0 {
		live = m.noted[len(m.noted)-1]
	}
	var first map[string][]byte
	for _, dir := range live {
		tree := map[string][]byte{}
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				tree[strings.TrimPrefix(path, dir)], err = os.ReadFile(path)
			}
			return err
		})
		if err != nil {
			return err
		}
		if first == nil {
			first = tree
		}
		if !maps.EqualFunc(first, tree, bytes.Equal) {
			return fmt.Errorf("when %s, %s has not what %s has, and all said that it has: %v, %v", when, dir, live[0],
				slices.Sorted(maps.Keys(first)), slices.Sorted(maps.Keys(tree)))
		}
	}
	return nil
}

// check opens what one directory has.
func (m *mirrored) check(dir string) {
	m.t.Helper()
	s, err := OpenStore(OneDir(dir), "records")
	if err != nil {
		m.t.Errorf("%s alone: %v", dir, err)
		return
	}
	defer s.Close()
	checkStore(m.t, s, m.entries)
	l, err := OpenDeletions(OneDir(dir), "deletions")
	if err != nil {
		m.t.Errorf("%s alone: %v", dir, err)
		return
	}
	defer l.Close()
	if _, last := l.Bounds(); last != m.removed {
		m.t.Errorf("%s alone has the deletions up to %d of %d", dir, last, m.removed)
	}
	if _, _, err := l.Read(0, 100); err != nil {
		m.t.Error(err)
	}
}

func threeDirs(t testing.TB) []string {
	top := t.TempDir()
	var dirs []string
	for _, name := range []string{"a", "b", "c"} {
		dir := filepath.Join(top, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

// TestDirsLoseOne has a disk die at each of its operations, the first one and another one: nobody hears of it but who is told, what was
// acknowledged is on each of those that are left, and never is one counted that lacks something.
func TestDirsLoseOne(t *testing.T) {
	for dead := range 2 {
		for n, over := 0, false; !over; n++ {
			dirs := threeDirs(t)
			m, err := openMirrored(t, dirs...)
			if err != nil {
				t.Fatal(err)
			}
			d := &dying{left: n, err: syscall.EIO}
			stop := disk.Intercept(dirs[dead], d)
			err = m.use()
			stop()
			over = !d.hit
			if err != nil {
				t.Fatalf("%s dies at its operation %d: %v", dirs[dead], n, err)
			}
			m.store.Close()
			m.log.Close()
			if over != (len(m.lost) == 0) || !over && (!slices.Equal(m.lost, dirs[dead:dead+1]) || len(m.noted) != 1) {
				t.Fatalf("%s dies at its operation %d: lost are %v, noted was %v", dirs[dead], n, m.lost, m.noted)
			}
			for _, dir := range m.dirs.Live() {
				m.check(dir)
			}
		}
	}
}

// TestDirsFull: a disk that is full is not left out. What was to be written is not, anywhere, until it is tried again.
func TestDirsFull(t *testing.T) {
	for n, over := 0, false; !over; n++ {
		dirs := threeDirs(t)
		m, err := openMirrored(t, dirs...)
		if err != nil {
			t.Fatal(err)
		}
		put(t, m.store, entry(1, 1))
		d := &dying{left: n, err: syscall.ENOSPC, once: true}
		stop := disk.Intercept(dirs[1], d)
		err = m.store.Put(entry(1, 2))
		stop()
		over = !d.hit
		if !over && !errdefs.IsResourceExhausted(err) || over && err != nil || len(m.lost) > 0 {
			t.Fatalf("operation %d: %v, lost %v", n, err, m.lost)
		}
		if e, err := m.store.Get(entry(1, 1).Record.Digest); err != nil || same(e, entry(1, 1)) == over {
			t.Fatalf("operation %d: %+v, %v", n, e, err)
		}
		if err := m.store.Put(entry(1, 3)); err != nil {
			t.Fatal(err)
		}
		if err := m.same("it was tried again"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDirsLast: the last one's failure is everybody's, as if it had been the only one; and so is that of all at once.
func TestDirsLast(t *testing.T) {
	dirs := threeDirs(t)
	m, err := openMirrored(t, dirs...)
	if err != nil {
		t.Fatal(err)
	}
	put(t, m.store, entry(1, 1))
	for _, dir := range dirs {
		defer disk.Intercept(dir, &dying{err: syscall.EIO})()
	}
	if err := m.store.Put(entry(1, 2)); !errors.Is(err, syscall.EIO) || len(m.dirs.Live()) != 3 {
		t.Fatalf("all have died: %v, and %v are left", err, m.dirs.Live())
	}
	for i, dir := range dirs {
		if err := m.dirs.Fail(dir, syscall.EIO); (err != nil) != (i == 2) {
			t.Fatalf("%s: %v", dir, err)
		}
	}
	if err := m.dirs.Fail(dirs[0], syscall.EIO); err != nil {
		t.Errorf("again: %v", err)
	}
	if live := m.dirs.Live(); !slices.Equal(live, dirs[2:]) {
		t.Errorf("%v are left", live)
	}
}

// TestDirsNoteFails: who cannot note that another one is lost is lost, too; if nobody can, nobody is.
func TestDirsNoteFails(t *testing.T) {
	var notes [][]string
	bad := map[string]error{"b": syscall.EIO}
	d := NewDirs([]string{"a", "b", "c", "d"}, func(live []string) (errs []error) {
		notes = append(notes, live)
		for _, dir := range live {
			errs = append(errs, bad[dir])
		}
		return errs
	}, nil)
	if err := d.Fail("a", syscall.EIO); err != nil || !slices.Equal(d.Live(), []string{"c", "d"}) || len(notes) != 2 {
		t.Fatalf("%v, %v are left, %v were noted", err, d.Live(), notes)
	}
	bad["d"] = syscall.ENOSPC
	if err := d.Fail("c", syscall.EIO); !errors.Is(err, syscall.ENOSPC) || !slices.Equal(d.Live(), []string{"c", "d"}) {
		t.Fatalf("%v, %v are left", err, d.Live())
	}
}

// TestDirsBecomeTheSame opens directories that are empty, are behind, were torn by a crash, or have been compacted otherwise: they are
// what the first one is, at once and after the next start.
func TestDirsBecomeTheSame(t *testing.T) {
	dirs := threeDirs(t)
	old := filepath.Join(t.TempDir(), "old")
	m, err := openMirrored(t, dirs[0])
	if err != nil {
		t.Fatal(err)
	}
	put(t, m.store, entry(20, 1))
	if err := m.store.Compact(); err != nil {
		t.Fatal(err)
	}
	put(t, m.store, entry(21, 1))
	if err := os.CopyFS(old, os.DirFS(dirs[0])); err != nil {
		t.Fatal(err)
	}
	for n := range 2 { // another snapshot, and none
		e := entry(20+n, 1)
		m.entries[e.Record.Digest] = e
	}
	if err := m.use(); err != nil {
		t.Fatal(err)
	}
	m.store.Close()
	m.log.Close()
	for name, spoil := range map[string]func(dir string) error{
		"empty":    func(string) error { return nil },
		"behind":   func(dir string) error { return os.CopyFS(dir, os.DirFS(old)) },
		"the same": func(dir string) error { return os.CopyFS(dir, os.DirFS(dirs[0])) },
		"torn": func(dir string) error {
			err := os.CopyFS(dir, os.DirFS(dirs[0]))
			for _, name := range []string{"deletions", filepath.Base(m.store.j.name)} {
				paths, _ := filepath.Glob(filepath.Join(dir, "*", name))
				for _, path := range append(paths, filepath.Join(dir, "deletions")) {
					f, oerr := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
					if oerr == nil {
						_, oerr = f.WriteString("half an entry")
						oerr = errors.Join(oerr, f.Close())
					}
					err = errors.Join(err, oerr)
				}
			}
			return err
		},
		"short": func(dir string) error {
			return errors.Join(os.CopyFS(dir, os.DirFS(dirs[0])), os.Truncate(filepath.Join(dir, "deletions"), 100))
		},
		"spoilt": func(dir string) error {
			return errors.Join(os.CopyFS(dir, os.DirFS(dirs[0])), os.WriteFile(filepath.Join(dir, "records/snapshot"), []byte("x"), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			other := filepath.Join(t.TempDir(), "other")
			err := os.MkdirAll(other, 0o700)
			if err == nil {
				err = spoil(other)
			}
			if err != nil {
				t.Fatal(err)
			}
			n, err := openMirrored(t, dirs[0], other)
			if err != nil {
				t.Fatal(err)
			}
			if err := n.same("they were opened"); err != nil || len(n.lost) > 0 {
				t.Fatal(err, n.lost)
			}
			n.store.Close()
			n.log.Close()
			n.entries, n.removed = m.entries, m.removed
			n.check(other)
		})
	}
}
