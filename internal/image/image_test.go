package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"
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
		{"alpine", "docker://alpine", ""},
		{"team/app:1", "docker://team/app:1", ""},
		{"docker://alpine", "docker://alpine", "docker://alpine"},
		{"localhost/a", "docker://localhost/a", "docker://localhost/a"},
		{"r:5000/a", "docker://r:5000/a", "docker://r:5000/a"},
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

// Who forgot to say which of the two is meant is told how.
func TestTargetOfNothing(t *testing.T) {
	c := newClient(t, Config{})
	for s, want := range map[string]string{
		"out1":     "say oci:out1, or docker.io/library/out1",
		"out/one":  "say oci:out/one, or docker.io/out/one",
		"alpine:3": "say oci:alpine:3, or docker.io/library/alpine:3",
	} {
		if _, err := c.Target(s); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", s, err, want)
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

// Who asks for a platform gets an image for it, or is told that there is none; also of an image that is no index.
func TestPlatformThatIsNotThere(t *testing.T) {
	reg := newRegistry(t, nil)
	c := newClient(t, Config{})
	copyTo(t, c, newLayout(t, item{image: oneImage(t, "amd64")}, "v1"), reg+"/one:v1", Options{})
	copyTo(t, c, newLayout(t, item{index: multi(t)}, "v1"), reg+"/two:v1", Options{})
	for _, tt := range []struct {
		ref, platform string
		asked         bool
		want          string
	}{
		{"/one:v1", "linux/amd64", true, ""},
		{"/one:v1", "linux/riscv64", true, "it is an image for linux/amd64, not for linux/riscv64"},
		{"/one:v1", "linux/riscv64", false, ""}, // this machine's, of which nobody spoke
		{"/two:v1", "linux/arm64", true, ""},
		{"/two:v1", "linux/riscv64", true, "has no image for linux/riscv64, only for [linux/amd64 linux/arm64]"},
		{"/two:v1", "linux/riscv64", false, "has no image for linux/riscv64, only for [linux/amd64 linux/arm64]"},
	} {
		p, err := ParsePlatform(tt.platform)
		if err != nil {
			t.Fatal(err)
		}
		ids, err := c.Blobs(t.Context(), reg+tt.ref, tt.asked, p)
		if tt.want == "" && (err != nil || len(ids) == 0) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s for %s: %d blobs, %v; want %q", tt.ref, tt.platform, len(ids), err, tt.want)
		}
		if !tt.asked {
			continue
		}
		src, err := c.Source(reg + tt.ref)
		dst, derr := c.Target("oci:" + filepath.Join(t.TempDir(), "d"))
		if err != nil || derr != nil {
			t.Fatal(err, derr)
		}
		if _, err := c.Copy(t.Context(), src, dst, Options{Platform: &p}); (err == nil) != (tt.want == "") {
			t.Errorf("a copy of %s for %s: %v", tt.ref, tt.platform, err)
		}
	}
}
