package harness

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine is a node whose host is like a machine: systemd is its PID 1, it has a root
// directory of its own with the machine's /usr, and containerd, capelin and their
// units are where they are on a machine. What runs there is systemd's to start and stop:
// of a Node's methods, those about processes are not for it.
type Machine struct{ *Node }

// Where a machine has things, as it sees them.
const (
	MachineCapelin     = "/usr/local/bin/capelin"
	MachineDropIn      = "/etc/containerd/conf.d/capelin.toml"
	machineAgentSocket = "/run/capelin/content.sock"
	machineContainerd  = "/run/containerd/containerd.sock"
)

// NewMachine boots a machine, with containerd and capelin in /usr/local/bin. Neither is
// started. Options.Disk is the size of a disk (ext4 in a file) for /var/lib/containerd.
func (c *Cluster) NewMachine(ctx context.Context, name string, o NodeOptions) (*Machine, error) {
	if o.Containerd == "" {
		o.Containerd = "2.4"
	}
	h, err := c.startMachine(name)
	if err != nil {
		return nil, err
	}
	if err := c.addHost(h); err != nil {
		return nil, err
	}
	m := &Machine{&Node{Host: h, Options: o, cluster: c, Root: "/var/lib/containerd", Socket: h.Path(machineContainerd), machine: true}}
	c.mu.Lock()
	c.nodes = append(c.nodes, m.Node)
	c.mu.Unlock()
	if err := m.await(ctx, func(ctx context.Context) error {
		out, err := m.Systemctl(ctx, "is-system-running")
		if state := strings.TrimSpace(out); state == "running" || state == "degraded" {
			return nil
		}
		return errors.Join(errors.New("systemd: "+out), err)
	}); err != nil {
		return nil, err
	}
	if o.Disk != 0 {
		script := fmt.Sprintf(`truncate -s %d %[2]s/disk && mkfs.ext4 -q -m 0 %[2]s/disk && mount -o loop %[2]s/disk %s`, o.Disk, m.Dir, m.Root)
		if _, err := m.Sh(ctx, script); err != nil {
			return nil, err
		}
	}
	return m, m.putContainerd()
}

// startMachine makes the root directory and starts systemd in it.
func (c *Cluster) startMachine(name string) (*Host, error) {
	if _, err := os.Stat(systemd); err != nil {
		return nil, fmt.Errorf("%w (Debian's package is called systemd)", err)
	}
	h := &Host{Name: name, Dir: filepath.Join(c.Dir, name)}
	b := machineBoot{Name: name, Dir: h.Dir, Root: filepath.Join(h.Dir, "root"), Cgroup: filepath.Join(c.name, name)}
	if err := makeRoot(b.Root, name); err != nil {
		return nil, fmt.Errorf("making the root of %s: %w", name, err)
	}
	text, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	h.init = exec.Command(self)
	h.init.Env = append(os.Environ(), keeperEnv+"="+string(text))
	return beginHost(h)
}

// makeRoot makes a root directory in which what a machine needs besides /usr is.
func makeRoot(root, name string) error {
	dirs := []string{
		"usr", "proc", "sys", "dev", "run", "tmp", "root", "home", "mnt", "opt", "srv", "boot",
		"local/bin", "local/sbin", "local/lib", "etc/alternatives", "etc/systemd/system", "etc/systemd/journald.conf.d",
		"var/lib", "var/log", "var/tmp", "var/cache", "var/spool", "var/lib/containerd",
	}
	for _, d := range dirs {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id)
	files := map[string]string{
		"etc/machine-id": hex.EncodeToString(id) + "\n",
		"etc/hostname":   name + "\n",
		"etc/hosts":      "127.0.0.1 localhost " + name + "\n::1 localhost\n",
		"etc/fstab":      "", "etc/resolv.conf": "",
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
		"etc/group":  "root:x:0:\ntty:x:5:\ndisk:x:6:\nsystemd-journal:x:101:\nnogroup:x:65534:\n",
		// In memory, so that it goes with the machine, and all of it.
		"etc/systemd/journald.conf.d/harness.conf": "[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\nForwardToSyslog=no\nReadKMsg=no\n",
	}
	for file, text := range files {
		if err := os.WriteFile(filepath.Join(root, file), []byte(text), 0o644); err != nil {
			return err
		}
	}
	links := map[string]string{
		"var/run": "/run", "etc/os-release": "/usr/lib/os-release", "etc/localtime": "/usr/share/zoneinfo/UTC",
		"etc/systemd/system/default.target": "/usr/lib/systemd/system/multi-user.target",
	}
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		to, err := os.Readlink("/" + d)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("/usr is not all that programs need: %w", err)
		}
		links[d] = to
	}
	for _, unit := range masked {
		links["etc/systemd/system/"+unit] = "/dev/null"
	}
	for link, to := range links {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			return err
		}
	}
	return copyIfThere("/etc/ld.so.cache", filepath.Join(root, "etc/ld.so.cache"))
}

