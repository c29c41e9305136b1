package harness

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/capelin-io/capelin/plugin"
)

// K8s is the containerd namespace of CRI.
const K8s = "k8s.io"

// PauseImage is the repository and tag of the sandbox image in a node's first registry.
const PauseImage = "capelin/pause:1"

var quietKlog = sync.OnceFunc(func() {
	var fs flag.FlagSet
	klog.InitFlags(&fs)
	_ = fs.Set("logtostderr", "false")
	_ = fs.Set("stderrthreshold", "FATAL")
	klog.SetOutput(io.Discard)
})

// PushPause pushes the image of pod sandboxes.
func (r *Registry) PushPause(ctx context.Context, dir string) error {
	img, err := MakeImage(dir, ImageOptions{Seed: 1, LayerBytes: 1, Files: 1, Runnable: true, Command: "pause"})
	if err != nil {
		return err
	}
	_, err = r.Push(ctx, img, PauseImage)
	return err
}

// Auth is a pod's pull secret.
type Auth struct{ User, Password string }

// PullCRI pulls as kubelet and crictl do.
func (n *Node) PullCRI(ctx context.Context, ref string, auth *Auth) error {
	img, _, err := n.CRI(ctx)
	if err != nil {
		return err
	}
	var a *runtimeapi.AuthConfig
	if auth != nil {
		a = &runtimeapi.AuthConfig{Username: auth.User, Password: auth.Password}
	}
	_, err = img.PullImage(ctx, &runtimeapi.ImageSpec{Image: ref}, a, nil)
	return err
}

// RemoveCRI removes an image as kubelet does; containerd collects garbage before
// it answers.
func (n *Node) RemoveCRI(ctx context.Context, ref string) error {
	img, _, err := n.CRI(ctx)
	if err != nil {
		return err
	}
	return img.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: ref})
}

// Space is what statfs says of the file system of containerd's root: the bytes that
// containers may use, and all.
func (n *Node) Space() (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(n.Path(n.Root), &st); err != nil {
		return 0, 0, fmt.Errorf("free space of %s: %w", n.Root, err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

// Fill writes a file on the file system of containerd's root until so much is free.
func (n *Node) Fill(name string, free int64) error {
	now, _, err := n.Space()
	if err != nil {
		return err
	}
	f, err := os.Create(n.Path(filepath.Join(n.Root, name)))
	if err != nil {
		return err
	}
	return errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, now-free), f.Close())
}

func (n *Node) resolver(ctx context.Context, auth *Auth) remotes.Resolver {
	o := config.HostOptions{HostDir: config.HostDirFromRoot(n.CertsDir())}
	// The resolver runs in this process: it reaches the registry through the node's network.
	o.UpdateClient = func(c *http.Client) error {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.DialContext = n.DialContext
		t.Proxy = nil
		t.DisableKeepAlives = true
		c.Transport = t
		return nil
	}
	if auth != nil {
		o.Credentials = func(string) (string, string, error) { return auth.User, auth.Password, nil }
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: config.ConfigureHosts(ctx, o)})
}

// PullClient pulls and unpacks with containerd's Go client, as nerdctl does, in
// the context's namespace.
func (n *Node) PullClient(ctx context.Context, ref string, auth *Auth, opts ...containerd.RemoteOpt) (containerd.Image, error) {
	c, err := n.Client()
	if err != nil {
		return nil, err
	}
	return c.Pull(ctx, ref, append(opts, containerd.WithPullUnpack, containerd.WithResolver(n.resolver(ctx, auth)))...)
}

// FetchClient pulls like PullClient, without unpacking.
func (n *Node) FetchClient(ctx context.Context, ref string, opts ...containerd.RemoteOpt) (images.Image, error) {
	c, err := n.Client()
	if err != nil {
		return images.Image{}, err
	}
	return c.Fetch(ctx, ref, append(opts, containerd.WithResolver(n.resolver(ctx, nil)))...)
}

// Ctr runs ctr on the node.
func (n *Node) Ctr(ctx context.Context, namespace string, args ...string) (string, error) {
	bin, err := Tool("2.4/ctr")
	if err != nil {
		return "", err
	}
	socket := n.Socket
	if n.machine {
		bin, socket = "/usr/local/bin/ctr", machineContainerd
	}
	return n.Command(ctx, nil, bin, append([]string{"--address", socket, "-n", namespace}, args...)...)
}

// PullCtr pulls with ctr (the transfer service), or with local with its own client.
func (n *Node) PullCtr(ctx context.Context, namespace, ref string, local bool) error {
	args := []string{"images", "pull", "--hosts-dir", n.CertsDir(), "--plain-http"}
	if local {
		args = append(args, "--local")
	}
	_, err := n.Ctr(ctx, namespace, append(args, ref)...)
	return err
}

