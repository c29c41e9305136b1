package origind

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/internal/durable/disktest"
	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/origind/ringstate"
)

func mustOpenLedger(t testing.TB, root string) *ledger {
	t.Helper()
	l, err := openLedger(root, "origin-1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.close() })
	return l
}

func mustCommit(t testing.TB, l *ledger, c *changes) {
	t.Helper()
	if err := l.commit(c); err != nil {
		t.Fatal(err)
	}
}

// ledgerBlob is the digest of blob n.
func ledgerBlob(n int) digest.Digest { return digest.FromString(fmt.Sprint("blob ", n)) }

// ledgerEntry is what is kept of blob n, which was pushed at a time.
func ledgerEntry(n int, at record.Stamp) *record.Entry {
	d := ledgerBlob(n)
	place := record.Place{Backend: "s3", Key: "blobs/" + d.Encoded()}
	return &record.Entry{Record: record.Pushed(d, int64(n+1), place, "team/app", "origin-1", at)}
}

func ledgerEntries(es ...*record.Entry) map[digest.Digest]*record.Entry {
	m := map[digest.Digest]*record.Entry{}
	for _, e := range es {
		m[e.Record.Digest] = e
	}
	return m
}

// ledgerDeletions are entries of the deletion log with the numbers from..to.
func ledgerDeletions(from, to int) (all []record.Deletion) {
	for n := from; n <= to; n++ {
		all = append(all, record.Deletion{Digest: ledgerBlob(n), Namespace: "team/app", Stamp: record.Stamp(1000 + n)})
	}
	return all
}

// ledgerRing is what a ring decides, at the order o.
func ledgerRing(l *ledger, o ringstate.Order) *ringstate.Saved {
	return &ringstate.Saved{
		Incarnation: l.incarnation(), Clock: 5, Order: o, Lowest: 1,
		Members: []ringstate.SavedMember{{Name: "origin-1", Incarnation: l.incarnation(), Mode: ringstate.Up, ModeAt: 1}},
	}
}

func TestLedger(t *testing.T) {
	root := t.TempDir()
	l := mustOpenLedger(t, root)
	inc := l.incarnation()
	if saved, log := l.start(); saved != nil || log.First != 1 || len(log.Entries) > 0 || inc == 0 {
		t.Errorf("a new disk %x has %+v and %+v", inc, saved, log)
	}
	l.close()
	l = mustOpenLedger(t, root)
	if saved, _ := l.start(); saved != nil || l.incarnation() != inc {
		t.Errorf("opened again, disk %x is %x, with %+v", inc, l.incarnation(), saved)
	}
	first := &changes{ring: ledgerRing(l, 7), entries: ledgerEntries(ledgerEntry(1, 10), ledgerEntry(2, 20)), log: ledgerDeletions(1, 2500)}
	mustCommit(t, l, first)
	mustCommit(t, l, &changes{ring: ledgerRing(l, 8), entries: map[digest.Digest]*record.Entry{
		ledgerBlob(1): nil, ledgerBlob(3): ledgerEntry(3, 1),
	}})
	for range 2 {
		n := 0
		err := l.each(func(e *record.Entry) error { n++; return nil })
		e, gerr := l.get(ledgerBlob(2))
		gone, rerr := l.get(ledgerBlob(1))
		if err = errors.Join(err, gerr, rerr); err != nil || n != 2 || gone != nil || !reflect.DeepEqual(e, ledgerEntry(2, 20)) {
			t.Errorf("%d entries, %+v and %+v: %v", n, e, gone, err)
		}
		l.close()
		l = mustOpenLedger(t, root)
		saved, log := l.start()
		if !reflect.DeepEqual(saved, ledgerRing(l, 8)) || l.incarnation() != inc {
			t.Errorf("kept of disk %x is %+v", inc, saved)
		}
		if log.First != 1 || !slices.Equal(log.Entries, ledgerDeletions(1, 2500)) {
			t.Errorf("the log has %d entries from %d on", len(log.Entries), log.First)
		}
	}
	other := ledgerRing(l, 9)
	other.Incarnation++
	if err := l.commit(&changes{ring: other}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("of another disk: %v", err)
	}
}

// What others read of the log and what goes with it is as ringstate's tests have it (world_test.go).
func TestLedgerLikeTheWorld(t *testing.T) {
	root := t.TempDir()
	defer disk.Intercept(root, fast{})()
	l := mustOpenLedger(t, root)
	rng := rand.New(rand.NewPCG(1, 2))
	first, log := uint64(1), []record.Deletion(nil)
	recs := map[digest.Digest]*record.Entry{}
	var stamp record.Stamp
	for range 200 {
		c := &changes{entries: map[digest.Digest]*record.Entry{}}
		for range rng.IntN(20) {
			stamp++
			d := ledgerBlob(rng.IntN(40))
			e := c.entries[d]
			if e == nil {
				e = recs[d]
			}
			if e == nil {
				e = &record.Entry{}
			}
			switch rng.IntN(4) {
			case 0:
				r := record.Pushed(d, 5, record.Place{Backend: "b", Key: d.Encoded()}, "team/app", "o", stamp)
				c.entries[d] = &record.Entry{Record: record.Merge(e.Record, r), Wrote: rng.IntN(4) == 0, Found: e.Found}
			case 1:
				if e.Record != nil && e.Record.Size > 0 {
					c.entries[d] = &record.Entry{Record: e.Record, Wrote: e.Wrote, Found: []record.Place{{Backend: "f", Key: "k"}}}
				}
			default:
				entry := record.Deletion{Digest: d, Namespace: []string{"", "team/app"}[rng.IntN(2)], Stamp: stamp}
				c.log = append(c.log, entry)
				r := record.Merge(e.Record, record.Removed(d, entry.Namespace, stamp))
				c.entries[d] = &record.Entry{Record: r, Wrote: e.Wrote, Found: e.Found}
			}
		}
		maps.Copy(recs, c.entries)
		log = append(log, c.log...)
		if rng.IntN(5) == 0 {
			c.first = first + uint64(rng.IntN(len(log)+1))
			for ; first < c.first; first++ {
				e := log[0]
				log = log[1:]
				l := recs[e.Digest]
				if l != nil && !l.Record.Live() && !l.Wrote && len(l.Found) == 0 &&
					slices.Max(slices.Collect(maps.Values(l.Record.Removed))) == e.Stamp {
					delete(recs, e.Digest)
				}
			}
		}
		mustCommit(t, l, c)
		after := uint64(rng.IntN(int(first) + len(log) + 2))
		want := &ringstate.LogPage{First: first}
		for i, e := range log {
			if seq := first + uint64(i); seq > after && len(want.Entries) < ringstate.LogPageMax {
				want.Entries, want.Next = append(want.Entries, e), seq
			}
		}
		if got, err := l.page(after); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("page after %d: %+v, %v, want %+v", after, got, err, want)
		}
		n := 0
		err := l.each(func(e *record.Entry) error {
			n++
			if want := recs[e.Record.Digest]; want == nil || !record.Equal(e.Record, want.Record) || e.Wrote != want.Wrote {
				return fmt.Errorf("%+v is there, want %+v", e, want)
			}
			return nil
		})
		if err != nil || n != len(recs) {
			t.Fatalf("%d entries, want %d: %v", n, len(recs), err)
		}
	}
	if first < 100 {
		t.Errorf("only %d entries went", first)
	}
	if p, err := l.page(1<<64 - 1); err != nil || len(p.Entries) > 0 {
		t.Errorf("after all numbers: %+v, %v", p, err)
	}
}

