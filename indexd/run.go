package indexd

import (
	"context"
	"crypto/tls"
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

	"github.com/capelin-io/capelin/control/ops"
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
	https := []*http.Server{serve(group, gctx, ln, w.tls, s.handler(), writeTimeout+10*time.Second)}
	fields := log.Fields{"listen": ln.Addr().String(), "cluster": cfg.Cluster, "storage": w.backend.Name(), "tls": w.tls != nil}
	var metricsAddr net.Addr
	if metricsLn != nil {
		https = append(https, serve(group, gctx, metricsLn, nil, ops.Handler(reg, ready.Load, cfg.Pprof), 10*time.Minute))
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
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		for _, h := range https {
			if err := h.Shutdown(end); err != nil {
				_ = h.Close()
			}
		}
		s.drain()
		return nil
	})
	return group.Wait()
}

// serve serves HTTP; over TLS if conf is not nil. Requests keep ctx's values, and
// go on when it is cancelled, until the server is shut down.
func serve(group *errgroup.Group, ctx context.Context, ln net.Listener, conf *tls.Config, h http.Handler, write time.Duration) *http.Server {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      write,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	group.Go(func() error {
		var err error
		if conf != nil {
			s.TLSConfig = conf.Clone()
			err = s.ServeTLS(ln, "", "")
		} else {
			err = s.Serve(ln)
		}
		if err != nil && !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("indexd: serving %s: %w", ln.Addr(), err)
		}
		return nil
	})
	return s
}
