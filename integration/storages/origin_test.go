package storages

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/backends"
	"github.com/capelin-io/capelin/origind"
)

// Origin is an origin in this process, with one backend that takes all.
type Origin struct {
	*origin.Client
	Addr string // of its API
	stop func()
}

// StartOrigin starts one that keeps its files below dir. A push is acknowledged when the backend has it.
func StartOrigin(t testing.TB, dir string, b fetcher.Backend) *Origin {
	t.Helper()
	set, err := backends.NewSet(backends.Entry{Name: "main", Namespaces: []string{".*"}, Backend: b})
	if err != nil {
		t.Fatal(err)
	}
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	cfg := origind.DefaultConfig()
	cfg.Root, cfg.Node, cfg.Durability, cfg.Stores = filepath.Join(dir, "origin"), "origin", "backend", set
	cfg.Listener, cfg.SwarmListener = listen(), listen()
	cfg.Listen, cfg.Swarm.Listen, cfg.Metrics = cfg.Listener.Addr().String(), cfg.SwarmListener.Addr().String(), ""
	c, err := origin.New(origin.Config{Origins: []string{cfg.Listen}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	up := make(chan struct{})
	cfg.OnListen = func(net.Addr, net.Addr, net.Addr) { close(up) }
	go func() { ended <- origind.Run(ctx, cfg) }()
	select {
	case <-up:
	case err := <-ended:
		cancel()
		t.Fatalf("the origin has ended: %v", err)
	}
	o := &Origin{Client: c, Addr: cfg.Listen}
	o.stop = func() {
		c.Close()
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("the origin: %v", err)
		}
	}
	return o
}

// Stop ends it.
func (o *Origin) Stop() { o.stop() }

// namespace is where blobs are pushed to.
const namespace = "team/app"

// Push pushes a blob, until the backend has it.
func (o *Origin) Push(ctx context.Context, data []byte) error {
	return o.PushFrom(ctx, digest.FromBytes(data), bytes.NewReader(data))
}

// PushFrom pushes a blob that r has, until the backend has it.
func (o *Origin) PushFrom(ctx context.Context, d digest.Digest, r io.Reader) error {
	id, err := o.StartUpload(ctx, namespace, d)
	if err != nil {
		return err
	}
	if _, err := o.Append(ctx, id, 0, r); err != nil {
		return err
	}
	_, err = o.Commit(ctx, id, d)
	return err
}

// Pull reads a blob.
func (o *Origin) Pull(ctx context.Context, d digest.Digest) ([]byte, error) {
	var all bytes.Buffer
	err := o.PullTo(ctx, d, &all)
	return all.Bytes(), err
}

// PullTo writes a blob to w.
func (o *Origin) PullTo(ctx context.Context, d digest.Digest, w io.Writer) error {
	r, _, err := o.Open(ctx, origin.Ref{Digest: d, Namespace: namespace}, 0, -1)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(w, r)
	return err
}
