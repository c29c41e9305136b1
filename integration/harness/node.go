package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	containerd "github.com/containerd/containerd/v2/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	internalapi "k8s.io/cri-api/pkg/apis"
	cri "k8s.io/cri-client/pkg"
)

// NodeOptions say how a node's containerd and agent are set up.
type NodeOptions struct {
	Containerd string   // series: "2.4" (the default), "2.3", "2.2", "2.1"
	Registries []string // host:port spoken to in plain HTTP

	LocalPull      bool     // CRI's use_local_image_pull
	DiscardLayers  bool     // CRI's discard_unpacked_layers
	SharingPolicy  string   // content_sharing_policy of containerd's metadata; "" is shared
	ContainerdTOML string   // appended to containerd's configuration
	Disk           int64    // if not 0, containerd's root is a file system of this size, in memory
	Ext4           bool     // that is an ext4 on a loop device instead
	Debug          bool     // containerd logs what it does
	Env            []string // of containerd and agent

	Stock     bool              // without Capelin: see Node.UseCapelin
	Agent     map[string]string // keys of agent.toml to values as TOML, instead of the harness's
	Trackers  []string          // host:port
	OwnSocket bool              // the agent makes its socket itself, instead of getting it as from systemd
}

// Node is a host with containerd and, unless Stock, a capelin agent.
type Node struct {
	*Host
	Options NodeOptions

	Root   string // containerd's; the content directory is below it
	Socket string // containerd's

	cluster    *Cluster
	containerd *Process
	agent      *Process
	tap        *Tap
	listener   *os.File // the agent's socket, which outlives it as under systemd
	machine    bool     // it belongs to a Machine

	mu      sync.Mutex
	client  *containerd.Client
	runtime internalapi.RuntimeService
	images  internalapi.ImageManagerService
}

// NewNode makes a node on a host of its own and starts nothing.
func (c *Cluster) NewNode(name string, o NodeOptions) (*Node, error) {
	h, err := c.NewHost(name)
	if err != nil {
		return nil, err
	}
	return c.newNode(h, o)
}

// NewNodeOn makes a node on a host that others are on, too, so that they speak over its
// loopback interface. It goes with the host, and its ports are for the caller to choose.
func (c *Cluster) NewNodeOn(h *Host, name string, o NodeOptions) (*Node, error) {
	return c.newNode(&Host{Name: name, Addr: h.Addr, Dir: filepath.Join(h.Dir, name), init: h.init, pid: h.pid, net: h.net, veth: h.veth}, o)
}

func (c *Cluster) newNode(h *Host, o NodeOptions) (*Node, error) {
	if o.Containerd == "" {
		o.Containerd = "2.4"
	}
	n := &Node{Host: h, Options: o, cluster: c, Root: filepath.Join(h.Dir, "root")}
	n.Socket = filepath.Join(h.Dir, "state", "containerd.sock")
	for _, d := range []string{n.Root, "state", "conf.d", "certs.d"} {
		if !filepath.IsAbs(d) {
			d = filepath.Join(h.Dir, d)
		}
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, err
		}
	}
	if o.Disk != 0 {
		mount := func() error { return h.MountTmpfs(n.Root, o.Disk) }
		if o.Ext4 {
			mount = func() error { return h.MountExt4(context.Background(), n.Root, o.Disk) }
		}
		if err := mount(); err != nil {
			return nil, fmt.Errorf("mounting a small disk: %w", err)
		}
	}
	for _, r := range o.Registries {
		d := filepath.Join(h.Dir, "certs.d", r)
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(d, "hosts.toml"), fmt.Appendf(nil, "server = \"http://%s\"\n", r), 0o644); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	c.nodes = append(c.nodes, n)
	c.mu.Unlock()
	if err := n.writeContainerdConfig(); err != nil {
		return nil, err
	}
	return n, nil
}

// CertsDir is the node's registry configuration, in containerd's format.
func (n *Node) CertsDir() string { return filepath.Join(n.Dir, "certs.d") }

// ContentDir is containerd's content directory as this process sees it.
func (n *Node) ContentDir() string {
	p := filepath.Join(n.Root, "io.containerd.content.v1.content")
	if n.Options.Disk != 0 || n.machine {
		return n.Path(p)
	}
	return p
}

