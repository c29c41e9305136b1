package origind

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/internal/diskfull"
	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/origind/ringstate"
)

// ledger is what a member's decisions are kept in (record/FORMAT.md, section 5): <root>/ring with the records of blobs, the
// deletion log, and ring.json with the rest. One goroutine at a time commits; others may read meanwhile.
type ledger struct {
	dir       string
	records   *record.Store
	deletions *record.Deletions
	inc       uint64

	saved *ringstate.Saved // as it was found
	log   ringstate.Log

	// Of whoever commits.
	ring   []byte            // ring.json, durably; nil: that is not known
	logged []record.Deletion // what a commit has appended that failed afterwards
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

// openLedger opens what is kept below a root that nobody else has open, and makes what is missing. Records of format 1 are
// taken over, with the member's name. What is damaged is errdefs.ErrDataLoss, and the error says what to do.
func openLedger(root, name string) (_ *ledger, err error) {
	l := &ledger{dir: filepath.Join(root, ledgerDir)}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("what is kept of the ring: %w", diskfull.Classed(err)), l.close())
		}
	}()
	if err := durable.NewDirs(root, 0o700).Make(l.dir); err != nil {
		return nil, err
	}
	if err := l.tidy(); err != nil {
		return nil, err
	}
	f, text, err := readRing(filepath.Join(l.dir, ringName))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if err := l.complete(root); err != nil {
			return nil, err
		}
	}
	if l.deletions, err = record.OpenDeletions(filepath.Join(l.dir, logName)); err != nil {
		return nil, err
	}
	if l.records, err = record.OpenStore(filepath.Join(l.dir, recordsDir)); err != nil {
		return nil, err
	}
	if f == nil {
		err = l.begin(root, name)
	} else {
		l.inc, l.saved, l.ring = f.incarnation, f.saved, text
		if f.log != l.deletions.ID() {
			err = fmt.Errorf("%s is not the deletion log that %s belongs to: "+moveRingAway+": %w",
				filepath.Join(l.dir, logName), filepath.Join(l.dir, ringName), l.dir, errdefs.ErrDataLoss)
		}
	}
	if err == nil {
		err = l.load()
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

// tidy removes what interrupted writes have left.
func (l *ledger) tidy() error {
	files, err := os.ReadDir(l.dir)
	for _, f := range files {
		if err == nil && durable.IsTemp(f.Name()) {
			err = disk.Remove(filepath.Join(l.dir, f.Name()))
		}
	}
	return err
}

// complete reports what is not there beside a ring.json, which is written last; or what is, and must not be.
func (l *ledger) complete(root string) error {
	for _, name := range []string{logName, recordsDir} {
		path := filepath.Join(l.dir, name)
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is missing: "+moveRingAway+": %w", path, l.dir, errdefs.ErrDataLoss)
		} else if err != nil {
			return err
		}
	}
	old := filepath.Join(root, recordsDir)
	if _, err := os.Lstat(old); err == nil {
		return fmt.Errorf("%s and %s are both there: an earlier release has run after this one, and neither has all: "+
			"move away the one that is not to count: %w", old, l.dir, errdefs.ErrFailedPrecondition)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// begin makes a ledger of a new disk, or of one with records of format 1. ring.json comes last: until it is there all of this is repeated.
func (l *ledger) begin(root, name string) error {
	if _, err := l.records.Migrate(filepath.Join(root, recordsDir), name); err != nil {
		return err
	}
	for l.inc == 0 {
		var b [8]byte
		_, _ = rand.Read(b[:]) // it never fails
		l.inc = binary.BigEndian.Uint64(b[:])
	}
	return l.keep(nil)
}

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
	path := filepath.Join(l.dir, ringName)
	text, err := (&ringFile{l.inc, l.deletions.ID(), s}).text()
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if bytes.Equal(text, l.ring) {
		return nil
	}
	l.ring = nil
	if err := durable.WriteFile(path, text, 0o600); err != nil {
		return diskfull.Classed(err)
	}
	l.ring = text
	return nil
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
	s, err := record.OpenStore(filepath.Join(ring, recordsDir))
	if err != nil {
		return 0, err
	}
	defer s.Close()
	return s.Export(dir)
}
