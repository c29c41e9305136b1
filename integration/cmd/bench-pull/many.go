package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/integration/benchkit"
	"github.com/capelin-io/capelin/integration/harness"
)

// manyImages is how many images a node pulls at once that nobody else has: what Capelin
// costs when it cannot help.
const manyImages = 40

// many measures the pulls of small images, all at once, from the registry alone.
func (b *bench) many(ctx context.Context, rounds int) (*caseResult, error) {
	dir, err := filepath.Abs(b.images)
	if err != nil {
		return nil, err
	}
	r := &caseResult{Pulls: map[string][]pull{}}
	who := []string{"stock", "floor", "capelin"}
	if b.against != "" {
		who = append(who, "against")
	}
	for round := -1; round < rounds; round++ {
		order := slices.Clone(who)
		if round%2 != 0 {
			slices.Reverse(order)
		}
		for _, w := range order {
			refs, blobs := make([]string, manyImages), []string{}
			for i := range refs {
				// Of each pull its own: what a node has, it gives to the next.
				b.seed++
				img, err := harness.MakeImage(dir, harness.ImageOptions{Seed: b.seed, Layers: 2, LayerBytes: 60 << 10, Files: 4})
				if err != nil {
					return nil, err
				}
				if refs[i], err = b.reg.Push(ctx, img, fmt.Sprintf("many/%d:1", b.seed)); err != nil {
					return nil, err
				}
				blobs = append(append(blobs, img.Layers...), img.Config)
				if round < 0 {
					r.Layers = append(r.Layers, img.Sizes...)
				}
			}
			profile := ""
			if b.profile != "" && round < 0 {
				profile = filepath.Join(b.profile, "many-"+w)
			}
			p, err := b.pullAll(ctx, w, refs, profile, func() error { return b.cold(blobs) }, func(*harness.Node) error { return nil })
			if err != nil {
				return nil, fmt.Errorf("%s: %w", w, err)
			}
			if round >= 0 { // programs are read from the disk before
				r.Pulls[w] = append(r.Pulls[w], *p)
				b.say("  %-12s %7.2f s, %6.2f s of CPU, %5.2f s of that the plugin's, machine %2.0f%% busy",
					w, p.Wall, p.CPU, p.PluginCPU, 100*p.Busy)
			}
		}
	}
	return r, nil
}

// pullAll measures the pulls of images, all at once, on a fresh node, which check looks at in the
// end. With profile, the daemons' profiles are written to files that begin with it.
func (b *bench) pullAll(
	ctx context.Context, who string, refs []string, profile string, warm func() error, check func(*harness.Node) error,
) (p *pull, err error) {
	n, err := b.node(ctx, who)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.c.Remove(n.Node)) }()
	if err := warm(); err != nil {
		return nil, err
	}
	profiled := func() error { return nil }
	if profile != "" {
		if profiled, err = startProfiles(ctx, n.Node, profile); err != nil {
			return nil, err
		}
	}
	before, plugin, err := n.cpu()
	if err != nil {
		return nil, err
	}
	idle, err := benchkit.Now()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	var g errgroup.Group
	for _, ref := range refs {
		g.Go(func() error { return n.PullCRI(ctx, ref, nil) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	p = &pull{Wall: time.Since(start).Seconds()}
	after, pluginAfter, err := n.cpu()
	if err != nil {
		return nil, err
	}
	now, err := benchkit.Now()
	if err != nil {
		return nil, err
	}
	p.CPU, p.PluginCPU, p.Busy = (after - before).Seconds(), (pluginAfter - plugin).Seconds(), now.Busy(idle)
	if err := profiled(); err != nil {
		return nil, err
	}
	if p.Containerd, err = n.Containerd().PeakRSS(); err == nil && n.plugin != nil {
		p.Plugin, err = n.plugin.PeakRSS()
	}
	if err != nil {
		return nil, err
	}
	return p, check(n.Node)
}

// cpu returns the processor time of the node's processes, and of the plugin alone.
func (n *node) cpu() (all, plugin time.Duration, err error) {
	if all, err = n.CPU(); err == nil && n.plugin != nil {
		plugin, err = harness.ProcessCPU(n.plugin.PID())
	}
	return all, plugin, err
}
