package integration

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/capelin-io/capelin/integration/harness"
)

var unpackedLine = regexp.MustCompile(`(?m)^capelin_agent_unpacked_layers_total\{by="(.*)",format="(.*)"\} (.*)$`)

// unpacked returns how many layers the node's agent unpacked, by "code format".
func (e *env) unpacked(t *testing.T, n *harness.Node) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for _, m := range unpackedLine.FindAllStringSubmatch(get(n.HTTP(e.ctx, "http://"+n.Addr+":7403/metrics"))(t), -1) {
		counts[m[1]+" "+m[2]] = get(strconv.Atoi(m[3]))(t)
	}
	return counts
}

// noMounts fails if the agent has left a mount.
func (e *env) noMounts(t *testing.T, n *harness.Node) {
	t.Helper()
	all := get(n.Command(e.ctx, nil, "/bin/cat", "/proc/self/mountinfo"))(t)
	for line := range strings.Lines(all) {
		if strings.Contains(line, filepath.Join(n.Dir, "mounts")) || strings.Contains(line, "containerd-mount") {
			t.Errorf("%s has a mount left: %s", n.Name, line)
		}
	}
	if left := get(filepath.Glob(filepath.Join(n.Dir, "mounts", "*")))(t); len(left) > 0 {
		t.Errorf("left in the directory for mounts: %v", left)
	}
}

// The agent unpacks every format, for every client and containerd, whiteouts over
// four layers included.
func TestUnpack(t *testing.T) {
	e := newEnv(t)
	seed := e.node(t, "seed", harness.NodeOptions{Agent: map[string]string{"unpack": "false"}})
	type image struct {
		img *harness.Image
		ref string
	}
	images := map[string]image{}
	for name, o := range map[string]harness.ImageOptions{
		"gzip": {Compression: harness.Gzip},
		"zstd": {Compression: harness.Zstd},
		"tar":  {Compression: harness.Uncompressed},
	} {
		o.Layers, o.LayerBytes, o.Runnable, o.Whiteouts = 4, 3<<20, true, true
		img, ref := e.image(t, "unpack/"+name, o)
		images[name] = image{img, ref}
		must(t, seed.PullCRI(e.ctx, ref, nil))
		e.check(t, seed, ref, img) // stock's differ, through the content service
	}
	if c := e.unpacked(t, seed); len(c) != 0 {
		t.Errorf("it is switched off, and unpacked %v", c)
	}
	for _, tt := range []struct {
		client  client
		version string
		formats []string
		opts    harness.NodeOptions
	}{
		{client: criClient, version: "2.4", formats: []string{"gzip", "zstd", "tar"}},
		{client: goClient, version: "2.4", formats: []string{"gzip", "zstd", "tar"}},
		{client: ctr, version: "2.4", formats: []string{"gzip"}},
		{client: ctrLocal, version: "2.4", formats: []string{"zstd"}},
		{client: criClient, version: "2.4", formats: []string{"gzip"}, opts: harness.NodeOptions{LocalPull: true, SharingPolicy: "isolated"}},
		{client: criClient, version: "2.4", formats: []string{"gzip", "zstd"},
			opts: harness.NodeOptions{Agent: map[string]string{"authorize": `"blob"`}}},
		{client: criClient, version: "2.3", formats: []string{"zstd"}},
		{client: criClient, version: "2.2", formats: []string{"gzip"}},
		{client: criClient, version: "2.1", formats: []string{"gzip", "zstd", "tar"}},
		{client: goClient, version: "2.1", formats: []string{"gzip"}},
	} {
		name := tt.client.name + "-" + tt.version
		if tt.opts.LocalPull {
			name += "-local"
		}
		if len(tt.opts.Agent) > 0 {
			name += "-blob"
		}
		t.Run(name, func(t *testing.T) {
			tt.opts.Containerd = tt.version
			n := e.node(t, strings.ReplaceAll(name, ".", ""), tt.opts)
			for _, f := range tt.formats {
				img := images[f]
				before := e.unpacked(t, n)
				must(t, tt.client.pull(e.ctx, n, img.ref, nil))
				must(t, n.CheckImage(e.ctx, tt.client.namespace, img.ref, img.img))
				after := e.unpacked(t, n)
				if got, want := after["capelin "+f]-before["capelin "+f], len(img.img.Layers); got != want {
					t.Errorf("%s: %d layers were unpacked by the agent, not %d: %v", f, got, want, after)
				}
				if tt.client.namespace != harness.K8s {
					continue
				}
				if out := get(n.Run(e.ctx, img.ref))(t); !strings.HasPrefix(out, "ok: ") {
					t.Errorf("the container printed %q", out)
				}
			}
			e.noMounts(t, n)
			if tt.client.name != "ctr" {
				return
			}
			// Comparing snapshots is still containerd's.
			for line := range strings.Lines(get(n.Ctr(e.ctx, "default", "snapshots", "list"))(t)) {
				if f := strings.Fields(line); len(f) == 3 && f[2] == "Committed" {
					get(n.Ctr(e.ctx, "default", "snapshots", "prepare", "compare", f[0]))(t)
					break
				}
			}
			if out := get(n.Ctr(e.ctx, "default", "snapshots", "diff", "--keep", "compare"))(t); out == "" {
				t.Error("an empty diff")
			}
		})
	}
}

