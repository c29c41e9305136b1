package origind

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/capelin-io/capelin/internal/diskfull"
	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/origind/ringstate"
)

// ledgerDisk is a disk that is to have a ledger.
type ledgerDisk struct {
	root string
	id   uint64 // 0: it is the only one, and never was one of several
}

// ledgerConfig is what a ledger is opened with.
type ledgerConfig struct {
	name  string // the member's
	disks []ledgerDisk
	// stale is told of disks that have not had all that is kept, before they count: what is there of blobs that nothing is kept of goes.
	// It may be nil; get is the ledger's.
	stale func(root string, l *ledger) error
	// lost is told of each disk that is left out, from then on. It may be nil.
	lost func(root string, why error)
}

// foundLedger is what is on one disk at the start.
type foundLedger struct {
	ledgerDisk
	dir  string
	file *ringFile // nil: none, or it is damaged
	text []byte
	err  error // what is wrong with it
}

// has reports whether the disk has, or had, all of what its file says.
func (f *foundLedger) has() bool {
	return f.file != nil && (f.file.disks == nil || slices.Contains(f.file.disks.ids, f.id))
}

func (f *foundLedger) at() record.Stamp {
	if f.file.disks == nil {
		return 0
	}
	return f.file.disks.at
}

func (f *foundLedger) clock() record.Stamp {
	if f.file.saved == nil {
		return 0
	}
	return f.file.saved.Clock
}

// openLedger opens what is kept below a root that is the only one.
func openLedger(root, name string) (*ledger, error) {
	return openLedgers(ledgerConfig{name: name, disks: []ledgerDisk{{root: root}}})
}

// openLedgers opens what is kept on disks that nobody else has open, and makes what is missing: on each of them the same, which is that
// of the disk that had all of it last. Records of format 1 are taken over, with the member's name. What is damaged on all that had it is
// errdefs.ErrDataLoss, and the error says what to do.
func openLedgers(cfg ledgerConfig) (*ledger, error) {
	l, err := cfg.open()
	if err != nil {
		return nil, fmt.Errorf("what is kept of the ring: %w", diskfull.Classed(err))
	}
	return l, nil
}

func (cfg *ledgerConfig) open() (*ledger, error) {
	var all []*foundLedger
	var broken []error
	for _, d := range cfg.disks {
		f := &foundLedger{ledgerDisk: d, dir: filepath.Join(d.root, ledgerDir)}
		if err := f.look(); err != nil {
			if len(cfg.disks) == 1 {
				return nil, err
			}
			broken = append(broken, err)
			cfg.left(d.root, err)
			continue
		}
		all = append(all, f)
	}
	if len(all) == 0 {
		return nil, errors.Join(broken...)
	}
	leaders, err := leading(all)
	if err != nil {
		return nil, err
	}
	var errs []error
	for i, lead := range leaders {
		l, err := cfg.openAt(lead, all)
		if err == nil {
			return l, nil
		}
		errs = append(errs, err)
		if errdefs.IsFailedPrecondition(err) || i+1 == len(leaders) {
			break
		}
		log.L.WithError(err).WithField("instead", leaders[i+1].root).Error("what is kept cannot be read on a disk, and is taken from another one")
	}
	return nil, errors.Join(errs...)
}

func (cfg *ledgerConfig) left(root string, why error) {
	if cfg.lost != nil {
		cfg.lost(root, why)
	}
}

