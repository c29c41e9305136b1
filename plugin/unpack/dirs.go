package unpack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/containerd/continuity/fs"
	"github.com/containerd/continuity/sysx"
	"golang.org/x/sys/unix"
)

const (
	// maxDirs is how many directories are kept open.
	maxDirs = 256
	// maxLinks is how many symlinks one name may lead through.
	maxLinks = 255
	pathMax  = 4096
)

// A dir is an open directory of the tree. It stays open until the cache and
// everybody else who holds a reference has put it.
type dir struct {
	fd   int
	path string // from the root of the tree, which is "/"; without symlinks
	refs atomic.Int32
}

func (d *dir) hold() *dir { d.refs.Add(1); return d }

func (d *dir) put() {
	if d.refs.Add(-1) == 0 {
		unix.Close(d.fd)
	}
}

func (d *dir) child(name string) string {
	if d.path == "/" {
		return "/" + name
	}
	return d.path + "/" + name
}

// dirs opens directories below a root, and remembers them.
//
// Names are resolved by containerd's own rules, not the kernel's: a name's
// directory part follows symlinks, absolute ones from the root of the tree, and
// ".." takes away the component before it in the text, even if that is a
// symlink. The result is a path without symlinks, and only that is opened, with
// RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS; from there on, all is done on names
// within open directories. So a mistake in the resolving can at worst choose
// another place below the root.
//
// It belongs to the planner.
type dirs struct {
	root    *dir
	rootLen int // length of the root's own path, which counts towards PATH_MAX

	byPath map[string]*dir // the cache holds a reference to each, root excluded
	byName map[string]*dir // by the name's directory part as it is in the archive; no references of its own

	// What earlier look-ups rely on. Removing one of these makes it necessary
	// to forget them all.
	real  map[string]struct{} // known to be directories, not symlinks: opened ones and the directories above
	links map[string]struct{} // symlinks on the way to something in byName

	files *files // that are being made
}

func openDirs(root string, f *files) (*dirs, error) {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	d := &dirs{
		root:    &dir{fd: fd, path: "/"},
		rootLen: len(filepath.Clean(root)),
		files:   f,
	}
	d.root.hold()
	d.forget()
	return d, nil
}

func (ds *dirs) close() {
	ds.forget()
	ds.root.put()
}

// forget closes the cached directories and drops all that is known about the tree.
func (ds *dirs) forget() {
	for _, d := range ds.byPath {
		d.put()
	}
	ds.byPath = make(map[string]*dir)
	ds.byName = make(map[string]*dir)
	ds.real = make(map[string]struct{})
	ds.links = make(map[string]struct{})
}

// relied reports whether removing path requires a forget.
func (ds *dirs) relied(path string) bool {
	if _, ok := ds.real[path]; ok {
		return true
	}
	_, ok := ds.links[path]
	return ok
}

func (ds *dirs) rely(path string) {
	for path != "/" {
		if _, ok := ds.real[path]; ok {
			return
		}
		ds.real[path] = struct{}{}
		path = filepath.Dir(path)
	}
}

func (ds *dirs) tooLong(path string) bool { return ds.rootLen+len(path) >= pathMax }

// at returns the directory that name, the directory part of an entry's cleaned
// name, stands for. It is made if it is not there. The caller puts it.
func (ds *dirs) at(name string, inherit []string) (*dir, error) {
	if d := ds.byName[name]; d != nil {
		return d.hold(), nil
	}
	path, links, err := ds.resolve(name)
	if err != nil {
		return nil, fmt.Errorf("resolving %q: %w", name, err)
	}
	d, err := ds.open(path, inherit, true)
	if err != nil {
		return nil, err
	}
	// With more than one symlink, links need not name all that mattered.
	if len(links) <= 1 && path != "/" {
		for _, l := range links {
			ds.links[l] = struct{}{}
			ds.rely(filepath.Dir(l))
		}
		ds.byName[name] = d
	}
	return d, nil
}