// Store puts an image's config and layers into the node's content store, whose daemons do
// not run yet.
func (n *Node) Store(img *Image) error {
	dir := filepath.Join(n.ContentDir(), "blobs", "sha256")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	write := func(digest string, r io.Reader) error {
		f, err := os.Create(filepath.Join(dir, strings.TrimPrefix(digest, "sha256:")))
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		return errors.Join(err, f.Close())
	}
	config, err := img.V1.RawConfigFile()
	if err != nil {
		return err
	}
	if err := write(img.Config, bytes.NewReader(config)); err != nil {
		return err
	}
	layers, err := img.V1.Layers()
	if err != nil {
		return err
	}
	for i, l := range layers {
		r, err := l.Compressed()
		if err != nil {
			return err
		}
		if err := errors.Join(write(img.Layers[i], r), r.Close()); err != nil {
			return err
		}
	}
	return nil
}

// Start starts the agent, unless the node is a stock one, and then containerd.
func (n *Node) Start(ctx context.Context) error {
	if !n.Options.Stock {
		if err := n.StartAgent(ctx); err != nil {
			return err
		}
	}
	return n.StartContainerd(ctx)
}

func (n *Node) writeContainerdConfig() error {
	text, err := n.Options.containerdConfig(containerdFiles{
		root: n.Root, state: filepath.Join(n.Dir, "state"), socket: n.Socket, debug: n.DebugSocket(),
		imports: filepath.Join(n.Dir, "conf.d", "*.toml"), certs: n.CertsDir(), cni: filepath.Join(n.Dir, "cni"),
	})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.Dir, "containerd.toml"), []byte(text), 0o644)
}

// containerdFiles are where a containerd has its files, as it sees them.
type containerdFiles struct {
	root, state, socket, debug, imports, certs, cni string
}

// containerdConfig is the text of containerd's configuration.
func (o *NodeOptions) containerdConfig(f containerdFiles) (string, error) {
	runc, err := runc()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	level := "info"
	if o.Debug {
		level = "debug"
	}
	shared := o.SharingPolicy
	if shared == "" {
		shared = "shared"
	}
	pause := "pause"
	if len(o.Registries) > 0 {
		pause = o.Registries[0] + "/" + PauseImage
	}
	fmt.Fprintf(&b, `version = 3
root = %[1]q
state = %[2]q
imports = [%[3]q]

[grpc]
  address = %[4]q

[debug]
  level = %[5]q
  address = %[14]q

[plugins."io.containerd.metadata.v1.bolt"]
  content_sharing_policy = %[6]q

[plugins."io.containerd.cri.v1.images"]
  use_local_image_pull = %[7]v
  discard_unpacked_layers = %[8]v
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = %[9]q
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = %[10]q

[plugins."io.containerd.cri.v1.runtime"]
  cdi_spec_dirs = []
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [%[11]q]
    conf_dir = %[11]q
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = %[12]q
      Root = %[13]q

[plugins."io.containerd.nri.v1.nri"]
  disable = true
`, f.root, f.state, f.imports, f.socket, level, shared,
		o.LocalPull, o.DiscardLayers, pause, f.certs, f.cni, runc, "/run/runc", f.debug)
	if o.ContainerdTOML != "" {
		b.WriteString("\n" + o.ContainerdTOML)
	}
	return b.String(), nil
}

// DebugSocket is where containerd serves its profiler.
func (n *Node) DebugSocket() string { return filepath.Join(n.Dir, "state", "debug.sock") }

// StartContainerd starts it and waits until it and its CRI answer.
func (n *Node) StartContainerd(ctx context.Context) error {
	bin, err := Tool(n.Options.Containerd + "/containerd")
	if err != nil {
		return err
	}
	// Its own shim first; and no registry is reached by way of an HTTP proxy.
	env := []string{"PATH=" + filepath.Dir(bin) + ":" + os.Getenv("PATH"), "HTTP_PROXY=", "http_proxy="}
	env = append(env, n.Options.Env...)
	n.containerd, err = n.Host.Start("containerd", env, nil, bin, "--config", filepath.Join(n.Dir, "containerd.toml"))
	if err != nil {
		return err
	}
	return n.containerd.await(ctx, n.containerdReady)
}

