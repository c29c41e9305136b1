package unpack

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/capelin-io/capelin/internal/durable/disktest"
	"github.com/capelin-io/capelin/plugin/unpack/treetest"
)

// memProvider serves blobs from memory.
type memProvider map[digest.Digest][]byte

type memReaderAt struct{ *bytes.Reader }

func (memReaderAt) Close() error { return nil }

func (p memProvider) ReaderAt(_ context.Context, desc ocispec.Descriptor) (ctrdcontent.ReaderAt, error) {
	b, ok := p[desc.Digest]
	if !ok {
		return nil, errdefs.ErrNotFound
	}
	return memReaderAt{bytes.NewReader(b)}, nil
}

func (p memProvider) add(mediaType string, b []byte) ocispec.Descriptor {
	d := digest.FromBytes(b)
	p[d] = b
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

// stockApply is containerd's applier on one gzip layer.
func stockApply(t *testing.T, blob []byte) (ocispec.Descriptor, error) {
	t.Helper()
	p := memProvider{}
	return apply.NewFileSystemApplier(p).Apply(t.Context(), p.add(ocispec.MediaTypeImageLayerGzip, blob),
		[]mount.Mount{{Type: "overlay", Options: []string{"upperdir=" + t.TempDir()}}})
}

func TestTarget(t *testing.T) {
	a := NewApplier(memProvider{}, Config{Options: Options{Workers: 7}})
	for _, c := range []struct {
		name   string
		mounts []mount.Mount
		root   string
		over   bool
		lower  int
	}{
		{"overlay", []mount.Mount{{Type: "overlay", Options: []string{"workdir=/w", "upperdir=/u", "lowerdir=/a:/b", "index=off"}}},
			"/u", true, 2},
		{"first layer", []mount.Mount{{Type: "bind", Source: "/s", Options: []string{"rw", "rbind"}}}, "/s", false, 0},
		{"read only overlay", []mount.Mount{{Type: "overlay", Options: []string{"lowerdir=/a:/b"}}}, "", false, 0},
		{"read only bind", []mount.Mount{{Type: "bind", Source: "/s", Options: []string{"ro", "rbind"}}}, "", false, 0},
		{"mapped ids", []mount.Mount{{Type: "bind", Source: "/s", Options: []string{"rbind", "uidmap=0:1:2"}}}, "", false, 0},
		{"subdirectory", []mount.Mount{{Type: "bind", Source: "/s", Target: "/x", Options: []string{"rbind"}}}, "", false, 0},
		{"two", []mount.Mount{{Type: "bind", Source: "/s"}, {Type: "bind", Source: "/t"}}, "", false, 0},
		{"none", nil, "", false, 0},
		{"device", []mount.Mount{{Type: "ext4", Source: "/dev/x"}}, "", false, 0},
		{"for the mount manager", []mount.Mount{{Type: "format/mkdir/overlay", Options: []string{"upperdir=/u"}}}, "", false, 0},
	} {
		root, o, ok := a.target(c.mounts)
		if root != c.root && ok || ok != (c.root != "") || ok && (o.Overlay != c.over || len(o.Lower) != c.lower || o.Workers != 7) {
			t.Errorf("%s: got %q, %+v, %v", c.name, root, o, ok)
		}
	}
}

func TestLayerType(t *testing.T) {
	a := NewApplier(memProvider{}, Config{StreamProcessors: map[string]StreamProcessor{
		"test": {Accepts: []string{ocispec.MediaTypeImageLayerZstd}, Returns: ocispec.MediaTypeImageLayer, Path: "cat"},
	}})
	for mt, want := range map[string][2]bool{ // compressed, known
		ocispec.MediaTypeImageLayer:                                    {false, true},
		ocispec.MediaTypeImageLayerGzip:                                {true, true},
		ocispec.MediaTypeImageLayerZstd:                                {false, false}, // a stream processor's
		"application/vnd.oci.image.layer.nondistributable.v1.tar":      {false, true},
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": {true, true},
		images.MediaTypeDockerSchema2Layer:                             {true, true},
		images.MediaTypeDockerSchema2LayerGzip:                         {true, true},
		images.MediaTypeDockerSchema2LayerZstd:                         {true, true},
		images.MediaTypeDockerSchema2LayerForeignGzip:                  {true, true},
		ocispec.MediaTypeImageLayerGzip + "+encrypted":                 {false, false},
		ocispec.MediaTypeImageLayer + "+encrypted":                     {false, false},
		ocispec.MediaTypeImageLayer + "+bzip2":                         {false, false},
		"application/vnd.erofs.layer.v1":                               {false, false},
		"":                                                             {false, false},
	} {
		if c, k := a.layerType(t.Context(), mt); k != want[1] || k && c != want[0] {
			t.Errorf("%s: got %v, %v", mt, c, k)
		}
	}
}

// TestService goes the way of a proxy plugin: containerd's client of the diff
// service, gRPC, Service; for what is applied here and for what is not.
func TestService(t *testing.T) {
	needRoot(t)
	p := memProvider{}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	var applied []string
	NewService(p, Config{
		Applied: func(format string, by By) { applied = append(applied, format+" "+string(by)) },
		StreamProcessors: map[string]StreamProcessor{"decrypt": {
			Accepts: []string{ocispec.MediaTypeImageLayerGzip + "+encrypted"}, Returns: ocispec.MediaTypeImageLayer,
			Path: "gzip", Args: []string{"-dc"},
		}},
	}).Register(srv)
	done := make(chan error)
	go func() { done <- srv.Serve(l) }()
	defer func() { srv.Stop(); <-done }()
	conn, err := grpc.NewClient("unix:"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	remote := proxy.NewDiffApplier(diffapi.NewDiffClient(conn))
	applier := remote.(diff.Applier)

	plain := layer(t, directory("d"), reg("d/f", "content"), symlink("l", "d"))
	since := time.Now().Add(-time.Minute)
	var want map[string]string
	for _, c := range []struct {
		mediaType string
		blob      []byte
		mountType string
		sync      bool
	}{
		{ocispec.MediaTypeImageLayerGzip, gzipped(plain), "overlay", true},
		{ocispec.MediaTypeImageLayer, plain, "overlay", false},
		{images.MediaTypeDockerSchema2Layer, gzipped(plain), "bind", true},
		{ocispec.MediaTypeImageLayerGzip + "+encrypted", gzipped(plain), "overlay", false},
		{ocispec.MediaTypeImageLayerGzip, gzipped(plain), "idmapped or so", false},
	} {
		t.Run(c.mediaType+" "+c.mountType, func(t *testing.T) {
			dir := t.TempDir()
			mounts := []mount.Mount{{Type: "overlay", Options: []string{"upperdir=" + dir}}}
			switch c.mountType {
			case "bind":
				mounts = []mount.Mount{{Type: "bind", Source: dir, Options: []string{"rw", "rbind"}}}
			case "idmapped or so": // containerd's applier mounts this one
				mounts = []mount.Mount{{Type: "bind", Source: dir, Options: []string{"rw", "rbind", "nodev"}}}
			}
			d := disktest.Watch(t, dir)
			desc, err := applier.Apply(t.Context(), p.add(c.mediaType, c.blob), mounts, diff.WithSyncFs(c.sync))
			if err != nil {
				t.Fatal(err)
			}
			d.LastCut([]disktest.Survival{disktest.Nothing}, func(t testing.TB, dir string, _ map[string]string) {
				if b, _ := os.ReadFile(filepath.Join(dir, "d/f")); c.sync != (string(b) == "content") {
					t.Errorf("the file has %q, want it whole: %t", b, c.sync)
				}
			})
			if desc.Digest != digest.FromBytes(plain) || desc.Size != int64(len(plain)) || desc.MediaType != ocispec.MediaTypeImageLayer {
				t.Errorf("got %+v", desc)
			}
			got := describe(t, dir, since)
			if want == nil {
				want = got
			} else if d := treetest.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}

	if want := []string{"gzip capelin", "tar capelin", "gzip capelin", "other containerd", "gzip containerd"}; !slices.Equal(applied, want) {
		t.Errorf("applied %q, want %q", applied, want)
	}

	dir := t.TempDir()
	mounts := []mount.Mount{{Type: "bind", Source: dir}}
	_, err = applier.Apply(t.Context(),
		ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString("missing")}, mounts)
	if !errdefs.IsNotFound(err) {
		t.Errorf("missing blob: %v", err)
	}
	_, err = applier.Apply(t.Context(), p.add(ocispec.MediaTypeImageLayerGzip, []byte("\x1f\x8b\x08 broken")), mounts)
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("broken layer: %v", err)
	}
	_, err = applier.Apply(t.Context(), p.add("application/x-unknown", plain), mounts)
	if err == nil {
		t.Error("unknown media type applied")
	}
	_, err = remote.(diff.Comparer).Compare(t.Context(), nil, nil)
	if !errdefs.IsNotImplemented(err) {
		t.Errorf("Compare: %v", err)
	}
	if names, _ := os.ReadDir(dir); len(names) != 0 {
		t.Errorf("left over: %v", names)
	}
}

// TestPrepareTempMounts cleans up after a process that was killed while
// containerd's applier had something mounted.
func TestPrepareTempMounts(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	defer mount.SetTempMountLocation(os.TempDir())
	left := filepath.Join(dir, "containerd-mount1")
	source := t.TempDir()
	for _, d := range []string{left, filepath.Join(dir, "containerd-mount2")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(source, "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := mount.All([]mount.Mount{{Type: "bind", Source: source, Options: []string{"rbind"}}}, left); err != nil {
		t.Fatal(err)
	}
	if err := PrepareTempMounts(dir); err != nil {
		mount.UnmountAll(left, 0)
		t.Fatal(err)
	}
	if names, _ := os.ReadDir(dir); len(names) != 0 {
		t.Errorf("left over: %v", names)
	}
	if _, err := os.Stat(filepath.Join(source, "kept")); err != nil {
		t.Error(err)
	}
}
