package install

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/emptypb"
)

// fakeContainerd answers what doctor asks.
type fakeContainerd struct {
	versionapi.UnimplementedVersionServer
	introspection.UnimplementedIntrospectionServer
}

func (fakeContainerd) Version(context.Context, *emptypb.Empty) (*versionapi.VersionResponse, error) {
	return &versionapi.VersionResponse{Version: "v2.4.2"}, nil
}

func (fakeContainerd) Plugins(_ context.Context, r *introspection.PluginsRequest) (*introspection.PluginsResponse, error) {
	if len(r.Filters) != 3 {
		return nil, errors.New("everything")
	}
	return &introspection.PluginsResponse{Plugins: []*introspection.Plugin{
		{Type: typeContent, ID: "content", Exports: map[string]string{"root": "/r/" + stockContent}},
		{Type: typeSnapshots, ID: "zfs", InitErr: &status.Status{Message: "skip plugin"}},
	}}, nil
}

func TestLocalSockets(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv, hs := grpc.NewServer(), health.NewServer()
	versionapi.RegisterVersionServer(srv, fakeContainerd{})
	introspection.RegisterIntrospectionServer(srv, fakeContainerd{})
	grpc_health_v1.RegisterHealthServer(srv, hs)
	done := make(chan error)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	h := Local{}
	c, err := h.Containerd(t.Context(), socket)
	if err != nil || c.Version != "v2.4.2" || len(c.Plugins) != 2 || c.Plugins[0].Root != "/r/"+stockContent ||
		c.Plugins[1].Err != "skip plugin" {
		t.Errorf("%+v, %v", c, err)
	}
	if err := h.Healthy(t.Context(), socket); err != nil {
		t.Error(err)
	}
	hs.Shutdown()
	if err := h.Healthy(t.Context(), socket); err == nil {
		t.Error("healthy after its end")
	}
	if _, err := h.Containerd(t.Context(), socket+"x"); err == nil {
		t.Error("an answer from nobody")
	}
}

func TestLocal(t *testing.T) {
	h := Local{Root: "/"}
	if out, err := h.Run(t.Context(), "sh", "-c", "echo out; echo err >&2; exit 3"); out != "out\n" || err == nil ||
		!strings.Contains(err.Error(), "exit status 3: err") {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := h.Run(t.Context(), "sh", "-c", "yes | head -c 3000000"); len(out) != maxOutput || err != nil {
		t.Errorf("%d bytes, %v", len(out), err)
	}
	if d, err := h.Disk(t.TempDir()); err != nil || d.Size <= 0 || d.Free > d.Size {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := h.Disk("/nowhere"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if k, err := h.Kernel(); err != nil || !atLeast(k, 3, 0) {
		t.Errorf("%s, %v", k, err)
	}
	if now, _, err := h.Clock(); err != nil || now.IsZero() {
		t.Errorf("%v, %v", now, err)
	}
	if a, err := h.Addresses(); err != nil || len(a) == 0 {
		t.Errorf("%v, %v", a, err)
	}
	if h.Path("/a") != "/a" {
		t.Error(h.Path("/a"))
	}

	image := Local{Root: t.TempDir()}
	if image.Live() || image.Path("/a") != image.Root+"/a" {
		t.Errorf("an image: %s", image.Path("/a"))
	}
	_, run := image.Run(t.Context(), "true")
	_, dial := image.Dial(t.Context(), "unix", "/x")
	_, kernel := image.Kernel()
	for _, err := range []error{run, dial, kernel, image.Healthy(t.Context(), "/x")} {
		if !errors.Is(err, ErrNotLive) {
			t.Errorf("an image does %v", err)
		}
	}
	big := filepath.Join(image.Root, "big")
	if err := os.WriteFile(big, make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := read(image, "/big"); err == nil {
		t.Error("read more than it should")
	}
}