// Who reads the log while entries come and go is told of each, or that some are gone.
func TestPageMeanwhile(t *testing.T) {
	root := t.TempDir()
	defer disk.Intercept(root, fast{})()
	l := mustOpenLedger(t, root)
	const all, step = 6000, 20
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 1; n <= all; n += step {
			c := &changes{log: ledgerDeletions(n, n+step-1), first: uint64(max(0, n-step))}
			if err := l.commit(c); err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer wg.Wait()
	for after := uint64(0); after < all; {
		p, err := l.page(after)
		if err != nil {
			t.Fatal(err)
		}
		n := uint64(len(p.Entries))
		if n == 0 {
			continue
		}
		first := p.Next - n + 1
		if !slices.Equal(p.Entries, ledgerDeletions(int(first), int(p.Next))) || first != after+1 && p.First <= after+1 {
			t.Fatalf("after %d come %d to %d, and %d is the first", after, first, p.Next, p.First)
		}
		after = p.Next
	}
}

// fast has nothing be synced.
type fast struct{}

func (fast) Do(op disk.Op, do func(int) error) error {
	if op.Kind == disk.OpSync || op.Kind == disk.OpDatasync {
		return nil
	}
	return do(op.Bytes)
}

// steps notes what is done to a ledger's files.
type steps struct{ all []string }

func (s *steps) Do(op disk.Op, do func(int) error) error {
	name := filepath.Base(op.Path)
	if op.To != "" {
		name = filepath.Base(op.To)
	}
	if strings.HasPrefix(name, ".tmp-") {
		name = "tmp"
	}
	s.all = append(s.all, string(op.Kind)+" "+name)
	return do(op.Bytes)
}

// A commit makes durable in its order, each with one sync however much it is, and does nothing if nothing changes.
func TestCommitSteps(t *testing.T) {
	root := t.TempDir()
	mustOpenLedger(t, root).close()
	l := mustOpenLedger(t, root) // whose files have their names
	var s steps
	defer disk.Intercept(root, &s)()
	c := &changes{ring: ledgerRing(l, 7), log: ledgerDeletions(1, 500), entries: map[digest.Digest]*record.Entry{}}
	for n := range 500 {
		c.entries[ledgerBlob(n)] = ledgerEntry(n, 10)
	}
	gone := ledgerEntry(500, 1)
	gone.Record = record.Merge(gone.Record, record.Removed(gone.Record.Digest, "team/app", 1500))
	c.entries[gone.Record.Digest] = gone
	c.first = 501
	mustCommit(t, l, c)
	log := "log-0000000000000001"
	want := []string{
		"write deletions", "fdatasync deletions", "write " + log, "fdatasync " + log,
		"open tmp", "write tmp", "fsync tmp", "rename ring.json", "fsync ring",
		"write " + log, "fdatasync " + log, // what goes with the entries, before they do
		"open tmp", "write tmp", "write tmp", "fsync tmp", "rename deletions", "fsync ring",
	}
	if !slices.Equal(s.all, want) {
		t.Errorf("%q\nwant %q", s.all, want)
	}
	delete(c.entries, gone.Record.Digest)
	s.all = nil
	nothing := map[digest.Digest]*record.Entry{ledgerBlob(999): nil}
	for _, c := range []*changes{{}, {ring: c.ring}, {entries: c.entries}, {first: 501}, {first: 9}, {entries: nothing}} {
		if mustCommit(t, l, c); len(s.all) > 0 {
			t.Errorf("%+v: %q", c, s.all)
		}
	}
}

// ledgerStory commits, while the operation failAt fails; what fails is done again.
func ledgerStory(t testing.TB, failAt int, fail error) (d *disktest.Disk, err error) {
	root := filepath.Join(t.TempDir(), "disk")
	v1 := filepath.Join(root, "records")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	writeV1(t, v1, ledgerEntry(0, 1))
	d = disktest.Watch(t, root)
	defer d.Stop()
	d.FailAt(failAt, fail)
	l, err := openLedger(root, "origin-1")
	if err != nil {
		return d, err
	}
	defer l.close()
	commit := func(o ringstate.Order, c *changes) {
		c.ring = ledgerRing(l, o)
		if cerr := l.commit(c); cerr != nil {
			err = errors.Join(err, cerr)
			if cerr = l.commit(c); cerr != nil {
				t.Errorf("the disk failed once, and again: %v", cerr)
			}
		}
		d.Say("order", fmt.Sprint(o))
	}
	commit(1, &changes{log: ledgerDeletions(1, 3), entries: ledgerEntries(ledgerEntry(1, 1), ledgerEntry(2, 1))})
	commit(2, &changes{log: ledgerDeletions(4, 40), entries: ledgerEntries(ledgerEntry(1, 2), ledgerEntry(2, 2))})
	gone := &record.Entry{Record: record.Removed(ledgerBlob(9), "team/app", 1009)}
	commit(3, &changes{entries: ledgerEntries(ledgerEntry(1, 3), ledgerEntry(2, 3), gone)})
	commit(4, &changes{log: ledgerDeletions(41, 42), entries: ledgerEntries(ledgerEntry(1, 4), ledgerEntry(2, 4)), first: 40})
	commit(5, &changes{log: ledgerDeletions(43, 43), entries: map[digest.Digest]*record.Entry{
		ledgerBlob(1): ledgerEntry(1, 5), ledgerBlob(2): ledgerEntry(2, 5), ledgerBlob(0): nil,
	}})
	return d, err
}

// checkLedgerPower checks that what ring.json belongs to is there, and all that was promised.
func checkLedgerPower(t testing.TB, dir string, said map[string]string) {
	l, err := openLedger(dir, "origin-1")
	if err != nil {
		t.Errorf("opening: %v", err)
		return
	}
	defer l.close()
	saved, log := l.start()
	order := 0
	if saved != nil {
		order = int(saved.Order)
	}
	promised := 0
	_, _ = fmt.Sscan(said["order"], &promised)
	heads := []uint64{0, 3, 40, 40, 42, 43}
	head := log.First + uint64(len(log.Entries)) - 1
	if order < promised || head < heads[order] || head > 43 || log.First > 40 || promised < 4 && log.First > 1 && order < 4 {
		t.Errorf("of commit %d, %d was promised: entries %d to %d", order, promised, log.First, head)
	}
	if want := ledgerDeletions(int(log.First), int(head)); !slices.Equal(log.Entries, want) {
		t.Errorf("the log from %d on is %v, want %v", log.First, log.Entries, want)
	}
	since := func(n int) record.Stamp {
		e, err := l.get(ledgerBlob(n))
		if err != nil {
			t.Error(err)
		}
		if e == nil || len(e.Record.Homes) == 0 {
			return 0
		}
		return e.Record.Homes[0].Since
	}
	for _, n := range []int{1, 2} {
		if int(since(n)) < order {
			t.Errorf("of commit %d, blob %d is as in %d", order, n, since(n))
		}
	}
	if e, _ := l.get(ledgerBlob(9)); promised >= 4 && e != nil {
		t.Errorf("the record of an entry that went is there: %+v", e)
	}
	if order < 5 && int(since(1)) < 5 && int(since(2)) < 5 && since(0) == 0 && promised < 4 {
		t.Error("the record of format 1 is lost")
	}
	// It goes on from there.
	e := record.Deletion{Digest: ledgerBlob(77), Stamp: 1}
	if err := l.commit(&changes{ring: ledgerRing(l, 99), log: []record.Deletion{e}}); err != nil {
		t.Errorf("going on: %v", err)
	}
	if p, err := l.page(head); err != nil || p.Next != head+1 || len(p.Entries) != 1 || p.Entries[0] != e {
		t.Errorf("going on after %d: %+v, %v", head, p, err)
	}
}

func TestLedgerPowerCut(t *testing.T) {
	d, err := ledgerStory(t, -1, nil)
	if err != nil {
		t.Fatal(err)
	}
	ways := []disktest.Survival{disktest.Nothing, disktest.Names, disktest.Everything, disktest.Anything(1), disktest.Anything(2)}
	n := d.Cuts(ways, checkLedgerPower)
	t.Logf("%d operations, %d different disks", len(d.Ops())-1, n)
}

func TestLedgerFailingDisk(t *testing.T) {
	disktest.FailEach(t, ledgerStory, func(f *disktest.Failure) {
		if f.Err == nil && f.Op.Kind != disk.OpRemove ||
			f.Err != nil && (!errors.Is(f.Err, f.Fail) || !strings.Contains(f.Err.Error(), filepath.Dir(f.Op.Path))) {
			t.Errorf("%sthe error names no file, or not why: %v", f.What, f.Err)
		}
		if f.Full() && f.Err != nil && !errdefs.IsResourceExhausted(f.Err) {
			t.Errorf("%snot said to be a full disk: %v", f.What, f.Err)
		}
		for _, way := range []disktest.Survival{disktest.Nothing, disktest.Everything} {
			f.Disk.LastCut([]disktest.Survival{way}, checkLedgerPower)
		}
	})
}

// After a commit that failed only one counts that has all that it had.
func TestCommitAgain(t *testing.T) {
	root := t.TempDir()
	l := mustOpenLedger(t, root)
	bad := ledgerRing(l, 1)
	bad.Lowest = 0 // cannot be kept, and comes after the log
	c := &changes{ring: bad, log: ledgerDeletions(1, 2)}
	for range 2 {
		if err := l.commit(c); !errdefs.IsInvalidArgument(err) {
			t.Fatal(err)
		}
	}
	for _, log := range [][]record.Deletion{nil, ledgerDeletions(1, 1), ledgerDeletions(2, 3)} {
		if err := l.commit(&changes{log: log}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%d other entries: %v", len(log), err)
		}
	}
	mustCommit(t, l, &changes{log: ledgerDeletions(1, 3)})
	mustCommit(t, l, &changes{log: ledgerDeletions(4, 4)})
	if p, err := l.page(0); err != nil || !slices.Equal(p.Entries, ledgerDeletions(1, 4)) {
		t.Errorf("%+v, %v", p, err)
	}
}

// writeV1 writes records as the release before has them.
func writeV1(t testing.TB, dir string, es ...*record.Entry) {
	t.Helper()
	for _, e := range es {
		b, err := e.Record.V1()
		d := e.Record.Digest
		p := filepath.Join(dir, d.Algorithm().String(), d.Encoded()[:2], d.Encoded()+".json")
		if err = errors.Join(err, os.MkdirAll(filepath.Dir(p), 0o700), os.WriteFile(p, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

// From the release before, and back; and what is damaged or of both is refused, with a word on what to do.
func TestLedgerAndEarlierReleases(t *testing.T) {
	root := t.TempDir()
	old := filepath.Join(root, "records")
	writeV1(t, old, ledgerEntry(1, 1), ledgerEntry(2, 1))
	if _, err := ExportV1(root, old); err == nil {
		t.Error("what is no origin's directory was exported")
	}
	s, err := content.Open(t.Context(), content.Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	l := mustOpenLedger(t, root)
	if e, err := l.get(ledgerBlob(2)); err != nil || e == nil || e.Record.Homes[0].By != "origin-1" {
		t.Errorf("migrated: %+v, %v", e, err)
	}
	if left, _ := filepath.Glob(old + "*"); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
	mustCommit(t, l, &changes{entries: ledgerEntries(ledgerEntry(3, 5))})
	l.close()
	if _, err := ExportV1(root, old); !errors.Is(err, content.ErrLocked) {
		t.Errorf("an origin runs there: %v", err)
	}
	s.Close()
	if n, err := ExportV1(root, old); err != nil || n != 3 {
		t.Fatalf("%d were exported: %v", n, err)
	}
	d := ledgerBlob(3)
	text, err := os.ReadFile(filepath.Join(old, d.Algorithm().String(), d.Encoded()[:2], d.Encoded()+".json"))
	if err != nil {
		t.Fatal(err)
	}
	if r, err := record.FromV1(text, d, "o"); err != nil || !r.Pinned() {
		t.Errorf("the release before reads %+v, %v", r, err)
	}
	if _, err := openLedger(root, "o"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), old) {
		t.Errorf("two kinds of records: %v", err)
	}
	if err := os.Rename(filepath.Join(root, "ring"), filepath.Join(root, "away")); err != nil {
		t.Fatal(err)
	}
	if l = mustOpenLedger(t, root); l.records.Len() != 3 {
		t.Errorf("%d records came back", l.records.Len())
	}
	empty := t.TempDir()
	if s, err = content.Open(t.Context(), content.Config{Root: empty}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := ExportV1(empty, filepath.Join(empty, "records")); !errdefs.IsNotFound(err) {
		t.Errorf("nothing to export: %v", err)
	}
}

func TestDamagedLedger(t *testing.T) {
	for _, tt := range []struct {
		what, name string
		do         func(path string) error
		is         func(error) bool
	}{
		{"ring.json is cut", "ring.json", func(p string) error { return os.Truncate(p, 100) }, errdefs.IsDataLoss},
		{"ring.json is another", "ring.json", func(p string) error { return os.WriteFile(p, []byte("{}"), 0o600) }, errdefs.IsDataLoss},
		{"it is large", "ring.json", func(p string) error { return os.Truncate(p, 1<<30) }, errdefs.IsDataLoss},
		{"it is of a later release", "ring.json", func(p string) error {
			return os.WriteFile(p, []byte(`{"format":2}`), 0o600)
		}, errdefs.IsFailedPrecondition},
		{"no log", "deletions", os.Remove, errdefs.IsDataLoss},
		{"a log that was begun anew", "deletions", func(p string) error {
			err := os.Remove(p)
			d, oerr := record.OpenDeletions(record.OneDir(filepath.Dir(p)), filepath.Base(p))
			return errors.Join(err, oerr, d.Close())
		}, errdefs.IsDataLoss},
		{"a damaged log", "deletions", func(p string) error { return os.Truncate(p, 9) }, errdefs.IsDataLoss},
		{"no records", "records", os.RemoveAll, errdefs.IsDataLoss},
	} {
		root := t.TempDir()
		l := mustOpenLedger(t, root)
		inc := l.incarnation()
		mustCommit(t, l, &changes{ring: ledgerRing(l, 1), log: ledgerDeletions(1, 3), entries: ledgerEntries(ledgerEntry(1, 1))})
		l.close()
		path := filepath.Join(root, "ring", tt.name)
		if err := tt.do(path); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := openLedger(root, "o"); !tt.is(err) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: %v", tt.what, err)
			}
		}
		if err := os.Remove(filepath.Join(root, "ring", "ring.json")); err != nil {
			t.Fatal(err)
		}
		if tt.name == "ring.json" { // as the error says
			l = mustOpenLedger(t, root)
			if saved, log := l.start(); saved != nil || l.incarnation() == inc || len(log.Entries) != 3 || l.records.Len() != 1 {
				t.Errorf("%s: without it disk %x is %x, with %d entries, %d records and %+v", tt.what, inc, l.incarnation(), len(log.Entries),
					l.records.Len(), saved)
			}
		}
	}
}

// What interrupted writes have left goes, and run ends with its context.
func TestLedgerTidies(t *testing.T) {
	root := t.TempDir()
	mustOpenLedger(t, root).close()
	left := filepath.Join(root, "ring", ".tmp-1")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l := mustOpenLedger(t, root)
	if _, err := os.Lstat(left); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l.run(ctx)
}

// BenchmarkCommit is of 1,000 entries and removals, together and one after the other, on the disk of the temporary directory.
func BenchmarkCommit(b *testing.B) {
	for _, together := range []int{1000, 1} {
		b.Run(fmt.Sprint(together, " at once"), func(b *testing.B) {
			l := mustOpenLedger(b, b.TempDir())
			n := 0
			for b.Loop() {
				for range 1000 / together {
					c := &changes{entries: map[digest.Digest]*record.Entry{}, ring: ledgerRing(l, ringstate.Order(n))}
					c.log = ledgerDeletions(n, n+together-1)
					for range together {
						c.entries[ledgerBlob(n)] = ledgerEntry(n, 1)
						n++
					}
					mustCommit(b, l, c)
				}
			}
		})
	}
}

// BenchmarkOpenLedger is the start with a million records and 100,000 entries of the deletion log.
func BenchmarkOpenLedger(b *testing.B) {
	root := b.TempDir()
	l := mustOpenLedger(b, root)
	for n := 0; n < 1_000_000; {
		c := &changes{entries: map[digest.Digest]*record.Entry{}}
		if n < 100_000 {
			c.log = ledgerDeletions(n, n+9999)
		}
		for range 10_000 {
			c.entries[ledgerBlob(n)] = ledgerEntry(n, 1)
			n++
		}
		mustCommit(b, l, c)
	}
	if err := errors.Join(l.records.Compact(), l.close()); err != nil {
		b.Fatal(err)
	}
	l = nil
	before := rss(b)
	for b.Loop() {
		l = nil //nolint:wastedassign // or there are two at once
		l = mustOpenLedger(b, root)
		_, log := l.start()
		if l.close(); len(log.Entries) != 100_000 {
			b.Fatal(len(log.Entries))
		}
	}
	b.ReportMetric((rss(b)-before)/1_000_000, "RSS-B/record")
	runtime.KeepAlive(l)
}
