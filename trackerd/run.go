package trackerd

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/daemon/ops"
	"github.com/capelin-io/capelin/internal/daemon/version"
)

// Run is the tracker. It returns nil after ctx is cancelled and all streams and
// goroutines have ended, or an error if it cannot listen.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("trackerd: %w", err)
	}
	ln := cfg.Listener
	if ln == nil {
		var err error
		if ln, err = net.Listen("tcp", cfg.Listen); err != nil {
			return fmt.Errorf("trackerd: listening for agents: %w", err)
		}
	}
	defer ln.Close()
	var metricsLn net.Listener
	if cfg.Metrics != "" {
		var err error
		if metricsLn, err = net.Listen("tcp", cfg.Metrics); err != nil {
			return fmt.Errorf("trackerd: listening for metrics: %w", err)
		}
		defer metricsLn.Close()
	}

	srv := newServer(ctx, &cfg, version.Software())
	creds := insecure.NewCredentials()
	var id *identity.Source
	if cfg.Identity.Enabled() {
		var err error
		if id, err = identity.Load(cfg.Identity, cfg.Cluster); err != nil {
			return fmt.Errorf("trackerd: %w", err)
		}
		ops.Watch(ctx, id)
		creds = credentials.NewTLS(id.ServerTLS(identity.RoleNode, identity.RoleOrigin, identity.RoleTracker, identity.RoleGateway, identity.RoleAdmin))
	}
	g := grpc.NewServer(
		grpc.Creds(creds),
		grpc.MaxRecvMsgSize(trackerpb.MaxMessage),
		grpc.MaxConcurrentStreams(16), // of a connection: one stream, and health checks
		grpc.WaitForHandlers(true),
		grpc.ConnectionTimeout(helloTimeout),
		// An agent whose machine is gone is noticed sooner, by what is sent to it (see
		// arrivals); this is for one that hangs.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 15 * time.Second, Timeout: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		grpc.ForceServerCodecV2(frameCodec{protoCodec}),
		// 15,000 connections must not cost 64 KiB each for buffers, nor be allowed to
		// send more than the least that HTTP/2 knows before it is taken in.
		grpc.InitialWindowSize(64<<10), grpc.InitialConnWindowSize(64<<10),
		grpc.ReadBufferSize(4<<10), grpc.WriteBufferSize(32<<10), // this one while there is something to write
	)
	if cfg.onServer != nil {
		cfg.onServer(srv)
	}
	trackerpb.RegisterTrackerServer(g, srv)
	trackerpb.RegisterControlServer(g, srv.control)
	hs := health.NewServer()
	grpc_health_v1.RegisterHealthServer(g, hs)

	var ready atomic.Bool
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := g.Serve(newArrivals(ln)); err != nil && gctx.Err() == nil {
			return fmt.Errorf("trackerd: serving agents: %w", err)
		}
		return nil
	})
	group.Go(func() error { return srv.run(gctx) })
	if id != nil {
		group.Go(func() error { return id.Run(gctx) })
	}
	if metricsLn != nil {
		reg := prometheus.NewRegistry()
		reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &collector{srv})
		if id != nil {
			reg.MustRegister(ops.Expiry(id))
		}
		group.Go(func() error { return ops.ServeMetrics(gctx, metricsLn, reg, ready.Load, cfg.Pprof) })
	}
	ready.Store(true)
	fields := log.Fields{"listen": ln.Addr().String(), "cluster": cfg.Cluster}
	var metricsAddr net.Addr
	if metricsLn != nil {
		metricsAddr = metricsLn.Addr()
		fields["metrics"] = metricsAddr.String()
	}
	log.G(ctx).WithFields(fields).Info("tracker is up")
	if cfg.OnListen != nil {
		cfg.OnListen(ln.Addr(), metricsAddr)
	}

	group.Go(func() error {
		<-gctx.Done()
		ready.Store(false)
		hs.Shutdown()
		g.Stop() // agents have another tracker, or fall back; there is nothing to finish
		return nil
	})
	err := group.Wait()
	srv.wg.Wait()
	return err
}
