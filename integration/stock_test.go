package integration

import (
	"strings"
	"testing"

	"github.com/capelin-io/capelin/integration/harness"
)

// versions are the series of containerd that `make tools` builds.
var versions = []string{"2.1", "2.2", "2.3", "2.4"}

// The harness itself, with nothing of Capelin in it: what it says of stock
// containerd must be right before it says anything of us.
func TestStockContainerd(t *testing.T) {
	ctx, c := newCluster(t)
	reg := newRegistry(ctx, t, c)
	img, ref := pushImage(ctx, t, c, reg, "stock:1", harness.ImageOptions{Seed: 7, Layers: 3, Runnable: true})
	for _, v := range versions {
		t.Run(v, func(t *testing.T) {
			name := "stock" + v
			node := get(c.NewNode(name, harness.NodeOptions{Containerd: v, Stock: true, Registries: []string{reg.Addr}}))(t)
			must(t, node.Start(ctx))
			reg.Reset()
			must(t, node.PullCRI(ctx, ref, nil))
			must(t, node.CheckImage(ctx, harness.K8s, ref, img))
			for i, d := range img.Layers {
				r := reg.Blobs(d)
				if len(r) != 1 || r[0].Client != name || r[0].Bytes != img.Sizes[i] {
					t.Errorf("layer %d was requested like this, not once: %v", i, r)
				}
			}
			out := get(node.Run(ctx, ref))(t)
			if !strings.HasPrefix(out, "ok: ") {
				t.Errorf("the container printed %q", out)
			}
			must(t, node.StopContainerd())
		})
	}
}
