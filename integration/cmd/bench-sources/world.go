package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/capelin-io/capelin/integration/harness"
)

// A world is the cluster of one measurement. In a stock one there are a registry and
// nodes with nothing but containerd, and whoever else is asked for is not made: what a
// scenario does is written down once.
type world struct {
	*harness.Cluster
	*images

	who      string
	capped   time.Duration
	registry *harness.Registry
	more     []*harness.Registry // besides it
	tracker  *harness.Tracker    // nil: not wanted yet
	at       string              // where nodes find it
}

func (w *world) stock() bool { return w.who == stock }

// another starts one more registry.
func (w *world) another(ctx context.Context) (*harness.Registry, error) {
	r, err := w.NewRegistry(ctx, harness.Distribution)
	if err == nil {
		w.more = append(w.more, r)
	}
	return r, err
}

// An image and where it is pulled from.
type image struct {
	*harness.Image
	repo string
	ref  string
}

// layer returns a layer's blob.
func (img image) layer(i int) ([]byte, error) {
	layers, err := img.V1.Layers()
	if err != nil {
		return nil, err
	}
	r, err := layers[i].Compressed()
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}

// push pushes an image to the registry.
func (w *world) push(ctx context.Context, o harness.ImageOptions) (image, error) {
	img, err := w.make(o)
	if err != nil {
		return image{}, err
	}
	repo := fmt.Sprintf("bench/%d", o.Seed)
	ref, err := w.registry.Push(ctx, img, repo+":1")
	return image{img, repo, ref}, err
}

// pushSome pushes so many images of one layer of 20 MB.
func (w *world) pushSome(ctx context.Context, n int) (imgs []image, err error) {
	for i := range n {
		img, err := w.push(ctx, twenty(uint64(1+i)))
		if err != nil {
			return nil, err
		}
		imgs = append(imgs, img)
	}
	return imgs, nil
}

// needTracker starts the cluster's tracker on a host of its own, if there is none yet.
func (w *world) needTracker(ctx context.Context) (err error) {
	if w.tracker != nil || w.stock() {
		return nil
	}
	if w.tracker, err = w.NewTracker(ctx, "tracker", nil); err == nil {
		w.at = w.tracker.Listen
	}
	return err
}

// keys are of an agent's configuration.
type keys map[string]string

func quote(s string) string { return fmt.Sprintf("%q", s) }

// newNode makes a node that pulls, from all registries that there are by now; in a stock
// world without an agent.
func (w *world) newNode(ctx context.Context, name string, k keys) (*harness.Node, error) {
	if err := w.needTracker(ctx); err != nil {
		return nil, err
	}
	o := harness.NodeOptions{Stock: w.stock(), Registries: []string{w.registry.Addr}, Agent: k}
	for _, r := range w.more {
		o.Registries = append(o.Registries, r.Addr)
	}
	if w.at != "" {
		o.Trackers = []string{w.at}
	}
	return w.NewNode(name, o)
}

// start starts a node that was made, and waits until it is connected to its tracker.
func (w *world) start(ctx context.Context, n *harness.Node) error {
	if err := n.Start(ctx); err != nil || w.stock() {
		return err
	}
	return n.AwaitTrackers(ctx)
}

// node is newNode and start.
func (w *world) node(ctx context.Context, name string, k keys) (*harness.Node, error) {
	n, err := w.newNode(ctx, name, k)
	if err != nil {
		return nil, err
	}
	return n, w.start(ctx, n)
}

// seeder starts a node that does nothing but offer images, and waits until the tracker
// knows of them. In a stock world there is none: nil.
func (w *world) seeder(ctx context.Context, name string, k keys, imgs ...image) (*harness.Node, error) {
	if w.stock() {
		return nil, nil
	}
	if err := w.needTracker(ctx); err != nil {
		return nil, err
	}
	n, err := w.NewNode(name, harness.NodeOptions{Trackers: []string{w.tracker.Listen}, Agent: k})
	if err != nil {
		return nil, err
	}
	return n, w.seed(ctx, n, imgs...)
}