// look finds out what is on the disk.
func (f *foundLedger) look() error {
	if err := durable.NewDirs(f.root, 0o700).Make(f.dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(f.dir)
	for _, e := range entries {
		if err == nil && durable.IsTemp(e.Name()) { // of an interrupted write
			err = disk.Remove(filepath.Join(f.dir, e.Name()))
		}
	}
	if err != nil {
		return err
	}
	f.file, f.text, f.err = readRing(filepath.Join(f.dir, ringName))
	if f.err != nil && !errors.Is(f.err, fs.ErrNotExist) && !errdefs.IsDataLoss(f.err) {
		return f.err
	}
	return nil
}

// leading returns the disks that have all that was ever kept, any of which can be read; the only one, or one that has nothing, if nothing
// was kept yet.
func leading(all []*foundLedger) ([]*foundLedger, error) {
	var best *foundLedger
	for _, f := range all {
		if f.has() && (best == nil || cmp.Or(cmp.Compare(f.at(), best.at()), cmp.Compare(f.clock(), best.clock())) > 0) {
			best = f
		}
	}
	if best == nil {
		for _, f := range all {
			if f.file != nil || !errors.Is(f.err, fs.ErrNotExist) {
				return nil, cmp.Or(f.err, fmt.Errorf("%s is not of the disk that it is on: %w", filepath.Join(f.dir, ringName), errdefs.ErrDataLoss))
			}
		}
		return all[:1], nil
	}
	leaders := []*foundLedger{best}
	for _, f := range all {
		switch {
		case f == best || f.file == nil:
		case f.file.disks == nil: // it was a member's only one
			return nil, fmt.Errorf("%s and %s have each what a member keeps, and were never disks of one: "+
				"take one of them out of the list, or empty it: %w", best.root, f.root, errdefs.ErrFailedPrecondition)
		case f.has() && f.at() == best.at() && f.file.incarnation == best.file.incarnation:
			leaders = append(leaders, f)
		}
	}
	return leaders, nil
}

// openAt opens what one disk has, and makes the others have the same.
func (cfg *ledgerConfig) openAt(lead *foundLedger, all []*foundLedger) (_ *ledger, err error) {
	l := &ledger{ids: map[string]uint64{}}
	dirs := []string{lead.dir}
	for _, f := range all {
		l.ids[f.dir] = f.id
		if f != lead {
			dirs = append(dirs, f.dir)
		}
	}
	opening := true // until all of it is there, nothing is noted
	l.dirs = record.NewDirs(dirs, func(live []string) []error {
		if opening {
			return make([]error, len(live))
		}
		return l.note(live)
	}, func(dir string, why error) { cfg.left(filepath.Dir(dir), why) })
	defer func() {
		if err != nil {
			err = errors.Join(err, l.closeFiles())
		}
	}()
	if lead.file != nil {
		if err := complete(lead); err != nil {
			return nil, err
		}
	}
	if l.deletions, err = record.OpenDeletions(l.dirs, logName); err != nil {
		return nil, err
	}
	if l.records, err = record.OpenStore(l.dirs, recordsDir); err != nil {
		return nil, err
	}
	if lead.file != nil {
		l.inc, l.saved, l.said, l.ring = lead.file.incarnation, lead.file.saved, lead.file.saved, lead.text
		if lead.file.log != l.deletions.ID() {
			return nil, fmt.Errorf("%s is not the deletion log that %s belongs to: "+moveRingAway+": %w",
				filepath.Join(lead.dir, logName), filepath.Join(lead.dir, ringName), lead.dir, errdefs.ErrDataLoss)
		}
	}
	if err := cfg.join(l, lead, all); err != nil {
		return nil, err
	}
	opening = false
	if lead.file == nil {
		err = l.begin(lead.root, cfg.name)
	} else if l.set != nil {
		err = l.keep(l.saved)
	}
	if err == nil {
		err = l.load()
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

// join decides which disks count from now on, and what becomes of those that are missing.
func (cfg *ledgerConfig) join(l *ledger, lead *foundLedger, all []*foundLedger) error {
	if lead.id == 0 {
		return nil
	}
	was := &diskSet{}
	if lead.file != nil && lead.file.disks != nil {
		was = lead.file.disks
	}
	present := func(id uint64) bool {
		return slices.ContainsFunc(all, func(f *foundLedger) bool {
			return f.id == id && f.file != nil && slices.Contains(l.dirs.Live(), f.dir)
		})
	}
	missing := slices.DeleteFunc(slices.Clone(was.ids), present)
	for _, f := range all {
		current := f == lead || f.has() && f.at() == was.at && slices.Contains(was.ids, f.id)
		if !current && cfg.stale != nil && slices.Contains(l.dirs.Live(), f.dir) {
			if err := cfg.stale(f.root, l); err != nil {
				if err := l.dirs.Fail(f.dir, err); err != nil {
					return err
				}
			}
		}
	}
	if len(missing) > 0 && !was.clean {
		// It may have gone on without these, when they had failed, and be away now.
		log.L.WithField("disks", fmt.Sprintf("%x", missing)).
			Warn("disks are missing that may know more than the others: " +
				"to the ring this member has a new disk, and asks the others what it is to have")
		l.inc, l.saved, l.said = random(), nil, nil
	}
	l.set = &diskSet{at: max(was.at+1, record.At(time.Now())), ids: l.idsOf(l.dirs.Live()), lost: union(was.lost, missing)}
	l.ring = nil
	return nil
}

// idsOf returns the ids of the disks that directories are on, ascending.
func (l *ledger) idsOf(dirs []string) (ids []uint64) {
	for _, dir := range dirs {
		ids = append(ids, l.ids[dir])
	}
	slices.Sort(ids)
	return ids
}

func union(a, b []uint64) []uint64 {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

// note makes durable which disks have everything, before anything is kept that others have not.
func (l *ledger) note(live []string) []error {
	l.mu.Lock()
	defer l.mu.Unlock()
	errs := make([]error, len(live))
	if l.set == nil {
		return errs
	}
	ids := l.idsOf(live)
	gone := slices.DeleteFunc(slices.Clone(l.set.ids), func(id uint64) bool { return slices.Contains(ids, id) })
	l.set = &diskSet{at: max(l.set.at+1, record.At(time.Now())), ids: ids, lost: union(l.set.lost, gone)}
	text, err := (&ringFile{l.inc, l.deletions.ID(), l.said, l.set}).text()
	for i, dir := range live {
		if errs[i] = err; err == nil {
			errs[i] = durable.WriteFile(filepath.Join(dir, ringName), text, 0o600)
		}
	}
	return errs
}

// leave leaves a disk out.
func (l *ledger) leave(root string, why error) error {
	return l.dirs.Fail(filepath.Join(root, ledgerDir), why)
}

// missing reports whether there are disks whose blobs are not known to be elsewhere.
func (l *ledger) missing() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.set != nil && len(l.set.lost) > 0
}

// replaced keeps that what lost disks had is elsewhere.
func (l *ledger) replaced() error {
	l.change(func(s *diskSet) { s.lost = nil })
	return l.keep(l.said)
}

// leaveClean keeps that nothing came after this.
func (l *ledger) leaveClean() error {
	if l.set == nil || l.deletions == nil || l.ring == nil {
		return nil
	}
	l.change(func(s *diskSet) { s.clean = true })
	return l.keep(l.said)
}

func (l *ledger) change(f func(*diskSet)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := *l.set
	f(&s)
	l.set = &s
}

// complete reports what is not there beside a ring.json, which is written last; or what is, and must not be.
func complete(f *foundLedger) error {
	for _, name := range []string{logName, recordsDir} {
		path := filepath.Join(f.dir, name)
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is missing: "+moveRingAway+": %w", path, f.dir, errdefs.ErrDataLoss)
		} else if err != nil {
			return err
		}
	}
	old := filepath.Join(f.root, recordsDir)
	if _, err := os.Lstat(old); err == nil {
		return fmt.Errorf("%s and %s are both there: an earlier release has run after this one, and neither has all: "+
			"move away the one that is not to count: %w", old, f.dir, errdefs.ErrFailedPrecondition)
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
	l.inc = random()
	return l.keep((*ringstate.Saved)(nil))
}
