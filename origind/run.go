package origind

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/fetcher/backends"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/daemon/ops"
	"github.com/capelin-io/capelin/internal/daemon/version"
	"github.com/capelin-io/capelin/internal/seeding"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/wire"
)

// shutdownTimeout is how long requests have to end by themselves.
const shutdownTimeout = 10 * time.Second

// Run is the origin. It returns nil after ctx is done and everything has ended, or
// an error about what failed, at the start or later.
func Run(ctx context.Context, cfg Config) (err error) {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("origind: %w", err)
	}
	var id *identity.Source // nil: none
	if cfg.Identity.Enabled() {
		if id, err = identity.Load(cfg.Identity, cfg.Cluster); err != nil {
			return fmt.Errorf("origind: %w", err)
		}
		ops.Watch(ctx, id)
	}
	name, err := cfg.node(id)
	if err != nil {
		return fmt.Errorf("origind: %w", err)
	}
	if cfg.Stores == nil && len(cfg.Backends) > 0 {
		set, err := backends.OpenSet(cfg.Backends)
		if err != nil {
			return fmt.Errorf("origind: %w", err)
		}
		defer set.Close()
		cfg.Stores = set
	}
	l, err := openListeners(ctx, &cfg)
	if err != nil {
		return fmt.Errorf("origind: %w", err)
	}
	defer l.close()

	// What ctx ends is the service; the work under it goes on until that has ended.
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	s, err := openServer(ctx, work, cfg)
	if err != nil {
		return fmt.Errorf("origind: %w", err)
	}
	defer func() {
		stopWork()
		s.requests.Wait()
		s.wg.Wait()
		if cerr := s.store.Close(); err == nil {
			err = cerr
		}
	}()
	s.identity = id
	node, trackers, err := s.network(work, l.swarm, name)
	if err != nil {
		return fmt.Errorf("origind: %w", err)
	}
	s.seeder.node, s.seeder.trackers = node, trackers
	s.seeder.up.Store(true)
	s.metrics.watch(s, node)

	var ready atomic.Bool
	g, gctx := errgroup.WithContext(ctx) // gctx ends with ctx or the first failure
	run := func(what string, f func() error) {
		g.Go(func() error {
			if err := f(); err != nil && work.Err() == nil {
				return fmt.Errorf("origind: %s: %w", what, err)
			}
			return nil
		})
	}
	// Bodies and answers have deadlines of their own (moving, sendFile, follow).
	api := &http.Server{Handler: s.handler()}
	if id != nil {
		run("identity", func() error { return id.Run(work) })
		api.TLSConfig = id.ServerTLS(readers...) // writers are among them
	}
	served := make(chan struct{})
	run("API", func() error {
		defer close(served)
		return ops.Serve(gctx, l.api, api, shutdownTimeout)
	})
	if l.metrics != nil {
		run("metrics", func() error { return ops.ServeMetrics(gctx, l.metrics, s.metrics.reg, ready.Load, cfg.Pprof) })
	}
	run("content directory", func() error { return s.store.Run(work) })
	run("swarm", func() error { return node.Run(work) })
	if trackers != nil {
		run("trackers", func() error { return trackers.Run(work) })
	}
	run("seeding", func() error { s.seeder.run(work); return nil })
	run("write-back", func() error { s.queue.run(work); return nil })
	run("uploads", func() error { s.sweepUploads(work); return nil })
	ready.Store(true)
	log.G(ctx).WithFields(log.Fields{
		"node": name, "cluster": cfg.Cluster, "root": cfg.Root, "listen": l.api.Addr().String(), "swarm": l.swarm.Addr().String(),
		"version": version.Version(),
	}).Info("origin is up")
	if cfg.OnListen != nil {
		var m net.Addr
		if l.metrics != nil {
			m = l.metrics.Addr()
		}
		cfg.OnListen(l.api.Addr(), l.swarm.Addr(), m)
	}
	g.Go(func() error {
		<-gctx.Done()
		ready.Store(false)
		log.G(work).Info("origin is stopping")
		<-served
		stopWork()
		return nil
	})
	return g.Wait()
}

