package harness

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Host is one machine of a Cluster: PID, mount, UTS, IPC and network namespaces
// below one init process. Its file system is the machine's, but for /proc, /run
// and whatever is mounted in it later.
type Host struct {
	Name string
	Addr string // IPv4 on the cluster's network, without port
	Dir  string // its files, on the machine's file system; removed with the cluster

	init  *exec.Cmd // PID 1, or what started a systemd that is
	pid   int       // of PID 1, on this machine
	stdin io.Closer
	net   netns.NsHandle
	veth  string // the bridge's end of its link, "" for the switch itself

	mu    sync.Mutex
	procs []*Process
}

// startHost starts the init process and waits until the host is set up, but
// for its network.
func startHost(name, dir string) (*Host, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), initEnv+"="+name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: hostNamespaces}
	return beginHost(&Host{Name: name, Dir: dir, init: cmd})
}

// hostNamespaces are what a host has of its own.
const hostNamespaces = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// beginHost starts a host's first process, which says "ready" when the host is set up.
// If that is not PID 1, it says PID 1's number, too.
func beginHost(h *Host) (*Host, error) {
	cmd, name := h.init, h.Name
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true // a terminal's ^C is for the harness alone
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, unix.EPERM) {
			return nil, fmt.Errorf("starting host %s: %w (namespaces need root)", name, err)
		}
		return nil, fmt.Errorf("starting host %s: %w", name, err)
	}
	h.stdin, h.pid = stdin, cmd.Process.Pid
	line, _ := bufio.NewReader(stdout).ReadString('\n')
	if _, err := fmt.Sscanf(line, "ready %d\n", &h.pid); err != nil && line != "ready\n" {
		h.close()
		return nil, fmt.Errorf("host %s did not come up", name)
	}
	if h.net, err = netns.GetFromPid(h.pid); err != nil {
		h.close()
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	return h, nil
}

// close ends the init process, and with it all that runs in the host.
func (h *Host) close() {
	h.mu.Lock()
	procs := h.procs
	h.mu.Unlock()
	if h.pid == h.init.Process.Pid {
		_ = h.init.Process.Kill()
	}
	h.stdin.Close() // of what has PID 1 as its child: it kills and awaits it
	_ = h.init.Wait()
	for _, p := range procs {
		<-p.done
	}
	if h.net != 0 {
		_ = h.net.Close()
	}
}

// Path maps a path as the host sees it to one that this process can open, for
// what lies on a mount of the host's own (/run, a small disk).
func (h *Host) Path(p string) string {
	return filepath.Join("/proc", fmt.Sprint(h.pid), "root", p)
}

// nsFlags are the kinds of namespaces of a host to enter.
type nsFlags int

const (
	enterNet nsFlags = 1 << iota
	enterMount
	enterPID // for children only
)

// in runs f on a thread that has entered the host's namespaces. f must not start
// goroutines that count on it.
func (h *Host) in(flags nsFlags, f func() error) error {
	pid := h.pid
	return onThread(func() error {
		if flags&enterMount != 0 {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
		}
		// All files first: after entering the mount namespace, /proc is another.
		var fds []int
		defer func() {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}()
		var kinds []int
		for _, k := range []struct {
			flag nsFlags
			file string
			kind int
		}{{enterPID, "pid", unix.CLONE_NEWPID}, {enterNet, "net", unix.CLONE_NEWNET}, {enterMount, "mnt", unix.CLONE_NEWNS}} {
			if flags&k.flag == 0 {
				continue
			}
			fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, k.file), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("host %s is gone: %w", h.Name, err)
			}
			fds, kinds = append(fds, fd), append(kinds, k.kind)
		}
		for i, fd := range fds {
			if err := unix.Setns(fd, kinds[i]); err != nil {
				return fmt.Errorf("entering host %s: %w", h.Name, err)
			}
		}
		return f()
	})
}

// onThread runs f on a thread of its own, which ends with it.
func onThread(f func() error) error {
	c := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is not fit for others
		c <- f()
	}()
	return <-c
}

// DialContext dials from within the host. It fits http.Transport.
func (h *Host) DialContext(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = h.in(enterNet, func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// accepts returns a check that something listens at a host:port, for await.
func (h *Host) accepts(addr string) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := h.DialContext(ctx, "tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err
	}
}

// Listen listens within the host.
func (h *Host) Listen(network, addr string) (l net.Listener, err error) {
	err = h.in(enterNet, func() (err error) {
		var c net.ListenConfig
		l, err = c.Listen(context.Background(), network, addr)
		return err
	})
	return l, err
}

// MountTmpfs gives the host a small disk of its own at dir.
func (h *Host) MountTmpfs(dir string, size int64) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	return h.in(enterMount, func() error {
		return unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=711", size))
	})
}

