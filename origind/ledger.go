package origind

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/internal/diskfull"
	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/origind/ringstate"
)

// ledger is what a member's decisions are kept in (record/FORMAT.md, section 5): ring/ on each of its disks, with the records of blobs,
// the deletion log, and ring.json with the rest. One goroutine at a time commits; others may read meanwhile.
type ledger struct {
	dirs      *record.Dirs
	records   *record.Store
	deletions *record.Deletions
	inc       uint64

	saved *ringstate.Saved // as it was found
	log   ringstate.Log

	// Of whoever commits.
	ring   []byte            // ring.json, durably; nil: that is not known
	logged []record.Deletion // what a commit has appended that failed afterwards

	mu   sync.RWMutex // held to read while ring.json is written somewhere, and to write while what is in it changes
	said *ringstate.Saved
	set  *diskSet          // nil: there is only one disk
	ids  map[string]uint64 // of disks, by the directories of dirs
}

// changes are what one batch of decisions wants kept.
type changes struct {
	ring    *ringstate.Saved                // nil: as it was
	entries map[digest.Digest]*record.Entry // what is kept of blobs from now on; a nil Entry: forgotten
	log     []record.Deletion               // appended to the deletion log, in this order
	first   uint64                          // entries of the log before this number go (ringstate.ActTrim); 0: none
}

const (
	ledgerDir    = "ring"
	ringName     = "ring.json"
	logName      = "deletions"
	recordsDir   = "records" // below ledgerDir; below the root: of format 1
	trimAtOnce   = 10_000    // entries of the log
	loadAtOnce   = 10_000
	moveRingAway = "restore it, or move all of %s away: to the others this member has a new disk then, and it asks them for what it is to have"
)

// dropUnknown drops blobs without a record of format 1, before those records are taken over: to the release that wrote them
// such a blob was deleted, or not pushed yet. From now on it would be visible. Before and after that it does nothing.
func dropUnknown(ctx context.Context, root string, bytes blobBytes) error {
	old := filepath.Join(root, recordsDir)
	if _, err := os.Lstat(old); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, err := os.Lstat(filepath.Join(root, ledgerDir, ringName)); !errors.Is(err, fs.ErrNotExist) {
		return nil // openLedger says what is wrong
	}
	for d := range bytes.Whole() {
		known, err := record.HasV1(old, d)
		if err == nil && !known {
			err = drop(ctx, bytes, d)
		}
		if err != nil {
			return fmt.Errorf("blobs that an earlier release has deleted: %w", err)
		}
	}
	return nil
}

// drop removes a blob's bytes, pinned or not.
func drop(ctx context.Context, bytes blobBytes, d digest.Digest) error {
	err := bytes.Unpin(ctx, d)
	if id, p := bytes.Find(d); err == nil && p == content.Cached {
		err = bytes.DropCached(id)
	}
	return err
}

// load reads the deletion log.
func (l *ledger) load() error {
	first, after := l.deletions.Bounds()
	l.log = ringstate.Log{First: first, Entries: make([]record.Deletion, 0, after+1-first)}
	after = 0
	for {
		page, last, err := l.deletions.Read(after, loadAtOnce)
		if err != nil || len(page) == 0 {
			return err
		}
		l.log.Entries, after = append(l.log.Entries, page...), last
	}
}

// incarnation is the disk's: a random number, not zero, made when the disk is first used.
func (l *ledger) incarnation() uint64 { return l.inc }

// start returns what ringstate.New is given, once. Saved is nil on a new disk.
func (l *ledger) start() (*ringstate.Saved, ringstate.Log) {
	saved, log := l.saved, l.log
	l.saved, l.log = nil, ringstate.Log{} // they are large, and get old
	return saved, log
}

// get returns what is kept of a blob, or nil. Any goroutine may call it.
func (l *ledger) get(d digest.Digest) (*record.Entry, error) { return l.records.Get(d) }

// each calls f for what is kept of each blob. What is committed meanwhile is called for as it was, or as it is.
func (l *ledger) each(f func(*record.Entry) error) error { return l.records.Each(f) }

// commit makes changes durable: the deletion log, then records, then ring.json, which says how far the logs of others were
// read (an earlier one has them read again), then what goes. Each costs one sync, and nothing if nothing of it changes. If
// it fails, some of the changes may have been made; the next commit has to have all of them, and may have more. One goroutine
// at a time.
func (l *ledger) commit(c *changes) error {
	err := l.append(c.log)
	if err == nil {
		err = l.records.PutAll(c.entries)
	}
	if err == nil && c.ring != nil {
		err = l.keep(c.ring)
	}
	if err == nil {
		err = l.trim(c.first)
	}
	if err != nil {
		return fmt.Errorf("keeping what was decided: %w", err)
	}
	l.logged = nil
	return nil
}