// RemoveImage removes an image by name in the context's namespace and waits for
// the garbage collection.
func (n *Node) RemoveImage(ctx context.Context, ref string) error {
	c, err := n.Client()
	if err != nil {
		return err
	}
	return c.ImageService().Delete(ctx, ref, images.SynchronousDelete())
}

// CheckImage mounts the unpacked image read-only and compares every file with
// what the image was made of.
func (n *Node) CheckImage(ctx context.Context, namespace, ref string, img *Image) error {
	return n.Mounted(namespaces.WithNamespace(ctx, namespace), "overlayfs", ref, func(root string) error {
		return compare(root, img.Files)
	})
}

// Mounted calls f with the image that was unpacked to a snapshotter, mounted read-only
// for the thread of f alone: f starts no goroutines that look at it.
func (n *Node) Mounted(ctx context.Context, snapshotter, ref string, f func(root string) error) error {
	c, err := n.Client()
	if err != nil {
		return err
	}
	image, err := c.GetImage(ctx, ref)
	if err != nil {
		return err
	}
	diffIDs, err := image.RootFS(ctx)
	if err != nil {
		return fmt.Errorf("reading the config of %s: %w", ref, err)
	}
	sn := c.SnapshotService(snapshotter)
	key := fmt.Sprintf("check-%d", time.Now().UnixNano())
	mounts, err := sn.View(ctx, key, identity.ChainID(diffIDs).String())
	if err != nil {
		return fmt.Errorf("looking at the snapshot of %s: %w", ref, err)
	}
	//nolint:errcheck // the node's containerd goes with the test
	defer sn.Remove(context.WithoutCancel(ctx), key)
	if slices.ContainsFunc(mounts, func(m mount.Mount) bool { return strings.Contains(m.Type, "/") }) { // erofs
		mm := c.MountManager()
		active, err := mm.Activate(ctx, key, mounts, mount.WithTemporary)
		if err != nil {
			return fmt.Errorf("mounting %s: %w", ref, err)
		}
		defer mm.Deactivate(context.WithoutCancel(ctx), key) //nolint:errcheck // as above
		mounts = active.System
	}
	target := filepath.Join(n.Dir, key)
	if err := os.Mkdir(target, 0o755); err != nil {
		return err
	}
	defer os.Remove(target)
	// In a mount namespace of this thread alone, below the host's.
	return n.in(enterMount, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			return err
		}
		// The paths of many layers do not fit into one option, and what containerd does
		// about that, it does on another thread.
		dir := filepath.Join(n.Root, "io.containerd.snapshotter.v1."+snapshotter, "snapshots")
		if err := unix.Chdir(dir); err != nil {
			return err
		}
		for _, m := range mounts {
			for i := range m.Options {
				m.Options[i] = strings.ReplaceAll(m.Options[i], dir+"/", "")
			}
		}
		if err := mount.All(mounts, target); err != nil {
			return fmt.Errorf("mounting %s: %w", ref, err)
		}
		defer unix.Unmount(target, unix.MNT_DETACH) //nolint:errcheck // it goes with the thread
		return f(target)
	})
}

// compare walks without goroutines: only this thread sees the mount.
func compare(root string, want map[string]string) error {
	seen := 0
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel := p[len(root):]
		if rel == "/checksums" {
			return nil
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return err
		}
		switch sum, ok := want[rel]; {
		case !ok:
			return fmt.Errorf("%s is not in the image", rel)
		case sum != fmt.Sprintf("%x", h.Sum(nil)):
			return fmt.Errorf("%s has the wrong checksum", rel)
		}
		seen++
		return nil
	})
	if err == nil && seen != len(want) {
		err = fmt.Errorf("%d files are there, not %d", seen, len(want))
	}
	return err
}

// Run runs a pod with one container of the image to its end and returns what it
// printed.
func (n *Node) Run(ctx context.Context, ref string, args ...string) (string, error) {
	return n.RunPhases(ctx, ref, func(string) {}, args...)
}

// Phases are when RunPhases calls back: before a pod is run, before its container
// is created, before that is started, and when it runs.
var Phases = []string{"run", "create", "start", "started"}

