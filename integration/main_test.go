package integration

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/capelin-io/capelin/integration/harness"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the integration tests need root, for namespaces, mounts and containerd")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// hangs is what ends a test that does not end by itself. It is several times what the
// longest takes, so that no verdict depends on how busy the machine is.
const hangs = 15 * time.Minute

// newCluster returns a cluster that goes with the test, and a context for both.
func newCluster(t *testing.T) (context.Context, *harness.Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hangs)
	t.Cleanup(cancel)
	c, err := harness.New()
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.Logs(60))
		}
		if err := c.Close(); err != nil {
			t.Error("cleaning up:", err)
		}
		for _, l := range c.Leftovers() {
			t.Error("left behind:", l)
		}
	})
	return ctx, c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func get[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		must(t, err)
		return v
	}
}

// newRegistry starts the reference registry, with the sandbox image in it.
func newRegistry(ctx context.Context, t *testing.T, c *harness.Cluster) *harness.Registry {
	t.Helper()
	reg := get(c.NewRegistry(ctx, harness.Distribution))(t)
	must(t, reg.PushPause(ctx, c.Dir+"/images"))
	return reg
}

// pushImage makes an image and pushes it as repoTag; it returns the name to pull it by.
func pushImage(
	ctx context.Context, t *testing.T, c *harness.Cluster, reg *harness.Registry, repoTag string, o harness.ImageOptions,
) (*harness.Image, string) {
	t.Helper()
	img := get(harness.MakeImage(c.Dir+"/images", o))(t)
	return img, get(reg.Push(ctx, img, repoTag))(t)
}