// open returns the directory at path, which has no symlinks in it. If it is not
// there and create is set, it is made as containerd makes directories that
// the archive does not mention: with mode 0755 and, if the first of the inherit
// directories (lower layers, the nearest first) in which something of that name
// exists has a directory there, with that one's owner, mode, times and extended
// attributes. The caller puts it.
func (ds *dirs) open(path string, inherit []string, create bool) (*dir, error) {
	if path == "/" {
		return ds.root.hold(), nil
	}
	if d := ds.byPath[path]; d != nil {
		return d.hold(), nil
	}
	if ds.tooLong(path) {
		return nil, &os.PathError{Op: "open", Path: path, Err: unix.ENAMETOOLONG}
	}
	fd, err := openBeneath(ds.root.fd, path[1:])
	if err == nil {
		return ds.add(fd, path), nil
	}
	if err != unix.ENOENT || !create {
		return nil, &os.PathError{Op: "open directory", Path: path, Err: err}
	}
	above, err := ds.open(filepath.Dir(path), inherit, true)
	if err != nil {
		return nil, err
	}
	defer above.put()
	d, err := ds.mkdir(above, filepath.Base(path), 0o755)
	if err != nil {
		return nil, &os.PathError{Op: "mkdir", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err == nil && st.Mode&0o7777 != 0o755 {
		err = unix.Fchmod(d.fd, 0o755)
		if err != nil {
			d.put()
			return nil, &os.PathError{Op: "chmod", Path: path, Err: err}
		}
	}
	if err := inheritFrom(inherit, d); err != nil {
		d.put()
		return nil, err
	}
	return d, nil
}

// mkdir makes name in above and opens it. The caller puts it.
func (ds *dirs) mkdir(above *dir, name string, mode uint32) (*dir, error) {
	if err := ds.files.withRoom(above.fd, func() error { return unix.Mkdirat(above.fd, name, mode) }); err != nil {
		return nil, err
	}
	return ds.openChild(above, name)
}

// openChild opens the directory name in above, which must not be a symlink.
// The caller puts it.
func (ds *dirs) openChild(above *dir, name string) (*dir, error) {
	path := above.child(name)
	if d := ds.byPath[path]; d != nil {
		return d.hold(), nil
	}
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Openat(above.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, err
	}
	return ds.add(fd, path), nil
}

// add caches a directory and holds it for the caller.
func (ds *dirs) add(fd int, path string) *dir {
	if len(ds.byPath) >= maxDirs {
		clear(ds.byName)
		for p, d := range ds.byPath {
			if d.refs.Load() == 1 { // only the planner adds references
				delete(ds.byPath, p)
				d.put()
			}
			if len(ds.byPath) <= maxDirs/2 {
				break
			}
		}
	}
	d := &dir{fd: fd, path: path}
	d.refs.Store(2)
	ds.byPath[path] = d
	ds.rely(path)
	return d
}

// resolve returns the path without symlinks for name, and the symlinks that it
// led through. This is RootPath of containerd's continuity/fs, line by line,
// but that the file system is looked at from the root of the tree: where
// containerd happens to follow an absolute symlink from the host's root, in
// chains of symlinks, the kernel is told not to.
func (ds *dirs) resolve(name string) (string, []string, error) {
	if name == "" {
		return "/", nil, nil
	}
	var links []string
	for {
		n := len(links)
		next, err := ds.walkLinks(name, &links)
		if err != nil {
			return "", nil, err
		}
		name = next
		if n == len(links) {
			next = filepath.Join("/", next)
			if name == next {
				return next, links, nil
			}
			name = next
		}
	}
}

func (ds *dirs) walkLinks(name string, links *[]string) (string, error) {
	switch above, file := filepath.Split(name); {
	case above == "":
		next, _, err := ds.walkLink(file, links)
		return next, err
	case file == "":
		if above == "/" {
			return above, nil
		}
		return ds.walkLinks(above[:len(above)-1], links)
	default:
		above, err := ds.walkLinks(above, links)
		if err != nil {
			return "", err
		}
		next, isLink, err := ds.walkLink(filepath.Join(above, file), links)
		if err != nil {
			return "", err
		}
		if !isLink || filepath.IsAbs(next) {
			return next, nil
		}
		return filepath.Join(above, next), nil
	}
}

func (ds *dirs) walkLink(path string, links *[]string) (string, bool, error) {
	if len(*links) > maxLinks {
		return "", false, errors.New("too many links")
	}
	path = filepath.Join("/", path)
	if path == "/" {
		return path, false, nil
	}
	if _, ok := ds.real[path]; ok {
		return path, false, nil
	}
	target, isLink, err := ds.readlink(path)
	if err != nil || !isLink {
		return path, false, err
	}
	if len(*links) == 0 {
		// What comes after a symlink may be something that a worker is just
		// about to replace.
		if err := ds.files.settle(""); err != nil {
			return "", false, err
		}
	}
	*links = append(*links, path)
	return target, true, nil
}

// readlink reads the symlink at path; isLink is not set for anything else,
// nothing included. Symlinks before the last component are followed within the root.
func (ds *dirs) readlink(path string) (target string, isLink bool, err error) {
	if ds.tooLong(path) {
		return "", false, &os.PathError{Op: "lstat", Path: path, Err: unix.ENAMETOOLONG}
	}
	if err := ds.files.settle(path); err != nil {
		return "", false, err
	}
	fd, err := openat2(ds.root.fd, path[1:], &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err == unix.ENOENT {
		return "", false, nil
	}
	if err != nil {
		return "", false, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", false, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", false, nil
	}
	buf := make([]byte, pathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", false, &os.PathError{Op: "readlink", Path: path, Err: err}
	}
	return string(buf[:n]), true, nil
}

// openBeneath opens the directory at path below fd, refusing every symlink.
func openBeneath(fd int, path string) (int, error) {
	return openat2(fd, path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// openat2 retries what the kernel asks to be retried: a signal, or a rename
// somewhere on the machine while it looked for escapes.
func openat2(fd int, path string, how *unix.OpenHow) (int, error) {
	for {
		n, err := unix.Openat2(fd, path, how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return n, err
		}
	}
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// inheritFrom gives d what containerd's archive.Apply copies for a directory
// that the layer does not mention. The lower directories are only read.
func inheritFrom(lower []string, d *dir) error {
	for _, l := range lower {
		path, err := fs.RootPath(l, d.path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err == unix.ENOENT {
			continue
		} else if err != nil {
			return &os.PathError{Op: "lstat", Path: path, Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return nil // replaced: nothing to inherit
		}
		if err := unix.Fchown(d.fd, int(st.Uid), int(st.Gid)); err != nil {
			return &os.PathError{Op: "chown", Path: d.path, Err: err}
		}
		if err := unix.Fchmod(d.fd, st.Mode&0o7777); err != nil {
			return &os.PathError{Op: "chmod", Path: d.path, Err: err}
		}
		if err := futimens(d.fd, st.Atim, st.Mtim); err != nil {
			return &os.PathError{Op: "utimensat", Path: d.path, Err: err}
		}
		return inheritXattrs(path, d)
	}
	return nil
}

func inheritXattrs(from string, d *dir) error {
	keys, err := sysx.LListxattr(from)
	if err == unix.ENOTSUP || err == sysx.ENODATA {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "listxattr", Path: from, Err: err}
	}
	for _, key := range keys {
		if strings.HasPrefix(key, "trusted.") {
			continue
		}
		value, err := sysx.LGetxattr(from, key)
		if err == unix.ENOTSUP || err == sysx.ENODATA {
			continue
		}
		if err != nil {
			return fmt.Errorf("reading xattr %q of %s: %w", key, from, err)
		}
		err = unix.Fsetxattr(d.fd, key, value, unix.XATTR_CREATE)
		if err != nil && err != unix.ENOTSUP && err != unix.ENODATA && err != unix.EEXIST {
			return fmt.Errorf("setting xattr %q of %s: %w", key, d.path, err)
		}
	}
	return nil
}
