package file

import (
	"container/heap"
	"context"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A page of a directory costs a look at all its names, because a file system has them in no order. For a large directory that is done
// once for many pages: its names are kept in order, as many as there is room for, while it is paged through and nobody changes it.
//
// Whether it was changed its change time says (ctime, which no program can set back). A file system keeps that in ticks, so that a
// change after a look may have the time of one before it. So names are kept only if the time had been the same for longer than any
// tick when the look began: a change since then has another time, whatever this machine's clock says. A directory that changes all the
// time is read for each page.
const (
	longTick  = 3 * time.Second // longer than file systems' ticks, of which FAT's is the longest, of 2 s
	idleNames = time.Minute     // names are forgotten when no page was asked for so long
	maxLarge  = 64              // large directories that are known
	perName   = 32              // what a name takes beside its bytes
)

// stamp changes with each change of a directory, but for those in one tick.
type stamp struct {
	dev, ino uint64
	ctime    unix.Timespec
}

func stampOf(d *os.File) (stamp, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		return stamp{}, &os.PathError{Op: "stat", Path: d.Name(), Err: err}
	}
	return stamp{uint64(st.Dev), st.Ino, st.Ctim}, nil //nolint:unconvert // not the same everywhere
}

// large is what is known of large directories, by their names.
type large struct {
	least     int           // a directory that has more names is large
	room, one int           // bytes that the names of all directories may take, and those of one
	look      chan struct{} // taken by who looks at names to keep them: there is one at a time

	mu    sync.Mutex
	dirs  map[string]*largeDir
	timer *time.Timer // forgets names
}

type largeDir struct {
	stamp stamp
	since time.Time // when the stamp was first seen
	used  time.Time
	kept  window
}

// window is a directory's names from one on: all, or those up to its last one.
type window struct {
	from  string
	names []string // in order
	cut   bool     // there are others
	bytes int      // which they take
}

func newLarge() *large {
	return &large{least: 8192, room: 64 << 20, one: 32 << 20, look: make(chan struct{}, 1), dirs: map[string]*largeDir{}}
}

// page returns the first n names from one on, if they are known and dir has not changed. settled: it has been as it is for long enough
// that they can be kept.
func (l *large) page(dir string, now stamp, from string, n int) (names []string, cut, known, settled bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.dirs[dir]
	if d == nil {
		return nil, false, false, false
	}
	d.used = time.Now()
	if d.stamp != now {
		d.stamp, d.since, d.kept = now, d.used, window{}
		return nil, false, false, false
	}
	names, cut, known = d.kept.page(from, n)
	return names, cut, known, d.used.Sub(d.since) > longTick
}

func (w *window) page(from string, n int) (names []string, cut, known bool) {
	if w.names == nil || from < w.from {
		return nil, false, false
	}
	i, _ := slices.BinarySearch(w.names, from)
	rest := w.names[i:]
	if len(rest) < n && w.cut {
		return nil, false, false
	}
	n = min(n, len(rest))
	return rest[:n:n], w.cut || n < len(rest), true
}

// note remembers that a directory is large.
func (l *large) note(dir string, now stamp) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dirs[dir] == nil {
		at := time.Now()
		l.dirs[dir] = &largeDir{stamp: now, since: at, used: at}
		l.shrink(dir, l.room)
	}
}

// keep remembers names, which were looked at when page had said settled.
func (l *large) keep(dir string, then stamp, w window) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.dirs[dir]
	if d == nil || d.stamp != then {
		return
	}
	d.kept = w
	l.shrink(dir, l.room)
	if l.timer == nil {
		l.timer = time.AfterFunc(idleNames, l.forget)
	}
}

// makeRoom forgets names, so that there is room to look at others.
func (l *large) makeRoom(dir string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if d := l.dirs[dir]; d != nil {
		d.kept = window{}
	}
	l.shrink(dir, l.room-l.one)
}

