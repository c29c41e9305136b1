package integration

import (
	"context"
	"fmt"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capelin-io/capelin/integration/harness"
)

// kubeletFrees does what kubelet's image garbage collection does to have free space: it
// lists the images, removes those that no container uses, and asks at once how much
// is free.
func kubeletFrees(ctx context.Context, n *harness.Node, keep string) (free int64, removed int, err error) {
	img, _, err := n.CRI(ctx)
	if err != nil {
		return 0, 0, err
	}
	all, err := img.ListImages(ctx, nil)
	if err != nil {
		return 0, 0, err
	}
	for _, i := range all {
		if i.Pinned || len(i.RepoTags) == 1 && i.RepoTags[0] == keep {
			continue
		}
		if err := img.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: i.Id}); err != nil {
			return 0, removed, fmt.Errorf("removing %v: %w", i.RepoTags, err)
		}
		removed++
	}
	if _, err := img.ImageFsInfo(ctx); err != nil {
		return 0, removed, err
	}
	free, _, err = n.Space()
	return free, removed, err
}

// kubelet evicts pods if the removing of images has not freed enough when it measures, at
// once. With Capelin as much is free then as with a stock containerd, or the floor, which is
// to be what kubelet wants: of images that were taken from a seeder, given to others, and
// deleted before there was need.
func TestKubeletFreesSpace(t *testing.T) {
	e := newEnv(t)
	const disk, floor = 1 << 30, .2
	var refs []string
	for i := range 4 {
		_, ref := e.image(t, fmt.Sprintf("kubelet/%d", i), harness.ImageOptions{Layers: 2, LayerBytes: 20 << 20, Files: 8, Incompress: true})
		refs = append(refs, ref)
	}
	frees := func(t *testing.T, n *harness.Node) int64 {
		for _, ref := range refs {
			must(t, n.PullCRI(e.ctx, ref, nil))
		}
		if !n.Options.Stock {
			other := e.node(t, n.Name+"-takes", harness.NodeOptions{}) // what is still open to be seeded
			for _, ref := range refs {
				must(t, other.PullCRI(e.ctx, ref, nil))
			}
		}
		must(t, n.RemoveCRI(e.ctx, refs[3])) // when nobody needs its space
		must(t, n.Fill("pods", disk/10))     // kubelet collects images above 85 %
		free, removed, err := kubeletFrees(e.ctx, n, refs[2])
		must(t, err)
		if removed != 2 {
			t.Fatalf("%d images were removed, not 2", removed)
		}
		return free
	}
	var stock int64
	if !t.Run("stock", func(t *testing.T) {
		stock = frees(t, e.node(t, "stock", harness.NodeOptions{Stock: true, Disk: disk, Ext4: true}))
	}) {
		return
	}
	t.Run("capelin", func(t *testing.T) {
		free := frees(t, e.node(t, "capelin", harness.NodeOptions{
			Disk: disk, Ext4: true, Agent: map[string]string{"cache.free_floor": fmt.Sprint(floor)},
		}))
		t.Logf("%.1f MB are free, %.1f with a stock containerd", float64(free)/1e6, float64(stock)/1e6)
		if free < stock-2e6 && float64(free) < floor*disk { // above that, what goes may be kept for others
			t.Errorf("kubelet sees %d bytes free, %d with a stock containerd", free, stock)
		}
	})
}

// On a full disk a pull gets the space of everything that no client waits for, the first
// time: of deleted images that are being given to others, and of what a failed pull has
// left, for its blobs and for what they unpack to.
func TestCacheMakesRoom(t *testing.T) {
	e := newEnv(t)
	seed := e.node(t, "seed", harness.NodeOptions{})
	layers := func(repo string, n int, mb int64) string {
		_, ref := e.image(t, repo, harness.ImageOptions{Layers: n, LayerBytes: mb << 20, Files: 4, Incompress: true})
		return ref
	}
	old, huge, small := layers("room/old", 3, 10), layers("room/huge", 2, 50), layers("room/small", 1, 12)
	must(t, seed.PullCRI(e.ctx, huge, nil))
	// Only what finds the disk full has anything evicted.
	n := e.node(t, "n", harness.NodeOptions{Disk: 128 << 20, Ext4: true, Agent: map[string]string{"cache.free_floor": "-1.0"}})
	must(t, n.PullCRI(e.ctx, old, nil))
	must(t, e.node(t, "takes", harness.NodeOptions{}).PullCRI(e.ctx, old, nil))
	must(t, n.RemoveCRI(e.ctx, old))
	must(t, n.Fill("pods", 2<<20))
	must(t, n.PullCRI(e.ctx, small, nil))
	must(t, n.RemoveCRI(e.ctx, small))
	if err := n.PullCRI(e.ctx, huge, nil); err == nil {
		t.Fatal("layers of 50 MB fit into 44")
	}
	must(t, n.PullCRI(e.ctx, small, nil))
}
