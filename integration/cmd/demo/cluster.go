package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/integration/harness"
)

// runCluster has three servers keep everything in S3, and kills the one that all images are named after.
func runCluster(ctx context.Context, c *harness.Cluster) error {
	step := steps()
	step("starting an S3 server, %d capelin servers that are one ring and keep tags and blobs there, and %d nodes, with identity",
		servers, nodes)
	s3, err := c.NewS3(ctx, "s3")
	if err != nil {
		return err
	}
	pki, err := c.NewPKI(ctx)
	if err != nil {
		return err
	}
	var names, trackers []string
	for i := range servers {
		names = append(names, fmt.Sprintf("server-%d", i+1))
	}
	o := harness.ServerOptions{PKI: pki, Users: []harness.User{publisher, reader}, Keys: s3.Keys, Env: s3.Env}
	ring, err := c.NewServers(ctx, o, names...)
	if err != nil {
		return err
	}
	for _, s := range ring {
		trackers = append(trackers, s.Tracker)
	}
	all, err := newNodes(ctx, c, pki, ring, harness.NodeOptions{Trackers: trackers})
	if err != nil {
		return err
	}
	img, err := harness.MakeImage(c.Dir+"/image", harness.ImageOptions{Seed: 2029, Layers: 4, LayerBytes: 32 << 20, Files: 50})
	if err != nil {
		return err
	}
	later, err := harness.MakeImage(c.Dir+"/image", harness.ImageOptions{Seed: 2030, Layers: 2, LayerBytes: 8 << 20, Files: 50})
	if err != nil {
		return err
	}
	k := &kill{pki: pki, s3: s3, ring: ring, nodes: all, lost: lost{ring: ring, img: img}}
	step("pushing an image (%s) through %s, until each blob is in S3", mb(img.Bytes()), ring[0].Name)
	if err := k.push(ctx); err != nil {
		return err
	}
	step("pulling it on all nodes at once, and killing %s (SIGKILL), which they pull it from, in the middle", ring[0].Name)
	if err := k.lost.pull(ctx, all, ring[0]); err != nil {
		return err
	}
	step("without it: overwriting the tag through %s, reading it through %s, pulling it on all nodes", ring[1].Name, ring[2].Name)
	if err := k.overwrite(ctx, later); err != nil {
		return err
	}
	step("starting %s again with an empty disk, and waiting until the ring is whole", ring[0].Name)
	if err := k.replace(ctx); err != nil {
		return err
	}
	step("")
	k.report()
	return nil
}

// kill is what the death of a server cost.
type kill struct {
	pki   *harness.PKI
	s3    *harness.S3
	ring  []*harness.Server
	nodes []*harness.Node
	lost  lost

	pushed, stored, without, whole time.Duration
}

func (k *kill) push(ctx context.Context) (err error) {
	start := time.Now()
	if k.lost.ref, err = k.ring[0].Push(ctx, k.lost.img, "team/app:1", publisher); err != nil {
		return err
	}
	k.pushed = time.Since(start)
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for slices.ContainsFunc(append(k.lost.img.Layers, k.lost.img.Config), func(d string) bool { return !k.s3.Has(d) }) {
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("the blobs do not come to S3: %w", ctx.Err())
		}
	}
	k.stored = time.Since(start)
	return nil
}

// overwrite writes a tag through one server that is left, and reads it through the other: neither has asked the other.
func (k *kill) overwrite(ctx context.Context, img *harness.Image) error {
	start := time.Now()
	if _, err := k.ring[1].Push(ctx, img, "team/app:1", publisher); err != nil {
		return err
	}
	if got, err := k.ring[2].Digest(ctx, "team/app:1", reader); err != nil || got != img.Manifest {
		return errors.Join(err, fmt.Errorf("%s says that team/app:1 is %q, and %s was pushed through %s",
			k.ring[2].Name, got, img.Manifest, k.ring[1].Name))
	}
	var g errgroup.Group
	for _, n := range k.nodes {
		g.Go(func() error {
			if err := n.PullCRI(ctx, k.lost.ref, &harness.Auth{User: reader.Name, Password: reader.Password}); err != nil {
				return fmt.Errorf("%s: pulling: %w", n.Name, err)
			}
			return n.CheckImage(ctx, harness.K8s, k.lost.ref, img)
		})
	}
	err := g.Wait()
	k.without = time.Since(start)
	return err
}

// replace starts the server that died on an empty disk.
func (k *kill) replace(ctx context.Context) error {
	if err := os.RemoveAll(k.ring[0].Data); err != nil {
		return err
	}
	start := time.Now()
	if err := k.ring[0].Start(ctx); err != nil {
		return err
	}
	if err := k.lost.wait(ctx, k.pki); err != nil {
		return err
	}
	k.whole = time.Since(start)
	return nil
}

// report prints the table. Had something failed it would not come to that.
func (k *kill) report() {
	victim := k.ring[0].Name
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\na ring of three, all of it in S3\ttook\tfailed\t")
	fmt.Fprintf(w, "push\t%.1f s\t0\t\n", k.pushed.Seconds())
	fmt.Fprintf(w, "until each blob is in S3\t%.1f s\t\t\n", k.stored.Seconds())
	fmt.Fprintf(w, "pulls, %s killed in the middle\t%.1f s\t0\t\n", victim, k.lost.pulled.Seconds())
	fmt.Fprintf(w, "push of the same tag and pulls, without %s\t%.1f s\t0\t\n", victim, k.without.Seconds())
	fmt.Fprintf(w, "until the ring is whole, %s's disk empty\t%.1f s\t\t\n", victim, k.whole.Seconds())
	w.Flush()
	fmt.Printf("\n✓ all pulls from %s went on although it was killed, and every file has the right checksum\n", victim)
	fmt.Println("✓ what one server wrote, another one read, without the third: tags and blobs are in S3")
}
