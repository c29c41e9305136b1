package record

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/capelin-io/capelin/internal/diskfull"
	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/durable/disk"
)

// Dirs are directories, each on a disk of its own, that have the same files: what is written goes to all of them, byte for byte, and
// counts when all have it. One in which it cannot be written is left out from then on, unless it is the last one, and that is made
// durable in the others before anything counts that it does not have. A disk that is full for now is waited for instead.
//
// It may be used by any goroutine.
type Dirs struct {
	note func(live []string) []error // makes durable, in each of them, that these are all; nil: nothing
	lost func(dir string, why error) // is told afterwards; nil: nobody

	losing sync.Mutex // held by whoever leaves one out

	mu   sync.Mutex
	live []string
}

// OneDir is a directory alone.
func OneDir(dir string) *Dirs { return NewDirs([]string{dir}, nil, nil) }

// NewDirs returns directories, of which the first is the one that counts: files are read there, and made the same in the others when they
// are opened. note is called before a directory is left out, with those that stay, and makes it durable in each of them that they are all,
// or says why not; lost is called afterwards.
func NewDirs(dirs []string, note func(live []string) []error, lost func(dir string, why error)) *Dirs {
	return &Dirs{note: note, lost: lost, live: slices.Clone(dirs)}
}

// Live returns the directories that have everything.
func (d *Dirs) Live() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.live // never changed in place
}

func (d *Dirs) first() string { return d.Live()[0] }

// Do does something in each directory, at once in all, as often as there are some. Where it fails although it has worked elsewhere the
// directory is left out, but for what may pass: then that is the error, and all of it is to be done again.
func (d *Dirs) Do(f func(dir string) error) error { return d.do(f, 0, true) }

// settled is Do for what cannot be done again: who has failed is left out, whatever it was.
func (d *Dirs) settled(f func(dir string) error) error { return d.do(f, 0, false) }

// others is settled of all but the first.
func (d *Dirs) others(f func(dir string) error) error { return d.do(f, 1, false) }

func (d *Dirs) do(f func(dir string) error, from int, again bool) error {
	live := d.Live()
	errs := make([]error, len(live))
	if from+1 >= len(live) { // mostly there is one
		for i := from; i < len(live); i++ {
			errs[i] = f(live[i])
		}
	} else {
		var wg sync.WaitGroup
		for i := from; i < len(live); i++ {
			wg.Go(func() { errs[i] = f(live[i]) })
		}
		wg.Wait()
	}
	failed := slices.IndexFunc(errs, func(err error) bool { return err != nil })
	if failed < 0 {
		return nil
	}
	if !slices.Contains(errs, nil) {
		return errs[failed]
	}
	for i, err := range errs {
		if err != nil && again && Passing(err) {
			return errs[i]
		}
	}
	for i, err := range errs {
		if err == nil {
			continue
		}
		if err := d.Fail(live[i], err); err != nil {
			return err
		}
	}
	return nil
}

// Passing reports whether an error may be gone in a moment, and says nothing of the disk: it is full, or the machine is short of something.
func Passing(err error) bool {
	return diskfull.Is(err) || slices.ContainsFunc([]error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EINTR}, func(e error) bool {
		return errors.Is(err, e)
	})
}

// Fail leaves a directory out, if it is not the last one: then the error is why. One that is left out already is no error.
func (d *Dirs) Fail(dir string, why error) error {
	d.losing.Lock()
	defer d.losing.Unlock()
	live := d.Live()
	gone := map[string]error{dir: why}
	if !slices.Contains(live, dir) {
		return nil
	}
	for {
		live = slices.DeleteFunc(slices.Clone(live), func(dir string) bool { return gone[dir] != nil })
		if len(live) == 0 {
			return why
		}
		if d.note == nil {
			break
		}
		errs := d.note(live)
		for i, err := range errs {
			if err != nil && Passing(err) {
				return err
			}
			if err != nil {
				gone[live[i]] = err
			}
		}
		if !slices.ContainsFunc(errs, func(err error) bool { return err != nil }) {
			break
		}
	}
	d.mu.Lock()
	d.live = live
	d.mu.Unlock()
	if d.lost != nil {
		for dir, why := range gone {
			d.lost(dir, why)
		}
	}
	return nil
}

// files are one file, open in each of some directories.
type files struct {
	mu sync.Mutex
	m  map[string]*os.File
}

func (f *files) set(dir string, file *os.File) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.m == nil {
		f.m = map[string]*os.File{}
	}
	f.m[dir] = file
}

func (f *files) of(dir string) *os.File {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.m[dir]
}

func (f *files) len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.m)
}

func (f *files) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for _, file := range f.m {
		errs = append(errs, file.Close())
	}
	return errors.Join(errs...)
}

// mirror opens the file at path, whose first size bytes are made those of from if they are others.
func mirror(from io.ReaderAt, size int64, path string) (*os.File, error) {
	f, err := disk.OpenFile(path, os.O_RDWR, 0)
	switch {
	case err == nil:
		if same, err := begins(f, from, size); same || err != nil {
			return f, err
		}
		f.Close()
	case !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	tmp, err := disk.CreateTemp(filepath.Dir(path), durable.TempPrefix+"*")
	if err != nil {
		return nil, fmt.Errorf("copying %s: %w", path, err)
	}
	_, err = io.Copy(io.NewOffsetWriter(writerAt{tmp}, 0), io.NewSectionReader(from, 0, size))
	if err == nil {
		err = disk.Sync(tmp)
	}
	if err == nil {
		err = durable.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = disk.Remove(tmp.Name())
		return nil, errors.Join(fmt.Errorf("copying %s: %w", path, err), tmp.Close())
	}
	return tmp, nil
}

// writerAt writes through package disk.
type writerAt struct{ f *os.File }

func (w writerAt) WriteAt(p []byte, off int64) (int, error) { return disk.WriteAt(w.f, p, off) }

// begins reports whether f begins with the first size bytes of what.
func begins(f, what io.ReaderAt, size int64) (bool, error) {
	a, b := make([]byte, 256<<10), make([]byte, 256<<10)
	for off := int64(0); off < size; {
		n := int(min(int64(len(a)), size-off))
		if _, err := what.ReadAt(a[:n], off); err != nil {
			return false, err
		}
		if m, err := f.ReadAt(b[:n], off); m < n {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return false, err
		}
		if !bytes.Equal(a[:n], b[:n]) {
			return false, nil
		}
		off += int64(n)
	}
	return true, nil
}