// seed starts the agent of a node that has images, and waits until the tracker knows.
func (w *world) seed(ctx context.Context, n *harness.Node, imgs ...image) error {
	for _, img := range imgs {
		if err := n.Store(img.Image); err != nil {
			return err
		}
	}
	if err := errors.Join(n.StartAgent(ctx), n.AwaitTrackers(ctx)); err != nil {
		return err
	}
	for _, img := range imgs {
		if err := w.tracker.AwaitHolder(ctx, n.Name, img.Image); err != nil {
			return err
		}
	}
	return nil
}

// pulledBy has a node that was started pull images, and waits until the tracker knows that
// it has them. Unlike one that was given files, it knows their sums from then on, which
// others need not wait for.
func (w *world) pulledBy(ctx context.Context, n *harness.Node, imgs ...image) error {
	for _, img := range imgs {
		if err := n.PullCRI(ctx, img.ref, nil); err != nil {
			return err
		}
		if err := w.tracker.AwaitHolder(ctx, n.Name, img.Image); err != nil {
			return err
		}
	}
	return nil
}

// liar starts a liar that says that it has the layers of images, and waits until the tracker
// knows; not in a stock world.
func (w *world) liar(ctx context.Context, lie harness.Lie, imgs ...image) error {
	if w.stock() {
		return nil
	}
	if err := w.needTracker(ctx); err != nil {
		return err
	}
	l, err := w.NewLiar(ctx, "liar", w.at, 0, lie)
	if err != nil {
		return err
	}
	for _, img := range imgs {
		for i, d := range img.Layers {
			data, err := img.layer(i)
			if err != nil {
				return err
			}
			if err := l.Claim(ctx, d, data); err != nil {
				return err
			}
		}
		if err := w.tracker.AwaitHolder(ctx, l.Name, img.Image); err != nil {
			return err
		}
	}
	return nil
}

// fromRegistries are the bytes of blobs that registries have sent.
func (w *world) fromRegistries() (n int64) {
	for _, r := range append([]*harness.Registry{w.registry}, w.more...) {
		for _, b := range r.BlobBytes() {
			n += b
		}
	}
	return n
}

// pull measures a pull, as kubelet makes it.
func (w *world) pull(ctx context.Context, n *harness.Node, ref string) (value, error) {
	return w.measure(ctx, func(ctx context.Context) error { return n.PullCRI(ctx, ref, nil) })
}

// measure measures what f does, until it is given up.
func (w *world) measure(ctx context.Context, f func(context.Context) error) (v value, err error) {
	before, start := w.fromRegistries(), time.Now()
	timed, cancel := context.WithTimeout(ctx, w.capped)
	defer cancel()
	err = f(timed)
	v = value{Wall: time.Since(start).Seconds(), Registry: w.fromRegistries() - before}
	// Of a deadline that goes along, the other side may tell before it is seen here.
	if err != nil && ctx.Err() == nil && (timed.Err() != nil || status.Code(err) == codes.DeadlineExceeded) {
		v.Capped, err = true, nil
	}
	return v, err
}

// until waits until f reports true, or something that was started is over.
func until(ctx context.Context, over <-chan struct{}, f func() (bool, error)) error {
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for {
		if ok, err := f(); ok || err != nil {
			return err
		}
		select {
		case <-t.C:
		case <-over:
			return errors.New("a pull ended before it was disturbed")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// background runs f in the background. stop cancels its context and waits for its end.
func background(ctx context.Context, f func(context.Context)) (ended <-chan struct{}, stop func()) {
	away, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(away)
	}()
	return done, func() {
		cancel()
		<-done
	}
}

// images are made once.
type images struct {
	dir  string
	made map[harness.ImageOptions]*harness.Image
}

func (m *images) make(o harness.ImageOptions) (*harness.Image, error) {
	if img := m.made[o]; img != nil {
		return img, nil
	}
	img, err := harness.MakeImage(filepath.Join(m.dir, fmt.Sprint(o.Seed)), o)
	if err != nil {
		return nil, err
	}
	if m.made == nil {
		m.made = map[harness.ImageOptions]*harness.Image{}
	}
	m.made[o] = img
	return img, nil
}

// twenty is an image of one layer of 20 MB. What it takes to unpack it is not measured
// here: layers are not compressed.
func twenty(seed uint64) harness.ImageOptions {
	return harness.ImageOptions{Seed: seed, LayerBytes: 20e6, Files: 4, Compression: harness.Uncompressed, Incompress: true}
}
