package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Cluster is a switch with hosts on it. Close removes everything.
type Cluster struct {
	Dir    string // of all files, short enough for sockets below it
	Switch *Host  // holds the bridge; registries and the tracker run here

	name       string // of the cgroup that pods go below
	mu         sync.Mutex
	hosts      []*Host
	nodes      []*Node
	numbers    int
	registries int
	closers    []func()
}

// New makes an empty cluster.
func New() (*Cluster, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("this needs root, for namespaces, mounts and containerd")
	}
	dir, err := os.MkdirTemp("", "capelin-")
	if err != nil {
		return nil, err
	}
	// containerd remaps nothing, but a container's root may not enter 0700.
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // a test's directory
		return nil, err
	}
	spread(dir)
	c := &Cluster{Dir: dir, name: filepath.Base(dir), numbers: 1}
	if c.Switch, err = startHost("switch", filepath.Join(dir, "switch")); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	c.hosts = append(c.hosts, c.Switch)
	if err := setupSwitch(c.Switch); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// spread has ext4 put directories that are made in dir far from each other. It takes inodes
// near the directory, and for a minute after a host's files were removed it looks at each
// of theirs and does not take it, which makes the next host's files many times slower.
// Other file systems do not know the flag: that is fine.
func spread(dir string) {
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	const topDir = 0x00020000 // FS_TOPDIR_FL of linux/fs.h: chattr +T
	if flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS); err == nil {
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|topDir)
	}
}

// NewHost adds a host to the network.
func (c *Cluster) NewHost(name string) (*Host, error) {
	h, err := startHost(name, filepath.Join(c.Dir, name))
	if err != nil {
		return nil, err
	}
	return h, c.addHost(h)
}

// addHost makes a host that was started the cluster's, and connects it.
func (c *Cluster) addHost(h *Host) error {
	c.mu.Lock()
	c.numbers++
	n := c.numbers
	c.hosts = append(c.hosts, h)
	c.mu.Unlock()
	if err := plug(c.Switch, h, n); err != nil {
		return fmt.Errorf("connecting host %s: %w", h.Name, err)
	}
	return nil
}

// Remove ends a node, as pulling its plug does, and removes its files.
func (c *Cluster) Remove(n *Node) error {
	c.mu.Lock()
	c.hosts = slices.DeleteFunc(c.hosts, func(h *Host) bool { return h == n.Host })
	c.nodes = slices.DeleteFunc(c.nodes, func(m *Node) bool { return m == n })
	c.mu.Unlock()
	n.closeClients()
	n.close()
	return removeAll(n.Dir)
}

// Serve serves HTTP on a host's port until the cluster is closed, and returns its host:port:
// what somebody has written themselves.
func (c *Cluster) Serve(h *Host, port int, handler http.Handler) (addr string, err error) {
	addr = net.JoinHostPort(h.Addr, strconv.Itoa(port))
	l, err := h.Listen("tcp", addr)
	if err != nil {
		return "", err
	}
	s := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0)}
	c.onClose(func() { s.Close() })
	go s.Serve(l) //nolint:errcheck // ends with Close
	return addr, nil
}

func (c *Cluster) onClose(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closers = append(c.closers, f)
}

func (c *Cluster) nameOf(ip string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.hosts {
		if h.Addr == ip {
			return h.Name
		}
	}
	return ip
}

// Close ends every process, and removes every mount, namespace, cgroup and file
// of the cluster. It reports what it had to leave.
func (c *Cluster) Close() error {
	c.mu.Lock()
	hosts, closers, nodes := c.hosts, c.closers, c.nodes
	c.hosts, c.closers, c.nodes = nil, nil, nil
	c.mu.Unlock()
	for _, n := range nodes {
		n.closeClients()
	}
	for _, f := range slices.Backward(closers) {
		f()
	}
	for _, h := range slices.Backward(hosts) {
		h.close()
	}
	return errors.Join(removeCgroups(c.name), removeAll(c.Dir))
}

// removeAll retries: the kernel lets go of a killed host's mounts a moment
// after its last process has been waited for.
func removeAll(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), hangs)
	defer cancel()
	return retry(ctx, func() error { return os.RemoveAll(dir) })
}

// removeCgroups removes the pods' cgroups, in every hierarchy.
func removeCgroups(name string) error {
	roots, err := filepath.Glob("/sys/fs/cgroup/*/" + name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), hangs)
	defer cancel()
	var errs []error
	for _, root := range append(roots, "/sys/fs/cgroup/"+name) {
		var dirs []string
		_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for _, d := range slices.Backward(dirs) {
			if err := retry(ctx, func() error { return unix.Rmdir(d) }); err != nil {
				errs = append(errs, fmt.Errorf("removing cgroup %s: %w", d, err))
			}
		}
	}
	return errors.Join(errs...)
}

func retry(ctx context.Context, f func() error) error {
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for {
		err := f()
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return err
		}
	}
}

// Leftovers lists what is still there of any cluster of this name: processes,
// mounts, cgroups and files. Empty after a good Close.
func (c *Cluster) Leftovers() []string {
	var left []string
	if _, err := os.Lstat(c.Dir); err == nil {
		left = append(left, "directory "+c.Dir)
	}
	// Of this thread: the process's first one may be one that has entered a host.
	if b, err := os.ReadFile("/proc/thread-self/mountinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, c.name) {
				left = append(left, "mount "+strings.TrimSpace(line))
			}
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), c.Dir) {
			left = append(left, "process "+filepath.Base(filepath.Dir(p))+": "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + c.name)
	for _, g := range groups {
		left = append(left, "cgroup "+g)
	}
	return left
}

// noise is what containerd says at every start.
var noise = regexp.MustCompile(`(?m)^.*(msg="(skip )?loading plugin"|msg="starting cri plugin"|msg="Start |msg=serving|` +
	`(manifest|blob) unknown|fsverity|failed to load cni).*\n`)

// Logs returns the ends of all log files, for a failure's report.
func (c *Cluster) Logs(lines int) string {
	files, _ := filepath.Glob(filepath.Join(c.Dir, "*", "*.log"))
	c.mu.Lock()
	nodes := slices.Clone(c.nodes)
	c.mu.Unlock()
	var b strings.Builder
	for _, n := range nodes {
		if n.machine {
			fmt.Fprintf(&b, "--- %s, journal\n%s\n", n.Name, lastLines(noise.ReplaceAllString(n.journal("-q"), ""), 3*lines))
		}
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			text = []byte(err.Error())
		}
		rel, _ := filepath.Rel(c.Dir, f)
		fmt.Fprintf(&b, "--- %s\n%s\n", rel, lastLines(noise.ReplaceAllString(string(text), ""), lines))
	}
	return b.String()
}