// append appends to the deletion log what a commit that failed has not: entries have the numbers that ringstate has counted.
func (l *ledger) append(entries []record.Deletion) error {
	n := len(l.logged)
	if len(entries) < n || !slices.Equal(entries[:n], l.logged) {
		return fmt.Errorf("the deletion log has entries of a commit that failed, and this one is another: %w", errdefs.ErrFailedPrecondition)
	}
	if _, err := l.deletions.Append(entries[n:]...); err != nil {
		return err
	}
	l.logged = append(l.logged, entries[n:]...)
	return nil
}

// keep writes ring.json, if that changes it. Nil is what nobody has decided anything about.
func (l *ledger) keep(s *ringstate.Saved) error {
	l.mu.Lock()
	l.said = s
	l.mu.Unlock()
	text, err := l.text()
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Join(l.dir(), ringName), err)
	}
	if bytes.Equal(text, l.ring) {
		return nil
	}
	l.ring = nil
	if err := l.dirs.Do(l.write); err != nil {
		return diskfull.Classed(err)
	}
	l.ring, err = l.text() // a disk may have been lost by it
	return err
}

// dir is where it is read.
func (l *ledger) dir() string { return l.dirs.Live()[0] }

// text is what ring.json is to have.
func (l *ledger) text() ([]byte, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return (&ringFile{l.inc, l.deletions.ID(), l.said, l.set}).text()
}

// write writes ring.json to a directory.
func (l *ledger) write(dir string) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	text, err := (&ringFile{l.inc, l.deletions.ID(), l.said, l.set}).text()
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, ringName), text, 0o600)
}

// trim forgets the entries of the log before a number, and before that the records that are there because of them only: an
// entry that is gone takes no record along any more.
func (l *ledger) trim(first uint64) error {
	for number, head := l.deletions.Bounds(); number < min(first, head+1); {
		page, last, err := l.deletions.Read(number-1, int(min(first-number, trimAtOnce)))
		if err != nil {
			return err
		}
		gone := make(map[digest.Digest]*record.Entry)
		for _, d := range page {
			e, err := l.records.Get(d.Digest)
			if err != nil {
				return err
			}
			if e != nil && !e.Record.Live() && !e.Wrote && len(e.Found) == 0 && latestRemoval(e.Record) == d.Stamp {
				gone[d.Digest] = nil
			}
		}
		if err := l.records.PutAll(gone); err != nil {
			return err
		}
		number = last + 1
	}
	return l.deletions.Retire(first)
}

func latestRemoval(r *record.Record) (s record.Stamp) {
	for _, t := range r.Removed {
		s = max(s, t)
	}
	return s
}

// page answers ringstate.ReadLog. Any goroutine may call it.
func (l *ledger) page(after uint64) (*ringstate.LogPage, error) {
	entries, last, err := l.deletions.Read(after, ringstate.LogPageMax)
	if err != nil {
		return nil, err
	}
	p := &ringstate.LogPage{Entries: entries}
	if len(entries) > 0 {
		p.Next = last
	}
	p.First, _ = l.deletions.Bounds() // not before: what was trimmed meanwhile must not look as if it never was
	return p, nil
}

// run compacts what is kept when it is time, until ctx is done.
func (l *ledger) run(ctx context.Context) {
	l.records.Run(ctx, func(err error) { log.G(ctx).WithError(err).Warn("cannot compact records") })
}

// close waits for what is being written. What comes later fails.
func (l *ledger) close() (err error) {
	return errors.Join(l.leaveClean(), l.closeFiles())
}

func (l *ledger) closeFiles() (err error) {
	if l.records != nil {
		err = l.records.Close()
	}
	if l.deletions != nil {
		err = errors.Join(err, l.deletions.Close())
	}
	return err
}

// ExportV1 writes the records of an origin that is stopped to a directory that must not be there, as earlier releases have
// them (record/FORMAT.md, "The way back"), and returns how many there are. If one cannot be written so, nothing is.
func ExportV1(root, dir string) (records int, err error) {
	unlock, err := content.Lock(root)
	if err != nil {
		return 0, fmt.Errorf("the origin of %s: %w", root, err)
	}
	defer func() { err = errors.Join(err, unlock()) }()
	ring := filepath.Join(root, ledgerDir)
	if _, err := os.Lstat(filepath.Join(ring, ringName)); errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("%s has no %s: no origin of this release has run there: %w", ring, ringName, errdefs.ErrNotFound)
	} else if err != nil {
		return 0, err
	}
	s, err := record.OpenStore(record.OneDir(ring), recordsDir)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	return s.Export(dir)
}
