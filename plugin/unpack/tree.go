package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// A tree is a layer being written below a root: the planner. It reads the
// archive and does everything itself, in order, but for regular files of up to
// smallFile bytes, which it hands to files. It is containerd's applyNaive
// (pkg/archive/tar.go, 2.4.2) taken apart; comments name only what differs.
type tree struct {
	ctx   context.Context
	opts  *Options
	dirs  *dirs
	files *files
	src   *source
	tr    *tar.Reader

	entries int64
	bytes   int64 // of contents as the headers state them, holes included

	times []dirTime
	// For whiteouts that remove, that is without Options.Overlay: paths that
	// came from this layer, which an opaque marker spares, and the directories
	// whose marker was seen.
	unpacked map[string]struct{}
	opaque   map[string]struct{}
}

// A dirTime is set at the end, when nothing is made any more in the directory.
type dirTime struct {
	name         string
	atime, mtime unix.Timespec
}

func (t *tree) apply() error {
	for {
		if err := t.ctx.Err(); err != nil {
			return context.Cause(t.ctx)
		}
		hdr, err := t.tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("reading the archive: %w", err)
		}
		t.opts.at("entry")
		if t.entries++; t.entries > t.opts.maxEntries() {
			return fmt.Errorf("more than %d entries: %w", t.opts.maxEntries(), ErrTooLarge)
		}
		if hasContent(hdr.Typeflag) {
			t.bytes += hdr.Size
		}
		if t.bytes < 0 || t.bytes > t.opts.maxBytes() {
			return fmt.Errorf("files of more than %d bytes: %w", t.opts.maxBytes(), ErrTooLarge)
		}
		if err := t.entry(hdr); err != nil {
			return fmt.Errorf("%q: %w", hdr.Name, err)
		}
	}
	if err := t.files.settle(""); err != nil {
		return err
	}
	for _, d := range t.times {
		if err := t.setTimes(d); err != nil {
			return err
		}
	}
	return nil
}

// hasContent reports whether the size in the header of such an entry means anything.
func hasContent(typeflag byte) bool {
	switch typeflag {
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		return false
	}
	return true
}

func (t *tree) entry(hdr *tar.Header) error {
	name := filepath.Clean(hdr.Name)
	above, base := filepath.Split(name)
	if base == "" || base == "." || base == ".." {
		return nil // the root itself: cleaned, such a name has nothing else in it
	}
	d, err := t.dirs.at(above, t.opts.Lower)
	if err != nil {
		return err
	}
	defer d.put()
	path := d.child(base)

	if rest, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		if base == whiteoutOpaque {
			return t.makeOpaque(d)
		}
		if rest == "" || rest == "." || rest == ".." {
			return fmt.Errorf("whiteout of %q: %w", rest, ErrInvalid)
		}
		return t.whiteout(d, rest, hdr)
	}
	if t.dirs.tooLong(path) {
		return &os.PathError{Op: "create", Path: path, Err: unix.ENAMETOOLONG}
	}
	if err := t.files.settle(path); err != nil {
		return err
	}

	m := metaOf(hdr)
	switch hdr.Typeflag {
	case tar.TypeDir:
		err = t.mkdir(d, base, path, &m)
		t.times = append(t.times, dirTime{name, m.atime, m.mtime})
	case tar.TypeReg:
		err = t.file(d, base, path, hdr, m)
	case tar.TypeLink:
		// Whatever is at path goes first: the target may lead through it.
		if err = t.remove(d, base, path); err == nil {
			err = t.link(d, base, hdr.Linkname)
		}
		if err == nil {
			err = m.applyAt(&t.files.refused, d, base)
		}
	case tar.TypeSymlink:
		err = t.node(d, base, path, &m, func() error {
			return unix.Symlinkat(hdr.Linkname, d.fd, base)
		})
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if hdr.Devmajor < 0 || hdr.Devmajor > math.MaxUint32 || hdr.Devminor < 0 || hdr.Devminor > math.MaxUint32 {
			return fmt.Errorf("device number %d:%d: %w", hdr.Devmajor, hdr.Devminor, ErrInvalid)
		}
		kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[hdr.Typeflag]
		dev := unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))
		err = t.node(d, base, path, &m, func() error {
			return unix.Mknodat(d.fd, base, m.mode|kind, int(dev))
		})
	case tar.TypeXGlobalHeader:
		err = t.remove(d, base, path)
	default:
		return fmt.Errorf("entry of type %q: %w", hdr.Typeflag, ErrInvalid)
	}
	if err == nil && t.unpacked != nil {
		t.unpacked[path] = struct{}{}
	}
	return err
}