// openServer opens what the origin keeps on disk.
func openServer(ctx, work context.Context, cfg Config) (_ *server, err error) {
	s := &server{cfg: cfg, backends: cfg.Stores, metrics: newMetrics(), work: work}
	if s.backends == nil {
		s.backends = here{}
	}
	s.seeder = newSeeder(s)
	s.store, err = content.Open(ctx, content.Config{
		Root: cfg.Root, CacheBytes: int64(cfg.Cache.Size), FreeFloor: cfg.Cache.FreeFloor, Observer: s.seeder,
		Report: func(err error) { log.G(work).WithError(err).Warn("content directory") },
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.store.Close()
		}
	}()
	if s.records, err = openRecords(filepath.Join(cfg.Root, "records")); err != nil {
		return nil, err
	}
	s.uploads, err = openUploads(filepath.Join(cfg.Root, "uploads"), cfg.Uploads.Max, cfg.Uploads.Expire.D(), s.store.MakeRoom)
	if err != nil {
		return nil, err
	}
	s.finder = &finder{
		backends: s.backends, records: s.records, spawn: s.spawn,
		budget: cfg.Lookup.Budget.D(), repository: cfg.Lookup.Repository.D(), negative: cfg.Lookup.Negative.D(),
	}
	if err := s.finder.init(); err != nil {
		return nil, err
	}
	s.cold = newColdReads(s, cfg.Cold)
	s.queue = newQueue(s, cfg.Queue)
	return s, nil
}

// network makes the origin's part in the swarm, and its client of the trackers.
func (s *server) network(ctx context.Context, l net.Listener, name string) (*swarm.Node, *tracker.Client, error) {
	advertise := s.cfg.Swarm.Advertise
	if advertise == "" {
		advertise = l.Addr().String()
	}
	nc := swarm.NodeConfig{
		Cluster: s.cfg.Cluster, Node: name, Zone: s.cfg.Zone, Role: wire.RoleOrigin, Software: version.Software(),
		Advertise: advertise, Listener: l, Store: blobs{s.store},
		OnReport: func(r swarm.Report) {
			log.G(ctx).WithError(r.Err).WithFields(log.Fields{"peer": r.Node, "digest": r.ID.Digest(), "piece": r.Piece}).Debug("swarm")
		},
		OnWanted: s.seeder.wanted,
	}
	var secure *tls.Config
	if s.identity != nil {
		seeding.Secure(&nc, s.identity)
		secure = s.identity.ClientTLS(identity.RoleTracker)
	}
	node, err := swarm.NewNode(nc)
	if err != nil {
		return nil, nil, err
	}
	node.SetLimits(int64(s.cfg.Swarm.Upload), 0)
	if len(s.cfg.Trackers) == 0 {
		return node, nil, nil
	}
	away := map[string]bool{} // OnStatus is called by one goroutine
	return node, tracker.New(tracker.Config{
		Trackers: s.cfg.Trackers, TLS: secure,
		Hello: tracker.Hello{
			Cluster: s.cfg.Cluster, Node: name, Zone: s.cfg.Zone, Addr: advertise, Role: wire.RoleOrigin, Software: version.Software(),
		},
		OnStatus: func(st tracker.TrackerStatus) {
			l := log.G(ctx).WithField("tracker", st.Addr)
			switch {
			case st.Connected:
				l.WithField("software", st.Software).Info("tracker connected")
			case ctx.Err() == nil && !away[st.Addr]: // once, not at each attempt
				l.WithError(st.Err).Warn("tracker is away")
			}
			away[st.Addr] = !st.Connected
		},
	}, s.seeder), nil
}

// sweepEvery is how often expired uploads are looked for.
const sweepEvery = time.Minute

func (s *server) sweepUploads(ctx context.Context) {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		n, err := s.uploads.sweep(time.Now())
		if err != nil {
			log.G(ctx).WithError(err).Warn("cannot remove an expired upload")
		}
		if n > 0 {
			log.G(ctx).WithField("uploads", n).Info("expired uploads removed")
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// listeners are what the origin listens on; metrics may be nil.
type listeners struct{ api, swarm, metrics net.Listener }

func openListeners(ctx context.Context, cfg *Config) (_ *listeners, err error) {
	l := &listeners{api: cfg.Listener, swarm: cfg.SwarmListener}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	var lc net.ListenConfig
	open := func(at *net.Listener, key, addr string) {
		if *at == nil && err == nil {
			if *at, err = lc.Listen(ctx, "tcp", addr); err != nil {
				err = fmt.Errorf("%s: %w", key, err)
			}
		}
	}
	open(&l.api, "listen", cfg.Listen)
	open(&l.swarm, "swarm.listen", cfg.Swarm.Listen)
	if cfg.Metrics != "" {
		open(&l.metrics, "metrics", cfg.Metrics)
	}
	return l, err
}

func (l *listeners) close() {
	for _, x := range []net.Listener{l.api, l.swarm, l.metrics} {
		if x != nil {
			x.Close()
		}
	}
}
