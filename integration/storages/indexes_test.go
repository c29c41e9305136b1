package storages

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/indexd/indexdtest"
	"github.com/capelin-io/capelin/integration/harness"
)

// capelin returns the binary of this tree.
func capelin(t TB) string {
	t.Helper()
	bin, err := harness.Built("capelin")
	if err != nil {
		t.Fatalf("%v", err)
	}
	return bin
}

// storage is the server's bucket as [storage] of a role's configuration.
func (v *Versitygw) storage(url string) string {
	return fmt.Sprintf("[storage]\nkind = \"s3\"\n[storage.s3]\nbucket = %q\nregion = %q\nendpoint = %q\npath_style = true\n",
		v.Bucket, v.Region, url)
}

// TestSeveralIndexes: three `capelin indexd` on one bucket, each of which is killed while many write one tag.
func TestSeveralIndexes(t *testing.T) {
	v := StartVersitygw(t, t.TempDir())
	v.Setenv(t)
	o := StartOrigin(t, t.TempDir(), &fetchertest.Memory{})
	defer o.Stop()
	var processes [3]*Process
	s := indexdtest.Several{
		Repository: namespace, Writers: 16, Writes: 150,
		Start: func(t *testing.T, i int) (string, func()) {
			if processes[i] == nil {
				processes[i] = startIndexd(t, fmt.Sprint("index", i), v, o)
			} else {
				processes[i].Restart()
			}
			return processes[i].addr(), processes[i].Kill
		},
		Push: func(ctx context.Context, c *index.Client) (manifests []ocispec.Descriptor, err error) {
			for i := range 6 {
				m, err := pushManifest(ctx, o, c, i)
				if err != nil {
					return nil, err
				}
				manifests = append(manifests, m)
			}
			return manifests, nil
		},
	}
	if *full {
		s.Writers, s.Writes = 64, 1000
	}
	s.Run(t)
}

func startIndexd(t *testing.T, name string, v *Versitygw, o *Origin) *Process {
	dir, bin := t.TempDir(), capelin(t)
	return Start(t, Command{Name: name, Dir: dir, Args: func(port int) []string {
		config := filepath.Join(dir, "indexd.toml")
		toml := fmt.Sprintf("listen = %q\nmetrics = \"\"\norigins = [%q]\n", loopback(port), o.Addr) + v.storage(v.URL())
		if err := os.WriteFile(config, []byte(toml), 0o600); err != nil {
			t.Fatal(err)
		}
		return []string{bin, "indexd", "--config", config}
	}})
}

// pushManifest pushes a manifest with a layer, as a gateway does.
func pushManifest(ctx context.Context, o *Origin, c *index.Client, i int) (ocispec.Descriptor, error) {
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	push := func(mediaType string, data []byte) (ocispec.Descriptor, error) {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		if err := o.Push(ctx, data); err != nil || mediaType == m.MediaType {
			return d, err
		}
		return d, c.LinkBlob(ctx, namespace, d)
	}
	var err error
	if m.Config, err = push(ocispec.MediaTypeImageConfig, fmt.Append(nil, "config ", i)); err != nil {
		return m.Config, err
	}
	layer, err := push(ocispec.MediaTypeImageLayer, fmt.Append(nil, "layer ", i))
	if err != nil {
		return layer, err
	}
	m.Layers = []ocispec.Descriptor{layer}
	raw, err := json.Marshal(m)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d, err := push(m.MediaType, raw)
	if err != nil {
		return d, err
	}
	return d, c.PutManifest(ctx, namespace, index.Manifest{Descriptor: d, Blobs: []ocispec.Descriptor{m.Config, layer}})
}
