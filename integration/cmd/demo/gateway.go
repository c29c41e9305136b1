package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"text/tabwriter"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/integration/harness"
)

var (
	publisher = harness.User{Name: "publisher", Password: "pushes", Namespaces: "team/.*", Actions: []string{"pull", "push"}}
	reader    = harness.User{Name: "reader", Password: "pulls", Namespaces: "team/.*", Actions: []string{"pull"}}
)

// shim is where each agent's registry API is, seen from its own host.
const shim = "127.0.0.1:7405"

// gateway pushes an image through the gateway and pulls it from there.
func gateway(ctx context.Context, c *harness.Cluster, server *harness.Server, nodes []*harness.Node) error {
	fmt.Println()
	step := steps()
	step("pushing another image through the gateway, without and with a password")
	img, err := harness.MakeImage(c.Dir+"/image", harness.ImageOptions{Seed: 2027, Layers: 4, LayerBytes: 16 << 20, Files: 50})
	if err != nil {
		return err
	}
	_, err = server.Push(ctx, img, "team/app:1", harness.User{})
	var refused *transport.Error
	if !errors.As(err, &refused) || refused.StatusCode != http.StatusUnauthorized {
		return fmt.Errorf("a push by nobody was not refused with 401: %w", err)
	}
	ref, err := server.Push(ctx, img, "team/app:1", publisher)
	if err != nil {
		return err
	}

	step("pulling %s on all nodes at once, with a pull secret", ref)
	before := make([]int64, len(nodes))
	for i, n := range nodes {
		st, err := n.Status(ctx)
		if err != nil {
			return err
		}
		before[i] = st.Bytes.FromPeers
	}
	wall := make([]time.Duration, len(nodes))
	var g errgroup.Group
	for i, n := range nodes {
		g.Go(func() error {
			start := time.Now()
			if err := n.PullCRI(ctx, ref, &harness.Auth{User: reader.Name, Password: reader.Password}); err != nil {
				return fmt.Errorf("%s: pulling: %w", n.Name, err)
			}
			wall[i] = time.Since(start)
			return n.CheckImage(ctx, harness.K8s, ref, img)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	swarm := make([]int64, len(nodes))
	for i, n := range nodes {
		st, err := n.Status(ctx)
		if err != nil {
			return err
		}
		if swarm[i] = st.Bytes.FromPeers - before[i]; swarm[i] < img.Bytes() {
			return fmt.Errorf("%s took only %s of %s from the swarm", n.Name, mb(swarm[i]), mb(img.Bytes()))
		}
	}

	step("pulling it with a Docker engine on %s, through the agent's shim", nodes[0].Name)
	d, err := nodes[0].StartDocker(ctx, harness.DockerOptions{})
	if err != nil {
		return err
	}
	start := time.Now()
	local := shim + "/team/app:1"
	if err := d.Login(shim, reader.Name, reader.Password); err != nil {
		return err
	}
	if _, err := d.Run(ctx, "pull", local); err != nil {
		return err
	}
	docker := time.Since(start)
	id, err := d.ImageID(ctx, local)
	if err != nil {
		return err
	}
	if id != img.Config {
		return fmt.Errorf("docker has image %s, and %s was pushed", id, img.Config)
	}
	if err := d.Stop(); err != nil {
		return err
	}
	step("")

	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\nclient\tpull took\tfrom the swarm\t")
	for i, n := range nodes {
		fmt.Fprintf(w, "%s's containerd\t%.1f s\t%s\t\n", n.Name, wall[i].Seconds(), mb(swarm[i]))
	}
	fmt.Fprintf(w, "%s's Docker\t%.1f s\tits node had it\t\n", nodes[0].Name, docker.Seconds())
	w.Flush()
	fmt.Printf("\n✓ the gateway refused a push without a password, and took it from %s\n", publisher.Name)
	fmt.Printf("✓ all %d nodes pulled it by its gateway name, every layer out of the swarm\n", len(nodes))
	fmt.Println("✓ a Docker engine pulled the same image through the shim")
	return nil
}
