package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/integration/harness"
)

const (
	servers  = 3
	nodes    = 3
	layers   = 5
	files    = 60 << 20  // bytes of files in each layer
	atLeast  = 200 << 20 // bytes of all layers as the registry sends them
	upstream = 25e6      // bytes per second that the registry sends: 200 Mbit/s
)

func main() {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the demo needs root: it makes network namespaces and runs containerd with overlayfs")
		os.Exit(1)
	}
	cluster := flag.Bool("cluster", false, "three servers that keep everything in S3, of which one dies")
	flag.Parse()
	story := run
	if *cluster {
		story = runCluster
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	err := told(ctx, story)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo failed: %v\n", err)
		os.Exit(1)
	}
}

// told tells a story on hosts of its own, and sees to it that nothing is left of them.
func told(ctx context.Context, story func(ctx context.Context, c *harness.Cluster) error) (err error) {
	c, err := harness.New()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, c.Logs(15))
		}
		err = errors.Join(err, c.Close())
		left := c.Leftovers()
		for _, l := range left {
			err = errors.Join(err, errors.New("left behind: "+l))
		}
		if err == nil {
			fmt.Println("✓ everything is cleaned up: no process, mount, namespace or file is left")
		}
	}()
	return story(ctx, c)
}

func run(ctx context.Context, c *harness.Cluster) error {
	step := steps()
	step("building an image of real files")
	img, err := harness.MakeImage(c.Dir+"/image", harness.ImageOptions{Seed: 2026, Layers: layers, LayerBytes: files, Files: 200})
	if err != nil {
		return err
	}
	if img.Bytes() < atLeast {
		return fmt.Errorf("the image has only %s", mb(img.Bytes()))
	}
	step("starting a registry (%s/s), %d capelin servers that are one ring, and %d nodes, with identity", mb(upstream), servers, nodes)
	reg, err := c.NewRegistry(ctx, harness.Distribution)
	if err != nil {
		return err
	}
	pki, err := c.NewPKI(ctx)
	if err != nil {
		return err
	}
	var names []string
	for i := range servers {
		names = append(names, fmt.Sprintf("server-%d", i+1))
	}
	ring, err := c.NewServers(ctx, harness.ServerOptions{PKI: pki, Users: []harness.User{publisher, reader}}, names...)
	if err != nil {
		return err
	}
	server := ring[0] // its tracker grants all leases, so that the registry's line is shared by few downloads at once
	all, err := newNodes(ctx, c, pki, ring, harness.NodeOptions{Registries: []string{reg.Addr}, Trackers: []string{server.Tracker}})
	if err != nil {
		return err
	}
	step("pushing the image: %d layers, %s, %d files", len(img.Layers), mb(img.Bytes()), len(img.Files))
	ref, err := reg.Push(ctx, img, "demo/image:1")
	if err != nil {
		return err
	}
	reg.Limit(upstream)

	step("pulling %s on all nodes at once, through CRI: download, then unpack", ref)
	p := &pull{img: img, ref: ref, reg: reg, nodes: all, hold: make(chan struct{})}
	if err := p.run(ctx); err != nil {
		return err
	}
	step("comparing every unpacked file with what the image was made of")
	for _, n := range all {
		if err := n.CheckImage(ctx, harness.K8s, ref, img); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	step("")
	if err := p.report(ctx); err != nil {
		return err
	}
	if err := gateway(ctx, c, server, all); err != nil {
		return err
	}
	return losses(ctx, c, pki, ring, all)
}

// newNodes starts nodes whose images come from the first server's gateway, by that name.
func newNodes(
	ctx context.Context, c *harness.Cluster, pki *harness.PKI, ring []*harness.Server, o harness.NodeOptions,
) (all []*harness.Node, err error) {
	for i := range nodes {
		name := fmt.Sprintf("node-%d", i+1)
		if o.Agent, err = pki.Issue(ctx, name, "node"); err != nil {
			return nil, err
		}
		o.Agent["shim.upstream"] = fmt.Sprintf("%q", "https://"+ring[0].Gateway)
		n, err := c.NewNode(name, o)
		if err != nil {
			return nil, err
		}
		if err := n.TrustGateway(ring[0], ring[1:]...); err != nil {
			return nil, err
		}
		if err := n.Start(ctx); err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, nil
}

// steps returns a function that prints what begins, and how long what went before took.
func steps() func(format string, args ...any) {
	var start time.Time
	return func(format string, args ...any) {
		if !start.IsZero() {
			fmt.Printf("  %.1f s\n", time.Since(start).Seconds())
		}
		start = time.Now()
		if format != "" {
			fmt.Printf("• "+format+"\n", args...)
		}
	}
}

func mb(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// pull is the same pull on all nodes.
type pull struct {
	img   *harness.Image
	ref   string
	reg   *harness.Registry
	nodes []*harness.Node
	hold  chan struct{} // closed when the registry may send layers

	open time.Time // when the last node had a layer open
	wall []time.Duration
	done []atomic.Bool
}

// run pulls on all nodes. The registry holds back the first byte of every layer
// until each node's containerd has a layer open, so that the pulls overlap.
func (p *pull) run(ctx context.Context) error {
	isLayer := map[string]bool{}
	for _, d := range p.img.Layers {
		isLayer[d] = true
	}
	p.reg.Reset()
	p.reg.Disturb(func(r harness.Request) harness.Fault {
		if isLayer[r.Blob] {
			return harness.Fault{Hold: p.hold}
		}
		return harness.Fault{}
	})
	defer p.reg.Disturb(nil)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.wall, p.done = make([]time.Duration, len(p.nodes)), make([]atomic.Bool, len(p.nodes))
	var g errgroup.Group
	start := time.Now()
	for i, n := range p.nodes {
		g.Go(func() error {
			err := n.PullCRI(ctx, p.ref, nil)
			p.wall[i] = time.Since(start)
			p.done[i].Store(err == nil)
			if err != nil {
				cancel()
				return fmt.Errorf("%s: pulling: %w", n.Name, err)
			}
			return nil
		})
	}
	var shown sync.WaitGroup
	done := make(chan struct{})
	shown.Go(func() { p.show(ctx, done) })
	err := p.waitOpen(ctx)
	if err == nil {
		close(p.hold)
	} else {
		cancel()
	}
	err = errors.Join(g.Wait(), err)
	close(done)
	shown.Wait()
	return err
}

func (p *pull) waitOpen(ctx context.Context) error {
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for {
		open := 0
		for _, n := range p.nodes {
			if s, err := layerStates(ctx, n, p.img); err == nil && s.open > 0 {
				open++
			}
		}
		if open == len(p.nodes) {
			p.open = time.Now()
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("only %d of %d pulls opened a layer: %w", open, len(p.nodes), ctx.Err())
		}
	}
}

type layerState struct {
	bytes int64 // of all layers, as containerd knows
	open  int   // ingests
	done  int   // layers committed
}

// layerStates asks a node's containerd how far its pull is.
func layerStates(ctx context.Context, n *harness.Node, img *harness.Image) (s layerState, err error) {
	ctx = namespaces.WithNamespace(ctx, harness.K8s)
	c, err := n.Client()
	if err != nil {
		return s, err
	}
	cs := c.ContentStore()
	active, err := cs.ListStatuses(ctx)
	if err != nil {
		return s, err
	}
	for i, d := range img.Layers {
		if _, err := cs.Info(ctx, digest.Digest(d)); err == nil {
			s.bytes += img.Sizes[i]
			s.done++
			continue
		}
		if a, ok := ingest(active, d); ok {
			s.bytes += a.Offset
			s.open++
		}
	}
	return s, nil
}

func ingest(active []content.Status, d string) (content.Status, bool) {
	for _, a := range active {
		if strings.Contains(a.Ref, d) {
			return a, true
		}
	}
	return content.Status{}, false
}

// show prints progress until done: redrawn on a terminal, a line every two seconds elsewhere.
func (p *pull) show(ctx context.Context, done <-chan struct{}) {
	_, err := unix.IoctlGetTermios(int(os.Stdout.Fd()), unix.TCGETS)
	terminal := err == nil
	every := 2 * time.Second
	if terminal {
		every = 200 * time.Millisecond
	}
	t := time.NewTicker(every)
	defer t.Stop()
	total := p.img.Bytes()
	over := false
	for first := true; ; first = false {
		var line []string
		for i, n := range p.nodes {
			s, err := layerStates(ctx, n, p.img)
			if err != nil {
				continue
			}
			part := float64(s.bytes) / float64(total)
			state := fmt.Sprintf("%3.0f%%", part*100)
			switch {
			case p.done[i].Load():
				state = "pulled and unpacked"
			case s.bytes == total:
				state = "100%, unpacking"
			}
			if terminal {
				bar := int(part * 40)
				line = append(line, fmt.Sprintf("  %s [%s%s] %s\033[K", n.Name, strings.Repeat("█", bar), strings.Repeat("·", 40-bar), state))
			} else {
				line = append(line, n.Name+" "+state)
			}
		}
		switch {
		case len(line) < len(p.nodes):
		case terminal:
			if !first {
				fmt.Printf("\033[%dA", len(line))
			}
			fmt.Println(strings.Join(line, "\n"))
		default:
			fmt.Println("  " + strings.Join(line, "   "))
		}
		if over {
			return
		}
		select {
		case <-t.C:
		case <-done:
			over = true // once more, with the last state
		}
	}
}

// report prints the table, and is an error if something in it is not as it should be.
func (p *pull) report(ctx context.Context) error {
	var errs []error
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\nnode\tpull took\tfrom peers\tfrom the registry\tof that, layers\t")
	var peers, registry, layers int64
	for i, n := range p.nodes {
		b, err := n.Status(ctx)
		if err != nil {
			return fmt.Errorf("%s: asking the agent for its counters: %w", n.Name, err)
		}
		var l int64
		for _, r := range p.reg.Blobs(p.img.Layers...) {
			if r.Client == n.Name {
				l += r.Bytes
			}
		}
		peers, registry, layers = peers+b.Bytes.FromPeers, registry+b.Bytes.FromRegistry, layers+l
		fmt.Fprintf(w, "%s\t%.1f s\t%s\t%s\t%s\t\n", n.Name, p.wall[i].Seconds(), mb(b.Bytes.FromPeers), mb(b.Bytes.FromRegistry), mb(l))
		if got := b.Bytes.FromPeers + b.Bytes.FromRegistry; got < p.img.Bytes() {
			errs = append(errs, fmt.Errorf("%s counted only %s of %s", n.Name, mb(got), mb(p.img.Bytes())))
		}
	}
	fmt.Fprintf(w, "all\t\t%s\t%s\t%s\t\n", mb(peers), mb(registry), mb(layers))
	w.Flush()
	fmt.Println()

	var first time.Time
	for _, r := range p.reg.Blobs(p.img.Layers...) {
		if !r.FirstByte.IsZero() && (first.IsZero() || r.FirstByte.Before(first)) {
			first = r.FirstByte
		}
	}
	if first.Before(p.open) {
		errs = append(errs, errors.New("the registry sent layer bytes before all pulls were open"))
	}
	bytes := p.reg.BlobBytes()
	for i, d := range p.img.Layers {
		if bytes[d] != p.img.Sizes[i] {
			errs = append(errs,
				fmt.Errorf("layer %d (%s) has %d bytes, and the registry sent %d: %v", i, d, p.img.Sizes[i], bytes[d], p.reg.Blobs(d)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Printf("✓ all %d pulls were open before the registry sent its first layer byte\n", len(p.nodes))
	fmt.Printf("✓ all %d files on all nodes have the right checksum\n", len(p.img.Files))
	fmt.Printf("✓ the registry sent each layer's bytes once: %s for %d nodes\n", mb(layers), len(p.nodes))
	return nil
}