// The agent or containerd goes away while a layer is being unpacked: the next
// pull has the whole image, and nothing is left.
func TestUnpackInterrupted(t *testing.T) {
	e := newEnv(t)
	seed := e.node(t, "seed", harness.NodeOptions{})
	img, ref := e.image(t, "interrupted", harness.ImageOptions{Layers: 2, LayerBytes: 16 << 20, Files: 10_000, Runnable: true})
	must(t, seed.PullCRI(e.ctx, ref, nil))
	for _, tt := range []struct {
		name      string
		interrupt func(n *harness.Node) error
	}{
		{"killed", func(n *harness.Node) error { n.KillAgent(); return n.StartAgent(e.ctx) }},
		{"stopped", func(n *harness.Node) error {
			if err := n.StopAgent(); err != nil {
				return err
			}
			return n.StartAgent(e.ctx)
		}},
		{"containerd", func(n *harness.Node) error { n.KillContainerd(); return n.StartContainerd(e.ctx) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := e.node(t, tt.name, harness.NodeOptions{})
			wait := do(func() error { return n.PullCRI(e.ctx, ref, nil) })
			file := filepath.Join(n.Root, "io.containerd.snapshotter.v1.overlayfs", "snapshots", "*", "fs", "data", "layer-1", "*", "file-1000")
			e.poll(t, "a part of a layer", func() bool { return len(get(filepath.Glob(file))(t)) > 0 })
			before := e.unpacked(t, n)
			must(t, tt.interrupt(n))
			err := wait()
			t.Logf("after %v, the interrupted pull: %v", before, err)
			if tt.name == "stopped" && err != nil {
				t.Errorf("a call that was running when the agent was told to stop failed: %v", err)
			}
			if err != nil && before["capelin gzip"] >= len(img.Layers) {
				t.Errorf("all was unpacked already: %v", before)
			}
			must(t, n.PullCRI(e.ctx, ref, nil))
			e.check(t, n, ref, img)
			if out := get(n.Run(e.ctx, ref))(t); !strings.HasPrefix(out, "ok: ") {
				t.Errorf("the container printed %q", out)
			}
			e.noMounts(t, n)
		})
	}
}

// A layer that is not what the image's config says leaves nothing behind, and does not
// keep the right image from being pulled.
func TestUnpackWrongDiffID(t *testing.T) {
	e := newEnv(t)
	n := e.node(t, "node", harness.NodeOptions{})
	mk := &trees{T: t, dir: t.TempDir()}
	bottom, top := mk.gzip(mk.archive(file("a", "1"))), mk.gzip(mk.archive(file("b", "2")))
	lie := top
	lie.DiffID = "sha256:" + strings.Repeat("5", 64)
	wrong := get(e.reg.Push(e.ctx, get(harness.ImageOf(bottom, lie))(t), "wrong:1"))(t)
	right := get(e.reg.Push(e.ctx, get(harness.ImageOf(bottom, top))(t), "right:1"))(t)
	if err := n.PullCRI(e.ctx, wrong, nil); err == nil || !strings.Contains(err.Error(), "diff id") {
		t.Errorf("pulling the wrong one: %v", err)
	}
	if c := e.unpacked(t, n)["capelin gzip"]; c != 2 {
		t.Errorf("the agent unpacked %d layers", c)
	}
	out := get(n.Ctr(e.ctx, harness.K8s, "snapshots", "list"))(t)
	// The bottom is right, and containerd's to collect: at the next garbage collection.
	if committed := strings.Count(out, "Committed"); committed > 1 || strings.Contains(out, "Active") {
		t.Errorf("snapshots are left:\n%s", out)
	}
	must(t, n.PullCRI(e.ctx, right, nil))
	must(t, n.Mounted(namespaces.WithNamespace(e.ctx, harness.K8s), "overlayfs", right, func(root string) error {
		b, err := os.ReadFile(filepath.Join(root, "b"))
		if string(b) != "2" {
			t.Errorf("the right image has %q, %v", b, err)
		}
		return nil
	}))
	e.noMounts(t, n)
}
