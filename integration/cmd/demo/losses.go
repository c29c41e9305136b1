package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/integration/harness"
)

// losses pushes an image and pulls it, and kills a server in the middle of each.
func losses(ctx context.Context, c *harness.Cluster, pki *harness.PKI, ring []*harness.Server, nodes []*harness.Node) error {
	fmt.Println()
	step := steps()
	first, second, third := ring[0], ring[1], ring[2]
	img, err := harness.MakeImage(c.Dir+"/image", harness.ImageOptions{Seed: 2028, Layers: 4, LayerBytes: 32 << 20, Files: 50})
	if err != nil {
		return err
	}
	l := &lost{ring: ring, img: img}
	step("pushing a third image (%s) through %s, and killing %s (SIGKILL) in the middle", mb(img.Bytes()), first.Name, second.Name)
	if err := l.push(ctx, second); err != nil {
		return err
	}
	step("starting %s again; pulling the image on all nodes at once, and killing %s in the middle", second.Name, third.Name)
	if err := second.Start(ctx); err != nil {
		return err
	}
	if err := l.pull(ctx, nodes, third); err != nil {
		return err
	}
	step("starting %s again, and waiting until each blob is at all its owners: capelin origin ring --wait", third.Name)
	if err := third.Start(ctx); err != nil {
		return err
	}
	if err := l.wait(ctx, pki); err != nil {
		return err
	}
	step("")
	l.report()
	return nil
}

// lost is what it cost.
type lost struct {
	ring []*harness.Server
	img  *harness.Image
	ref  string

	pushed, pulled, whole time.Duration
	again                 int64 // bytes that were sent again
}

// push pushes, as Docker does: what is unavailable is pushed again.
func (l *lost) push(ctx context.Context, victim *harness.Server) (err error) {
	server := l.ring[0]
	before, start := server.Sent.Load(), time.Now()
	done := make(chan error, 1)
	written := make(chan v1.Update) // without a buffer: the push waits while it is looked how far it is
	go func() {
		again := remote.WithRetryBackoff(remote.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Steps: 6})
		ref, err := server.Push(ctx, l.img, "team/app:2", publisher, again, remote.WithProgress(written))
		l.ref = ref
		done <- err
	}()
	if err := killWhen(ctx, victim, done, written, func() bool { return uploading(victim) > 4<<20 }); err != nil {
		return fmt.Errorf("the push: %w", err)
	}
	go func() {
		for range written { // it is closed when all is pushed
		}
	}()
	if err := <-done; err != nil {
		return err
	}
	l.pushed, l.again = time.Since(start), max(0, server.Sent.Load()-before-l.img.Bytes())
	return nil
}

// uploading returns how many bytes of pushes under way a server's origin has.
func uploading(s *harness.Server) (n int64) {
	_ = filepath.WalkDir(filepath.Join(s.Data, "origin", "uploads"), func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				n += info.Size()
			}
		}
		return nil
	})
	return n
}

// killWhen kills a server when it is time to, which may have come each time that look says something. It is an error if what it is to be
// in the middle of ends before.
func killWhen[T any](ctx context.Context, s *harness.Server, done chan error, look <-chan T, now func() bool) error {
	for !now() {
		select {
		case err := <-done:
			return errors.Join(fmt.Errorf("it was over before %s could be killed", s.Name), err)
		case <-look:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.Kill()
	return nil
}

// pull pulls on all nodes.
func (l *lost) pull(ctx context.Context, nodes []*harness.Node, victim *harness.Server) error {
	var g errgroup.Group
	start := time.Now()
	for _, n := range nodes {
		g.Go(func() error {
			if err := n.PullCRI(ctx, l.ref, &harness.Auth{User: reader.Name, Password: reader.Password}); err != nil {
				return fmt.Errorf("%s: pulling: %w", n.Name, err)
			}
			return n.CheckImage(ctx, harness.K8s, l.ref, l.img)
		})
	}
	done := make(chan error, 1)
	go func() { done <- g.Wait() }()
	t := time.NewTicker(2 * time.Millisecond)
	defer t.Stop()
	err := killWhen(ctx, victim, done, t.C, func() bool {
		s, err := layerStates(ctx, nodes[0], l.img)
		return err == nil && s.open > 0
	})
	if err != nil {
		return fmt.Errorf("the pulls: %w", err)
	}
	if err := <-done; err != nil {
		return err
	}
	l.pulled = time.Since(start)
	return nil
}

// wait waits until the ring is whole.
func (l *lost) wait(ctx context.Context, pki *harness.PKI) error {
	bin, err := harness.Built("capelin")
	if err != nil {
		return err
	}
	if _, err := pki.Issue(ctx, "operator", "admin"); err != nil {
		return err
	}
	at := filepath.Join(pki.Dir, "issued", "operator")
	start := time.Now()
	args := []string{
		"origin", "ring", "--wait", "--timeout", "3m",
		"--ca", at + "/ca.crt", "--cert", at + "/tls.crt", "--key", at + "/tls.key",
	}
	for _, s := range l.ring {
		args = append(args, "--origin", s.Addr+":7480")
	}
	out, err := l.ring[0].Command(ctx, nil, bin, args...)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	l.whole = time.Since(start)
	return nil
}

// report prints the table. Had something failed it would not come to that.
func (l *lost) report() {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\na ring of three\ttook\tsent again\tfailed\t")
	fmt.Fprintf(w, "push, %s killed in the middle\t%.1f s\t%s\t0\t\n", l.ring[1].Name, l.pushed.Seconds(), mb(l.again))
	fmt.Fprintf(w, "pulls, %s killed in the middle\t%.1f s\t\t0\t\n", l.ring[2].Name, l.pulled.Seconds())
	fmt.Fprintf(w, "until each blob has its copies again\t%.1f s\t\t\t\n", l.whole.Seconds())
	w.Flush()
	fmt.Printf("\n✓ a push went on although %s was killed, and was acknowledged\n", l.ring[1].Name)
	fmt.Printf("✓ all pulls went on although %s was killed, and every file has the right checksum\n", l.ring[2].Name)
}