// node makes what create makes, in place of whatever is at path.
func (t *tree) node(d *dir, base, path string, m *meta, create func() error) error {
	err := t.files.withRoom(d.fd, create)
	if err == unix.EEXIST {
		if err := t.remove(d, base, path); err != nil {
			return err
		}
		err = t.files.withRoom(d.fd, create)
	}
	if err != nil {
		return &os.PathError{Op: "create", Path: path, Err: err}
	}
	return m.applyAt(&t.files.refused, d, base)
}

func (t *tree) mkdir(above *dir, base, path string, m *meta) error {
	create := func() error { return unix.Mkdirat(above.fd, base, m.mode&0o777) }
	err := t.files.withRoom(above.fd, create)
	if err == unix.EEXIST {
		err = nil
		var st unix.Stat_t
		if e := unix.Fstatat(above.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); e != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if err := t.remove(above, base, path); err != nil {
				return err
			}
			err = t.files.withRoom(above.fd, create)
		}
	}
	if err != nil {
		return &os.PathError{Op: "mkdir", Path: path, Err: err}
	}
	d, err := t.dirs.openChild(above, base)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer d.put()
	return m.applyFile(&t.files.refused, d.fd, path)
}

// file makes a regular file, or has it made.
func (t *tree) file(d *dir, base, path string, hdr *tar.Header, m meta) error {
	if t.dirs.relied(path) {
		if err := t.remove(d, base, path); err != nil {
			return err
		}
	}
	// Only archive/tar knows where the holes of a sparse file are.
	sparse := false
	for key := range hdr.PAXRecords {
		sparse = sparse || strings.HasPrefix(key, "GNU.sparse.")
	}
	if hdr.Size <= smallFile && !sparse {
		j := &job{dir: d.hold(), name: base, path: path, meta: m}
		for left := hdr.Size; left > 0; {
			c, b, err := t.src.take(left)
			if err != nil {
				j.release()
				return fmt.Errorf("reading the archive: %w", err)
			}
			j.pieces = append(j.pieces, piece{c, b})
			left -= int64(len(b))
		}
		t.dirs.rely(d.path) // again, if removing what was at path made dirs forget
		t.files.submit(j)
		return nil
	}

	fd, err := t.files.createFile(d, base, m.mode)
	if err != nil {
		return err
	}
	if sparse {
		err = t.writeSparse(fd, path)
	} else {
		err = t.writeLarge(fd, path, hdr.Size)
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	return finishFile(&t.files.refused, fd, path, &m)
}

func (t *tree) writeLarge(fd int, path string, size int64) error {
	for size > 0 {
		if t.ctx.Err() != nil {
			return context.Cause(t.ctx)
		}
		c, b, err := t.src.take(size)
		if err != nil {
			return fmt.Errorf("reading the archive: %w", err)
		}
		err = t.files.writeAll(fd, b, path)
		c.release()
		if err != nil {
			return err
		}
		size -= int64(len(b))
	}
	return nil
}

func (t *tree) writeSparse(fd int, path string) error {
	buf := *chunkBufs.Get().(*[]byte)
	defer chunkBufs.Put(&buf)
	for {
		if t.ctx.Err() != nil {
			return context.Cause(t.ctx)
		}
		n, err := t.tr.Read(buf)
		if werr := t.files.writeAll(fd, buf[:n], path); werr != nil {
			return werr
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the archive: %w", err)
		}
	}
}

// link makes base in d a hard link to what linkname stands for. A symlink in
// its last component is not followed, but linked.
func (t *tree) link(d *dir, base, linkname string) error {
	above, last := filepath.Split(linkname)
	above, _, err := t.dirs.resolve(above)
	if err != nil {
		return fmt.Errorf("resolving link target %q: %w", linkname, err)
	}
	target := filepath.Join(above, last) // ".." cannot lead above "/"
	if target == "/" {
		return &os.LinkError{Op: "link", Old: linkname, New: d.child(base), Err: unix.EPERM}
	}
	if err := t.files.settle(target); err != nil {
		return err
	}
	from, err := t.dirs.open(filepath.Dir(target), nil, false)
	if err != nil {
		return fmt.Errorf("link target %q: %w", linkname, err)
	}
	defer from.put()
	err = t.files.withRoom(d.fd, func() error { return unix.Linkat(from.fd, filepath.Base(target), d.fd, base, 0) })
	if err != nil {
		return &os.LinkError{Op: "link", Old: linkname, New: d.child(base), Err: err}
	}
	return nil
}

// remove removes whatever is at path, which is base in d and has settled.
func (t *tree) remove(d *dir, base, path string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(d.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == unix.ENOENT {
		return nil
	} else if err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := t.files.settle(""); err != nil {
			return err
		}
		t.dirs.forget()
	} else if t.dirs.relied(path) {
		t.dirs.forget()
	}
	return removeAll(d.fd, base, path)
}

func (t *tree) whiteout(d *dir, base string, hdr *tar.Header) error {
	path := d.child(base)
	if t.dirs.tooLong(path) {
		return &os.PathError{Op: "whiteout", Path: path, Err: unix.ENAMETOOLONG}
	}
	if err := t.files.settle(path); err != nil {
		return err
	}
	if !t.opts.Overlay {
		return t.remove(d, base, path)
	}
	err := t.files.withRoom(d.fd, func() error { return unix.Mknodat(d.fd, base, unix.S_IFCHR, 0) })
	if err != nil {
		return &os.PathError{Op: "whiteout", Path: path, Err: err}
	}
	if err := unix.Fchownat(d.fd, base, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "chown", Path: path, Err: err}
	}
	return nil
}

