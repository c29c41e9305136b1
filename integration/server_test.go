package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/capelin-io/capelin/integration/harness"
)

var (
	alice = harness.User{Name: "alice", Password: "secret-a", Namespaces: "^team/.*", Actions: []string{"pull", "push", "delete"}}
	bob   = harness.User{Name: "bob", Password: "secret-b", Namespaces: "^team/.*", Actions: []string{"pull"}}
	carol = harness.User{Name: "carol", Password: "secret-c", Namespaces: "^other/.*", Actions: []string{"pull", "push"}}
)

// served is a cluster around a `capelin server` with identity: no registry.
type served struct {
	ctx    context.Context
	c      *harness.Cluster
	pki    *harness.PKI
	server *harness.Server
	seeds  uint64
}

func newServed(t *testing.T, toml string) *served {
	t.Helper()
	ctx, c := newCluster(t)
	s := &served{ctx: ctx, c: c, pki: get(c.NewPKI(ctx))(t), seeds: 9000}
	s.server = get(c.NewServer(ctx, "server", harness.ServerOptions{PKI: s.pki, Users: []harness.User{alice, bob, carol}, TOML: toml}))(t)
	return s
}

// node makes and starts a node with a certificate of its own.
func (s *served) node(t *testing.T, name string, agent map[string]string) *harness.Node {
	t.Helper()
	keys := get(s.pki.Issue(s.ctx, name, "node"))(t)
	maps.Copy(keys, agent)
	keys["shim.upstream"] = quote("https://" + s.server.Gateway)
	n := get(s.c.NewNode(name, harness.NodeOptions{Trackers: []string{s.server.Tracker}, Agent: keys}))(t)
	must(t, n.TrustGateway(s.server))
	must(t, n.Start(s.ctx))
	return n
}

func (s *served) image(t *testing.T, o harness.ImageOptions) *harness.Image {
	t.Helper()
	s.seeds++
	o.Seed = s.seeds
	return get(harness.MakeImage(s.c.Dir+"/images", o))(t)
}

func secret(u harness.User) *harness.Auth { return &harness.Auth{User: u.Name, Password: u.Password} }

// fromPeers fails unless all of the image's layers came to the node from the swarm.
func fromPeers(ctx context.Context, t *testing.T, n *harness.Node, img *harness.Image) {
	t.Helper()
	st := get(n.Status(ctx))(t)
	var layers int64
	for _, size := range img.Sizes {
		layers += size
	}
	// Manifests come from the registry.
	if st.Bytes.FromPeers < layers || st.Bytes.FromRegistry > 16<<10 {
		t.Errorf("%s got %d bytes from peers and %d from the registry; the layers have %d",
			n.Name, st.Bytes.FromPeers, st.Bytes.FromRegistry, layers)
	}
}

// An image is pushed through the gateway by those who may, and pulled by its
// gateway name on nodes through containerd, with a pull secret: the registry API
// gives out manifests, the swarm the rest.
func TestGateway(t *testing.T) {
	s := newServed(t, "")
	img := s.image(t, harness.ImageOptions{Layers: 4, LayerBytes: 4 << 20})
	for _, tt := range []struct {
		name   string
		user   harness.User
		status int
	}{
		{"nobody", harness.User{}, http.StatusUnauthorized},
		{"wrong password", harness.User{Name: "alice", Password: "guess"}, http.StatusUnauthorized},
		{"may only pull", bob, http.StatusForbidden},
		{"other namespaces", carol, http.StatusForbidden},
	} {
		_, err := s.server.Push(s.ctx, img, "team/app:1", tt.user)
		var refused *transport.Error
		if !errors.As(err, &refused) || refused.StatusCode != tt.status {
			t.Errorf("push by %s: %v; want status %d", tt.name, err, tt.status)
		}
	}
	ref := get(s.server.Push(s.ctx, img, "team/app:1", alice))(t)

	a, b := s.node(t, "a", nil), s.node(t, "b", nil)
	wa := do(func() error { return a.PullCRI(s.ctx, ref, secret(bob)) })
	wb := do(func() error { return b.PullCRI(s.ctx, ref, secret(bob)) })
	must(t, errors.Join(wa(), wb()))
	for _, n := range []*harness.Node{a, b} {
		must(t, n.CheckImage(s.ctx, harness.K8s, ref, img))
		fromPeers(s.ctx, t, n, img)
	}

	c := s.node(t, "c", nil)
	for who, auth := range map[string]*harness.Auth{"nobody": nil, "a stranger": secret(carol)} {
		if err := c.PullCRI(s.ctx, ref, auth); err == nil {
			t.Errorf("%s pulled the image", who)
		}
	}

	// What was acknowledged outlives a crash.
	s.server.Kill()
	must(t, s.server.Start(s.ctx))
	must(t, c.PullCRI(s.ctx, ref, secret(bob)))
	must(t, c.CheckImage(s.ctx, harness.K8s, ref, img))
}

