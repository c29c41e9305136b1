package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

// newRegistry runs a registry in this process and returns its host:port.
func newRegistry(t *testing.T, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if wrap != nil {
		h = wrap(h)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func newClient(t *testing.T, cfg Config) *Client {
	t.Helper()
	if cfg.Credentials == nil {
		cfg.Credentials = authn.NewMultiKeychain() // not this machine's
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

const layers, layerSize = 3, 1 << 16

// oneImage makes an image for linux/arch.
func oneImage(t *testing.T, architecture string) v1.Image {
	t.Helper()
	img, err := random.Image(layerSize, layers)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", architecture
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return mutate.MediaType(mutate.ConfigMediaType(img, types.OCIConfigJSON), types.OCIManifestSchema1)
}

// multi makes an index of images for two platforms.
func multi(t *testing.T) v1.ImageIndex {
	t.Helper()
	ii := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, a := range []string{"amd64", "arm64"} {
		desc := v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: a}}
		ii = mutate.AppendManifests(ii, mutate.IndexAddendum{Add: oneImage(t, a), Descriptor: desc})
	}
	return ii
}

// newLayout writes an index or an image into a layout.
func newLayout(t *testing.T, i item, named string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	if err := i.toLayout(dir, named); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (c *Client) must(t *testing.T, p Place, err error) Place {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func copyTo(t *testing.T, c *Client, from, to string, o Options) Copied {
	t.Helper()
	src, err := c.Source(from)
	if err != nil {
		t.Fatal(err)
	}
	dst, err := c.Target(to)
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Copy(t.Context(), src, dst, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// An index goes through every kind of place and comes out with the same digest.
func TestCopyIndex(t *testing.T) {
	reg, other := newRegistry(t, nil), newRegistry(t, nil)
	c := newClient(t, Config{})
	ii := multi(t)
	want, err := ii.Digest()
	if err != nil {
		t.Fatal(err)
	}
	dir := newLayout(t, item{index: ii}, "v1")
	tmp := t.TempDir()

	var mu sync.Mutex
	var last, total int64
	r := copyTo(t, c, dir, reg+"/a/b:v1", Options{Progress: func(n, of int64) {
		mu.Lock()
		defer mu.Unlock()
		if n < last || n > of {
			t.Errorf("progress %d after %d, of %d", n, last, of)
		}
		last, total = n, of
	}})
	if r.Digest != want.String() || r.Blobs != 2*(layers+1) || r.Skipped != 0 || r.Bytes != r.Size || r.Size < 2*layers*layerSize {
		t.Errorf("pushed %+v", r)
	}
	if last != r.Size || total != r.Size {
		t.Errorf("progress ended with %d of %d", last, total)
	}
	if r.Reference != reg+"/a/b:v1@"+want.String() {
		t.Errorf("it is at %s", r.Reference)
	}
	if r := copyTo(t, c, dir, reg+"/a/b:v2", Options{}); r.Skipped != r.Blobs || r.Bytes != 0 {
		t.Errorf("pushed again: %+v", r)
	}

	for _, step := range [][2]string{
		{reg + "/a/b:v1", tmp + "/new/"},
		{tmp + "/new/", tmp + "/a.tar"},
		{tmp + "/a.tar", other + "/x:1"},
		{"docker://" + other + "/x:1", "oci-archive:" + tmp + "/b:v1"},
		{"oci-archive:" + tmp + "/b:v1", "oci:" + tmp + "/l:named"},
		{"oci:" + tmp + "/l:named", "docker://" + reg + "/c"},
		{reg + "/c@" + want.String(), tmp + "/d/"},
	} {
		if r := copyTo(t, c, step[0], step[1], Options{}); r.Digest != want.String() {
			t.Errorf("from %s to %s: %+v", step[0], step[1], r)
		}
	}
	// Configs are read in any case.
	if r := copyTo(t, c, reg+"/a/b:v1", tmp+"/new/", Options{}); r.Skipped != r.Blobs-2 {
		t.Errorf("pulled again: %+v", r)
	}
	// One name, one image.
	copyTo(t, c, reg+"/a/b:v1", tmp+"/new/", Options{})
	li, err := layout.ImageIndexFromPath(tmp + "/new")
	if err != nil {
		t.Fatal(err)
	}
	if im, err := li.IndexManifest(); err != nil || len(im.Manifests) != 1 || im.Manifests[0].Annotations[refName] != "v1" {
		t.Errorf("the layout's index is %+v, %v", im, err)
	}
}

// A docker archive takes one platform, and gives the same config.
func TestDockerArchive(t *testing.T) {
	reg := newRegistry(t, nil)
	c := newClient(t, Config{})
	dir := newLayout(t, item{index: multi(t)}, "v1")
	copyTo(t, c, dir, reg+"/a:v1", Options{})
	tmp := t.TempDir()
	p, err := ParsePlatform("linux/arm64")
	if err != nil {
		t.Fatal(err)
	}
	one := copyTo(t, c, reg+"/a:v1", "docker-archive:"+tmp+"/x.tar", Options{Platform: &p})
	if one.Blobs != layers+1 {
		t.Errorf("%+v", one)
	}
	back := copyTo(t, c, tmp+"/x.tar", reg+"/b:v1", Options{})
	m, err := c.Inspect(t.Context(), c.must(t, Place{Kind: Registry, Ref: mustRef(t, reg+"/b:v1")}, nil))
	if err != nil || m.Digest != back.Digest || len(m.Layers) != layers {
		t.Errorf("%+v, %v", m, err)
	}
	named := copyTo(t, c, "docker-archive:"+tmp+"/x.tar:"+reg+"/a:v1", "docker-archive:"+tmp+"/y.tar:renamed:v2", Options{})
	if named.Blobs != layers+1 {
		t.Errorf("%+v", named)
	}
}

func mustRef(t *testing.T, s string) name.Reference {
	t.Helper()
	r, err := name.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestPlaces(t *testing.T) {
	c := newClient(t, Config{})
	dir := newLayout(t, item{image: oneImage(t, "amd64")}, "")
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("no archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		s              string
		source, target string // "": an error
	}{
		{"alpine", "docker://alpine", "docker://alpine"},
		{"docker://r.example/a:b", "docker://r.example/a:b", "docker://r.example/a:b"},
		{"oci:/x:y", "oci:/x:y", "oci:/x:y"},
		{"oci:/x:1/y", "oci:/x:1/y", "oci:/x:1/y"},
		{"oci-archive:x.tar", "oci-archive:x.tar", "oci-archive:x.tar"},
		{"docker-archive:/x.tar:r.example:5000/a:b", "docker-archive:/x.tar:r.example:5000/a:b", "docker-archive:/x.tar:r.example:5000/a:b"},
		{"oci:", "", ""},
		{dir, "oci:" + dir, "oci:" + dir},
		{"./x.tar", "", "oci-archive:./x.tar"},
		{"new/", "", "oci:new/"},
		{file, "", ""},
		{"UPPER", "", ""},
	} {
		show := func(p Place, err error) string {
			switch {
			case err != nil:
				return ""
			case p.Kind == Registry:
				return "docker://" + p.Ref.String()
			}
			return p.String()
		}
		if got := show(c.Source(tt.s)); got != tt.source {
			t.Errorf("source %s: %s, want %s", tt.s, got, tt.source)
		}
		if got := show(c.Target(tt.s)); got != tt.target {
			t.Errorf("target %s: %s, want %s", tt.s, got, tt.target)
		}
	}
}

// Layouts with several images want a name.
func TestNames(t *testing.T) {
	dir := newLayout(t, item{image: oneImage(t, "amd64")}, "one")
	if err := (item{image: oneImage(t, "amd64")}).toLayout(dir, "example.com/two:v2"); err != nil {
		t.Fatal(err)
	}
	for named, want := range map[string]string{"": "name one of them", "one": "", "v2": "", "example.com/two:v2": "",
		"three": "no image is named"} {
		_, err := fromLayout(dir, named)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v", named, err)
		}
	}
	nothing := filepath.Join(t.TempDir(), "e")
	if _, err := layout.Write(nothing, empty.Index); err != nil {
		t.Fatal(err)
	}
	if _, err := fromLayout(nothing, ""); !errors.Is(err, errNothing) {
		t.Errorf("an empty layout: %v", err)
	}
}

// An archive cannot write elsewhere, nor without bound.
func TestHostileArchive(t *testing.T) {
	type entry struct {
		name string
		kind byte
		size int64
	}
	hex := strings.Repeat("a", 64)
	for name, tt := range map[string]struct {
		entries []entry
		files   int
		fails   bool
	}{
		"well": {
			[]entry{{"oci-layout", tar.TypeReg, 5}, {"./index.json", tar.TypeReg, 5}, {"blobs/sha256/" + hex, tar.TypeReg, 5}},
			3, false,
		},
		"elsewhere":    {[]entry{{"../x", tar.TypeReg, 5}, {"blobs/sha256/../../../x", tar.TypeReg, 5}, {"/etc/x", tar.TypeReg, 5}}, 0, false},
		"links":        {[]entry{{"index.json", tar.TypeSymlink, 0}, {"blobs/sha256/" + hex, tar.TypeLink, 0}}, 0, false},
		"a huge index": {[]entry{{"index.json", tar.TypeReg, maxIndex + 1}}, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, e := range tt.entries {
				if err := w.WriteHeader(&tar.Header{Name: e.name, Typeflag: e.kind, Size: e.size, Mode: 0o777, Linkname: "/etc/passwd"}); err != nil {
					t.Fatal(err)
				}
				if _, err := w.Write(make([]byte, e.size)); err != nil {
					t.Fatal(err)
				}
			}
			w.Close()
			top := t.TempDir()
			archive := filepath.Join(top, "a.tar")
			if err := os.WriteFile(archive, b.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			into := filepath.Join(top, "deep", "er")
			if err := os.MkdirAll(into, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := unpackLayout(archive, into); (err != nil) != tt.fails {
				t.Errorf("error %v", err)
			}
			n := 0
			err := filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
				if err == nil && !d.IsDir() && path != archive {
					n++
				}
				return err
			})
			if err != nil || n != tt.files {
				t.Errorf("%d files, want %d (%v)", n, tt.files, err)
			}
		})
	}
}

func TestListInspect(t *testing.T) {
	reg := newRegistry(t, nil)
	c := newClient(t, Config{})
	one, two := newLayout(t, item{index: multi(t)}, ""), newLayout(t, item{image: oneImage(t, "amd64")}, "")
	copyTo(t, c, one, reg+"/a:multi", Options{})
	copyTo(t, c, two, reg+"/a:single", Options{})
	pushed := copyTo(t, c, two, reg+"/b:single", Options{})
	repos, more, err := c.Repositories(t.Context(), reg, 10)
	slices.Sort(repos) // this registry has them in no order
	if err != nil || more || !slices.Equal(repos, []string{"a", "b"}) {
		t.Errorf("repositories %v, %v, %v", repos, more, err)
	}
	if repos, more, err := c.Repositories(t.Context(), reg, 1); err != nil || !more || len(repos) != 1 {
		t.Errorf("repositories %v, %v, %v", repos, more, err)
	}
	tags, more, err := c.Tags(t.Context(), reg+"/a", 10)
	if err != nil || more || len(tags) != 2 || tags[0].Name != "multi" || len(tags[0].Platforms) != 2 ||
		tags[1].Digest != pushed.Digest || tags[1].Size != pushed.Size {
		t.Errorf("tags %+v, %v, %v", tags, more, err)
	}
	if _, _, err := c.Tags(t.Context(), reg+"/nothing", 10); err == nil {
		t.Error("tags of nothing")
	}

	m, err := c.Inspect(t.Context(), Place{Kind: Registry, Ref: mustRef(t, reg+"/a:multi")})
	if err != nil || len(m.Manifests) != 2 || m.Manifests[1].Platform != "linux/arm64" || len(m.Manifests[1].Layers) != layers ||
		m.Manifests[1].Config == nil {
		t.Fatalf("%+v, %v", m, err)
	}
	who := members{m.Manifests[0].Layers[0].Digest: {{Node: "n1", Complete: true}, {Node: "n2", Partial: true}, {Node: "n3", Complete: true}}}
	if err := m.Locate(t.Context(), who); err != nil {
		t.Fatal(err)
	}
	if got := m.Manifests[0].Layers[0].Nodes; !slices.Equal(got, []string{"n1", "n3"}) {
		t.Errorf("nodes %v", got)
	}
	if got := m.Manifests[0].Layers[1].Nodes; got == nil || len(got) != 0 {
		t.Errorf("nodes %v", got)
	}

	arm, err := ParsePlatform("linux/arm64/v8")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Select(arm); err == nil {
		t.Error("selected a variant that is not there")
	}
	arm.Variant = ""
	images, err := m.Select(arm)
	if err != nil || len(images) != 1 {
		t.Fatalf("%v, %v", images, err)
	}
	ids, err := Blobs(images...)
	if err != nil || len(ids) != layers+1 || ids[0].Digest() != m.Manifests[1].Config.Digest ||
		ids[1].Digest() != m.Manifests[1].Layers[0].Digest {
		t.Errorf("blobs %v, %v", ids, err)
	}
	if all, err := m.Select(); err != nil || len(all) != 2 {
		t.Errorf("%v, %v", all, err)
	}
	for _, bad := range []string{"linux", "", "linux/amd64/a/b"} {
		if _, err := ParsePlatform(bad); err == nil {
			t.Errorf("%q is a platform", bad)
		}
	}
}

type members map[string][]tracker.Member

func (m members) Members(_ context.Context, id piece.ID) ([]tracker.Member, error) {
	return m[id.Digest()], nil
}

// preheater finishes a portion at once; node "bad" fails in all of them.
type preheater struct {
	nodes []string
	got   []piece.ID
	err   error
}

func (p *preheater) Preheat(_ context.Context, r tracker.PreheatRequest, told func(tracker.Progress)) (tracker.Progress, error) {
	if len(r.Blobs) > trackerpb.MaxBatch {
		return tracker.Progress{}, errors.New("too many")
	}
	p.got = append(p.got, r.Blobs...)
	last := tracker.Progress{Nodes: len(p.nodes), Total: int64(len(r.Blobs))}
	for _, n := range p.nodes {
		now := last
		now.Results = []tracker.NodeResult{{Node: n}}
		if n == "bad" {
			now.Results[0].Error = "no space"
			last.Failed++
		} else {
			last.Done++
			last.Bytes += int64(len(r.Blobs))
		}
		now.Done, now.Failed = last.Done, last.Failed
		told(now)
	}
	return last, p.err
}

func TestPreheat(t *testing.T) {
	var blobs []piece.ID
	for i := range trackerpb.MaxBatch + 5 {
		id, err := piece.ParseID(fmt.Sprintf("sha256:%064x", i+1), 10)
		if err != nil {
			t.Fatal(err)
		}
		blobs = append(blobs, id)
	}
	f := &preheater{nodes: []string{"a", "bad", "c"}}
	calls := 0
	p, err := Preheat(t.Context(), f, blobs, tracker.PreheatRequest{}, func(Preheated) { calls++ })
	if err != nil || p.Nodes != 3 || p.Done != 2 || p.Failed["bad"] != "no space" || len(p.Failed) != 1 || p.Blobs != len(blobs) ||
		p.Bytes != 2*int64(len(blobs)) || p.Total != int64(len(blobs)) {
		t.Errorf("%+v, %v", p, err)
	}
	if !slices.Equal(f.got, blobs) || calls != 6 {
		t.Errorf("%d blobs, %d calls", len(f.got), calls)
	}
	if _, err := Preheat(t.Context(), &preheater{}, blobs[:1], tracker.PreheatRequest{}, nil); err == nil {
		t.Error("no node matches, and no error")
	}
	away := &preheater{nodes: []string{"a"}, err: errors.New("away")}
	if _, err := Preheat(t.Context(), away, blobs[:1], tracker.PreheatRequest{}, nil); err == nil {
		t.Error("the tracker failed, and no error")
	}
}

// Credentials and client certificates are presented, and errors say what is refused.
func TestAuth(t *testing.T) {
	reg := newRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, pass, _ := r.BasicAuth(); user != "me" || pass != "secret" {
				w.Header().Set("WWW-Authenticate", "Basic realm=x")
				http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	dir := newLayout(t, item{image: oneImage(t, "amd64")}, "")
	c := newClient(t, Config{})
	src, _ := c.Source(dir)
	dst, _ := c.Target(reg + "/a:b")
	if _, err := c.Copy(t.Context(), src, dst, Options{}); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("without credentials: %v", err)
	}
	copyTo(t, newClient(t, Config{Credentials: keychain{}}), dir, reg+"/a:b", Options{})
}

type keychain struct{}

func (keychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: "me", Password: "secret"}, nil
}

func TestMutualTLS(t *testing.T) {
	dir := t.TempDir()
	cert, key := clientCert(t, dir)
	pool := x509.NewCertPool()
	text, err := os.ReadFile(cert)
	if err != nil || !pool.AppendCertsFromPEM(text) {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	t.Cleanup(s.Close)
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	to := strings.TrimPrefix(s.URL, "https://") + "/a:b"
	from := newLayout(t, item{image: oneImage(t, "amd64")}, "")
	copyTo(t, newClient(t, Config{CA: ca, Cert: cert, Key: key}), from, to, Options{})
	c := newClient(t, Config{CA: ca})
	src, _ := c.Source(from)
	dst, _ := c.Target(to)
	if _, err := c.Copy(t.Context(), src, dst, Options{}); err == nil {
		t.Error("without a certificate it works, too")
	}
	for _, bad := range []Config{{CA: dir}, {CA: key}, {Cert: cert}, {Cert: ca, Key: key}} {
		if _, err := New(bad); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}

func clientCert(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	if err := errors.Join(
		os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kder}), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// Blobs that a registry has elsewhere count as well.
func TestRedirect(t *testing.T) {
	reg := newRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && !strings.HasPrefix(r.URL.Path, "/elsewhere") {
				http.Redirect(w, r, "/elsewhere"+r.URL.Path, http.StatusTemporaryRedirect)
				return
			}
			r.URL.Path = strings.TrimPrefix(r.URL.Path, "/elsewhere")
			h.ServeHTTP(w, r)
		})
	})
	c := newClient(t, Config{})
	copyTo(t, c, newLayout(t, item{image: oneImage(t, "amd64")}, ""), reg+"/a:b", Options{})
	if r := copyTo(t, c, reg+"/a:b", t.TempDir()+"/x/", Options{}); r.Bytes != r.Size || r.Skipped != 0 {
		t.Errorf("%+v", r)
	}
}

// A registry cannot send us in circles.
func TestCircle(t *testing.T) {
	reg := newRegistry(t, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		})
	})
	c := newClient(t, Config{})
	if _, err := c.Inspect(t.Context(), Place{Kind: Registry, Ref: mustRef(t, reg+"/a:b")}); err == nil ||
		!strings.Contains(err.Error(), "redirects") {
		t.Errorf("error %v", err)
	}
}

// A copy ends with its context.
func TestCancel(t *testing.T) {
	entered := make(chan struct{}, 1)
	reg := newRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") {
				select {
				case entered <- struct{}{}:
				default:
				}
				_, _ = io.Copy(io.Discard, r.Body)
				<-r.Context().Done()
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	c := newClient(t, Config{})
	src, _ := c.Source(newLayout(t, item{image: oneImage(t, "amd64")}, ""))
	dst, _ := c.Target(reg + "/a:b")
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-entered; cancel() }()
	if _, err := c.Copy(ctx, src, dst, Options{Progress: func(int64, int64) {}}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