func (t *tree) makeOpaque(d *dir) error {
	if t.opts.Overlay {
		if err := unix.Fsetxattr(d.fd, "trusted.overlay.opaque", []byte{'y'}, 0); err != nil {
			return fmt.Errorf("making %s opaque: %w", d.path, err)
		}
		return nil
	}
	if _, ok := t.opaque[d.path]; ok {
		return nil
	}
	t.opaque[d.path] = struct{}{}
	if err := t.files.settle(""); err != nil {
		return err
	}
	t.dirs.forget()
	return t.clear(d.fd, d.path)
}

// clear removes from the directory fd what this layer has not brought.
func (t *tree) clear(fd int, path string) error {
	names, err := readNames(fd, path)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		child := path + "/" + name
		if path == "/" {
			child = "/" + name
		}
		if _, ok := t.unpacked[child]; !ok {
			if err := removeAll(fd, name, child); err != nil {
				return err
			}
			continue
		}
		below, err := ignoringEINTR(func() (int, error) {
			return unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		})
		if errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
			continue // no directory
		}
		if err != nil {
			return &os.PathError{Op: "open", Path: child, Err: err}
		}
		err = t.clear(below, child)
		unix.Close(below)
		if err != nil {
			return err
		}
	}
	return nil
}

// setTimes sets the times of what the name of a directory entry stands for by
// now, the last component's symlink followed, as containerd does. It fails if
// that is nothing.
func (t *tree) setTimes(dt dirTime) error {
	path, _, err := t.dirs.resolve(dt.name)
	if err != nil {
		return fmt.Errorf("resolving %q: %w", dt.name, err)
	}
	if path == "/" {
		return futimens(t.dirs.root.fd, dt.atime, dt.mtime)
	}
	if d := t.dirs.byPath[path]; d != nil {
		return futimens(d.fd, dt.atime, dt.mtime)
	}
	above, err := t.dirs.open(filepath.Dir(path), nil, false)
	if err != nil {
		return err
	}
	defer above.put()
	return utimensAt(above, filepath.Base(path), dt.atime, dt.mtime)
}
