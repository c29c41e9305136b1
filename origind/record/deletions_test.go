package record

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/internal/durable/disktest"
)

func openDeletions(t testing.TB, path string) *Deletions {
	t.Helper()
	d, err := OpenDeletions(OneDir(filepath.Dir(path)), filepath.Base(path))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// deletion is the entry that has a number, in tests.
func deletion(n uint64) Deletion {
	alg := digest.SHA256
	if n%3 == 0 {
		alg = digest.SHA512
	}
	return Deletion{alg.FromString(fmt.Sprint(n)), fmt.Sprint("team/", n), Stamp(n * 10)}
}

func appendDeletions(t testing.TB, d *Deletions, from, to uint64) {
	t.Helper()
	for n := from; n <= to; n++ {
		if got, err := d.Append(deletion(n)); err != nil || got != n {
			t.Fatalf("entry %d has the number %d: %v", n, got, err)
		}
	}
}

// checkDeletions checks that a log has the entries from..to, from wherever it is read.
func checkDeletions(t testing.TB, d *Deletions, from, to uint64) {
	t.Helper()
	if first, last := d.Bounds(); first != from || last != to {
		t.Fatalf("entries %d to %d, want %d to %d", first, last, from, to)
	}
	if page, _, err := d.Read(1<<64-1, 1); err != nil || len(page) > 0 {
		t.Errorf("%d entries after all numbers: %v", len(page), err)
	}
	for _, most := range []int{1, 100} {
		step := max(1, (to-from)/3)
		for after := uint64(0); after <= to+1; after += step {
			next := max(after+1, from)
			for at := after; ; {
				page, last, err := d.Read(at, most)
				if err != nil {
					t.Fatal(err)
				}
				if len(page) == 0 {
					if last != at {
						t.Errorf("nothing after %d, the next after %d", at, last)
					}
					break
				}
				for _, e := range page {
					if e != deletion(next) {
						t.Fatalf("read after %d, %d at a time: entry %d is %+v", after, most, next, e)
					}
					next++
				}
				if at = last; last != next-1 || len(page) > most {
					t.Fatalf("%d entries up to %d, want at most %d up to %d", len(page), last, most, next-1)
				}
				if most == 1 {
					break
				}
			}
			if most > 1 && next != max(to, after, from-1)+1 {
				t.Errorf("read after %d: up to %d, want %d", after, next-1, to)
			}
		}
	}
}

func TestDeletions(t *testing.T) {
	path := filepath.Join(unsyncedDir(t), "deletions")
	d := openDeletions(t, path)
	id := d.ID()
	checkDeletions(t, d, 1, 0)
	appendDeletions(t, d, 1, 900)
	checkDeletions(t, d, 1, 900)
	for _, e := range []Deletion{{}, {blob, "a b", 1}, {blob, "a", 0}, {blob, "a", MaxStamp + 1}, {blob, "\xff", 1}, {"sha256:00", "a", 1}} {
		if _, err := d.Append(e); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", e, err)
		}
	}
	for _, tt := range []struct{ before, first uint64 }{
		{0, 1}, {1, 1}, {11, 11}, {21, 21}, // too few for a new file
		{601, 601}, {651, 651}, {701, 701}, {5, 701},
	} {
		if err := d.Retire(tt.before); err != nil {
			t.Errorf("before %d: %v", tt.before, err)
		}
		checkDeletions(t, d, tt.first, 900)
	}
	appendDeletions(t, d, 901, 910)
	checkDeletions(t, d, 701, 910)
	d.Close()
	if _, _, err := d.Read(0, 1); !errors.Is(err, os.ErrClosed) {
		t.Errorf("reading a closed log: %v", err)
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Size() > 40_000 {
		t.Errorf("the file has %d bytes: %v", fi.Size(), err)
	}
	d = openDeletions(t, path)
	first, _ := d.Bounds()
	if first != 601 || d.ID() != id { // as the file has it
		t.Errorf("opened again: from %d", first)
	}
	checkDeletions(t, d, 601, 910)
	if err := d.Retire(2000); err != nil {
		t.Errorf("all are retired: %v", err)
	}
	checkDeletions(t, d, 911, 910)
	appendDeletions(t, d, 911, 911)
	checkDeletions(t, d, 911, 911)
	d.Close()
	checkDeletions(t, openDeletions(t, path), 911, 911)
}

// Whatever a file's bytes are, reading ends without a panic; and what was read is there when what comes behind it is cut off.
func FuzzFile(f *testing.F) {
	h := newHead(kindDeletions, 5)
	whole := h.appendFrame(h.bytes(), 5, deletion(1).pack())
	whole = h.appendFrame(whole, 6, deletion(2).pack())
	f.Add(whole, 0, byte(0))
	f.Add(whole, headSize+3, byte(1))
	f.Add(whole[:len(whole)-1], 0, byte(0))
	f.Fuzz(func(t *testing.T, b []byte, at int, flip byte) {
		if at >= 0 && at < len(b) {
			b[at] ^= flip
		}
		read := func(b []byte) (all []Deletion, end int64, err error) {
			r, err := readAll(bytes.NewReader(b), "x", kindDeletions, func(_ uint64, _ int64, entry []byte) error {
				e, err := unpackDeletion(entry)
				all = append(all, e)
				return err
			})
			if err != nil {
				return nil, 0, err
			}
			return all, r.at, nil
		}
		all, end, err := read(b)
		if err != nil {
			return
		}
		again, _, err := read(b[:end])
		if err != nil || !slices.Equal(all, again) {
			t.Errorf("%v became %v: %v", all, again, err)
		}
		for _, e := range all {
			if u, err := unpackDeletion(e.pack()); err != nil || u != e {
				t.Errorf("%v became %v: %v", e, u, err)
			}
		}
	})
}

// What a write that failed has left is cut off before something else is written there.
func TestDeletionsCutOffWhatFailed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deletions")
	d := openDeletions(t, path)
	appendDeletions(t, d, 1, 2)
	good := d.j.files.of(d.j.dirs.first())
	bad, err := os.Open(path) // cannot be written
	if err != nil {
		t.Fatal(err)
	}
	d.j.files.set(d.j.dirs.first(), bad)
	if _, err := d.Append(deletion(3)); err == nil {
		t.Fatal("a file that cannot be written took an entry")
	}
	d.j.files.set(d.j.dirs.first(), good)
	bad.Close()
	left := append(d.j.appendFrame(nil, 3, deletion(3).pack()), d.j.appendFrame(nil, 4, deletion(4).pack())...)
	if _, err := good.WriteAt(left, d.j.size); err != nil {
		t.Fatal(err)
	}
	appendDeletions(t, d, 3, 3)
	d.Close()
	checkDeletions(t, openDeletions(t, path), 1, 3)
}

