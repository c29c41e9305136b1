package integration

import (
	"testing"

	"github.com/capelin-io/capelin/integration/harness"
)

// A node changes from stock containerd to Capelin and back by its drop-in alone.
func TestSwitch(t *testing.T) {
	e := newEnv(t)
	old, oldRef := e.image(t, "old", harness.ImageOptions{Layers: 4, Runnable: true})
	mid, midRef := e.image(t, "mid", harness.ImageOptions{Layers: 2, LayerBytes: 12 << 20, Incompress: true})
	fresh, freshRef := e.image(t, "fresh", harness.ImageOptions{Layers: 4, Runnable: true})
	back, backRef := e.image(t, "back", harness.ImageOptions{Layers: 2, LayerBytes: 12 << 20, Incompress: true})
	a := e.stopped(t, "a", harness.NodeOptions{Stock: true})
	must(t, a.Start(e.ctx))
	must(t, a.PullCRI(e.ctx, oldRef, nil))

	// half begins a pull and switches in the middle of it.
	half := func(img *harness.Image, ref string, capelin bool) {
		t.Helper()
		e.reg.Limit(6e6)
		wait := do(func() error { return a.PullCRI(e.ctx, ref, nil) })
		must(t, e.reg.WaitFor(e.ctx, "half a pull", func([]harness.Request) bool { return e.upstream(img) > img.Bytes()/2 }))
		must(t, a.UseCapelin(e.ctx, capelin))
		if err := wait(); err == nil {
			t.Error("the pull survived its containerd")
		}
		e.reg.Limit(0)
		must(t, a.PullCRI(e.ctx, ref, nil))
		e.check(t, a, ref, img)
	}
	usable := func(img *harness.Image, ref string) {
		t.Helper()
		e.reg.Reset()
		e.check(t, a, ref, img)
		if _, err := a.Run(e.ctx, ref); err != nil {
			t.Error(err)
		}
		must(t, a.PullCRI(e.ctx, ref, nil))
		e.noBlobs(t, a, img)
	}

	half(mid, midRef, true)
	usable(old, oldRef)

	// What was pulled before there was an agent is seeded by it.
	b := e.node(t, "b", harness.NodeOptions{})
	must(t, b.PullCRI(e.ctx, oldRef, nil))
	e.noBlobs(t, b, old)
	e.check(t, b, oldRef, old)

	must(t, a.PullCRI(e.ctx, freshRef, nil))
	half(back, backRef, false)
	usable(old, oldRef)
	usable(fresh, freshRef)
	e.check(t, a, midRef, mid)

	// And once more to Capelin.
	must(t, a.UseCapelin(e.ctx, true))
	usable(fresh, freshRef)
	e.check(t, a, backRef, back)
}
