package plugin

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/plugin/unpack"
)

// The diff service is on the content socket if it is configured, and not else. It
// unpacks what the content service has.
func TestUnpack(t *testing.T) {
	var blob bytes.Buffer
	z := gzip.NewWriter(&blob)
	w := tar.NewWriter(z)
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644, Size: 7, Uid: os.Getuid(), Gid: os.Getgid()})
	w.Write([]byte("content"))
	w.Close()
	z.Close()
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(blob.Bytes()), Size: int64(blob.Len())}
	ctx := namespaces.WithNamespace(t.Context(), "default")

	for _, on := range []bool{false, true} {
		if on && !unpack.Able() && os.Geteuid() == 0 {
			t.Fatal("root cannot unpack here")
		}
		if on && !unpack.Able() {
			t.Skip("cannot unpack here")
		}
		cfg := testConfig(t)
		cfg.Unpack = on
		cfg.Metrics = "127.0.0.1:0"
		if on {
			t.Cleanup(func() { mount.SetTempMountLocation(os.TempDir()) })
		}
		a := start(t, cfg)
		if err := ctrdcontent.WriteBlob(ctx, contentproxy.NewContentStore(a.conn), "r", bytes.NewReader(blob.Bytes()), desc); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		remote := diffproxy.NewDiffApplier(diffapi.NewDiffClient(a.conn)).(diff.Applier)
		_, err := remote.Apply(ctx, desc, []mount.Mount{{Type: "bind", Source: dir, Options: []string{"rw", "rbind"}}})
		if !on {
			if !errdefs.IsNotImplemented(err) {
				t.Errorf("switched off: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "f")); string(b) != "content" {
			t.Errorf("the file has %q, %v", b, err)
		}
		if fi, err := os.Stat(filepath.Join(filepath.Dir(cfg.Socket), "mounts")); err != nil || !fi.IsDir() {
			t.Errorf("the directory for mounts: %v", err)
		}
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get("http://" + a.status(t).Metrics + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if want := `capelin_agent_unpacked_layers_total{by="capelin",format="gzip"} 1`; err != nil || !strings.Contains(string(text), want) {
			t.Errorf("the metrics lack %s (%v)", want, err)
		}
	}
}