// unsynced has the syncs below a directory not be done: nobody cuts the power.
type unsynced struct{}

func (unsynced) Do(op disk.Op, do func(int) error) error {
	if op.Kind == disk.OpSync || op.Kind == disk.OpDatasync {
		return nil
	}
	return do(op.Bytes)
}

func unsyncedDir(t testing.TB) string {
	dir := t.TempDir()
	t.Cleanup(disk.Intercept(dir, unsynced{}))
	return dir
}

// gate holds the first sync up until it is opened, and counts all.
type gate struct {
	held, open chan struct{}
	syncs      int
}

func (g *gate) Do(op disk.Op, do func(int) error) error {
	if op.Kind == disk.OpDatasync {
		if g.syncs++; g.syncs == 1 {
			close(g.held)
			<-g.open
		}
	}
	return do(op.Bytes)
}

// Who comes while others' entries are being synced shares one sync with all who do.
func TestGroupCommit(t *testing.T) {
	dir := t.TempDir()
	d := openDeletions(t, filepath.Join(dir, "deletions"))
	g := &gate{held: make(chan struct{}), open: make(chan struct{})}
	defer disk.Intercept(dir, g)()
	const n = 50
	numbers := make([]uint64, n)
	var wg sync.WaitGroup
	one := func(i int) {
		wg.Go(func() {
			var err error
			if numbers[i], err = d.Append(Deletion{blob, fmt.Sprint(i), 1}); err != nil {
				t.Error(err)
			}
		})
	}
	one(0)
	<-g.held
	for i := range n - 1 {
		one(i + 1)
	}
	for waiting := 0; waiting < n-1; { // until all are in one batch
		d.j.mu.Lock()
		if d.j.now != nil {
			waiting = len(d.j.now.entries)
		}
		d.j.mu.Unlock()
	}
	if page, _, err := d.Read(0, n); err != nil || len(page) > 0 {
		t.Errorf("%d entries can be read before they are durable: %v", len(page), err)
	}
	close(g.open)
	wg.Wait()
	if g.syncs != 2 {
		t.Errorf("%d entries took %d syncs", n, g.syncs)
	}
	for i, number := range numbers {
		page, _, err := d.Read(number-1, 1)
		if err != nil || len(page) != 1 || page[0].Namespace != strconv.Itoa(i) {
			t.Errorf("entry %d of %d: %+v, %v", number, i, page, err)
		}
	}
}