// containerdReady asks containerd's CRI whether it is there.
func (n *Node) containerdReady(ctx context.Context) error {
	// One dial that fails fast: the client's own would wait and back off.
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", n.Socket)
	if err != nil {
		return err
	}
	conn.Close()
	_, r, err := n.CRI(ctx)
	if err != nil {
		return err
	}
	_, err = r.Version(ctx, "v1")
	return err
}

// StopContainerd sends SIGTERM and waits; containers live on.
func (n *Node) StopContainerd() error {
	n.closeClients()
	return n.containerd.Stop()
}

// KillContainerd sends SIGKILL and waits.
func (n *Node) KillContainerd() {
	n.closeClients()
	n.containerd.Kill()
}

// Containerd is the running process.
func (n *Node) Containerd() *Process { return n.containerd }

// Agent is the running process.
func (n *Node) Agent() *Process { return n.agent }

// Client returns a client of containerd, in the namespace "default" where the
// context names none. It is the node's; do not close it.
func (n *Node) Client() (*containerd.Client, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.client != nil {
		return n.client, nil
	}
	c, err := containerd.New(n.Socket, containerd.WithDefaultNamespace("default"), containerd.WithTimeout(hangs))
	if err == nil {
		n.client = c
	}
	return c, err
}

// CRI returns kubelet's clients, those of k8s.io/cri-client.
func (n *Node) CRI(ctx context.Context) (internalapi.ImageManagerService, internalapi.RuntimeService, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.runtime != nil {
		return n.images, n.runtime, nil
	}
	quietKlog()
	endpoint := "unix://" + n.Socket
	images, err := cri.NewRemoteImageServiceBuilder().WithEndpoint(endpoint).WithConnectionTimeout(hangs).Build(ctx)
	if err != nil {
		return nil, nil, err
	}
	runtime, err := cri.NewRemoteRuntimeServiceBuilder().WithEndpoint(endpoint).WithConnectionTimeout(hangs).Build(ctx)
	if err != nil {
		_ = images.Close(context.WithoutCancel(ctx))
		return nil, nil, err
	}
	n.images, n.runtime = images, runtime
	return images, runtime, nil
}

// closeClients drops the connections: those to a stopped containerd would back off.
func (n *Node) closeClients() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.client != nil {
		_ = n.client.Close()
	}
	if n.runtime != nil {
		_ = n.images.Close(context.Background())
		_ = n.runtime.Close(context.Background())
	}
	n.client, n.runtime, n.images = nil, nil, nil
}

// AgentSocket is the agent's content socket; AdminSocket its admin socket.
func (n *Node) AgentSocket() string {
	if n.machine {
		return n.Path(machineAgentSocket)
	}
	return filepath.Join(n.Dir, "agent.sock")
}

// AdminSocket is where `capelin status` asks.
func (n *Node) AdminSocket() string {
	if n.machine {
		return n.Path("/run/capelin/admin.sock")
	}
	return filepath.Join(n.Dir, "admin.sock")
}

// AgentConfig is the path of the agent's configuration.
func (n *Node) AgentConfig() string { return filepath.Join(n.Dir, "agent.toml") }

// agentKeys are the harness's values for agent.toml, as TOML, changed by Options.Agent.
func (n *Node) agentKeys() map[string]string {
	trackers := make([]string, len(n.Options.Trackers))
	for i, t := range n.Options.Trackers {
		trackers[i] = fmt.Sprintf("%q", t)
	}
	keys := map[string]string{
		"listen":    fmt.Sprintf("%q", n.Addr+":7401"),
		"metrics":   fmt.Sprintf("%q", n.Addr+":7403"),
		"node":      fmt.Sprintf("%q", n.Name),
		"trackers":  "[" + strings.Join(trackers, ", ") + "]",
		"log_level": `"debug"`,
		"insecure":  "true",
		// Tests must not depend on how full this machine's disk is.
		"cache.free_floor": "-1.0",
	}
	if !n.machine {
		keys["root"] = fmt.Sprintf("%q", filepath.Join(n.Root, "io.containerd.content.v1.content"))
		keys["socket"] = fmt.Sprintf("%q", n.AgentSocket())
		keys["admin"] = fmt.Sprintf("%q", n.AdminSocket())
		if !Foreign() {
			keys["containerd"] = fmt.Sprintf("%q", n.Socket)
		}
	}
	for k, v := range n.Options.Agent {
		if v == "" {
			delete(keys, k)
		} else {
			keys[k] = v
		}
	}
	return keys
}

