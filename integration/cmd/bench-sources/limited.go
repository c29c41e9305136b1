package main

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/integration/harness"
)

// Item 3: one seeder that is limited, and an image of three layers.
var limited = []scenario{
	{"3", "seeder with 10 MB/s", []row{{Name: "three layers, two nodes", goal: fromRegistry(0)}}, limitedAndMany},
}

func limitedAndMany(ctx context.Context, w *world) ([]value, error) {
	img, nodes, _, err := w.threeLayers(ctx)
	if err != nil {
		return nil, err
	}
	v, err := w.measure(ctx, func(ctx context.Context) error { return together(ctx, nodes, img.ref) })
	return []value{v}, err
}

// threeLayers makes an image of three layers of 57 MiB, a seeder (nil in a stock world)
// that gives 10 MB/s, and two nodes.
func (w *world) threeLayers(ctx context.Context) (img image, nodes []*harness.Node, seeder *harness.Node, err error) {
	img, err = w.push(ctx, harness.ImageOptions{
		Seed: 100, Layers: 3, LayerBytes: 60e6, Files: 4, Compression: harness.Uncompressed, Incompress: true,
	})
	if err != nil {
		return img, nil, nil, err
	}
	if seeder, err = w.seeder(ctx, "seeder", keys{"limits.upload": quote("10MB/s")}, img); err != nil {
		return img, nil, nil, err
	}
	for i := range 2 {
		n, err := w.node(ctx, fmt.Sprintf("node-%d", i), nil)
		if err != nil {
			return img, nil, nil, err
		}
		nodes = append(nodes, n)
	}
	return img, nodes, seeder, nil
}

// together has nodes pull at the same time.
func together(ctx context.Context, nodes []*harness.Node, ref string) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range nodes {
		g.Go(func() error { return n.PullCRI(ctx, ref, nil) })
	}
	return g.Wait()
}
