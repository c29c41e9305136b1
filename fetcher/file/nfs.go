package file

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Coherent reports whether what one machine writes into a directory is seen at once by all others that share it.
// It is not on NFS, where each machine remembers what it has seen for seconds, unless that is turned off; what is to be done is in the
// error, errdefs.ErrFailedPrecondition.
func Coherent(path string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return fmt.Errorf("file:%s: %w", path, classed(err))
	}
	if fs.Type != unix.NFS_SUPER_MAGIC {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fmt.Errorf("file:%s: %w", path, classed(err))
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("file:%s: %w", path, classed(err))
	}
	options := optionsOf(string(mounts), fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if why := cached(options); why != "" {
		return fmt.Errorf("file:%s is on NFS, and %s; mount it with -o noac,lookupcache=none and without nolock or local_lock: %w",
			path, why, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// optionsOf returns the options of the mount of a device in /proc/self/mountinfo.
func optionsOf(mounts, device string) []string {
	for s := bufio.NewScanner(strings.NewReader(mounts)); s.Scan(); {
		mount, fs, ok := strings.Cut(s.Text(), " - ")
		is, has := strings.Fields(mount), strings.Fields(fs)
		if ok && len(is) > 5 && is[2] == device && len(has) > 2 {
			return append(strings.Split(is[5], ","), strings.Split(has[2], ",")...)
		}
	}
	return nil
}

// cached says what of an NFS mount's options keeps a machine from seeing at once what others do; "" if nothing does.
func cached(options []string) string {
	has := func(all ...string) bool {
		return !slices.ContainsFunc(all, func(o string) bool { return !slices.Contains(options, o) })
	}
	switch {
	case !has("noac") && !has("acregmin=0", "acregmax=0", "acdirmin=0", "acdirmax=0"):
		return "this machine remembers for seconds what files were (no noac)"
	case !has("lookupcache=none"):
		return "this machine remembers for seconds which files there were (no lookupcache=none)"
	case has("nolock") || has("local_lock=all") || has("local_lock=flock"):
		return "locks are this machine's only"
	}
	return ""
}