// masked is what Debian's systemd starts and a node does not need: it would only make
// the boot longer, or has to do with hardware.
var masked = []string{
	"dbus.service", "dbus.socket", "systemd-logind.service", "systemd-user-sessions.service", "systemd-update-utmp.service",
	"systemd-update-utmp-runlevel.service", "systemd-ask-password-wall.path", "systemd-ask-password-console.path", "getty.target",
	"systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount", "systemd-firstboot.service", "systemd-journal-flush.service",
	"systemd-machine-id-commit.service", "systemd-modules-load.service", "systemd-random-seed.service", "systemd-repart.service",
	"systemd-sysctl.service", "systemd-sysusers.service", "systemd-tmpfiles-setup-dev.service", "systemd-tmpfiles-setup.service",
	"systemd-tmpfiles-clean.timer", "kmod-static-nodes.service", "systemd-udevd.service", "systemd-udev-trigger.service",
	"systemd-remount-fs.service", "systemd-initctl.socket", "systemd-journald-audit.socket", "systemd-pcrphase.service",
	"systemd-pcrphase-sysinit.service", "systemd-timesyncd.service", "systemd-networkd.service", "systemd-resolved.service",
	"dev-hugepages.mount", "dev-mqueue.mount", "sys-fs-fuse-connections.mount", "sys-kernel-config.mount", "sys-kernel-debug.mount",
	"sys-kernel-tracing.mount",
}

func copyIfThere(from, to string) error {
	b, err := os.ReadFile(from)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

// containerdUnit is containerd's own containerd.service, without what needs more rights
// than a host here has.
const containerdUnit = `[Unit]
Description=containerd container runtime
After=network.target local-fs.target

[Service]
ExecStart=/usr/local/bin/containerd
Type=notify
Delegate=yes
KillMode=process
Restart=always
RestartSec=5
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity

[Install]
WantedBy=multi-user.target
`

// putContainerd installs containerd, its configuration and its unit, and capelin's program.
func (m *Machine) putContainerd() error {
	for _, tool := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		p, err := Tool(m.Options.Containerd + "/" + tool)
		if err != nil {
			return err
		}
		if err := m.PutProgram(p, "/usr/local/bin/"+tool); err != nil {
			return err
		}
	}
	capelin, err := Built("capelin")
	if err != nil {
		return err
	}
	if err := m.PutProgram(capelin, MachineCapelin); err != nil {
		return err
	}
	text, err := m.Options.containerdConfig(containerdFiles{
		root: m.Root, state: "/run/containerd", socket: machineContainerd, debug: "/run/containerd/debug.sock",
		imports: "/etc/containerd/conf.d/*.toml", certs: "/etc/containerd/certs.d", cni: "/etc/cni",
	})
	if err != nil {
		return err
	}
	files := map[string]string{
		"/etc/containerd/config.toml": text, "/etc/systemd/system/containerd.service": containerdUnit, "/etc/containerd/conf.d/.keep": "",
	}
	for _, r := range m.Options.Registries {
		files["/etc/containerd/certs.d/"+r+"/hosts.toml"] = fmt.Sprintf("server = \"http://%s\"\n", r)
	}
	for file, text := range files {
		if err := m.Put(file, text); err != nil {
			return err
		}
	}
	return nil
}

// Put writes a file of the machine.
func (m *Machine) Put(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(m.Path(path)), 0o755); err != nil {
		return err
	}
	return os.WriteFile(m.Path(path), []byte(text), 0o644)
}

// PutProgram puts a copy of a program in the place of what is there, as an upgrade does: by
// a rename, so that what runs is not disturbed. more is appended to it, which makes it another file.
func (m *Machine) PutProgram(from, to string, more ...byte) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	tmp := m.Path(to + ".new")
	dst, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	if err == nil {
		_, err = dst.Write(more)
	}
	if err := errors.Join(err, dst.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, m.Path(to))
}

// Sh runs a shell script on the machine and returns what it printed.
func (m *Machine) Sh(ctx context.Context, script string) (string, error) {
	return m.Command(ctx, nil, "/bin/sh", "-c", script)
}