// RunPhases is Run, and calls at before and in each of its Phases.
func (n *Node) RunPhases(ctx context.Context, ref string, at func(phase string), args ...string) (out string, err error) {
	_, rt, err := n.CRI(ctx)
	if err != nil {
		return "", err
	}
	uid := fmt.Sprintf("%s-%d", n.Name, time.Now().UnixNano())
	dir := filepath.Join(n.Dir, "pods", uid)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	host := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}
	sandbox := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "pod", Namespace: "test", Uid: uid},
		LogDirectory: dir,
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    "/" + n.cluster.name,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: host},
		},
	}
	at("run")
	pod, err := rt.RunPodSandbox(ctx, sandbox, "")
	if err != nil {
		return "", fmt.Errorf("running a pod: %w", err)
	}
	defer func() {
		ctx := context.WithoutCancel(ctx)
		err = errors.Join(err, rt.StopPodSandbox(ctx, pod), rt.RemovePodSandbox(ctx, pod))
	}()
	at("create")
	ctr, err := rt.CreateContainer(ctx, pod, &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "main"},
		Image:    &runtimeapi.ImageSpec{Image: ref},
		Args:     args,
		LogPath:  "main.log",
		Linux:    &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: host}},
	}, sandbox)
	if err != nil {
		return "", fmt.Errorf("creating a container: %w", err)
	}
	at("start")
	if err := rt.StartContainer(ctx, ctr); err != nil {
		return "", fmt.Errorf("starting a container: %w", err)
	}
	at("started")
	var code int32
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for {
		s, err := rt.ContainerStatus(ctx, ctr, false)
		if err != nil {
			return "", err
		}
		if s.Status.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			code = s.Status.ExitCode
			break
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "main.log"))
	if err != nil {
		return "", err
	}
	out = criLog(b)
	if code != 0 {
		return out, fmt.Errorf("the container ended with %d: %s", code, out)
	}
	return out, nil
}

// criLog strips time, stream and tag from each line of a container's log.
func criLog(b []byte) string {
	var s strings.Builder
	for line := range bytes.Lines(b) {
		if f := bytes.SplitN(line, []byte(" "), 4); len(f) == 4 {
			s.Write(f[3])
		}
	}
	return strings.TrimSpace(s.String())
}

// ErrRegistry is the error of [Node.FetchBlob] when the agent would have the rest of the
// blob from the registry.
var ErrRegistry = errors.New("the swarm does not deliver all of it")

// FetchBlob has the node's agent get a blob from the swarm, as containerd does when it
// opens a layer, and commits it. It fails if the swarm does not deliver all of it, with
// [ErrRegistry] if the agent says so. While another session, such as one that has just failed, holds
// the blob's lock, it is tried again, as containerd does (content.OpenWriter).
func (n *Node) FetchBlob(ctx context.Context, digest string, size int64) error {
	for {
		err := n.fetchBlob(ctx, digest, size)
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "locked") {
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

func (n *Node) fetchBlob(ctx context.Context, digest string, size int64) error {
	conn, err := n.AgentConn()
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "containerd-namespace", "default"))
	defer cancel()
	w, err := contentapi.NewContentClient(conn).Write(ctx)
	if err != nil {
		return err
	}
	ask := func(req *contentapi.WriteContentRequest) (offset int64, err error) {
		if err := w.Send(req); err != nil {
			return 0, fmt.Errorf("%s: %s: %w", n.Name, digest, err)
		}
		resp, err := w.Recv()
		if err != nil {
			return 0, fmt.Errorf("%s: %s of %s: %w", n.Name, req.Action, digest, err)
		}
		return resp.Offset, nil
	}
	stat := &contentapi.WriteContentRequest{Action: contentapi.WriteAction_STAT, Ref: "default/1/layer-" + digest, Total: size}
	if _, err := ask(stat); err != nil { // opens it
		return err
	}
	start := time.Now()
	switch at, err := ask(stat); { // waits for the swarm
	case err != nil:
		return fmt.Errorf("after %v: %w", time.Since(start), err)
	case at != size:
		return fmt.Errorf("%s: %w: %d of %d bytes of %s in %v", n.Name, ErrRegistry, at, size, digest, time.Since(start))
	}
	_, err = ask(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_COMMIT, Total: size, Expected: digest})
	return err
}

// DeleteBlob has the node's agent delete a blob, as containerd's garbage collection does.
func (n *Node) DeleteBlob(ctx context.Context, digest string) error {
	conn, err := n.AgentConn()
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = contentapi.NewContentClient(conn).Delete(metadata.AppendToOutgoingContext(ctx, "containerd-namespace", "default"),
		&contentapi.DeleteContentRequest{Digest: digest})
	return err
}

// Download gets a URL from within the host to a file, and syncs it.
func (h *Host) Download(ctx context.Context, url, path string) error {
	t := &http.Transport{DialContext: h.DialContext, DisableKeepAlives: true, Proxy: nil}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, resp.Body)
	return errors.Join(err, f.Sync(), f.Close())
}

// HTTP gets a URL from within the host.
func (h *Host) HTTP(ctx context.Context, url string) (string, error) {
	t := &http.Transport{DialContext: h.DialContext, DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, resp.Status, b)
	}
	return string(b), err
}

// Status asks the agent's admin socket, as `capelin status` does.
func (n *Node) Status(ctx context.Context) (plugin.Status, error) {
	return plugin.FetchStatus(ctx, n.AdminSocket())
}