// The clients that people have copy both kinds of images, in and out.
func TestGatewayClients(t *testing.T) {
	s := newServed(t, "")
	o, done, err := s.server.Remote(s.ctx, alice)
	must(t, err)
	defer done()
	for _, format := range []string{"oci", "docker"} {
		img := s.image(t, harness.ImageOptions{Layers: 3})
		pushed := img.V1
		if format == "docker" {
			pushed = asDocker(t, pushed)
		}
		t.Run("go-containerregistry "+format, func(t *testing.T) {
			ref := get(name.ParseReference(s.server.Reference("team/ggcr:" + format)))(t)
			must(t, remote.Write(ref, pushed, o...))
			got := get(remote.Image(ref, o...))(t)
			want := get(pushed.Digest())(t)
			if d := get(got.Digest())(t); d != want {
				t.Errorf("got manifest %s, pushed %s", d, want)
			}
			sameLayers(t, got, pushed)
			// By index, and copied within the registry.
			idx := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{Add: pushed})
			iref := get(name.ParseReference(s.server.Reference("team/multi:" + format)))(t)
			must(t, remote.WriteIndex(iref, idx, o...))
			again := get(remote.Index(iref, o...))(t)
			if a, b := get(again.Digest())(t), get(idx.Digest())(t); a != b {
				t.Errorf("got index %s, pushed %s", a, b)
			}
		})
		t.Run("skopeo "+format, func(t *testing.T) {
			if _, err := exec.LookPath("skopeo"); err != nil {
				t.Fatal("no skopeo: install Debian's package")
			}
			certs := filepath.Join(s.c.Dir, "skopeo")
			must(t, os.MkdirAll(certs, 0o755))
			must(t, os.WriteFile(filepath.Join(certs, "ca.crt"), get(os.ReadFile(s.pki.CA()))(t), 0o644))
			from, to := "docker://"+s.server.Reference("team/ggcr:"+format), "docker://"+s.server.Reference("team/skopeo:"+format)
			dir := "dir:" + filepath.Join(s.c.Dir, "copied-"+format)
			kind := map[string]string{"oci": "oci", "docker": "v2s2"}[format]
			creds := alice.Name + ":" + alice.Password
			for _, args := range [][]string{
				{"copy", "--src-cert-dir", certs, "--src-creds", creds, from, dir},
				{"copy", "--format", kind, "--dest-cert-dir", certs, "--dest-creds", creds, dir, to},
				{"inspect", "--cert-dir", certs, "--creds", creds, to},
				{"delete", "--cert-dir", certs, "--creds", creds, to},
			} {
				args = append([]string{"--insecure-policy"}, args...)
				_, err := s.server.Command(s.ctx, []string{"HTTPS_PROXY=", "https_proxy="}, "skopeo", args...)
				must(t, err)
			}
			if _, err := s.server.Command(s.ctx, nil, "skopeo", "inspect", "--cert-dir", certs, "--creds", creds, to); err == nil {
				t.Error("a deleted image is still there")
			}
		})
	}
}

// asDocker returns an image with Docker's media types.
func asDocker(t *testing.T, img v1.Image) v1.Image {
	t.Helper()
	var layers []mutate.Addendum
	for _, l := range get(img.Layers())(t) {
		layers = append(layers, mutate.Addendum{Layer: l, MediaType: types.DockerLayer})
	}
	d := get(mutate.Append(empty.Image, layers...))(t)
	d = get(mutate.ConfigFile(d, get(img.ConfigFile())(t)))(t)
	return mutate.ConfigMediaType(mutate.MediaType(d, types.DockerManifestSchema2), types.DockerConfigJSON)
}

