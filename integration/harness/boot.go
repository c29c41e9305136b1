package harness

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// keeperEnv and bootEnv make copies of the running program what starts a Machine: a keeper
// outside of it, whose child makes itself the machine's systemd.
const (
	keeperEnv = "CAPELIN_HARNESS_KEEPER"
	bootEnv   = "CAPELIN_HARNESS_BOOT"
)

// systemd is where Debian's package has it.
const systemd = "/usr/lib/systemd/systemd"

// machineBoot is what a Machine is booted of.
type machineBoot struct {
	Name   string
	Dir    string // of the host, which the machine sees under the same name
	Root   string // its root directory, below Dir
	Cgroup string // below the root of every hierarchy
}

// keepMachine starts the machine and says so. When its standard input ends, which is when
// the harness closes it or dies, it kills systemd, and with it all that runs there.
func keepMachine(machine string) {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, "starting a machine:", err)
		os.Exit(1)
	}
	self, err := os.Executable()
	if err != nil {
		fail(err)
	}
	runtime.LockOSThread() // the thread that systemd must not outlive
	problems, w, err := os.Pipe()
	if err != nil {
		fail(err)
	}
	cmd := exec.Command(self)
	cmd.Env = []string{bootEnv + "=" + machine, "PATH=" + os.Getenv("PATH")}
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: hostNamespaces, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		fail(err)
	}
	w.Close()
	// It is closed when the child becomes systemd.
	if text, err := io.ReadAll(problems); err != nil || len(text) > 0 {
		_ = cmd.Wait()
		fail(fmt.Errorf("%s: %w", text, errors.Join(err, errEnded)))
	}
	fmt.Printf("ready %d\n", cmd.Process.Pid)
	os.Stdout.Close()
	_, _ = io.Copy(io.Discard, os.Stdin)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	os.Exit(0)
}

// bootMachine is PID 1 of a machine until it becomes systemd.
func bootMachine(machine string) {
	runtime.LockOSThread() // what has the namespaces is what becomes systemd
	problems := os.NewFile(3, "problems")
	unix.CloseOnExec(3)
	fail := func(err error) {
		fmt.Fprint(problems, err)
		os.Exit(1)
	}
	var m machineBoot
	if err := json.Unmarshal([]byte(machine), &m); err != nil {
		fail(err)
	}
	if err := m.setUp(); err != nil {
		fail(err)
	}
	// systemd behaves as in a container: it leaves the machine's clock, modules and console alone.
	env := []string{"container=capelin-harness", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "TERM=dumb"}
	fail(unix.Exec(systemd, []string{"/sbin/init", "--show-status=no"}, env))
}

