package reload

import (
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Every is how often files are looked at.
const Every = 2 * time.Second

// Files holds what read made of some files. It is safe for concurrent use.
type Files[T any] struct {
	read   func() (T, error)
	report func(error)
	paths  []string
	now    atomic.Pointer[T]

	mu     sync.Mutex // held while files are looked at
	looked time.Time
	seen   []stamp // as they were before they were read
}

// Open reads the files at paths, of which empty ones count for nothing, with read.
//
// Later, report, which may be nil, is told each time that they had changed: nil if
// they were read again, else why they cannot be used. In that case what was read
// before stays, until the next change: perhaps only one of them was written yet.
func Open[T any](read func() (T, error), report func(error), paths ...string) (*Files[T], error) {
	f := &Files[T]{read: read, report: report, paths: paths, looked: time.Now()}
	f.seen = f.stamps()
	v, err := read()
	if err != nil {
		return nil, err
	}
	f.now.Store(&v)
	return f, nil
}

// Now returns what was read last, and does not look at the files.
func (f *Files[T]) Now() T { return *f.now.Load() }

// Get returns what is in the files, as it was [Every] ago at the earliest.
func (f *Files[T]) Get() T {
	if f.mu.TryLock() { // else somebody is looking
		if time.Since(f.looked) >= Every {
			f.look()
		}
		f.mu.Unlock()
	}
	return f.Now()
}

// Look reads the files again if they have changed.
func (f *Files[T]) Look() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.look()
}

func (f *Files[T]) look() {
	f.looked = time.Now()
	now := f.stamps()
	same := true
	for i := range now {
		same = same && now[i].same(f.seen[i])
	}
	if same {
		return
	}
	f.seen = now // what changes while it is read differs from it, and is read again
	v, err := f.read()
	if err == nil {
		f.now.Store(&v)
	}
	if f.report != nil {
		f.report(err)
	}
}

// stamp tells whether a file changed. Secrets in Kubernetes change by a rename of a
// directory that the path leads through.
type stamp struct {
	info os.FileInfo // nil: it cannot be looked at
}

func (f *Files[T]) stamps() []stamp {
	st := make([]stamp, len(f.paths))
	for i, path := range f.paths {
		if info, err := os.Stat(path); err == nil {
			st[i] = stamp{info}
		}
	}
	return st
}

func (a stamp) same(b stamp) bool {
	if a.info == nil || b.info == nil {
		return a.info == b.info
	}
	return a.info.Size() == b.info.Size() && a.info.ModTime().Equal(b.info.ModTime()) && os.SameFile(a.info, b.info)
}
