package main

import (
	"context"

	"github.com/capelin-io/capelin/integration/harness"
)

// Item 2: sources that are slow, beside a registry that is not.
var slow = []scenario{
	{"2", "lease holder's registry is slow", []row{{Name: "450 kB/s", goal: inTime}}, behindAnother(450e3, byContainerd)},
	{"2", "lease holder's registry is slow, by the shim", []row{{Name: "150 kB/s", goal: inTime}}, behindAnother(150e3, byShim)},
	{"2", "lease holder's registry is as fast", []row{{Name: "one copy", goal: fromRegistry(1.1 * 20e6)}}, behindAnother(fast, byContainerd)},
	{"2", "seeder is limited", []row{{Name: "60 KB/s", goal: inTime}}, limitedSeeder},
	{"2", "seeder trickles", []row{{Name: "a block every 2 s", goal: inTime}}, trickler},
}

// fast is what a registry gives, in bytes per second, that is not slow.
const fast = 20e6

var inTime = times(1.2, 2)

// byContainerd and byShim have a node download an image from another registry.
func byContainerd(ctx context.Context, n *harness.Node, _ *harness.Registry, img image) error {
	return n.PullCRI(ctx, img.ref, nil)
}

func byShim(ctx context.Context, n *harness.Node, r *harness.Registry, img image) error {
	_, err := get(ctx, n, r.Addr, img.repo, img.Layers[0])
	return err
}

// behindAnother measures a pull from a fast registry, while another node downloads the same
// layer from a registry of another rate, and has the lease.
func behindAnother(rate int64, download func(context.Context, *harness.Node, *harness.Registry, image) error,
) func(context.Context, *world) ([]value, error) {
	return func(ctx context.Context, w *world) ([]value, error) {
		img, err := w.push(ctx, twenty(1))
		if err != nil {
			return nil, err
		}
		other, err := w.another(ctx)
		if err != nil {
			return nil, err
		}
		theirs := img
		if theirs.ref, err = other.Push(ctx, img.Image, img.repo+":1"); err != nil {
			return nil, err
		}
		w.registry.Limit(fast)
		other.Limit(rate)
		holder, err := w.node(ctx, "holder", shimKeys(other.Addr))
		if err != nil {
			return nil, err
		}
		n, err := w.node(ctx, "node", nil)
		if err != nil {
			return nil, err
		}
		_, stop := background(ctx, func(ctx context.Context) {
			_ = download(ctx, holder, other, theirs) // most are cancelled
		})
		defer stop()
		if err := other.WaitFor(ctx, "the lease holder", func(rs []harness.Request) bool {
			return sent(rs, img.Layers[0]) > 0
		}); err != nil {
			return nil, err
		}
		v, err := w.pull(ctx, n, img.ref)
		v.Registry = w.fromRegistries()
		return []value{v}, err
	}
}

// sent is how much of a blob a registry has sent.
func sent(rs []harness.Request, digest string) (n int64) {
	for _, r := range rs {
		if r.Blob == digest {
			n += r.Bytes
		}
	}
	return n
}

func limitedSeeder(ctx context.Context, w *world) ([]value, error) {
	img, err := w.push(ctx, twenty(1))
	if err != nil {
		return nil, err
	}
	if _, err := w.seeder(ctx, "seeder", keys{"limits.upload": quote("60KB/s")}, img); err != nil {
		return nil, err
	}
	return w.one(ctx, img)
}

func trickler(ctx context.Context, w *world) ([]value, error) {
	img, err := w.push(ctx, twenty(1))
	if err != nil {
		return nil, err
	}
	if err := w.liar(ctx, harness.Trickles, img); err != nil {
		return nil, err
	}
	return w.one(ctx, img)
}

// one measures one pull from a fast registry on a node of its own.
func (w *world) one(ctx context.Context, img image) ([]value, error) {
	w.registry.Limit(fast)
	n, err := w.node(ctx, "node", nil)
	if err != nil {
		return nil, err
	}
	v, err := w.pull(ctx, n, img.ref)
	return []value{v}, err
}