// shrink forgets what was not used for the longest time, but for one directory, until the others fit. l.mu is held.
func (l *large) shrink(but string, room int) {
	for {
		total, oldest := 0, ""
		for name, d := range l.dirs {
			total += d.kept.bytes
			if name != but && (oldest == "" || d.used.Before(l.dirs[oldest].used)) {
				oldest = name
			}
		}
		if oldest == "" || total <= room && len(l.dirs) <= maxLarge {
			return
		}
		delete(l.dirs, oldest)
	}
}

// forget forgets the directories that nobody has asked for lately.
func (l *large) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for name, d := range l.dirs {
		if now.Sub(d.used) >= idleNames {
			delete(l.dirs, name)
		}
	}
	if l.timer == nil {
		return // closed
	}
	if l.timer = nil; len(l.dirs) > 0 {
		l.timer = time.AfterFunc(idleNames, l.forget)
	}
}

func (l *large) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if clear(l.dirs); l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
}

// smallest returns, in order, the n smallest names of an open directory from one on. cut: there are others.
func (l *large) smallest(
	ctx context.Context, d *os.File, dir, from string, n int, isKey func(string) bool,
) (_ []string, cut bool, err error) {
	now, err := stampOf(d)
	if err != nil {
		return nil, false, err
	}
	names, cut, known, settled := l.page(dir, now, from, n)
	if known {
		return names, cut, nil
	}
	if !settled {
		s := smallest{from: from, n: n}
		seen, err := s.look(ctx, d, isKey)
		if seen > l.least {
			l.note(dir, now)
		}
		return s.names, s.cut, err
	}
	select {
	case l.look <- struct{}{}:
		defer func() { <-l.look }()
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	if names, cut, known, _ := l.page(dir, now, from, n); known {
		return names, cut, nil // somebody else has looked
	}
	l.makeRoom(dir)
	s := smallest{from: from, n: n, room: l.one}
	if _, err := s.look(ctx, d, isKey); err != nil {
		return nil, false, err
	}
	w := window{from: from, names: s.names, cut: s.cut, bytes: s.bytes}
	l.keep(dir, now, w)
	names, cut, _ = w.page(from, n)
	return names, cut, nil
}

// smallest holds the smallest names of a directory from one on.
type smallest struct {
	from string
	n    int // names that it holds in any case
	room int // bytes that they may take if there are more

	names names
	bytes int
	cut   bool // there are others; names is a heap then
}

// look looks at all names, and returns how many there are. Those that it holds are in order afterwards.
func (s *smallest) look(ctx context.Context, d *os.File, isKey func(string) bool) (seen int, err error) {
	for {
		if err := ctx.Err(); err != nil {
			return seen, err
		}
		list, err := d.ReadDir(readNames)
		seen += len(list)
		for _, de := range list {
			name := de.Name()
			if de.IsDir() {
				name += "/"
			} else if !de.Type().IsRegular() {
				continue
			}
			if name < s.from || s.cut && name > s.names[0] || !isKey(de.Name()) {
				continue
			}
			s.add(name)
		}
		if err == io.EOF {
			slices.Sort(s.names)
			return seen, nil
		}
		if err != nil {
			return seen, err
		}
	}
}

func (s *smallest) add(name string) {
	s.names = append(s.names, name)
	s.bytes += len(name) + perName
	if s.cut {
		heap.Fix(&s.names, len(s.names)-1)
	}
	for len(s.names) > s.n && s.bytes > s.room {
		if !s.cut {
			s.cut = true
			heap.Init(&s.names)
		}
		s.bytes -= len(s.names[0]) + perName
		heap.Pop(&s.names)
	}
}

// names is a heap with the greatest on top.
type names []string

func (h names) Len() int           { return len(h) }
func (h names) Less(i, j int) bool { return h[i] > h[j] }
func (h names) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *names) Push(x any)        { *h = append(*h, x.(string)) }
func (h *names) Pop() any {
	old := *h
	name := old[len(old)-1]
	*h = old[:len(old)-1]
	return name
}