// Several are appended with one sync, and none if one is refused; what failed is not there, and has no number.
func TestAppendSeveral(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "deletions")
	d := openDeletions(t, path)
	g := &gate{held: make(chan struct{}), open: make(chan struct{})}
	close(g.open)
	defer disk.Intercept(dir, g)()
	if last, err := d.Append(); err != nil || last != 0 || g.syncs != 0 {
		t.Errorf("nothing was appended as %d, with %d syncs: %v", last, g.syncs, err)
	}
	if _, err := d.Append(deletion(1), Deletion{}, deletion(3)); !errdefs.IsInvalidArgument(err) || g.syncs != 0 {
		t.Errorf("%d syncs: %v", g.syncs, err)
	}
	var all []Deletion
	for n := range uint64(700) {
		all = append(all, deletion(n+1))
	}
	if last, err := d.Append(all[:500]...); err != nil || last != 500 || g.syncs != 1 {
		t.Errorf("500 were appended as %d, with %d syncs: %v", last, g.syncs, err)
	}
	checkDeletions(t, d, 1, 500)
	good := d.j.files.of(d.j.dirs.first())
	bad, err := os.Open(path) // cannot be written
	if err != nil {
		t.Fatal(err)
	}
	d.j.files.set(d.j.dirs.first(), bad)
	if _, err := d.Append(all[500:]...); err == nil {
		t.Fatal("a file that cannot be written took entries")
	}
	d.j.files.set(d.j.dirs.first(), good)
	bad.Close()
	checkDeletions(t, d, 1, 500)
	if last, err := d.Append(all[500:]...); err != nil || last != 700 {
		t.Errorf("appended as %d: %v", last, err)
	}
	d.Close()
	checkDeletions(t, openDeletions(t, path), 1, 700)
}

// A file that a crash has torn is cut; one that is damaged is refused, whatever is wrong with it.
func TestDamagedDeletions(t *testing.T) {
	path := filepath.Join(unsyncedDir(t), "deletions")
	d := openDeletions(t, path)
	appendDeletions(t, d, 1, 8)
	ends := []int64{headSize}
	_ = d.read(0, func(number uint64, at int64, _ Deletion) bool { ends = append(ends[:number-1], at); return true })
	d.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	ends = append(ends, int64(len(whole)))
	open := func(b []byte) (*Deletions, error) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return OpenDeletions(OneDir(filepath.Dir(path)), filepath.Base(path))
	}
	for cut := range len(whole) {
		d, err := open(whole[:cut])
		if cut < headSize {
			if !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), path) {
				t.Errorf("%d bytes: %v", cut, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("cut after %d bytes: %v", cut, err)
		}
		n, found := slices.BinarySearch(ends, int64(cut))
		if !found {
			n--
		}
		if _, last := d.Bounds(); last != uint64(n) {
			t.Errorf("cut after %d bytes: %d entries, want %d", cut, last, n)
		}
		if number, err := d.Append(deletion(uint64(n) + 1)); err != nil || number != uint64(n)+1 {
			t.Errorf("cut after %d bytes: appended as %d: %v", cut, number, err)
		}
		d.Close()
		d, err = OpenDeletions(OneDir(filepath.Dir(path)), filepath.Base(path))
		if err != nil {
			t.Fatalf("cut after %d bytes, and appended to: %v", cut, err)
		}
		if cut%20 == 0 {
			checkDeletions(t, d, 1, uint64(n)+1)
		}
		d.Close()
	}
	for i := range whole {
		bad := slices.Clone(whole)
		bad[i] ^= 0x10
		d, err := open(bad)
		last := int64(i) >= ends[7] // it may be that a crash has left it so
		if last != (err == nil) || err != nil && (!errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), path)) {
			t.Errorf("byte %d is wrong: %v", i, err)
		}
		if err == nil {
			checkDeletions(t, d, 1, 7)
			d.Close()
		}
	}
}

// deletionStory appends, retires and appends, while the operation failAt fails; what fails is tried again.
func deletionStory(t testing.TB, failAt int, fail error) (d *disktest.Disk, err error) {
	dir := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d = disktest.Watch(t, dir)
	defer d.Stop()
	d.FailAt(failAt, fail)
	l, err := OpenDeletions(OneDir(dir), "deletions")
	if err != nil {
		return d, err
	}
	defer l.Close()
	n := uint64(0)
	long := strings.Repeat(strings.Repeat("n", 120)+"/", 2) + "n" // so that entries are on several pages
	add := func(to uint64) {
		for ; n < to; n++ {
			e := deletion(n + 1)
			e.Namespace = long
			if _, aerr := l.Append(e); aerr != nil {
				err = errors.Join(err, aerr)
				if _, aerr = l.Append(e); aerr != nil {
					t.Errorf("the disk failed once, and entry %d cannot be appended: %v", n+1, aerr)
				}
			}
			d.Say("last", fmt.Sprint(n+1))
		}
	}
	add(4)
	both := []Deletion{deletion(5), deletion(6)}
	if _, aerr := l.Append(both...); aerr != nil {
		err = errors.Join(err, aerr)
		if _, aerr = l.Append(both...); aerr != nil {
			t.Errorf("the disk failed once, and two entries cannot be appended: %v", aerr)
		}
	}
	n = 6
	d.Say("last", "6")
	var wg sync.WaitGroup
	errs := make([]error, 20)
	for i := range errs { // some of them together
		wg.Go(func() { _, errs[i] = l.Append(Deletion{blob, long, 1}) })
	}
	wg.Wait()
	if failed := errors.Join(errs...); failed != nil {
		return d, errors.Join(err, failed)
	}
	n += 20
	d.Say("last", fmt.Sprint(n))
	add(n + 2)
	if rerr := l.Retire(21); rerr != nil {
		err = errors.Join(err, rerr)
	} else {
		d.Say("retired", "20")
	}
	add(n + 2)
	return d, err
}

