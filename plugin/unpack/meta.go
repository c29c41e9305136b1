package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

const paxXattr = "SCHILY.xattr."

// meta is what an entry says about its inode, apart from the content.
type meta struct {
	mode         uint32 // permission, setuid, setgid and sticky bits
	uid, gid     int
	atime, mtime unix.Timespec
	xattrs       []xattr
}

type xattr struct {
	key   string
	value []byte
}

func metaOf(hdr *tar.Header) meta {
	m := meta{
		mode:  uint32(hdr.Mode & 0o7777),
		uid:   hdr.Uid,
		gid:   hdr.Gid,
		mtime: timespec(hdr.ModTime),
		atime: timespec(hdr.ModTime),
	}
	if !hdr.AccessTime.Before(hdr.ModTime) {
		m.atime = timespec(hdr.AccessTime)
	}
	for key, value := range hdr.PAXRecords {
		if key, ok := strings.CutPrefix(key, paxXattr); ok {
			m.xattrs = append(m.xattrs, xattr{key, []byte(value)})
		}
	}
	return m
}

var (
	minTime = time.Unix(0, 0)
	maxTime = time.Unix(0, 1<<63-1)
)

// timespec is t, or the epoch for what containerd's archive.Apply takes for no
// sensible time.
func timespec(t time.Time) unix.Timespec {
	if t.Before(minTime) || t.After(maxTime) {
		t = minTime
	}
	return unix.NsecToTimespec(t.UnixNano())
}

// tolerable reports whether an extended attribute that could not be set is left
// out, as in containerd, instead of failing the layer. regular
// is set for files and directories.
func tolerable(key string, err error, regular bool) bool {
	return errors.Is(err, unix.ENOTSUP) ||
		errors.Is(err, unix.EPERM) && strings.HasPrefix(key, "user.") && !regular
}

// refusals are the extended attributes of a layer that were left out. Workers and planner add to them.
type refusals struct {
	mu    sync.Mutex
	n     int
	first error
}

func (r *refusals) add(path, key string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n++; r.n == 1 {
		r.first = fmt.Errorf("setting xattr %q of %s: %w", key, path, err)
	}
}

// log says it in one line, however many there are.
func (r *refusals) log(ctx context.Context) {
	if r.n > 0 {
		log.G(ctx).WithError(r.first).WithField("count", r.n).Warn("extended attributes of a layer were left out; the error is the first one's")
	}
}

// setXattrs calls set for all of m's extended attributes, trusted ones excepted:
// those are not a layer's to set.
func (m *meta) setXattrs(refused *refusals, path string, regular bool, set func(key string, value []byte) error) error {
	for _, x := range m.xattrs {
		err := error(unix.ENOTSUP)
		if !strings.HasPrefix(x.key, "trusted.") {
			err = set(x.key, x.value)
		}
		if err == nil {
			continue
		}
		if !tolerable(x.key, err, regular) {
			return fmt.Errorf("setting xattr %q of %s: %w", x.key, path, err)
		}
		refused.add(path, x.key, err)
	}
	return nil
}

// applyFile gives the open file or directory fd its metadata, in the order that
// chown (which clears the setuid bit and capabilities), extended attributes
// (access control lists change the mode) and chmod require. What a fresh inode
// already has is not set again.
func (m *meta) applyFile(refused *refusals, fd int, path string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	chmod := st.Mode&0o7777 != m.mode || len(m.xattrs) > 0
	if st.Uid != uint32(m.uid) || st.Gid != uint32(m.gid) {
		if err := unix.Fchown(fd, m.uid, m.gid); err != nil {
			return fmt.Errorf("changing the owner of %s to %d:%d: %w", path, m.uid, m.gid, err)
		}
		chmod = chmod || m.mode&0o7000 != 0
	}
	if len(m.xattrs) > 0 {
		err := m.setXattrs(refused, path, true, func(key string, value []byte) error {
			return unix.Fsetxattr(fd, key, value, 0)
		})
		if err != nil {
			return err
		}
	}
	if chmod {
		if err := unix.Fchmod(fd, m.mode); err != nil {
			return &os.PathError{Op: "chmod", Path: path, Err: err}
		}
	}
	if err := futimens(fd, m.atime, m.mtime); err != nil {
		return &os.PathError{Op: "utimensat", Path: path, Err: err}
	}
	return nil
}

// applyAt does the same for whatever name in d is, without following it.
func (m *meta) applyAt(refused *refusals, d *dir, name string) error {
	path := d.child(name)
	if err := unix.Fchownat(d.fd, name, m.uid, m.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("changing the owner of %s to %d:%d: %w", path, m.uid, m.gid, err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	kind := st.Mode & unix.S_IFMT
	if len(m.xattrs) > 0 {
		// The magic link leads to the open directory; lsetxattr does not follow name.
		abs := "/proc/self/fd/" + strconv.Itoa(d.fd) + "/" + name
		err := m.setXattrs(refused, path, kind == unix.S_IFREG || kind == unix.S_IFDIR, func(key string, value []byte) error {
			return unix.Lsetxattr(abs, key, value, 0)
		})
		if err != nil {
			return err
		}
	}
	if kind != unix.S_IFLNK {
		if err := unix.Fchmodat(d.fd, name, m.mode, 0); err != nil {
			return &os.PathError{Op: "chmod", Path: path, Err: err}
		}
	}
	return utimensAt(d, name, m.atime, m.mtime)
}

func utimensAt(d *dir, name string, atime, mtime unix.Timespec) error {
	err := unix.UtimesNanoAt(d.fd, name, []unix.Timespec{atime, mtime}, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return &os.PathError{Op: "utimensat", Path: d.child(name), Err: err}
	}
	return nil
}

// futimens sets the times of an open file: utimensat(2) without a name.
func futimens(fd int, atime, mtime unix.Timespec) error {
	ts := [2]unix.Timespec{atime, mtime}
	_, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}
