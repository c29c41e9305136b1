package origind

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/keylock"
	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/swarm/piece"
)

// disks are the blobs' bytes on all disks of this origin: a content.Store on each. A blob is on one of them, found by what is there; a new
// one goes to one of those with the most room. A disk that fails is not used any more until the next start: what was there is not here,
// and whoever keeps blobs is told (lost). The last one is used whatever happens to it: its errors are the origin's.
//
// It may be used by any goroutine, as a content.Store may.
type disks struct {
	all      []*oneDisk // as configured
	live     atomic.Pointer[[]*oneDisk]
	creating keylock.Locks[piece.ID] // while it is decided where a blob comes
	turn     atomic.Uint32           // of those with about as much room
	losing   sync.Mutex
	lost     func(d *oneDisk) // is told of each that fails; it must not block. nil: nobody is yet
	looks    sync.WaitGroup   // for those who find out whether a disk can be used
}

// oneDisk is one of them.
type oneDisk struct {
	root  string
	id    uint64          // 0: it is the only one, and never was one of several
	store *content.Store  // nil: it could not be opened
	mark  os.FileInfo     // of its disk.json
	ctx   context.Context // of what runs there; ends with its use
	end   context.CancelFunc

	mu      sync.Mutex
	why     error // it is not used because of that
	since   time.Time
	looking bool // somebody finds out whether it can be used
}

const (
	// diskLookEvery is how often it is found out whether a disk can be written, when there are several, and diskLookWithin how long that
	// may take: one that hangs for longer has failed.
	diskLookEvery  = 5 * time.Second
	diskLookWithin = 30 * time.Second
	// roomAlike is how much room a disk has, of the one that has the most, to take its turn.
	roomAlike = 0.9
)

// errNoDisk: a disk's directory is not there.
var errNoDisk = errors.New("it is not there: is the disk mounted? With several disks, each one's directory has to be made by hand")

// openDisks opens the blobs of all disks that can be used; open is told how many there are to be. The error is of a
// disk that must not be used, or of the last one.
func openDisks(cfg *Config, open func(d *oneDisk, of int) (*content.Store, error)) (_ *disks, err error) {
	ds := &disks{}
	var live []*oneDisk
	var errs []error
	defer func() {
		if err != nil {
			for _, d := range live {
				err = errors.Join(err, d.store.Close())
			}
		}
	}()
	roots := cfg.Roots()
	for _, root := range roots {
		d := &oneDisk{root: root}
		d.ctx, d.end = context.WithCancel(context.Background()) //nolint:fatcontext // each disk has its own
		ds.all = append(ds.all, d)
		err := d.open(cfg, len(roots), open)
		switch {
		case err == nil:
			live = append(live, d)
			continue
		case len(roots) == 1 || errdefs.IsFailedPrecondition(err) || errors.Is(err, content.ErrLocked) || errors.Is(err, content.ErrFormat):
			return nil, err
		}
		err = fmt.Errorf("disk %s: %w", root, err)
		errs = append(errs, err)
		d.why, d.since = err, time.Now()
		log.L.WithError(err).Error("a disk cannot be used: what it has is copied from other members to the other disks")
	}
	if len(live) == 0 {
		return nil, errors.Join(errs...)
	}
	ds.live.Store(&live)
	return ds, nil
}

// open opens one of so many disks.
func (d *oneDisk) open(cfg *Config, of int, open func(d *oneDisk, of int) (*content.Store, error)) error {
	several := len(cfg.Data) > 0
	if several {
		if fi, err := os.Stat(d.root); errors.Is(err, fs.ErrNotExist) || err == nil && !fi.IsDir() {
			return errNoDisk
		} else if err != nil {
			return err
		}
	}
	f, err := readDisk(d.root)
	if err == nil && f != nil {
		err = f.check(d.root, cfg.Cluster, cfg.Node)
	}
	if err != nil {
		return err
	}
	if d.store, err = open(d, of); err != nil {
		return err
	}
	if f == nil && several {
		if err = d.claim(of); err == nil {
			f = &diskFile{diskFormat, cfg.Cluster, cfg.Node, hexID(random())}
			err = f.write(d.root)
		}
	}
	if err == nil && f != nil {
		d.id = uint64(f.ID)
		d.mark, err = os.Stat(filepath.Join(d.root, diskName))
	}
	if err != nil {
		return errors.Join(err, d.store.Close())
	}
	return nil
}

