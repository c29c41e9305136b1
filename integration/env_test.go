package integration

import (
	"context"
	"fmt"
	"maps"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/integration/harness"
)

// env is a cluster with a registry and a tracker.
type env struct {
	ctx     context.Context
	c       *harness.Cluster
	reg     *harness.Registry
	tracker *harness.Tracker
	seeds   uint64
	pki     *harness.PKI // nil: without identity
}

func newEnv(t *testing.T) *env {
	t.Helper()
	ctx, c := newCluster(t)
	e := &env{ctx: ctx, c: c, reg: newRegistry(ctx, t, c), seeds: 100}
	e.tracker = get(c.NewTracker(ctx, "tracker", nil))(t)
	return e
}

// newSecureEnv is newEnv with certificates for all.
func newSecureEnv(t *testing.T) *env {
	t.Helper()
	ctx, c := newCluster(t)
	e := &env{ctx: ctx, c: c, reg: newRegistry(ctx, t, c), seeds: 100, pki: get(c.NewPKI(ctx))(t)}
	e.tracker = get(c.NewTracker(ctx, "tracker", get(e.pki.Issue(ctx, "tracker", "tracker"))(t)))(t)
	must(t, e.tracker.Trust(ctx, e.pki))
	return e
}

// image makes one that no other test of the cluster has, and pushes it.
func (e *env) image(t *testing.T, repo string, o harness.ImageOptions) (*harness.Image, string) {
	t.Helper()
	if o.Seed == 0 {
		e.seeds++
		o.Seed = e.seeds
	}
	return pushImage(e.ctx, t, e.c, e.reg, repo+":1", o)
}

// node makes a node and starts it. It goes when the test or subtest ends well;
// otherwise it stays for the report.
func (e *env) node(t *testing.T, name string, o harness.NodeOptions) *harness.Node {
	t.Helper()
	n := e.stopped(t, name, o)
	must(t, n.Start(e.ctx))
	return n
}

// stopped is a node that was not started.
func (e *env) stopped(t *testing.T, name string, o harness.NodeOptions) *harness.Node {
	t.Helper()
	o = e.options(o)
	if e.pki != nil {
		keys := get(e.pki.Issue(e.ctx, name, "node"))(t)
		maps.Copy(keys, o.Agent)
		o.Agent = keys
	}
	n := get(e.c.NewNode(name, o))(t)
	e.leaves(t, n)
	return n
}

// options are o with the registry and the tracker of e, if it names none.
func (e *env) options(o harness.NodeOptions) harness.NodeOptions {
	if o.Registries == nil {
		o.Registries = []string{e.reg.Addr}
	}
	if o.Trackers == nil {
		o.Trackers = []string{e.tracker.Listen}
	}
	o.Agent = maps.Clone(o.Agent)
	return o
}

// leaves removes a node when the test or subtest has ended well.
func (e *env) leaves(t *testing.T, n *harness.Node) {
	t.Cleanup(func() {
		if !t.Failed() {
			must(t, e.c.Remove(n))
		}
	})
}

// machine boots a machine and installs the agent on it. It goes like a node.
func (e *env) machine(t *testing.T, name string, o harness.NodeOptions) *harness.Machine {
	t.Helper()
	m := e.booted(t, name, o)
	must(t, m.Start(e.ctx))
	return m
}

// booted is a machine on which neither containerd nor the agent was started.
func (e *env) booted(t *testing.T, name string, o harness.NodeOptions) *harness.Machine {
	t.Helper()
	m := get(e.c.NewMachine(e.ctx, name, e.options(o)))(t)
	e.leaves(t, m.Node)
	return m
}

// noBlobs fails if the node asked the registry for any of the image's blobs.
func (e *env) noBlobs(t *testing.T, n *harness.Node, img *harness.Image) {
	t.Helper()
	for _, r := range e.reg.Blobs(append([]string{img.Config}, img.Layers...)...) {
		if r.Client == n.Name {
			t.Errorf("a blob that the swarm has was requested: %v", r)
		}
	}
}

// upstream returns the bytes that the registry sent of an image's layers, to all.
func (e *env) upstream(img *harness.Image) (total int64) {
	for _, r := range e.reg.Blobs(img.Layers...) {
		total += r.Bytes
	}
	return total
}

// once fails unless the registry sent each layer exactly once.
func (e *env) once(t *testing.T, img *harness.Image) {
	t.Helper()
	sent := e.reg.BlobBytes()
	for i, d := range img.Layers {
		if sent[d] != img.Sizes[i] {
			t.Errorf("the registry sent %d bytes of layer %d, which has %d: %v", sent[d], i, img.Sizes[i], e.reg.Blobs(d))
		}
	}
}

// check fails unless the unpacked image is right.
func (e *env) check(t *testing.T, n *harness.Node, ref string, img *harness.Image) {
	t.Helper()
	if err := n.CheckImage(e.ctx, harness.K8s, ref, img); err != nil {
		t.Errorf("%s: %v", n.Name, err)
	}
}

// poll waits until f reports true, for what no daemon tells by an event.
func (e *env) poll(t *testing.T, what string, f func() bool) {
	t.Helper()
	must(t, e.await(what, f))
}

func (e *env) await(what string, f func() bool) error { return await(e.ctx, what, f) }

// await waits until f reports true or ctx ends.
func await(ctx context.Context, what string, f func() bool) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: never", what)
		}
	}
	return nil
}

// do runs f in the background; the function it returns waits for f's result.
func do[T any](f func() T) func() T {
	c := make(chan T, 1)
	go func() { c <- f() }()
	return func() T { return <-c }
}

func quote(s string) string { return fmt.Sprintf("%q", s) }

func syncDisk() { unix.Sync() }