// Systemctl runs systemctl on the machine.
func (m *Machine) Systemctl(ctx context.Context, args ...string) (string, error) {
	return m.Command(ctx, nil, "/usr/bin/systemctl", args...)
}

// Show returns properties of a unit, as "systemctl show" has them.
func (m *Machine) Show(ctx context.Context, unit string, properties ...string) (map[string]string, error) {
	out, err := m.Systemctl(ctx, "show", "--property="+strings.Join(properties, ","), unit)
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for line := range strings.Lines(out) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			all[k] = v
		}
	}
	return all, nil
}

// MainPID returns the number, on this machine, of the only process of a service, such as the
// agent's.
func (m *Machine) MainPID(unit string) (int, error) {
	all, err := cgroupMounts()
	if err != nil {
		return 0, err
	}
	for _, h := range all {
		b, err := os.ReadFile(filepath.Join(h.at, m.cluster.name, m.Name, "system.slice", unit, "cgroup.procs"))
		if err != nil {
			continue
		}
		var pid int
		if n, err := fmt.Sscan(string(b), &pid); n != 1 || strings.Count(string(b), "\n") != 1 {
			return 0, fmt.Errorf("processes of %s on %s: %q, %w", unit, m.Name, b, err)
		}
		return pid, nil
	}
	return 0, fmt.Errorf("%s on %s has no processes: %w", unit, m.Name, os.ErrNotExist)
}

// KillAgent sends SIGKILL to the agent and waits until it is gone. systemd starts it again.
func (m *Machine) KillAgent() error {
	pid, err := m.MainPID("capelin-agent.service")
	if err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return err
	}
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(hangs.Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Journal returns the journal of a unit.
func (m *Machine) Journal(unit string) string { return m.journal("-u", unit) }

func (n *Node) journal(args ...string) string {
	ctx, cancel := context.WithTimeout(context.Background(), hangs)
	defer cancel()
	out, err := n.Command(ctx, nil, "/usr/bin/journalctl", append([]string{"--no-pager", "-o", "short-precise"}, args...)...)
	if err != nil {
		return err.Error()
	}
	return out
}

// Start starts containerd and, unless the machine is a stock one, installs the agent as
// an operator does.
func (m *Machine) Start(ctx context.Context) error {
	if err := m.StartContainerd(ctx); err != nil || m.Options.Stock {
		return err
	}
	if _, err := m.Install(ctx, "--restart-containerd"); err != nil {
		return err
	}
	if m.tap != nil {
		if err := m.throughTap(); err != nil {
			return err
		}
		m.closeClients()
		if _, err := m.Systemctl(ctx, "restart", "containerd"); err != nil {
			return err
		}
	}
	return m.await(ctx, m.containerdReady)
}

// throughTap has the drop-in name the tap instead of the agent.
func (m *Machine) throughTap() error {
	b, err := os.ReadFile(m.Path(MachineDropIn))
	if err != nil {
		return err
	}
	return m.Put(MachineDropIn, strings.ReplaceAll(string(b), machineAgentSocket, m.tap.Socket))
}

// Install runs "capelin agent install" with the harness's values and Options.Agent, and
// returns what it printed.
func (m *Machine) Install(ctx context.Context, args ...string) (string, error) {
	args = append([]string{"agent", "install"}, args...)
	if _, err := os.Stat(m.Path("/etc/capelin/agent.toml")); err != nil { // afterwards the file is edited
		keys := m.agentKeys()
		for _, k := range slices.Sorted(maps.Keys(keys)) {
			args = append(args, "--set", k+"="+keys[k])
		}
	}
	m.closeClients() // it may restart containerd
	return m.Command(ctx, nil, MachineCapelin, args...)
}

// StartContainerd has systemd start it and waits until its CRI answers.
func (m *Machine) StartContainerd(ctx context.Context) error {
	if _, err := m.Systemctl(ctx, "start", "containerd"); err != nil {
		return err
	}
	return m.await(ctx, m.containerdReady)
}

// AwaitTrackers waits until the agent is connected to all its trackers.
func (m *Machine) AwaitTrackers(ctx context.Context) error { return m.await(ctx, m.trackersConnected) }

// AwaitAgent waits until the agent serves.
func (m *Machine) AwaitAgent(ctx context.Context) error {
	return m.await(ctx, func(ctx context.Context) error {
		_, err := m.Status(ctx)
		return err
	})
}

// await polls ready until it reports nil or ctx ends.
func (m *Machine) await(ctx context.Context, ready func(context.Context) error) error {
	if _, err := await(ctx, nil, ready); err != nil {
		return fmt.Errorf("%s is not ready: %w", m.Name, err)
	}
	return nil
}
