package plugin

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	digest "github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	"github.com/capelin-io/capelin/swarm/piece"
)

// labelServer is what containerd's metadata says of manifests.
type labelServer struct {
	api.UnimplementedContentServer
	labels map[string]map[string]string // by namespace and digest
	asked  atomic.Int32
}

func (s *labelServer) Info(ctx context.Context, req *api.InfoRequest) (*api.InfoResponse, error) {
	s.asked.Add(1)
	ns, _ := namespaces.Namespace(ctx)
	l, ok := s.labels[ns+"/"+req.Digest]
	if !ok {
		return nil, fmt.Errorf("content %s", req.Digest)
	}
	return &api.InfoResponse{Info: &api.Info{Digest: req.Digest, Labels: l}}, nil
}

func TestRegistryNames(t *testing.T) {
	im := newImages(nil, nil)
	learn := func(i int, layers ...piece.ID) string {
		d := digest.FromString(fmt.Sprint("manifest ", i))
		im.mu.Lock()
		defer im.mu.Unlock()
		for _, id := range layers {
			im.images[id] = &image{manifest: d, layers: layers}
		}
		close(im.news)
		im.news = make(chan struct{})
		return d.String()
	}
	layer := func(i byte) piece.ID {
		return piece.ID{Alg: piece.SHA256, Size: 1 << 20, Sum: [64]byte{i}}
	}
	const label = "containerd.io/distribution.source."
	srv := &labelServer{labels: map[string]map[string]string{}}
	srv.labels["k8s.io/"+learn(1, layer(1), layer(2))] = map[string]string{label + "r.example": "a/b", "other": "x"}
	srv.labels["k8s.io/"+learn(2, layer(3))] = map[string]string{label + "z.example": "a", label + "r.example": "a"}
	learn(3, layer(4))
	srv.labels["k8s.io/"+digest.FromString("manifest 5").String()] = map[string]string{label + "late.example": "a"}

	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	api.RegisterContentServer(g, srv)
	go g.Serve(l) // ends with Stop
	defer g.Stop()
	names, err := newRegistryNames(im, socket)
	if err != nil {
		t.Fatal(err)
	}
	defer names.close()

	of := func(i byte, ns string) string {
		c := names.client(layer(i), ns+"/1/layer-"+layer(i).Digest())
		if c.Ask == nil {
			t.Fatal("nobody would ask")
		}
		return c.Ask(t.Context())
	}
	for _, tt := range []struct {
		layer byte
		ns    string
		want  string
	}{
		{1, "k8s.io", "r.example"},
		{2, "k8s.io", "r.example"},
		{3, "k8s.io", "r.example,z.example"},
		{1, "moby", ""}, // another namespace knows nothing of it
		{4, "k8s.io", ""},
	} {
		if got := of(tt.layer, tt.ns); got != tt.want {
			t.Errorf("layer %d in %s is from %q, want %q", tt.layer, tt.ns, got, tt.want)
		}
	}
	if n := srv.asked.Load(); n != 4 {
		t.Errorf("containerd was asked %d times, want 4: once for each manifest and namespace", n)
	}

	// containerd opens a layer before its manifest was read here.
	synctest.Test(t, func(t *testing.T) {
		im.news = make(chan struct{}) // the bubble's
		late := make(chan string)
		go func() {
			d, _ := im.manifest(t.Context(), layer(5))
			late <- d.String()
		}()
		synctest.Wait()
		want := learn(5, layer(5))
		if got := <-late; got != want {
			t.Errorf("the manifest that comes late is %q, want %q", got, want)
		}
	})
	if got := of(5, "k8s.io"); got != "late.example" {
		t.Errorf("a layer whose manifest comes late is from %q", got)
	}

	small := piece.ID{Alg: piece.SHA256, Size: worthAsking}
	if names.client(small, "k8s.io/1/layer-x").Ask != nil {
		t.Error("somebody would ask for a small blob")
	}
	if (*registryNames)(nil).client(layer(1), "k8s.io/1/layer-x").Ask != nil {
		t.Error("somebody would ask nobody")
	}
}

func TestLabelled(t *testing.T) {
	for host, want := range map[string]string{
		"r.example": "r.example", "r.example:5000": "r.example:5000", "registry-1.docker.io": "docker.io",
		"[2001:db8::1]:5000": "[2001:db8::1]:5000", "[2001:db8::1]": "2001:db8::1",
	} {
		if got := labelled(host); got != want {
			t.Errorf("%s is %q, want %q", host, got, want)
		}
	}
}
