package treetest

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/continuity/sysx"
	"golang.org/x/sys/unix"
)

// Describe returns a line for everything below root, and for root itself as ".": type,
// mode, owner, times, size, content, link structure and extended attributes. Times
// after since are all alike: nobody set them.
func Describe(root string, since time.Time) (map[string]string, error) {
	m := make(map[string]string)
	first := make(map[uint64]string)
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		m[rel], err = describe(path, rel, first, since)
		return err
	})
	return m, err
}

func describe(path, rel string, first map[uint64]string, since time.Time) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", err
	}
	when := func(ts unix.Timespec) string {
		t := time.Unix(ts.Unix())
		if t.After(since) {
			return "now"
		}
		return t.UTC().Format(time.RFC3339Nano)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%o %d:%d mtime %s", st.Mode, st.Uid, st.Gid, when(st.Mtim))
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOATIME, 0)
		if err != nil {
			return "", err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		f.Close()
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, " atime %s size %d sha256 %x", when(st.Atim), st.Size, h.Sum(nil))
	case unix.S_IFLNK:
		to, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, " -> %q", to)
	case unix.S_IFCHR, unix.S_IFBLK:
		fmt.Fprintf(&b, " device %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		fmt.Fprintf(&b, " links %d", st.Nlink)
		if f, ok := first[st.Ino]; ok {
			fmt.Fprintf(&b, " same as %q", f)
		} else {
			first[st.Ino] = rel
		}
	}
	keys, err := sysx.LListxattr(path)
	if err != nil && err != unix.ENOTSUP {
		return "", err
	}
	slices.Sort(keys)
	for _, k := range keys {
		v, err := sysx.LGetxattr(path, k)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, " %s=%x", k, v)
	}
	return b.String(), nil
}

// Diff returns what differs between two descriptions, of each path in two lines.
func Diff(want, got map[string]string) string {
	var b strings.Builder
	all := maps.Clone(want)
	maps.Copy(all, got)
	for _, p := range slices.Sorted(maps.Keys(all)) {
		if want[p] != got[p] {
			fmt.Fprintf(&b, "%q:\n  want %s\n  got  %s\n", p, want[p], got[p])
		}
	}
	return b.String()
}
