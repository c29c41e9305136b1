package unpack

import (
	"context"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// smallFile is the largest content that is handed to a worker, in bytes; larger
// files are written by the planner, which has nothing better to do than to keep
// up with the decoder.
const smallFile = 2 * chunkSize

// A piece is a part of a file's content, within a chunk that it holds.
type piece struct {
	c *chunk
	b []byte
}

// A job is a regular file to be made.
type job struct {
	dir    *dir // held
	name   string
	path   string
	meta   meta
	pieces []piece
}

func (j *job) release() {
	for _, p := range j.pieces {
		p.c.release()
	}
	j.pieces = nil
	j.dir.put()
}

// files makes regular files on several goroutines. The planner submits jobs, and
// waits for what is in the making at a path before it does anything else to
// that path.
type files struct {
	ctx  context.Context
	stop context.CancelCauseFunc
	opts *Options
	jobs chan *job
	wg   sync.WaitGroup

	failed  atomic.Bool // err is set
	refused refusals

	mu      sync.Mutex // held for map accesses only
	cond    sync.Cond  // something left pending; used if waiting
	pending map[string]struct{}
	waiting bool
	err     error // of the first job that failed; all later ones are dropped
}

// startFiles starts the workers. An error of a job is the cause with which stop is called.
func startFiles(ctx context.Context, stop context.CancelCauseFunc, opts *Options) *files {
	f := &files{
		ctx:     ctx,
		stop:    stop,
		opts:    opts,
		jobs:    make(chan *job, 64),
		pending: make(map[string]struct{}),
	}
	f.cond.L = &f.mu
	for range opts.workers() {
		f.wg.Go(f.work)
	}
	return f
}

// close ends the workers; what is submitted is done first, or dropped after an error.
func (f *files) close() error {
	close(f.jobs)
	f.wg.Wait()
	return f.err
}

// submit hands j over. No job at the same path is pending.
func (f *files) submit(j *job) {
	f.mu.Lock()
	f.pending[j.path] = struct{}{}
	f.mu.Unlock()
	f.jobs <- j // workers always go on, if only to drop jobs
}

// settle waits until no job is pending at path, or none at all if path is "".
func (f *files) settle(path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		_, busy := f.pending[path]
		if path == "" {
			busy = len(f.pending) > 0
		}
		if !busy {
			return f.err
		}
		f.waiting = true
		f.cond.Wait()
	}
}

func (f *files) work() {
	for j := range f.jobs {
		var err error
		if f.ctx.Err() == nil {
			err = guard(func() error { return f.make(j) })
		}
		j.release()
		f.mu.Lock()
		delete(f.pending, j.path)
		if err != nil && f.err == nil {
			f.err = err
			f.failed.Store(true)
			f.stop(err)
		}
		if f.waiting {
			f.waiting = false
			f.cond.Broadcast()
		}
		f.mu.Unlock()
	}
}

func (f *files) make(j *job) (err error) {
	f.opts.at("file")
	fd, err := f.createFile(j.dir, j.name, j.meta.mode)
	if err != nil {
		return err
	}
	for _, p := range j.pieces {
		if err := f.writeAll(fd, p.b, j.path); err != nil {
			unix.Close(fd)
			return err
		}
	}
	return finishFile(&f.refused, fd, j.path, &j.meta)
}

// createFile makes an empty file, in place of whatever is there. Nobody relies
// on that (see dirs.relied).
func (f *files) createFile(d *dir, name string, mode uint32) (fd int, err error) {
	create := func() error {
		fd, err = ignoringEINTR(func() (int, error) {
			return unix.Openat(d.fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode&0o777)
		})
		return err
	}
	err = f.withRoom(d.fd, create)
	if err == unix.EEXIST {
		if err := removeAll(d.fd, name, d.child(name)); err != nil {
			return -1, err
		}
		err = f.withRoom(d.fd, create)
	}
	if err != nil {
		return -1, &os.PathError{Op: "create", Path: d.child(name), Err: err}
	}
	return fd, nil
}

// withRoom does what makes something on the file system of the open file fd, and makes room
// for that if it is full.
func (f *files) withRoom(fd int, do func() error) error {
	err := do()
	if err == unix.ENOSPC && f.opts.Room != nil {
		err = f.opts.Room(f.ctx, fd, do)
	}
	return err
}

func (f *files) writeAll(fd int, b []byte, path string) error {
	err := f.withRoom(fd, func() error {
		for len(b) > 0 {
			n, err := ignoringEINTR(func() (int, error) { return unix.Write(fd, b) })
			if err != nil {
				return err
			}
			b = b[n:]
		}
		return nil
	})
	if err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

// finishFile applies the metadata and closes the file.
func finishFile(refused *refusals, fd int, path string, m *meta) error {
	err := m.applyFile(refused, fd, path)
	if cerr := unix.Close(fd); cerr != nil && err == nil {
		err = &os.PathError{Op: "close", Path: path, Err: cerr}
	}
	return err
}

// removeAll removes name in the directory fd with all that is below it. It
// follows no symlink. Nothing there is no error.
func removeAll(fd int, name, path string) error {
	err := unix.Unlinkat(fd, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR {
		return &os.PathError{Op: "unlink", Path: path, Err: err}
	}
	// One descriptor a level; PATH_MAX bounds how deep a tree can be made.
	below, err := ignoringEINTR(func() (int, error) {
		return unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	names, err := readNames(below, path)
	for _, n := range names {
		if err != nil {
			break
		}
		err = removeAll(below, n, path+"/"+n)
	}
	unix.Close(below)
	if err != nil {
		return err
	}
	if err := unix.Unlinkat(fd, name, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "rmdir", Path: path, Err: err}
	}
	return nil
}

// readNames lists the open directory fd.
func readNames(fd int, path string) ([]string, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "dup", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(dup), path)
	defer f.Close()
	// The offset is shared with fd.
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		return nil, &os.PathError{Op: "seek", Path: path, Err: err}
	}
	return f.Readdirnames(-1)
}
