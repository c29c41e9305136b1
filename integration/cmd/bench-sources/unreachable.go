package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/capelin-io/capelin/integration/harness"
)

// Item 1: sources that are listed and cannot be reached. The peers' port is 7401.
var unreachable = []scenario{
	{"1", "refuses", firstAndLater(.3), alone(rejects)},
	{"1", "drops", firstAndLater(1.5), alone(drops)},
	{"1", "loses large packets", firstAndLater(1.5), alone(losesLarge)},
	{"1", "accepts and is silent", firstAndLater(1.5), silent},
	{"1", "greets and is silent", firstAndLater(1.5), liarAlone(harness.HasNothing)},
	{"1", "one of three drops", []row{
		{Name: "all reachable"},
		{Name: "one is not", Unit: "s more", goal: count(.1, "s more than with all")},
	}, oneOfThree},
	{"1", "seeder beside its tracker", firstAndLater(.1), beside(false)},
	{"1", "seeder beside its tracker, IPv6", firstAndLater(.1), beside(true)},
}

// firstAndLater are the rows of a first pull, with so many seconds over stock, and of the
// slower one of two later pulls of other images.
func firstAndLater(seconds float64) []row {
	return []row{{Name: "first pull", goal: over(seconds)}, {Name: "later pulls", goal: over(min(seconds, .1))}}
}

const pulls = 3

// firstLater measures these rows.
func (w *world) firstLater(ctx context.Context, n *harness.Node, imgs []image) ([]value, error) {
	var vs []value
	for _, img := range imgs {
		v, err := w.pull(ctx, n, img.ref)
		if err != nil {
			return nil, err
		}
		vs = append(vs, v)
	}
	return []value{vs[0], worst(vs[1:])}, nil
}

// worst returns the slowest.
func worst(vs []value) (w value) {
	for _, v := range vs {
		if v.Wall >= w.Wall {
			w = v
		}
	}
	return w
}

// What a firewall does to those who would connect.
func rejects(ctx context.Context, n *harness.Node) error {
	return n.IPTables(ctx, "INPUT", "-p", "tcp", "--dport", "7401", "-j", "REJECT", "--reject-with", "tcp-reset")
}

func drops(ctx context.Context, n *harness.Node) error {
	return n.IPTables(ctx, "INPUT", "-p", "tcp", "--dport", "7401", "-j", "DROP")
}

func losesLarge(ctx context.Context, n *harness.Node) error {
	return n.IPTables(ctx, "OUTPUT", "-p", "tcp", "--sport", "7401", "-m", "length", "--length", "1000:", "-j", "DROP")
}

// alone measures with one seeder that nobody reaches.
func alone(firewall func(context.Context, *harness.Node) error) func(context.Context, *world) ([]value, error) {
	return func(ctx context.Context, w *world) ([]value, error) {
		imgs, err := w.pushSome(ctx, pulls)
		if err != nil {
			return nil, err
		}
		if !w.stock() {
			s, err := w.node(ctx, "seeder", nil)
			if err == nil {
				err = errors.Join(w.pulledBy(ctx, s, imgs...), firewall(ctx, s))
			}
			if err != nil {
				return nil, err
			}
		}
		n, err := w.node(ctx, "node", nil)
		if err != nil {
			return nil, err
		}
		return w.firstLater(ctx, n, imgs)
	}
}

// silent measures with one seeder whose address is that of something else, which reads
// and says nothing.
func silent(ctx context.Context, w *world) ([]value, error) {
	imgs, err := w.pushSome(ctx, pulls)
	if err != nil {
		return nil, err
	}
	if !w.stock() {
		if err := w.needTracker(ctx); err != nil {
			return nil, err
		}
		s, err := w.NewNode("seeder", harness.NodeOptions{Trackers: []string{w.tracker.Listen}})
		if err != nil {
			return nil, err
		}
		addr := s.Addr + ":7499"
		s.Options.Agent = keys{"advertise": quote(addr)}
		l, err := s.Listen("tcp", addr)
		if err != nil {
			return nil, err
		}
		defer l.Close()
		go swallow(l)
		if err := w.seed(ctx, s, imgs...); err != nil {
			return nil, err
		}
	}
	n, err := w.node(ctx, "node", nil)
	if err != nil {
		return nil, err
	}
	return w.firstLater(ctx, n, imgs)
}

