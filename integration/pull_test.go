package integration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/integration/harness"
)

// client is a way to pull.
type client struct {
	name      string
	namespace string
	pull      func(ctx context.Context, n *harness.Node, ref string, auth *harness.Auth) error
}

var (
	criClient = client{"cri", harness.K8s, func(ctx context.Context, n *harness.Node, ref string, auth *harness.Auth) error {
		return n.PullCRI(ctx, ref, auth)
	}}
	goClient = client{"client", "default", func(ctx context.Context, n *harness.Node, ref string, auth *harness.Auth) error {
		_, err := n.PullClient(namespaces.WithNamespace(ctx, "default"), ref, auth)
		return err
	}}
	ctr = client{"ctr", "default", func(ctx context.Context, n *harness.Node, ref string, _ *harness.Auth) error {
		return n.PullCtr(ctx, "default", ref, false)
	}}
	ctrLocal = client{"ctr-local", "default", func(ctx context.Context, n *harness.Node, ref string, _ *harness.Auth) error {
		return n.PullCtr(ctx, "default", ref, true)
	}}
)

// An image of five layers that the swarm has is pulled by every client, in every
// format, under every policy, without one request for a blob.
func TestPullFromSwarm(t *testing.T) {
	e := newEnv(t)
	seed := e.node(t, "seed", harness.NodeOptions{})
	type image struct {
		img *harness.Image
		ref string
	}
	images := map[string]image{}
	for name, o := range map[string]harness.ImageOptions{
		"gzip":         {Compression: harness.Gzip},
		"docker":       {Compression: harness.Gzip, Docker: true},
		"zstd":         {Compression: harness.Zstd},
		"uncompressed": {Compression: harness.Uncompressed},
	} {
		o.Layers, o.LayerBytes, o.Runnable = 4, 3<<20, true
		img, ref := e.image(t, name, o)
		images[name] = image{img, ref}
		must(t, seed.PullCRI(e.ctx, ref, nil))
		e.check(t, seed, ref, img)
		e.once(t, img)
	}
	for _, tt := range []struct {
		client client
		format string
		opts   harness.NodeOptions
		name   string
		run    bool
	}{
		{client: criClient, format: "gzip", run: true},
		{client: criClient, format: "zstd", run: true},
		{client: criClient, format: "uncompressed", run: true},
		{client: criClient, format: "docker"},
		{client: criClient, format: "gzip", name: "local", opts: harness.NodeOptions{LocalPull: true}, run: true},
		{client: criClient, format: "gzip", name: "isolated", opts: harness.NodeOptions{SharingPolicy: "isolated"}, run: true},
		{client: criClient, format: "zstd", name: "local isolated", opts: harness.NodeOptions{LocalPull: true, SharingPolicy: "isolated"}},
		{client: goClient, format: "gzip"},
		{client: goClient, format: "zstd", name: "isolated", opts: harness.NodeOptions{SharingPolicy: "isolated"}},
		{client: goClient, format: "uncompressed"},
		{client: ctr, format: "gzip"},
		{client: ctr, format: "docker", name: "isolated", opts: harness.NodeOptions{SharingPolicy: "isolated"}},
		{client: ctrLocal, format: "gzip"},
	} {
		name := strings.TrimSpace(tt.client.name + " " + tt.format + " " + tt.name)
		t.Run(name, func(t *testing.T) {
			img := images[tt.format]
			n := e.node(t, strings.ReplaceAll(name, " ", "-"), tt.opts)
			must(t, tt.client.pull(e.ctx, n, img.ref, nil))
			e.noBlobs(t, n, img.img)
			must(t, n.CheckImage(e.ctx, tt.client.namespace, img.ref, img.img))
			if tt.run {
				if out := get(n.Run(e.ctx, img.ref))(t); !strings.HasPrefix(out, "ok: ") {
					t.Errorf("the container printed %q", out)
				}
			}
		})
	}
}

// All nodes at once, and nobody has it yet: each layer leaves the registry once.
func TestPullTogether(t *testing.T) {
	e := newEnv(t)
	img, ref := e.image(t, "together", harness.ImageOptions{Layers: 5, LayerBytes: 8 << 20})
	var nodes []*harness.Node
	for i := range 3 {
		nodes = append(nodes, e.node(t, fmt.Sprintf("n%d", i), harness.NodeOptions{}))
	}
	e.reg.Limit(20e6)
	var wait []func() error
	for _, n := range nodes {
		wait = append(wait, do(func() error { return n.PullCRI(e.ctx, ref, nil) }))
	}
	for i, w := range wait {
		must(t, w())
		e.check(t, nodes[i], ref, img)
	}
	e.once(t, img)
	clients := map[string]bool{}
	for _, r := range e.reg.Blobs(img.Layers...) {
		clients[r.Client] = true
	}
	t.Logf("the layers were fetched by %v", clients)
}