func checkDeletionPower(t testing.TB, dir string, said map[string]string) {
	l, err := OpenDeletions(OneDir(dir), "deletions")
	if err != nil {
		t.Errorf("opening: %v", err)
		return
	}
	defer l.Close()
	promised, _ := strconv.ParseUint(said["last"], 10, 64)
	first, last := l.Bounds()
	if last < promised || first > 21 || said["retired"] != "" && first != 21 {
		t.Errorf("%d to %d are there, up to %d were promised, %q are retired", first, last, promised, said["retired"])
	}
	page, end, err := l.Read(0, 1000)
	if err != nil || end != last || uint64(len(page)) != last-first+1 {
		t.Errorf("%d of %d to %d can be read: %v", len(page), first, last, err)
	}
	for i, e := range page {
		if n := first + uint64(i); n <= 6 && (e.Digest != deletion(n).Digest || e.Stamp != deletion(n).Stamp) {
			t.Errorf("entry %d is %+v", n, e)
		}
	}
	if n, err := l.Append(deletion(1)); err != nil || n != last+1 {
		t.Errorf("appending: %d, %v", n, err)
	}
}

var powerWays = []disktest.Survival{disktest.Nothing, disktest.Names, disktest.Everything, disktest.Anything(1)}

// The power goes after each operation.
func TestDeletionsPowerCut(t *testing.T) {
	d, err := deletionStory(t, -1, nil)
	if err != nil {
		t.Fatal(err)
	}
	n := d.Cuts(powerWays, checkDeletionPower)
	t.Logf("%d operations, %d different disks", len(d.Ops())-1, n)
}

// A process that was killed before it came to a sync leaves what the next one sees, and tells others of. So that is
// durable when the log is open.
func TestDeletionsPowerCutAfterKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path, was := filepath.Join(dir, "deletions"), filepath.Join(dir, "was")
	l := openDeletions(t, was)
	appendDeletions(t, l, 1, 2)
	l.Close()
	d := disktest.Watch(t, dir)
	f, err := os.OpenFile(was, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(l.j.appendFrame(nil, 3, deletion(3).pack()))
	if err = errors.Join(err, f.Close(), os.Rename(was, path)); err != nil {
		t.Fatal(err)
	}
	checkDeletions(t, openDeletions(t, path), 1, 3)
	d.Say("open", "yes")
	d.Cuts(powerWays, func(t testing.TB, dir string, said map[string]string) {
		l, err := OpenDeletions(OneDir(dir), "deletions")
		if err != nil {
			t.Error(err)
			return
		}
		defer l.Close()
		if _, last := l.Bounds(); said["open"] != "" && last != 3 {
			t.Errorf("%d entries are there, 3 could be read", last)
		}
	})
}

// Each operation fails once: the error says which file, and why.
func TestDeletionsFailingDisk(t *testing.T) {
	failEach(t, deletionStory, checkDeletionPower)
}

func failEach(t *testing.T, story func(testing.TB, int, error) (*disktest.Disk, error), check func(testing.TB, string, map[string]string)) {
	disktest.FailEach(t, story, func(f *disktest.Failure) {
		if f.Err != nil && (!errors.Is(f.Err, f.Fail) || !strings.Contains(f.Err.Error(), filepath.Dir(f.Op.Path))) {
			t.Errorf("%sthe error names no file, or not why: %v", f.What, f.Err)
		}
		if f.Err == nil && f.Op.Kind != disk.OpRemove {
			t.Errorf("%sand nobody was told", f.What)
		}
		if f.Full() && f.Err != nil && !errdefs.IsResourceExhausted(f.Err) {
			t.Errorf("%snot said to be a full disk: %v", f.What, f.Err)
		}
		f.Disk.LastCut(powerWays[:1], check)
	})
}
