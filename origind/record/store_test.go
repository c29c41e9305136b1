package record

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/internal/durable/disktest"
)

func openStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := OpenStore(OneDir(dir), ".")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// entry is one of blob n, in its version v.
func entry(n, v int) *Entry {
	alg := digest.SHA256
	if n%4 == 0 {
		alg = digest.SHA512
	}
	d := alg.FromString(fmt.Sprint(n))
	at := Place{"s3", "blobs/" + alg.String() + "/" + d.Encoded()[:2] + "/" + d.Encoded()}
	e := &Entry{Record: Pushed(d, int64(n+1), at, "team/app", "origin-1", Stamp(v+1)), Wrote: v%2 == 1}
	if n%3 == 0 {
		e.Found = []Place{{"hub", "x/" + d.Encoded()}, kept}
	}
	return e
}

func put(t testing.TB, s *Store, es ...*Entry) {
	t.Helper()
	for _, e := range es {
		if err := s.Put(e); err != nil {
			t.Fatal(err)
		}
	}
}

// checkStore checks that a store has these entries, and no others.
func checkStore(t testing.TB, s *Store, want map[digest.Digest]*Entry) {
	t.Helper()
	for d, w := range want {
		if got, err := s.Get(d); err != nil || !same(got, w) {
			t.Errorf("%s: %+v, %v, want %+v", d, got, err, w)
		}
	}
	n := 0
	err := s.Each(func(e *Entry) error {
		n++
		if !same(e, want[e.Record.Digest]) {
			return fmt.Errorf("%+v is not expected", e)
		}
		return nil
	})
	if err != nil || n != len(want) || s.Len() != n {
		t.Errorf("%d entries, %d say their number, want %d: %v", n, s.Len(), len(want), err)
	}
}

func same(a, b *Entry) bool {
	return a == b || a != nil && b != nil && Equal(a.Record, b.Record) && a.Wrote == b.Wrote && slices.Equal(a.Found, b.Found)
}