// writeAgentConfig writes agent.toml.
func (n *Node) writeAgentConfig() error {
	return os.WriteFile(n.AgentConfig(), []byte(tomlOf(n.agentKeys())), 0o644)
}

// StartAgent writes its configuration and containerd's drop-in, starts the
// agent on its socket, which it makes if need be, and waits until it is serving.
func (n *Node) StartAgent(ctx context.Context) error {
	bin, err := Built("capelin")
	if err != nil {
		return err
	}
	if err := n.writeAgentConfig(); err != nil {
		return err
	}
	if n.listener == nil && !n.Options.OwnSocket {
		_ = os.Remove(n.AgentSocket())
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: n.AgentSocket(), Net: "unix"})
		if err != nil {
			return err
		}
		l.SetUnlinkOnClose(false)
		n.listener, err = l.File()
		l.Close()
		if err != nil {
			return err
		}
		n.cluster.onClose(func() { n.listener.Close() })
	}
	dropIn, err := n.Command(ctx, nil, bin, "agent", "containerd-config", "--config", n.AgentConfig())
	if err != nil {
		return err
	}
	if n.tap != nil {
		dropIn = strings.ReplaceAll(dropIn, n.AgentSocket(), n.tap.Socket)
	}
	if err := os.WriteFile(n.dropIn(), []byte(dropIn), 0o644); err != nil {
		return err
	}
	if n.Options.OwnSocket {
		n.agent, err = n.Host.Start("agent", n.Options.Env, nil, bin, "agent", "--config", n.AgentConfig())
	} else {
		// As systemd does it; LISTEN_PID is the number within the host.
		sh := `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"`
		n.agent, err = n.Host.Start("agent", n.Options.Env, []*os.File{n.listener}, "/bin/sh", "-c", sh, bin, "agent", "--config",
			n.AgentConfig())
	}
	if err != nil {
		return err
	}
	return n.agent.await(ctx, n.AgentReady)
}

func (n *Node) dropIn() string { return filepath.Join(n.Dir, "conf.d", "capelin.toml") }

// AgentReady asks the agent's admin socket whether it is there.
func (n *Node) AgentReady(ctx context.Context) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", n.AdminSocket())
	if err != nil {
		return err
	}
	return conn.Close()
}

// AwaitTrackers waits until the agent is connected to all its trackers.
func (n *Node) AwaitTrackers(ctx context.Context) error {
	return n.agent.await(ctx, n.trackersConnected)
}

func (n *Node) trackersConnected(ctx context.Context) error {
	st, err := n.Status(ctx)
	if err != nil {
		return err
	}
	if len(st.Trackers) < len(n.Options.Trackers) {
		return errors.New("the agent has not begun to connect to its trackers")
	}
	for _, t := range st.Trackers {
		if !t.Connected {
			return fmt.Errorf("no connection to tracker %s: %s", t.Address, t.Error)
		}
	}
	return nil
}

// StopAgent sends SIGTERM and waits.
func (n *Node) StopAgent() error { return n.agent.Stop() }

// KillAgent sends SIGKILL and waits. Its socket stays.
func (n *Node) KillAgent() { n.agent.Kill() }

// UseCapelin switches between Capelin and stock containerd, by the drop-in
// alone, and restarts containerd.
func (n *Node) UseCapelin(ctx context.Context, yes bool) error {
	if err := n.StopContainerd(); err != nil {
		return err
	}
	if !yes {
		if err := os.Remove(n.dropIn()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := n.StopAgent(); err != nil {
			return err
		}
	} else if err := n.StartAgent(ctx); err != nil {
		return err
	}
	return n.StartContainerd(ctx)
}

// AgentConn is a gRPC connection to the agent's content socket.
func (n *Node) AgentConn() (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+n.AgentSocket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// Signal sends a signal to the agent.
func (n *Node) SignalAgent(s syscall.Signal) error { return n.agent.Signal(s) }