func sameLayers(t *testing.T, got, want v1.Image) {
	t.Helper()
	a, b := get(got.Layers())(t), get(want.Layers())(t)
	if len(a) != len(b) {
		t.Fatalf("%d layers, want %d", len(a), len(b))
	}
	for i := range a {
		r := get(a[i].Compressed())(t)
		h, _, err := v1.SHA256(r)
		must(t, errors.Join(err, r.Close()))
		if want := get(b[i].Digest())(t); h != want {
			t.Errorf("layer %d is %s, want %s", i, h, want)
		}
	}
}

// A real Docker engine pushes and pulls through the gateway, and pulls through
// an agent's shim: by the shim's own name, and as a mirror of Docker Hub.
func TestDocker(t *testing.T) {
	s := newServed(t, "")
	n := s.node(t, "node", nil)
	d := get(n.StartDocker(s.ctx, harness.DockerOptions{Insecure: []string{"198.18.0.0/24"}, Mirrors: []string{"http://127.0.0.1:7405"}}))(t)
	img := s.image(t, harness.ImageOptions{Layers: 4, LayerBytes: 4 << 20})
	ref := get(s.server.Push(s.ctx, img, "team/docker:1", alice))(t)

	must(t, d.Login(s.server.Gateway, alice.Name, alice.Password))
	get(d.Run(s.ctx, "pull", ref))(t)
	if id := get(d.ImageID(s.ctx, ref))(t); id != img.Config {
		t.Errorf("through the gateway docker has image %s, want %s", id, img.Config)
	}
	second := s.server.Reference("team/docker:2")
	get(d.Run(s.ctx, "tag", ref, second))(t)
	get(d.Run(s.ctx, "push", second))(t)
	get(d.Run(s.ctx, "rmi", ref, second))(t)

	const shim = "127.0.0.1:7405"
	ref = shim + "/team/docker:2"
	if out, err := d.Run(s.ctx, "pull", ref); err == nil {
		t.Errorf("docker pulled without credentials:\n%s", out)
	}
	must(t, d.Login(shim, bob.Name, bob.Password))
	before := get(n.Status(s.ctx))(t)
	get(d.Run(s.ctx, "pull", ref))(t)
	if id := get(d.ImageID(s.ctx, ref))(t); id != img.Config {
		t.Errorf("through the shim docker has image %s, want %s", id, img.Config)
	}
	after := get(n.Status(s.ctx))(t)
	if got := after.Bytes.FromPeers - before.Bytes.FromPeers; got < img.Bytes()/2 {
		t.Errorf("the shim took %d bytes from the swarm; the image has %d", got, img.Bytes())
	}
	must(t, d.Stop())
}

// Docker engines on two nodes have their agents' shims as mirrors of Docker Hub: each
// layer leaves the registry once.
func TestDockerMirror(t *testing.T) {
	e := newEnv(t)
	img, _ := e.image(t, "team/hub", harness.ImageOptions{Layers: 3, LayerBytes: 4 << 20})
	for _, name := range []string{"a", "b"} {
		n := e.node(t, name, harness.NodeOptions{Agent: map[string]string{
			"shim.upstream": quote("http://" + e.reg.Addr), "shim.plain_http": "[" + quote(e.reg.Addr) + "]",
		}})
		d := get(n.StartDocker(e.ctx, harness.DockerOptions{Mirrors: []string{"http://127.0.0.1:7405"}}))(t)
		get(d.Run(e.ctx, "pull", "team/hub:1"))(t) // docker.io's, which nobody here reaches
		if id := get(d.ImageID(e.ctx, "team/hub:1"))(t); id != img.Config {
			t.Errorf("docker on %s has image %s, want %s", name, id, img.Config)
		}
		must(t, d.Stop())
	}
	e.once(t, img)
}