// With authorize = "blob" the registry is asked for the last 64 KiB of every
// blob, with the pod's secret, and its refusal counts.
func TestAuthorizeBlob(t *testing.T) {
	e := newEnv(t)
	img, ref := e.image(t, "tenant/secret", harness.ImageOptions{Layers: 5, LayerBytes: 1 << 20})
	e.reg.RequireAuth("tenant/secret", "alice", "wonderland")
	alice := &harness.Auth{User: "alice", Password: "wonderland"}
	seed := e.node(t, "seed", harness.NodeOptions{})
	must(t, seed.PullCRI(e.ctx, ref, alice))

	blob := harness.NodeOptions{Agent: map[string]string{"authorize": `"blob"`}}
	for _, c := range []client{criClient, goClient} {
		t.Run(c.name, func(t *testing.T) {
			n := e.node(t, "blob-"+c.name, blob)
			must(t, c.pull(e.ctx, n, ref, alice))
			must(t, n.CheckImage(e.ctx, c.namespace, ref, img))
			for i, d := range append([]string{img.Config}, img.Layers...) {
				var mine []harness.Request
				for _, r := range e.reg.Blobs(d) {
					if r.Client == n.Name && r.Auth {
						mine = append(mine, r)
					}
				}
				if len(mine) != 1 || mine[0].Bytes > 64<<10 || mine[0].Status/100 != 2 {
					t.Errorf("blob %d was requested like this, not once with at most 64 KiB: %v", i, mine)
				}
			}
		})
	}
	t.Run("wrong secret", func(t *testing.T) {
		n := e.node(t, "mallory", blob)
		if err := n.PullCRI(e.ctx, ref, &harness.Auth{User: "mallory", Password: "x"}); err == nil {
			t.Error("the pull succeeded")
		}
	})
	// A manifest in one's own repository that names the other's layers. Blobs are
	// pushed with it, because the registry insists, and taken away again.
	evil := get(e.reg.Push(e.ctx, img, "tenant/evil:1"))(t)
	for _, d := range img.Layers {
		must(t, e.reg.DeleteBlob(e.ctx, "tenant/evil", d))
	}
	t.Run("foreign layer", func(t *testing.T) {
		n := e.node(t, "evil", blob)
		e.reg.Reset()
		err := n.PullCRI(e.ctx, evil, nil)
		if err == nil {
			t.Fatal("a manifest that names another repository's layers was pulled")
		}
		t.Logf("refused: %v", err)
		if r := e.reg.Blobs(img.Layers...); len(r) == 0 {
			t.Error("the registry was not asked")
		}
		if _, err := n.Client(); err != nil {
			t.Fatal(err)
		}
	})
}

// A registry that cannot continue a blob at an offset, whatever it says then, fails at most
// one attempt to pull with authorize = "blob", and none of the next image.
func TestAuthorizeBlobWithoutRanges(t *testing.T) {
	for _, kind := range []struct {
		name  string
		fault func(blob string) harness.Fault
	}{
		{"416", func(string) harness.Fault { return harness.Fault{Status: http.StatusRequestedRangeNotSatisfiable} }},
		{"403 of the store behind", func(blob string) harness.Fault {
			return harness.Fault{Status: http.StatusTemporaryRedirect, Location: "/v2/store/blobs/" + blob}
		}},
		{"HTML", func(string) harness.Fault {
			return harness.Fault{Status: http.StatusOK, HTML: "<html>Sign in, please.</html>"}
		}},
	} {
		for _, named := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, name known %t", kind.name, named), func(t *testing.T) {
				e := newEnv(t)
				seed := e.node(t, "seed", harness.NodeOptions{})
				opts := harness.NodeOptions{Agent: map[string]string{"authorize": `"blob"`}}
				if !named {
					opts.Agent["containerd"] = `""`
				}
				n := e.node(t, "blob", opts)
				for i, may := range []int{1, 0} {
					img, ref := e.image(t, fmt.Sprintf("tenant/%d", i), harness.ImageOptions{Layers: 6, LayerBytes: 300 << 10})
					must(t, seed.PullCRI(e.ctx, ref, nil))
					e.reg.Disturb(func(r harness.Request) (f harness.Fault) {
						switch {
						case r.Repo == "store":
							f.Status = http.StatusForbidden
						case r.Range != "" && r.Range != "bytes=0-":
							f = kind.fault(r.Blob)
						}
						return f
					})
					failed := 0
					for ; ; failed++ {
						err := n.PullCRI(e.ctx, ref, nil)
						if err == nil {
							break
						}
						if t.Logf("attempt %d: %v", failed+1, err); failed == 12 {
							t.Fatal("it is never pulled")
						}
					}
					e.check(t, n, ref, img)
					if failed > may {
						t.Errorf("image %d: %d attempts failed, want at most %d", i, failed, may)
					}
					if i == 0 && failed == 0 {
						t.Error("nothing failed: the test shows nothing")
					}
					e.reg.Disturb(nil)
				}
			})
		}
	}
}