func TestStore(t *testing.T) {
	dir := filepath.Join(unsyncedDir(t), "records")
	s := openStore(t, dir)
	want := map[digest.Digest]*Entry{}
	reopen := func() {
		s.Close()
		s = openStore(t, dir)
		checkStore(t, s, want)
	}
	for round := range 4 {
		for n := range 100 {
			e := entry(n, round)
			put(t, s, e)
			want[e.Record.Digest] = e
			if (n+round)%5 == 0 {
				if err := errors.Join(s.Remove(e.Record.Digest), s.Remove(e.Record.Digest)); err != nil {
					t.Fatal(err)
				}
				delete(want, e.Record.Digest)
			}
		}
		checkStore(t, s, want)
		if round%2 == 0 {
			reopen()
		}
		if err := s.Compact(); err != nil {
			t.Fatal(err)
		}
		checkStore(t, s, want)
		if round != 2 { // and once with a log behind the snapshot
			reopen()
		}
	}
	files, _ := filepath.Glob(dir + "/*")
	if len(files) != 2 {
		t.Errorf("there are %v", files)
	}
	if e, err := s.Get(digest.FromString("another")); e != nil || err != nil {
		t.Errorf("nothing is kept of it: %+v, %v", e, err)
	}
	e := entry(1, 9)
	e.Record.Size++
	if err := s.Put(e); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("another size: %v", err)
	}
	for _, bad := range []*Entry{{Record: &Record{}}, {Record: &Record{Digest: blob}, Found: []Place{kept}}} {
		if err := s.Put(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if _, err := s.Get("sha256:00"); err == nil {
		t.Error("no digest, and no error")
	}
	checkStore(t, s, want)
	s.Close()
	if err := s.Put(entry(1, 10)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// What was replaced leaves memory.
func TestIndexSweeps(t *testing.T) {
	var x index
	sum := make([]byte, 64)
	last := map[string][]byte{}
	for i := range 3000 {
		sum[1], sum[40] = byte(i%20), byte(i%3)
		k := sum[:32+i%2*32]
		e := slices.Repeat([]byte{byte(i)}, 100+i%50)
		x.put(k, e)
		last[string(k)] = e
		if i%7 == 0 {
			x.put(k, nil)
			delete(last, string(k))
		}
	}
	for k, want := range last {
		if got, ok := x.get(nil, []byte(k)); !ok || !slices.Equal(got, want) {
			t.Errorf("%x: %x, want %x", k, got, want)
		}
	}
	if x.len() != len(last) || len(x[0].data) > 150<<10 {
		t.Errorf("%d entries, want %d, in %d bytes", x.len(), len(last), len(x[0].data))
	}
}

// Records are put, read and removed while snapshots are being written, and none is lost.
func TestCompactMeanwhile(t *testing.T) {
	dir := filepath.Join(unsyncedDir(t), "records")
	s := openStore(t, dir)
	var mu sync.Mutex
	want := map[digest.Digest]*Entry{}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 150 {
				e := entry(w+4*(i%40), i)
				d := e.Record.Digest
				err := s.Put(e)
				if err == nil && i%9 == 0 {
					err, e = s.Remove(d), nil
				}
				if got, gerr := s.Get(d); err != nil || gerr != nil || !same(got, e) {
					t.Errorf("%s: %+v, %v, %v", d, got, err, gerr)
				}
				mu.Lock()
				want[d] = e
				mu.Unlock()
			}
		})
	}
	wg.Go(func() {
		for range 15 {
			if err := s.Compact(); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	maps.DeleteFunc(want, func(_ digest.Digest, e *Entry) bool { return e == nil })
	checkStore(t, s, want)
	s.Close()
	checkStore(t, openStore(t, dir), want)
}

// Run compacts when the log has grown, and says what does not work.
func TestRun(t *testing.T) {
	dir := filepath.Join(unsyncedDir(t), "records")
	s := openStore(t, dir)
	s.snapshot = -1
	put(t, s, entry(1, 1))
	s.j.size += minCompact // as if
	put(t, s, entry(2, 1))
	if len(s.due) != 1 {
		t.Fatal("the log has grown, and nobody is told")
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.Close()
	s.Run(ctx, func(err error) {
		if !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
		cancel()
	})
}

// Many are put and removed with one sync; what changes nothing is not written, and if one is refused none is.
func TestPutAll(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, filepath.Join(dir, "records"))
	before := map[digest.Digest]*Entry{}
	for n := range 3 {
		e := entry(n, 0)
		before[e.Record.Digest] = e
	}
	g := &gate{held: make(chan struct{}), open: make(chan struct{})}
	close(g.open)
	defer disk.Intercept(dir, g)()
	if err := s.PutAll(before); err != nil || g.syncs != 1 {
		t.Fatalf("%d syncs: %v", g.syncs, err)
	}
	gone, size := entry(7, 0).Record.Digest, s.j.size
	for _, all := range []map[digest.Digest]*Entry{nil, before, {gone: nil}} {
		if err := s.PutAll(all); err != nil || g.syncs != 1 || s.j.size != size {
			t.Errorf("%d syncs of %d entries that are there: %v", g.syncs, len(all), err)
		}
	}
	changed, new, bad := entry(0, 1), entry(8, 0), entry(2, 0)
	bad.Record.Size++
	for _, tt := range []struct {
		d  digest.Digest
		e  *Entry
		is func(error) bool
	}{
		{bad.Record.Digest, bad, errdefs.IsFailedPrecondition},
		{gone, new, errdefs.IsInvalidArgument},
		{"sha256:00", nil, errdefs.IsInvalidArgument},
	} {
		err := s.PutAll(map[digest.Digest]*Entry{
			changed.Record.Digest: changed, new.Record.Digest: new, entry(1, 0).Record.Digest: nil, tt.d: tt.e,
		})
		if !tt.is(err) {
			t.Errorf("%s: %v", tt.d, err)
		}
		checkStore(t, s, before)
	}
	err := s.PutAll(map[digest.Digest]*Entry{
		changed.Record.Digest: changed, new.Record.Digest: new, entry(1, 0).Record.Digest: nil,
	})
	if err != nil || g.syncs != 2 {
		t.Errorf("%d syncs: %v", g.syncs, err)
	}
	want := map[digest.Digest]*Entry{changed.Record.Digest: changed, new.Record.Digest: new, entry(2, 0).Record.Digest: entry(2, 0)}
	checkStore(t, s, want)
	s.Close()
	checkStore(t, openStore(t, s.dir()), want)
}

// Of entries that were put together a crash leaves the first ones, and each whole or not at all.
func TestTornPutAll(t *testing.T) {
	dir := filepath.Join(unsyncedDir(t), "records")
	s := openStore(t, dir)
	put(t, s, entry(0, 0))
	from := int(s.j.size)
	all, order := map[digest.Digest]*Entry{}, []digest.Digest{}
	for n := range 4 {
		e := entry(n, 1)
		all[e.Record.Digest], order = e, append(order, e.Record.Digest)
	}
	slices.Sort(order)
	if err := s.PutAll(all); err != nil {
		t.Fatal(err)
	}
	s.Close()
	whole, err := os.ReadFile(s.j.path())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for cut := from; cut <= len(whole); cut++ {
		torn := slices.Concat(whole[:cut], make([]byte, len(whole)-cut)) // the size is there, and the last pages are not
		if err := os.WriteFile(s.j.path(), torn, 0o600); err != nil {
			t.Fatal(err)
		}
		s := openStore(t, dir)
		n := 0
		for n < len(order) {
			if e, _ := s.Get(order[n]); !same(e, all[order[n]]) {
				break
			}
			n++
		}
		want := map[digest.Digest]*Entry{entry(0, 0).Record.Digest: entry(0, 0)}
		for _, d := range order[:n] {
			want[d] = all[d]
		}
		checkStore(t, s, want)
		seen[n] = true
		s.Close()
	}
	if len(seen) != len(order)+1 {
		t.Errorf("left were %v of the first entries", seen)
	}
}

// In a damaged store nothing is guessed: the error names the file.
func TestDamagedStore(t *testing.T) {
	dir := filepath.Join(unsyncedDir(t), "records")
	s := openStore(t, dir)
	put(t, s, entry(1, 0), entry(2, 0))
	if err := s.Compact(); err != nil {
		t.Fatal(err)
	}
	put(t, s, entry(3, 0), entry(4, 0))
	logFile := s.j.path()
	s.Close()
	snapshot := filepath.Join(dir, snapshotName)
	for _, tt := range []struct {
		what string
		path string
		do   func(b []byte) []byte // nil: the file is missing
	}{
		{"no log", logFile, func([]byte) []byte { return nil }},
		{"no snapshot", snapshot, func([]byte) []byte { return nil }},
		{"a log without a head", logFile, func(b []byte) []byte { return b[:headSize-1] }},
		{"a snapshot that is cut", snapshot, func(b []byte) []byte { return b[:len(b)-1] }},
		{"a snapshot that is cut between entries", snapshot, func(b []byte) []byte {
			return b[:headSize+frameSize+int(binary.BigEndian.Uint32(b[headSize:]))]
		}},
		{"a snapshot with something behind it", snapshot, func(b []byte) []byte { return append(b, 0) }},
		{"a wrong byte in the snapshot", snapshot, func(b []byte) []byte { b[len(b)-9]++; return b }},
		{"a wrong byte in the log, and an entry behind it", logFile, func(b []byte) []byte { b[headSize+20]++; return b }},
		{"a log that is none", logFile, func(b []byte) []byte { b[8] = byte(kindDeletions); return b }},
	} {
		whole, err := os.ReadFile(tt.path)
		if err != nil {
			t.Fatal(err)
		}
		if b := tt.do(slices.Clone(whole)); b == nil {
			err = os.Remove(tt.path)
		} else {
			err = os.WriteFile(tt.path, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if s, err := OpenStore(OneDir(dir), "."); !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", tt.what, err)
			if err == nil {
				s.Close()
			}
		}
		if err := os.WriteFile(tt.path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := map[digest.Digest]*Entry{}
	for n := range 4 {
		e := entry(n+1, 0)
		want[e.Record.Digest] = e
	}
	checkStore(t, openStore(t, dir), want)
}

// v1Files writes files of format 1.
func v1Files(t testing.TB, dir string, n int) {
	t.Helper()
	for i := range n {
		e := entry(i, 0)
		b, err := e.Record.V1()
		if err != nil {
			t.Fatal(err)
		}
		p := v1Path(dir, e.Record.Digest)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o700), os.WriteFile(p, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

func readTree(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		all[strings.TrimPrefix(path, dir)] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestMigrateAndBack(t *testing.T) {
	root := unsyncedDir(t)
	old := filepath.Join(root, "old")
	v1Files(t, old, 9)
	before := readTree(t, old)
	s := openStore(t, filepath.Join(root, "new"))
	if n, err := s.Migrate(old, "origin-1"); err != nil || n != 9 {
		t.Fatalf("%d were migrated: %v", n, err)
	}
	if n, err := s.Migrate(old, "origin-1"); err != nil || n != 0 {
		t.Errorf("%d were migrated again: %v", n, err)
	}
	if left, _ := filepath.Glob(old + "*"); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
	s.Close()
	s = openStore(t, filepath.Join(root, "new"))
	if n, err := s.Export(old); err != nil || n != 9 {
		t.Fatalf("%d were exported: %v", n, err)
	}
	if after := readTree(t, old); !reflect.DeepEqual(before, after) {
		t.Errorf("there and back: %v\nwas %v", after, before)
	}
	if _, err := s.Export(old); !errdefs.IsAlreadyExists(err) {
		t.Errorf("exported over records: %v", err)
	}
	// What format 1 cannot say.
	e, err := s.Get(entry(1, 0).Record.Digest)
	if err != nil {
		t.Fatal(err)
	}
	e.Record, e.Wrote = Merge(e.Record, Removed(e.Record.Digest, "", 5)), true
	put(t, s, e)
	other := filepath.Join(root, "other")
	if _, err := s.Export(other); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), string(e.Record.Digest)) {
		t.Errorf("something is to be erased: %v", err)
	}
	e.Wrote = false
	found := &Entry{Record: &Record{Digest: blob, Size: 5}, Found: []Place{s3}}
	put(t, s, e, found)
	if n, err := s.Export(other); err != nil || n != 9 { // one less, one more
		t.Errorf("%d were exported: %v", n, err)
	}
	if r, err := readV1(v1Path(other, blob), blob, "o"); err != nil || !r.Durable() || r.Pinned() {
		t.Errorf("what was found became %+v: %v", r, err)
	}
}

func TestMigrateDamaged(t *testing.T) {
	for _, name := range []string{"x", "sha256/aa/x.json", strings.TrimPrefix(v1Path("", blob), "/")} {
		root := unsyncedDir(t)
		old := filepath.Join(root, "old")
		v1Files(t, old, 3)
		p := filepath.Join(old, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o700), os.WriteFile(p, []byte("{}"), 0o600)); err != nil {
			t.Fatal(err)
		}
		s := openStore(t, filepath.Join(root, "new"))
		if _, err := s.Migrate(old, "o"); !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), p) {
			t.Errorf("%s: %v", name, err)
		}
		s.Close()
		if s = openStore(t, filepath.Join(root, "new")); s.Len() > 0 {
			t.Errorf("%d records were migrated all the same", s.Len())
		}
	}
}

// storeStory migrates, puts, removes and compacts, while the operation failAt fails; what fails is tried again.
func storeStory(t testing.TB, failAt int, fail error) (d *disktest.Disk, err error) {
	dir := filepath.Join(t.TempDir(), "disk")
	v1Files(t, filepath.Join(dir, "old"), 1)
	d = disktest.Watch(t, dir)
	defer d.Stop()
	d.Say(string(entry(0, 0).Record.Digest), "1") // the stamp of format 1
	d.FailAt(failAt, fail)
	s, err := OpenStore(OneDir(dir), "records")
	if err != nil {
		return d, err
	}
	defer s.Close()
	if _, err := s.Migrate(filepath.Join(dir, "old"), "origin-1"); err != nil {
		return d, err
	}
	twice := func(f func() error) {
		if ferr := f(); ferr != nil {
			err = errors.Join(err, ferr)
			if ferr = f(); ferr != nil {
				t.Errorf("the disk failed once, and again: %v", ferr)
			}
		}
	}
	change := func(n, v int) { // v 0: removed
		e := entry(n, v-1)
		name := string(e.Record.Digest)
		d.Say(name, "")
		if v == 0 {
			twice(func() error { return s.Remove(e.Record.Digest) })
		} else {
			twice(func() error { return s.Put(e) })
		}
		d.Say(name, fmt.Sprint(v))
	}
	change(1, 3)
	change(2, 4)
	together := map[digest.Digest]*Entry{}
	for n, v := range map[int]int{3: 6, 4: 6, 5: 6, 2: 0} {
		e := entry(n, v-1)
		together[e.Record.Digest] = e
		d.Say(string(e.Record.Digest), "")
		if v == 0 {
			together[e.Record.Digest] = nil
		}
	}
	twice(func() error { return s.PutAll(together) })
	for name, e := range together {
		d.Say(string(name), map[bool]string{true: "0", false: "6"}[e == nil])
	}
	change(2, 5)
	change(1, 0)
	twice(s.Compact)
	change(0, 0)
	change(1, 9)
	twice(s.Compact)
	change(2, 11)
	return d, err
}

func checkStorePower(t testing.TB, dir string, said map[string]string) {
	s, err := OpenStore(OneDir(dir), "records")
	if err != nil {
		t.Errorf("opening: %v", err)
		return
	}
	defer s.Close()
	if _, err := s.Migrate(filepath.Join(dir, "old"), "origin-1"); err != nil {
		t.Errorf("migrating: %v", err)
	}
	for name, promise := range said {
		e, err := s.Get(digest.Digest(name))
		got := "0"
		if e != nil {
			got = fmt.Sprint(uint64(e.Record.Homes[0].Since))
		}
		if err != nil || promise != "" && got != promise {
			t.Errorf("%s is at %s, %s was promised: %v", name, got, promise, err)
		}
	}
	put(t, s, entry(7, 1))
	if err := s.Compact(); err != nil {
		t.Error(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*", "*"))
	if old, _ := filepath.Glob(filepath.Join(dir, "old*")); len(files) != 2 || len(old) > 0 {
		t.Errorf("%v and %v are left", files, old)
	}
}

func TestStorePowerCut(t *testing.T) {
	d, err := storeStory(t, -1, nil)
	if err != nil {
		t.Fatal(err)
	}
	n := d.Cuts(powerWays, checkStorePower)
	t.Logf("%d operations, %d different disks", len(d.Ops())-1, n)
}

// A snapshot that a process was killed at has its name, durably, before what is in it is removed.
func TestStorePowerCutAfterKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "disk")
	s := openStore(t, dir)
	put(t, s, entry(1, 0), entry(2, 0))
	logFile := s.j.path()
	before, err := os.ReadFile(logFile)
	if err != nil {
		t.Fatal(err)
	}
	snapshot, was := filepath.Join(dir, snapshotName), filepath.Join(dir, "was")
	if err := errors.Join(s.Compact(), s.Close(), os.Rename(snapshot, was), os.WriteFile(logFile, before, 0o600)); err != nil {
		t.Fatal(err)
	}
	d := disktest.Watch(t, dir)
	if err := os.Rename(was, snapshot); err != nil {
		t.Fatal(err)
	}
	openStore(t, dir)
	ways := slices.Clone(powerWays)
	for seed := range uint64(8) {
		ways = append(ways, disktest.Anything(seed))
	}
	d.Cuts(ways, func(t testing.TB, dir string, _ map[string]string) {
		s, err := OpenStore(OneDir(dir), ".")
		if err != nil {
			t.Error(err)
			return
		}
		defer s.Close()
		if s.Len() != 2 {
			t.Errorf("%d records are there, of 2", s.Len())
		}
	})
}

func TestStoreFailingDisk(t *testing.T) { failEach(t, storeStory, checkStorePower) }

// An export that a power cut ends leaves all of it or nothing.
func TestExportPowerCut(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, filepath.Join(dir, "records"))
	put(t, s, entry(0, 0), entry(1, 0))
	d := disktest.Watch(t, dir)
	if _, err := s.Export(filepath.Join(dir, "old")); err != nil {
		t.Fatal(err)
	}
	d.Say("exported", "yes")
	d.Cuts(powerWays, func(t testing.TB, dir string, said map[string]string) {
		n := 0
		err := eachV1(filepath.Join(dir, "old"), func(path string, d digest.Digest) error {
			n++
			_, err := readV1(path, d, "o")
			return err
		})
		if errors.Is(err, os.ErrNotExist) && said["exported"] == "" {
			return
		}
		if err != nil || n != 2 {
			t.Errorf("%d are there: %v", n, err)
		}
	})
}