// MountExt4 gives the host a disk of its own at dir, which is a file beside its others.
func (h *Host) MountExt4(ctx context.Context, dir string, size int64) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	image := filepath.Join(h.Dir, filepath.Base(dir)+".ext4")
	f, err := os.Create(image)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		return err
	}
	if _, err := h.Command(ctx, nil, "mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0", image); err != nil {
		return err
	}
	_, err = h.Command(ctx, nil, "mount", "-o", "loop", image, dir) // it lets go of the device when it is unmounted
	return err
}

// FailDisk has the file system at dir answer all with EIO from now on, as that of a disk that died.
func (h *Host) FailDisk(dir string) error {
	const (
		goingDown  = 0x8004587d // FS_IOC_SHUTDOWN
		withoutLog = 2
	)
	return h.in(enterMount, func() error {
		d, err := os.Open(dir)
		if err != nil {
			return err
		}
		defer d.Close()
		return unix.IoctlSetPointerInt(int(d.Fd()), goingDown, withoutLog)
	})
}

// Unmount ends what is mounted at dir.
func (h *Host) Unmount(dir string) error {
	return h.in(enterMount, func() error { return unix.Unmount(dir, 0) })
}

// Command runs a program in the host to its end and returns its output.
func (h *Host) Command(ctx context.Context, env []string, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), env...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 2 * time.Second
	if err := h.in(enterNet|enterMount|enterPID, cmd.Start); err != nil {
		return "", fmt.Errorf("starting %s: %w", filepath.Base(path), err)
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(path), strings.Join(args, " "), err, lastLines(out.String(), 5))
	}
	return out.String(), nil
}

// Process is a daemon in a Host.
type Process struct {
	Name string
	Log  string // file with its output, appended to by each start

	Started time.Time

	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait, after done
}

// Start starts a daemon; its output goes to <Dir>/<name>.log. Extra files are
// its descriptors from 3 on.
func (h *Host) Start(name string, env []string, extra []*os.File, path string, args ...string) (*Process, error) {
	logFile := filepath.Join(h.Dir, name+".log")
	f, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.ExtraFiles = extra
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p := &Process{Name: h.Name + "/" + name, Log: logFile, Started: time.Now(), cmd: cmd, done: make(chan struct{})}
	if err := h.in(enterNet|enterMount|enterPID, cmd.Start); err != nil {
		return nil, fmt.Errorf("starting %s: %w", p.Name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	h.mu.Lock()
	h.procs = append(h.procs, p)
	h.mu.Unlock()
	return p, nil
}

// PID is the process's number on this machine (in the host it has another).
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is what it ended with; only after Done.
func (p *Process) Err() error { return p.err }

// Running reports whether the process has not ended.
func (p *Process) Running() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Kill ends it with SIGKILL and waits.
func (p *Process) Kill() {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Signal sends a signal and does not wait.
func (p *Process) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// hangs is what ends a wait for something that does not come: no busy machine takes as
// long.
const hangs = 2 * time.Minute

// Stop sends SIGTERM and waits; what hangs is killed, which is an error.
func (p *Process) Stop() error {
	if !p.Running() {
		return nil
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	t := time.NewTimer(hangs)
	defer t.Stop()
	select {
	case <-p.done:
		return nil
	case <-t.C:
		p.Kill()
		return fmt.Errorf("%s did not end within %v of SIGTERM", p.Name, hangs)
	}
}

var errEnded = errors.New("exit status 0")

// await polls ready, every few milliseconds, until it reports nil, the process
// ends, or ctx does. The daemons here say "ready" by a socket that answers.
func (p *Process) await(ctx context.Context, ready func(context.Context) error) error {
	over, err := await(ctx, p.done, ready)
	switch {
	case err == nil:
		return nil
	case over:
		return fmt.Errorf("%s ended before it was ready: %w\n%s", p.Name, cmp.Or(p.err, errEnded), p.Tail(20))
	}
	return fmt.Errorf("%s is not ready: %w\n%s", p.Name, err, p.Tail(20))
}

// await polls ready, every few milliseconds, until it reports nil, ctx ends, or ended is
// closed, which it reports as over. The error is ready's last one.
func await(ctx context.Context, ended <-chan struct{}, ready func(context.Context) error) (over bool, err error) {
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for {
		one, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := ready(one)
		cancel()
		if err == nil {
			return false, nil
		}
		select {
		case <-ended:
			return true, err
		case <-ctx.Done():
			return false, err
		case <-t.C:
		}
	}
}

// Tail returns the last lines of its log.
func (p *Process) Tail(lines int) string {
	if p == nil {
		return ""
	}
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	return lastLines(string(b), lines)
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}