// Layers that containerd discards after it has unpacked them are seeded from the cache.
func TestDiscardUnpackedLayers(t *testing.T) {
	e := newEnv(t)
	img, ref := e.image(t, "discard", harness.ImageOptions{Layers: 5})
	a := e.node(t, "a", harness.NodeOptions{DiscardLayers: true, LocalPull: true})
	must(t, a.PullCRI(e.ctx, ref, nil))
	e.once(t, img)
	for _, d := range img.Layers {
		e.poll(t, "layer discarded", func() bool { return !e.has(t, a, harness.K8s, d) })
	}
	b := e.node(t, "b", harness.NodeOptions{})
	must(t, b.PullCRI(e.ctx, ref, nil))
	e.noBlobs(t, b, img)
	e.check(t, b, ref, img)
}

// has reports whether containerd has a blob in a namespace.
func (e *env) has(t *testing.T, n *harness.Node, ns, d string) bool {
	t.Helper()
	c, err := n.Client()
	if err != nil {
		t.Error(err)
		return false
	}
	_, err = c.ContentStore().Info(namespaces.WithNamespace(e.ctx, ns), digest.Digest(d))
	if err != nil && !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	return err == nil
}

// Two namespaces of one containerd pull the same at once: one download.
func TestTwoNamespaces(t *testing.T) {
	e := newEnv(t)
	for _, policy := range []string{"shared", "isolated"} {
		t.Run(policy, func(t *testing.T) {
			img, ref := e.image(t, "two/"+policy, harness.ImageOptions{Layers: 4, LayerBytes: 4 << 20})
			n := e.node(t, policy, harness.NodeOptions{SharingPolicy: policy})
			e.reg.Limit(10e6)
			defer e.reg.Limit(0)
			one, two := namespaces.WithNamespace(e.ctx, "one"), namespaces.WithNamespace(e.ctx, "two")
			pull := func(ctx context.Context) func() error {
				return do(func() error { _, err := n.PullClient(ctx, ref, nil); return err })
			}
			w1, w2 := pull(one), pull(two)
			must(t, errors.Join(w1(), w2()))
			must(t, n.CheckImage(e.ctx, "one", ref, img))
			must(t, n.CheckImage(e.ctx, "two", ref, img))
			e.once(t, img)
			// What one namespace deletes, the other still has.
			must(t, n.RemoveImage(one, ref))
			for _, d := range img.Layers {
				if !e.has(t, n, "two", d) {
					t.Errorf("%s is gone from the other namespace", d)
				}
			}
		})
	}
}

// An image that was removed and garbage collected is there again without a
// download, as long as the cache has it; its node seeds it meanwhile.
func TestRemoveAndPullAgain(t *testing.T) {
	e := newEnv(t)
	img, ref := e.image(t, "again", harness.ImageOptions{Layers: 5})
	for _, policy := range []string{"shared", "isolated"} {
		t.Run(policy, func(t *testing.T) {
			e.reg.Reset()
			a := e.node(t, "again-"+policy, harness.NodeOptions{SharingPolicy: policy})
			must(t, a.PullCRI(e.ctx, ref, nil))
			must(t, a.RemoveCRI(e.ctx, ref))
			for _, d := range img.Layers {
				e.poll(t, "layer collected", func() bool { return !e.has(t, a, harness.K8s, d) })
			}
			b := e.node(t, "b-"+policy, harness.NodeOptions{})
			must(t, b.PullCRI(e.ctx, ref, nil))
			e.noBlobs(t, b, img)
			e.reg.Reset()
			must(t, a.PullCRI(e.ctx, ref, nil))
			e.noBlobs(t, a, img)
			e.check(t, a, ref, img)
		})
	}
}