// A stock containerd pulls through the shim of the agent beside it, by hosts.toml.
func TestMirror(t *testing.T) {
	s := newServed(t, "")
	n := s.node(t, "node", nil)
	img := s.image(t, harness.ImageOptions{Layers: 4, LayerBytes: 4 << 20})
	ref := get(s.server.Push(s.ctx, img, "team/mirrored:1", alice))(t)

	// The same host's network, another containerd.
	hosts := fmt.Sprintf("server = \"https://%[1]s\"\n[host.\"http://127.0.0.1:7405\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
		s.server.Gateway)
	dir := filepath.Join(n.CertsDir(), s.server.Gateway)
	must(t, os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o644))
	must(t, n.StopContainerd())
	must(t, os.Remove(filepath.Join(n.Dir, "conf.d", "capelin.toml")))
	stock := filepath.Join(n.Dir, "containerd.toml")
	text := strings.Replace(string(get(os.ReadFile(stock))(t)), "root = "+quote(n.Root), "root = "+quote(n.Dir+"/stock"), 1)
	must(t, os.WriteFile(stock, []byte(text), 0o644))
	must(t, n.StartContainerd(s.ctx))
	if err := n.PullCRI(s.ctx, ref, nil); err == nil {
		t.Error("pulled without a secret")
	}
	must(t, n.PullCRI(s.ctx, ref, secret(bob)))
	must(t, n.CheckImage(s.ctx, harness.K8s, ref, img))
	fromPeers(s.ctx, t, n, img)
}

// An operator has nodes of one zone fetch an image before anybody pulls it.
func TestPreheat(t *testing.T) {
	s := newServed(t, "")
	near, far := s.node(t, "near", map[string]string{"zone": `"a"`}), s.node(t, "far", map[string]string{"zone": `"b"`})
	img := s.image(t, harness.ImageOptions{Layers: 5, LayerBytes: 2 << 20})
	ref := get(s.server.Push(s.ctx, img, "team/soon:1", alice))(t)

	operator := get(s.pki.Issue(s.ctx, "operator", "admin"))(t)
	files := []string{"--ca", operator["identity.ca"], "--cert", operator["identity.cert"], "--key", operator["identity.key"]}
	for i, f := range files {
		files[i] = strings.Trim(f, `"`)
	}
	bin := get(harness.Built("capelin"))(t)
	run := func(args ...string) string {
		t.Helper()
		env := []string{"HTTPS_PROXY=", "https_proxy="}
		return get(s.c.Switch.Command(s.ctx, env, bin, append(args, files...)...))(t)
	}
	run("image", "preheat", ref, "--tracker", s.server.Tracker, "--zone", "a", "--json")
	before := get(near.Status(s.ctx))(t).Bytes
	if before.FromPeers < img.Bytes() {
		t.Errorf("the node took %d bytes of an image of %d", before.FromPeers, img.Bytes())
	}
	if b := get(far.Status(s.ctx))(t).Bytes; b.FromPeers != 0 {
		t.Errorf("a node of another zone took %d bytes", b.FromPeers)
	}
	if out := run("image", "inspect", ref, "--tracker", s.server.Tracker); !strings.Contains(out, "near") || strings.Contains(out, "far") {
		t.Errorf("who has it:\n%s", out)
	}
	for _, want := range []string{"near", "far", "server"} {
		if out := run("node", "ls", "--tracker", s.server.Tracker); !strings.Contains(out, want) {
			t.Errorf("no %s among the nodes:\n%s", want, out)
		}
	}
	if out := run("image", "ls", s.server.Reference("team/soon")); !strings.Contains(out, "1") {
		t.Errorf("no tag:\n%s", out)
	}
	must(t, near.PullCRI(s.ctx, ref, secret(bob)))
	must(t, near.CheckImage(s.ctx, harness.K8s, ref, img))
	if after := get(near.Status(s.ctx))(t).Bytes; after.FromPeers != before.FromPeers {
		t.Errorf("after the preheat a pull took another %d bytes", after.FromPeers-before.FromPeers)
	}

	// A node's certificate is not an operator's.
	node := get(s.pki.Issue(s.ctx, "impostor", "node"))(t)
	_, err := s.c.Switch.Command(s.ctx, nil, bin, "node", "ls", "--tracker", s.server.Tracker,
		"--ca", strings.Trim(node["identity.ca"], `"`),
		"--cert", strings.Trim(node["identity.cert"], `"`), "--key", strings.Trim(node["identity.key"], `"`))
	if err == nil || !strings.Contains(err.Error(), "admin") {
		t.Errorf("a node lists nodes: %v", err)
	}
}
