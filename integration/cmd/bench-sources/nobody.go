package main

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/integration/harness"
)

// Item 10: what it costs when nobody has anything.
var nobody = []scenario{
	{"10", "nobody has them", []row{
		{Name: "40 small images at once", goal: times(1.25, 0)},
		{Name: "their processor time", Unit: "s of CPU", goal: timesCount(1.25)},
	}, manySmall},
}

// manySmall measures pulls of 40 images of two layers of 100 kB, all at once. The
// processor time is that of the node's processes.
func manySmall(ctx context.Context, w *world) ([]value, error) {
	imgs := make([]image, 40)
	for i := range imgs {
		var err error
		imgs[i], err = w.push(ctx, harness.ImageOptions{
			Seed: uint64(200 + i), Layers: 2, LayerBytes: 100e3, Files: 4, Compression: harness.Uncompressed, Incompress: true,
		})
		if err != nil {
			return nil, err
		}
	}
	n, err := w.node(ctx, "node", nil)
	if err != nil {
		return nil, err
	}
	before, err := n.CPU()
	if err != nil {
		return nil, err
	}
	v, err := w.measure(ctx, func(ctx context.Context) error {
		g, ctx := errgroup.WithContext(ctx)
		for _, img := range imgs {
			g.Go(func() error { return n.PullCRI(ctx, img.ref, nil) })
		}
		return g.Wait()
	})
	if err != nil {
		return nil, err
	}
	after, err := n.CPU()
	v.Count = (after - before).Seconds()
	return []value{v, v}, err
}
