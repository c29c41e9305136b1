package indexd

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/containerd/log"

	"github.com/capelin-io/capelin/indexd/replicate"
	"github.com/capelin-io/capelin/internal/daemon"
)

// shutdownTimeout is how long requests have to end by themselves.
const shutdownTimeout = 5 * time.Second

// Run is the index. It returns nil after ctx is cancelled and all requests have
// ended, or an error if it cannot listen, or the storage cannot keep an index, or keeps one that has moved. A storage that is
// away is waited for; until it is there, and known to compare and swap (fetcher.Prove), the index is not ready, and refuses to write.
func Run(ctx context.Context, cfg Config) error {
	return daemon.Run(ctx, "index", &cfg, func(ctx context.Context, d *daemon.Daemon) (err error) {
		w, err := cfg.wire(d.Identity)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, w.close()) }()
		x, err := New(w.backend, w.origins, cfg.Cluster)
		if err != nil {
			return err
		}
		ln, err := d.Listen(ctx, "listen", cfg.Listen, cfg.Listener)
		if err != nil {
			return err
		}
		p := newProof(x, w.again)
		s := &server{index: x, proof: p, metrics: newMetrics(d.Metrics, x), peer: w.peer, slots: make(chan struct{}, maxRequests),
			replication: replicate.New(replicate.Config{Outbox: x.outbox, Index: x, Origin: w.origins, Cluster: cfg.Cluster, Metrics: d.Metrics})}
		api := daemon.HTTP("API", ln, &http.Server{
			Handler: s.handler(), TLSConfig: w.tls.Clone(), ReadTimeout: 10 * time.Second, WriteTimeout: writeTimeout + 10*time.Second,
		}, shutdownTimeout)
		return d.Serve(ctx, daemon.Parts{
			Servers: []daemon.Part{{Name: api.Name, Run: func(ctx context.Context) error {
				defer s.drain()
				return api.Run(ctx)
			}}},
			Work: []daemon.Part{{Run: func(ctx context.Context) error {
				return p.run(ctx, func(do func() error) error { return d.Overcome(ctx, "storage", "writing", do) })
			}}, {Run: func(ctx context.Context) error { return join(ctx, w.backend) }}, {Name: "replication", Run: func(ctx context.Context) error {
				return s.replicate(ctx, cfg.Replicate)
			}}},
			Ready: p.known, WhenReady: cfg.OnReady, Able: p.is,
			Log: log.Fields{"listen": ln.Addr().String(), "storage": w.backend.Name(), "tls": w.tls != nil},
			Up: func(metrics net.Addr) {
				if cfg.OnListen != nil {
					cfg.OnListen(ln.Addr(), metrics)
				}
			},
		})
	})
}
