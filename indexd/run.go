package indexd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/internal/daemon/ops"
)

// shutdownTimeout is how long requests have to end by themselves.
const shutdownTimeout = 5 * time.Second

// Run is the index. It returns nil after ctx is cancelled and all requests have
// ended, or an error if it cannot listen, or the storage cannot keep an index.
func Run(ctx context.Context, cfg Config) (err error) {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("indexd: %w", err)
	}
	w, err := cfg.wire()
	if err != nil {
		return fmt.Errorf("indexd: %w", err)
	}
	defer func() { err = errors.Join(err, w.close()) }()
	x, err := New(w.backend, w.origins, cfg.Cluster)
	if err != nil {
		return fmt.Errorf("indexd: %w", err)
	}
	ln := cfg.Listener
	if ln == nil {
		if ln, err = net.Listen("tcp", cfg.Listen); err != nil {
			return fmt.Errorf("indexd: listening: %w", err)
		}
	}
	defer ln.Close()
	var metricsLn net.Listener
	if cfg.Metrics != "" {
		if metricsLn, err = net.Listen("tcp", cfg.Metrics); err != nil {
			return fmt.Errorf("indexd: listening for metrics: %w", err)
		}
		defer metricsLn.Close()
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	s := &server{index: x, metrics: newMetrics(reg, x), peer: w.peer, slots: make(chan struct{}, maxRequests)}

	var ready atomic.Bool
	ready.Store(true)
	group, gctx := errgroup.WithContext(ctx)
	if w.source != nil {
		ops.Watch(ctx, w.source)
		reg.MustRegister(ops.Expiry(w.source))
		group.Go(func() error { return w.source.Run(gctx) })
	}
	group.Go(func() error {
		defer s.drain()
		return ops.Serve(gctx, ln, &http.Server{
			Handler: s.handler(), TLSConfig: w.tls.Clone(), ReadTimeout: 10 * time.Second, WriteTimeout: writeTimeout + 10*time.Second,
		}, shutdownTimeout)
	})
	fields := log.Fields{"listen": ln.Addr().String(), "cluster": cfg.Cluster, "storage": w.backend.Name(), "tls": w.tls != nil}
	var metricsAddr net.Addr
	if metricsLn != nil {
		group.Go(func() error { return ops.ServeMetrics(gctx, metricsLn, reg, ready.Load, cfg.Pprof) })
		metricsAddr = metricsLn.Addr()
		fields["metrics"] = metricsAddr.String()
	}
	log.G(ctx).WithFields(fields).Info("index is up")
	if cfg.OnListen != nil {
		cfg.OnListen(ln.Addr(), metricsAddr)
	}
	group.Go(func() error {
		<-gctx.Done()
		ready.Store(false)
		return nil
	})
	return group.Wait()
}
