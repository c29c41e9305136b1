package storages

import (
	"context"
	"crypto/sha256"
	"io"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/fetcher"
)

// thereAndBack has a blob pushed through an origin, and read through another one that has nothing. The storage is killed when it has
// half of it, and is started again, so that the origin writes it anew. Nobody ever sees a part of it.
func thereAndBack(t *testing.T, b fetcher.Backend, killAndRestart func()) {
	t.Helper()
	size := int64(24<<20 + 17)
	if *full {
		size = 200e6
	}
	content := func() io.Reader { return io.LimitReader(generated(), size) }
	sum := sha256.New()
	if _, err := io.Copy(sum, content()); err != nil {
		t.Fatal(err)
	}
	d := digest.NewDigest(digest.SHA256, sum)
	c := &crashing{Backend: unowned{b}, t: t, size: size, crash: killAndRestart}
	o := StartOrigin(t, t.TempDir(), c)
	err := o.PushFrom(t.Context(), d, content())
	o.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if c.writes < 2 && !c.survived {
		t.Errorf("it was written %d times: the storage was not killed in the middle", c.writes)
	}
	o = StartOrigin(t, t.TempDir(), unowned{b})
	defer o.Stop()
	back := sha256.New()
	if err := o.PullTo(t.Context(), d, back); err != nil || !equal(sum, back) {
		t.Errorf("the same came back: %v, %v", equal(sum, back), err)
	}
	t.Logf("%d bytes, written %d times", size, c.writes)
}

// unowned is closed by whoever has made it.
type unowned struct{ fetcher.Backend }

func (unowned) Close() error { return nil }

// crashing is a storage that crashes in the first write of a blob.
type crashing struct {
	fetcher.Backend
	t     *testing.T
	size  int64
	crash func()

	mu       sync.Mutex
	writes   int
	survived bool // the first write was done all the same: what was not acknowledged was sent again
}

func (c *crashing) Write(ctx context.Context, key string, size int64, r io.Reader) (fetcher.Info, error) {
	if size != c.size {
		return c.Backend.Write(ctx, key, size, r)
	}
	c.mu.Lock()
	c.writes++
	first := c.writes == 1
	c.mu.Unlock()
	if first {
		r = &midway{r: r, left: int(size / 2), then: func() {
			c.crash()
			c.look(ctx, key, false)
		}}
	}
	info, err := c.Backend.Write(ctx, key, size, r)
	c.look(ctx, key, err == nil)
	c.mu.Lock()
	c.survived = c.survived || first && err == nil
	c.mu.Unlock()
	return info, err
}

// look fails the test if there is something else than all of it, or nothing although it was written.
func (c *crashing) look(ctx context.Context, key string, written bool) {
	info, err := c.Stat(ctx, key)
	switch {
	case written && err != nil, err == nil && info.Size != c.size, err != nil && !errdefs.IsNotFound(err) && !errdefs.IsUnavailable(err):
		c.t.Errorf("written: %v; there is %+v, %v", written, info, err)
	}
}