// What is not a pull does not touch the swarm: import, export, conversion, commit.
func TestNotAPull(t *testing.T) {
	e := newEnv(t)
	img, ref := e.image(t, "other", harness.ImageOptions{Layers: 3, Runnable: true})
	a := e.node(t, "a", harness.NodeOptions{})
	b := e.node(t, "b", harness.NodeOptions{})
	must(t, a.PullCtr(e.ctx, "default", ref, false))
	tar := e.c.Dir + "/export.tar"
	run := func(n *harness.Node, args ...string) string {
		t.Helper()
		return get(n.Ctr(e.ctx, "default", args...))(t)
	}
	run(a, "images", "export", tar, ref)
	e.reg.Reset()
	run(b, "images", "import", "--local", tar)
	must(t, b.CheckImage(e.ctx, "default", ref, img))
	run(b, "-n", "transfer", "images", "import", tar)
	must(t, b.CheckImage(e.ctx, "transfer", ref, img))
	run(b, "images", "convert", "--uncompress", "--oci", ref, "converted:1")
	run(b, "images", "mount", "converted:1", get(os.MkdirTemp(e.c.Dir, "mount"))(t))
	must(t, b.CheckImage(e.ctx, "default", "converted:1", img))
	// A commit is a diff of a snapshot written as a blob of unknown size.
	snaps := strings.Fields(run(b, "snapshots", "list"))
	parent := ""
	for i, w := range snaps { // KEY PARENT KIND
		if w == "Committed" {
			parent = snaps[i-2]
		}
	}
	if !strings.HasPrefix(parent, "sha256:") {
		parent = ""
	}
	run(b, "snapshots", "prepare", "commit", parent)
	if out := run(b, "snapshots", "diff", "--keep", "commit"); out == "" {
		t.Error("an empty diff")
	}
	// Edited and pushed back: the registry has what we have.
	run(b, "images", "tag", "converted:1", e.reg.Addr+"/other:pushed")
	run(b, "images", "push", "--plain-http", "--hosts-dir", b.CertsDir(), e.reg.Addr+"/other:pushed")
	if r := e.reg.Blobs(); len(r) != 0 {
		t.Errorf("blobs were downloaded: %v", r)
	}
}

// A node whose only source is a node that is itself still downloading ends with
// it, within a second if the machine is not busy.
func TestChain(t *testing.T) {
	e := newEnv(t)
	// The registry gives 8 MB/s to both: one that is slower than a node takes it to be would be asked by the second, too.
	img, ref := e.image(t, "chain", harness.ImageOptions{Layers: 3, LayerBytes: 18 << 20, Incompress: true})
	a := e.node(t, "a", harness.NodeOptions{})
	b := e.node(t, "b", harness.NodeOptions{})
	e.reg.Limit(img.Bytes() / 7)
	type end struct {
		at  time.Time
		err error
	}
	last := func(n *harness.Node) func() end {
		return do(func() end {
			for _, d := range img.Layers {
				if err := e.await("layer "+d+" on "+n.Name, func() bool { return e.has(t, n, harness.K8s, d) }); err != nil {
					return end{err: err}
				}
			}
			return end{at: time.Now()}
		})
	}
	start := time.Now()
	pa := do(func() error { return a.PullCRI(e.ctx, ref, nil) })
	must(t, e.reg.WaitFor(e.ctx, "a's download", func([]harness.Request) bool { return e.upstream(img) > img.Bytes()/20 }))
	pb := do(func() error { return b.PullCRI(e.ctx, ref, nil) })
	la, lb := last(a), last(b)
	ea, eb := la(), lb()
	must(t, errors.Join(ea.err, eb.err, pa(), pb()))
	ta, tb := ea.at, eb.at
	t.Logf("first node %.2f s, second %+.0f ms after it", ta.Sub(start).Seconds(), float64(tb.Sub(ta).Milliseconds()))
	if ta.Sub(start) < 6*time.Second {
		t.Errorf("the download took only %v", ta.Sub(start))
	}
	e.once(t, img)
	e.check(t, b, ref, img)
}