// setUp makes the machine's mounts, in m.Root, and makes that the root.
func (m *machineBoot) setUp() error {
	if err := unix.Sethostname([]byte(m.Name)); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	hierarchies, err := joinCgroups(m.Cgroup)
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	mounts := []struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}{
		{m.Root, "", "", unix.MS_BIND, ""},
		{"/usr", "usr", "", unix.MS_BIND | unix.MS_REC, ""},
		{"", "usr", "", unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY, ""},
		{filepath.Join(m.Root, "local"), "usr/local", "", unix.MS_BIND, ""},
		{"/etc/alternatives", "etc/alternatives", "", unix.MS_BIND, ""},
		{"proc", "proc", "proc", 0, ""},
		// What is set there would be set for the machine below as well.
		{filepath.Join(m.Root, "proc/sys"), "proc/sys", "", unix.MS_BIND, ""},
		{"", "proc/sys", "", unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY, ""},
		{"sysfs", "sys", "sysfs", unix.MS_RDONLY, ""},
		{"tmpfs", "dev", "tmpfs", unix.MS_NOSUID, "mode=755"},
		{"tmpfs", "run", "tmpfs", 0, "mode=755"},
		{"tmpfs", "tmp", "tmpfs", 0, "mode=1777"},
	}
	for _, f := range mounts {
		if err := unix.Mount(f.source, filepath.Join(m.Root, f.target), f.kind, f.flags, f.data); err != nil {
			return fmt.Errorf("mounting /%s: %w", f.target, err)
		}
	}
	// What the machine and the harness both see, under one name.
	shared := filepath.Join(m.Root, m.Dir)
	if err := os.MkdirAll(shared, 0o711); err != nil {
		return err
	}
	if err := unix.Mount(m.Dir, shared, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting %s: %w", m.Dir, err)
	}
	// One directory a hierarchy needs a file system for them.
	if top := "/sys/fs/cgroup"; !slices.ContainsFunc(hierarchies, func(h hierarchy) bool { return h.at == top }) {
		if err := unix.Mount("tmpfs", filepath.Join(m.Root, top), "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mounting %s: %w", top, err)
		}
	}
	for _, h := range hierarchies {
		if err := h.mount(m.Root); err != nil {
			return err
		}
	}
	if err := makeDevices(filepath.Join(m.Root, "dev")); err != nil {
		return err
	}
	if err := unix.Chdir(m.Root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("changing the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmounting the old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	// As systemd has it where it is not in a container.
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// makeDevices fills /dev. There are loop devices, for disks that tests make.
func makeDevices(dev string) error {
	node := func(name string, major, minor uint32) error {
		return unix.Mknod(filepath.Join(dev, name), unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor)))
	}
	errs := []error{
		node("null", 1, 3), node("zero", 1, 5), node("full", 1, 7), node("random", 1, 8), node("urandom", 1, 9),
		node("tty", 5, 0), node("loop-control", 10, 237), node("fuse", 10, 229),
	}
	for i := range 64 {
		errs = append(errs, unix.Mknod(filepath.Join(dev, "loop"+strconv.Itoa(i)), unix.S_IFBLK|0o660, int(unix.Mkdev(7, uint32(i)))))
	}
	for link, to := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		errs = append(errs, os.Symlink(to, filepath.Join(dev, link)))
	}
	for _, d := range []string{"pts", "shm"} {
		errs = append(errs, os.Mkdir(filepath.Join(dev, d), 0o755))
	}
	errs = append(errs,
		unix.Mount("devpts", filepath.Join(dev, "pts"), "devpts", 0, "newinstance,ptmxmode=0666,mode=0620"),
		unix.Mount("tmpfs", filepath.Join(dev, "shm"), "tmpfs", 0, "mode=1777"))
	return errors.Join(errs...)
}

// A hierarchy is a mount of cgroups, of either version.
type hierarchy struct {
	at      string // on this machine
	version int
	options string // version 1: its controllers, or its name
}

// cgroupMounts are the machine's.
func cgroupMounts() (all []hierarchy, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		head, tail, ok := strings.Cut(s.Text(), " - ")
		fields, kind := strings.Fields(head), strings.Fields(tail)
		if !ok || len(fields) < 5 || len(kind) < 3 || !strings.HasPrefix(fields[4], "/sys/fs/cgroup") {
			continue
		}
		switch kind[0] {
		case "cgroup2":
			all = append(all, hierarchy{at: fields[4], version: 2})
		case "cgroup":
			all = append(all, hierarchy{fields[4], 1, strings.TrimPrefix(strings.TrimPrefix(kind[2], "rw,"), "ro,")})
		}
	}
	if len(all) == 0 {
		return nil, errors.New("no cgroups below /sys/fs/cgroup")
	}
	return all, nil
}

// joinCgroups makes the cgroup in every hierarchy and moves this process there.
func joinCgroups(name string) ([]hierarchy, error) {
	all, err := cgroupMounts()
	if err != nil {
		return nil, err
	}
	for _, h := range all {
		if err := h.join(name); err != nil {
			return nil, fmt.Errorf("joining cgroup %s: %w", filepath.Join(h.at, name), err)
		}
	}
	return all, nil
}

func (h hierarchy) join(name string) error {
	dir := h.at
	for _, part := range strings.Split(name, "/") {
		if h.version == 2 { // what is there for the machine, is there for its parts
			controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
			if err != nil {
				return err
			}
			for _, c := range strings.Fields(string(controllers)) {
				_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0) // some cannot be
			}
		}
		parent := dir
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if h.version == 1 { // a cpuset is empty at first, and nobody can be in it
			for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
				if b, err := os.ReadFile(filepath.Join(parent, f)); err == nil {
					if err := os.WriteFile(filepath.Join(dir, f), b, 0); err != nil {
						return err
					}
				}
			}
		}
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0)
}

// mount shows the hierarchy at the same place below a new root.
func (h hierarchy) mount(root string) error {
	at := filepath.Join(root, h.at)
	kind, data := "cgroup2", ""
	if h.version == 1 {
		kind, data = "cgroup", h.options
		if strings.Contains(data, "name=") {
			data = "none," + data
		}
	}
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(kind, at, kind, 0, data); err != nil {
		return fmt.Errorf("mounting %s: %w", h.at, err)
	}
	return nil
}