// swallow takes connections and what comes over them, until l is closed.
func swallow(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(io.Discard, c)
		}()
	}
}

// liarAlone measures with one source, which is a liar.
func liarAlone(lie harness.Lie) func(context.Context, *world) ([]value, error) {
	return func(ctx context.Context, w *world) ([]value, error) {
		imgs, err := w.pushSome(ctx, pulls)
		if err != nil {
			return nil, err
		}
		if err := w.liar(ctx, lie, imgs...); err != nil {
			return nil, err
		}
		n, err := w.node(ctx, "node", nil)
		if err != nil {
			return nil, err
		}
		return w.firstLater(ctx, n, imgs)
	}
}

// oneOfThree measures the first pull of a node when three seeders are well, and that of
// another node, of another image, when a firewall is before one of them.
func oneOfThree(ctx context.Context, w *world) ([]value, error) {
	imgs, err := w.pushSome(ctx, 2)
	if err != nil {
		return nil, err
	}
	var seeders []*harness.Node
	for !w.stock() && len(seeders) < 3 {
		s, err := w.node(ctx, fmt.Sprintf("seeder-%d", len(seeders)), nil)
		if err == nil {
			err = w.pulledBy(ctx, s, imgs...)
		}
		if err != nil {
			return nil, err
		}
		seeders = append(seeders, s)
	}
	vs := make([]value, len(imgs))
	for i, img := range imgs {
		n, err := w.node(ctx, fmt.Sprintf("node-%d", i), nil)
		if err != nil {
			return nil, err
		}
		if i == 1 && !w.stock() {
			if err := drops(ctx, seeders[0]); err != nil {
				return nil, err
			}
		}
		if vs[i], err = w.pull(ctx, n, img.ref); err != nil {
			return nil, err
		}
	}
	vs[1].Count = vs[1].Wall - vs[0].Wall
	return vs, nil
}

// beside measures with a seeder on the tracker's host, which calls it localhost, and
// listens on all addresses. The node knows the tracker by its address.
func beside(six bool) func(context.Context, *world) ([]value, error) {
	return func(ctx context.Context, w *world) ([]value, error) {
		imgs, err := w.pushSome(ctx, pulls)
		if err != nil {
			return nil, err
		}
		if !w.stock() {
			if err := w.seederBeside(ctx, six, imgs); err != nil {
				return nil, err
			}
		}
		n, err := w.newNode(ctx, "node", keys{"listen": quote(":7401")})
		if err == nil && six {
			_, err = w.AddIPv6(n.Host)
		}
		if err == nil {
			err = w.start(ctx, n)
		}
		if err != nil {
			return nil, err
		}
		return w.firstLater(ctx, n, imgs)
	}
}

// seederBeside starts a tracker, and a seeder on its host. Others find the tracker at an
// address of IPv6, if six.
func (w *world) seederBeside(ctx context.Context, six bool, imgs []image) error {
	s, err := w.NewNode("seeder", harness.NodeOptions{
		Registries: []string{w.registry.Addr}, Trackers: []string{"localhost:7470"}, Agent: keys{"listen": quote(":7401")},
	})
	if err != nil {
		return err
	}
	w.at = s.Addr + ":7470"
	if six {
		addr, err := w.AddIPv6(s.Host)
		if err != nil {
			return err
		}
		w.at = net.JoinHostPort(addr, "7470")
	}
	if w.tracker, err = harness.NewTrackerOn(ctx, s.Host, map[string]string{"listen": quote(":7470")}); err != nil {
		return err
	}
	if err := w.start(ctx, s); err != nil {
		return err
	}
	return w.pulledBy(ctx, s, imgs...)
}