// claim reports why a disk without a disk.json is not to become one of so many.
func (d *oneDisk) claim(of int) error {
	_, err := os.Lstat(filepath.Join(d.root, ledgerDir, ringName))
	if err == nil || of == 1 {
		return nil // it was the member's only one
	}
	if _, rerr := os.Lstat(filepath.Join(d.root, recordsDir)); rerr == nil {
		return fmt.Errorf("%s has records of an earlier release: start this origin once with it alone: %w", d.root, errdefs.ErrFailedPrecondition)
	}
	if len(d.store.Whole()) > 0 {
		return fmt.Errorf("%s has blobs, and nothing says whose they are: give it an empty directory: %w", d.root, errdefs.ErrFailedPrecondition)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// inUse returns the disks that are used.
func (ds *disks) inUse() []*oneDisk { return *ds.live.Load() }

// of returns the disk that a path is on, or nil if it is not used any more.
func (ds *disks) of(path string) *oneDisk {
	for _, d := range ds.inUse() {
		if rel, err := filepath.Rel(d.root, path); err == nil && filepath.IsLocal(rel) {
			return d
		}
	}
	return nil
}

// home returns the disk that has a blob, or the most of it; nil: none.
func (ds *disks) home(d digest.Digest) (at *oneDisk) {
	most := content.Absent
	for _, o := range ds.inUse() {
		if p := o.store.PresenceOf(d); p > most {
			at, most = o, p
		}
	}
	return at
}

// homeOf is home of a blob that may have come in part.
func (ds *disks) homeOf(id piece.ID) *oneDisk {
	if at := ds.home(digest.Digest(id.Digest())); at != nil {
		return at
	}
	for _, o := range ds.inUse() {
		if o.store.Presence(id) > content.Absent {
			return o
		}
	}
	return nil
}

// either returns a disk, or any.
func (ds *disks) either(d *oneDisk) *oneDisk {
	if d == nil {
		d = ds.inUse()[0]
	}
	return d
}

// pick returns the disk for a new blob: one of those with the most room.
func (ds *disks) pick() *oneDisk {
	all := ds.inUse()
	if len(all) == 1 {
		return all[0]
	}
	most, room := int64(0), make([]int64, len(all))
	for i, d := range all {
		free, _, err := d.store.Space()
		if err == nil {
			room[i] = free + d.store.Usage().CacheBytes
		}
		most = max(most, room[i])
	}
	var best []*oneDisk
	for i, d := range all {
		if float64(room[i]) >= roomAlike*float64(most) {
			best = append(best, d)
		}
	}
	return best[int(ds.turn.Add(1))%len(best)]
}

// full reports whether no disk has room for copies: what is left is needed for records. idle is how much uploads have there that may go.
func (ds *disks) full(idle func(root string) int64) bool {
	for _, d := range ds.inUse() {
		free, total, err := d.store.Space()
		if err != nil || free+d.store.Usage().CacheBytes+idle(d.root) >= spare(total) {
			return false
		}
	}
	return true
}

// after looks at what came of something that was done at a disk: with an error that is the disk's, it is used no more, and what it had is
// errdefs.ErrUnavailable here, and is asked of others.
func (ds *disks) after(d *oneDisk, err error) error {
	if err == nil {
		return nil
	}
	if used := ds.inUse(); len(used) > 1 && slices.Contains(used, d) {
		if diskError(err) {
			ds.fail(d, err)
		} else if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			if gone := d.same(); gone != nil {
				ds.fail(d, gone)
			}
		}
	}
	if !slices.Contains(ds.inUse(), d) {
		// What is not there may be elsewhere.
		return fmt.Errorf("disk %s has failed: %v: %w", d.root, err, errdefs.ErrUnavailable) //nolint:errorlint // so that it is not that
	}
	return err
}

// failed is after, for what is done at a path; it reports whether its disk is not used.
func (ds *disks) failed(path string, err error) (gone bool) {
	if d := ds.of(path); d != nil {
		_ = ds.after(d, err)
	}
	return ds.of(path) == nil
}

// diskError reports whether an error says that a disk does not work.
func diskError(err error) bool {
	return slices.ContainsFunc([]error{
		syscall.EIO, syscall.EROFS, syscall.ENODEV, syscall.ENXIO, syscall.EUCLEAN, syscall.EBADMSG, syscall.ESTALE, syscall.ESHUTDOWN,
		syscall.ENOMEDIUM, syscall.EREMOTEIO, syscall.ENOTCONN, syscall.ETIMEDOUT,
	}, func(e error) bool { return errors.Is(err, e) })
}

// fail has a disk not be used any more, unless it is the last one.
func (ds *disks) fail(d *oneDisk, why error) {
	ds.losing.Lock()
	defer ds.losing.Unlock()
	was := ds.inUse()
	if !slices.Contains(was, d) || len(was) == 1 {
		return
	}
	live := slices.DeleteFunc(slices.Clone(was), func(o *oneDisk) bool { return o == d })
	ds.live.Store(&live)
	d.mu.Lock()
	d.why, d.since = why, time.Now()
	d.mu.Unlock()
	d.end()
	log.L.WithError(why).WithField("disk", d.root).WithField("left", len(live)).
		Error("a disk has failed, and is not used any more: what it has is copied from other members to the other disks")
	if ds.lost != nil {
		ds.lost(d)
	}
}

// reason returns why a disk is not used, and since when; nil if it is.
func (d *oneDisk) reason() (since time.Time, why error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.since, d.why
}

// tell has lost be told of disks that fail, and of those that have failed since they were opened.
func (ds *disks) tell(lost func(d *oneDisk)) {
	ds.losing.Lock()
	defer ds.losing.Unlock()
	ds.lost = lost
	for _, d := range ds.all {
		if lost != nil && d.store != nil && !slices.Contains(ds.inUse(), d) {
			lost(d)
		}
	}
}

// list returns how the disks are.
func (ds *disks) list() (all []origin.RingDisk) {
	for _, d := range ds.all {
		is := origin.RingDisk{Path: d.root, Up: slices.Contains(ds.inUse(), d)}
		if since, why := d.reason(); why != nil && !is.Up {
			is.Since, is.Error = &since, strings.ReplaceAll(why.Error(), "\n", "; ")
		}
		if is.Up {
			u := d.store.Usage()
			is.Blobs = u.Committed + u.Cached
			is.Free, _, _ = d.store.Space()
		}
		all = append(all, is)
	}
	return all
}

// ledger says where what is kept is.
func (ds *disks) ledger(ctx context.Context, name string) ledgerConfig {
	cfg := ledgerConfig{name: name, lost: ds.failAt, stale: func(root string, l *ledger) error { return ds.dropUnknown(ctx, root, l) }}
	for _, d := range ds.inUse() {
		cfg.disks = append(cfg.disks, ledgerDisk{d.root, d.id})
	}
	return cfg
}

// dropUnknown drops the blobs of a disk of which nothing is kept: they may have been deleted while it was away.
func (ds *disks) dropUnknown(ctx context.Context, root string, l *ledger) error {
	for _, d := range ds.inUse() {
		if d.root != root {
			continue
		}
		for dgst := range d.store.Whole() {
			e, err := l.get(dgst)
			if err == nil && e == nil {
				err = drop(ctx, d.store, dgst)
			}
			if err != nil {
				return fmt.Errorf("dropping what is not known any more from %s: %w", root, err)
			}
		}
	}
	return nil
}

// uploads is where uploads are.
func (d *oneDisk) uploads() string { return filepath.Join(d.root, "uploads") }

func (ds *disks) uploads() (dirs []string) {
	for _, d := range ds.inUse() {
		dirs = append(dirs, d.uploads())
	}
	return dirs
}

// cacheOf is the part of each of so many disks of what is kept in caches.
func cacheOf(all config.Bytes, of int) int64 {
	if all <= 0 {
		return int64(all)
	}
	return max(1, int64(all)/int64(of))
}

// failAt is fail of the disk of a root.
func (ds *disks) failAt(root string, why error) {
	for _, d := range ds.all {
		if d.root == root {
			ds.fail(d, why)
		}
	}
}

// same reports that a disk is not there any more, or another one is.
func (d *oneDisk) same() error {
	fi, err := os.Stat(filepath.Join(d.root, diskName))
	switch {
	case d.mark == nil:
		return nil
	case err != nil:
		return err
	case !os.SameFile(fi, d.mark):
		return fmt.Errorf("%s is another disk than at the start", d.root)
	}
	return nil
}

// look finds out whether a disk can be written.
func (d *oneDisk) look() error {
	err := d.same()
	if err == nil {
		err = durable.WriteFile(filepath.Join(d.root, ledgerDir, durable.TempPrefix+"look"), []byte("it can be written\n"), 0o600)
	}
	if record.Passing(err) {
		return nil
	}
	return err
}

// suspect finds out soon whether a disk can be used, that somebody could not read.
func (ds *disks) suspect(d *oneDisk) {
	if len(ds.inUse()) == 1 {
		return
	}
	d.mu.Lock()
	looks := d.looking
	d.looking = true
	d.mu.Unlock()
	if looks {
		return
	}
	ds.looks.Go(func() { // it may hang as long as the disk does, and then nobody can end it
		late := time.AfterFunc(diskLookWithin, func() { ds.fail(d, fmt.Errorf("%s has not answered for %v", d.root, diskLookWithin)) })
		err := d.look()
		late.Stop()
		d.mu.Lock()
		d.looking = false
		d.mu.Unlock()
		if err != nil {
			ds.fail(d, err)
		}
	})
}

// Run does the stores' work, and looks after the disks, until ctx is done.
func (ds *disks) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, d := range ds.inUse() {
		dctx, cancel := context.WithCancel(ctx)
		stop := context.AfterFunc(d.ctx, cancel)
		g.Go(func() error {
			defer cancel()
			defer stop()
			err := d.store.Run(dctx)
			if err != nil && ctx.Err() == nil && !slices.Contains(ds.inUse(), d) {
				return nil
			}
			return err
		})
	}
	g.Go(func() error {
		t := time.NewTicker(diskLookEvery)
		defer t.Stop()
		for {
			select {
			case <-t.C:
			case <-ctx.Done():
				return nil
			}
			for _, d := range ds.inUse() {
				ds.suspect(d)
			}
		}
	})
	return g.Wait()
}

// Close closes the stores. Of disks that have failed it does not matter what comes of it.
func (ds *disks) Close() error {
	looked := make(chan struct{})
	go func() { ds.looks.Wait(); close(looked) }()
	select {
	case <-looked:
	case <-time.After(time.Second): // a disk hangs
	}
	var errs []error
	for _, d := range ds.all {
		if d.store == nil {
			continue
		}
		if err := d.store.Close(); slices.Contains(ds.inUse(), d) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
