package origind

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/fetcher/backends"
	"github.com/capelin-io/capelin/internal/daemon"
	"github.com/capelin-io/capelin/internal/seeding"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/wire"
)

// shutdownTimeout is how long requests have to end by themselves.
const shutdownTimeout = 10 * time.Second

// Run is the origin. It returns nil after ctx is done and everything has ended, or
// an error about what failed, at the start or later.
func Run(ctx context.Context, cfg Config) error {
	return daemon.Run(ctx, "origin", &cfg, func(ctx context.Context, d *daemon.Daemon) (err error) {
		name, err := cfg.node(d.Identity)
		if err != nil {
			return err
		}
		if cfg.Stores == nil && len(cfg.Backends) > 0 {
			set, err := backends.OpenSet(cfg.Backends)
			if err != nil {
				return err
			}
			defer set.Close()
			cfg.Stores = set
		}
		api, err := d.Listen(ctx, "listen", cfg.Listen, cfg.Listener)
		if err != nil {
			return err
		}
		peers, err := d.Listen(ctx, "swarm.listen", cfg.Swarm.Listen, cfg.SwarmListener)
		if err != nil {
			return err
		}
		s, err := openServer(ctx, d.Work, cfg, d.Metrics)
		if err != nil {
			return err
		}
		defer func() {
			d.Stop()
			s.requests.Wait()
			s.wg.Wait()
			if cerr := s.store.Close(); err == nil {
				err = cerr
			}
		}()
		s.identity = d.Identity
		node, trackers, err := s.network(d.Work, peers, name)
		if err != nil {
			return err
		}
		s.seeder.node, s.seeder.trackers = node, trackers
		s.seeder.up.Store(true)
		s.metrics.watch(s, node)
		return d.Serve(ctx, daemon.Parts{
			Servers: []daemon.Part{daemon.HTTP("API", api, s.httpServer(), shutdownTimeout)},
			Work:    s.background(node, trackers),
			Log:     log.Fields{"node": name, "root": cfg.Root, "listen": api.Addr().String(), "swarm": peers.Addr().String()},
			Up: func(metrics net.Addr) {
				if cfg.OnListen != nil {
					cfg.OnListen(api.Addr(), peers.Addr(), metrics)
				}
			},
		})
	})
}

// httpServer serves the API. Bodies and answers have deadlines of their own (moving,
// sendFile, follow).
func (s *server) httpServer() *http.Server {
	api := &http.Server{Handler: s.handler()}
	if s.identity != nil {
		api.TLSConfig = s.identity.ServerTLS(readers...) // writers are among them
	}
	return api
}

// background is what runs under s.work all the time; trackers may be nil.
func (s *server) background(node *swarm.Node, trackers *tracker.Client) []daemon.Part {
	forever := func(run func(context.Context)) func(context.Context) error {
		return func(ctx context.Context) error { run(ctx); return nil }
	}
	parts := []daemon.Part{
		{Name: "content directory", Run: s.store.Run},
		{Name: "swarm", Run: node.Run},
		{Name: "seeding", Run: forever(func(ctx context.Context) { s.seeder.Run(ctx, node) })},
		{Name: "write-back", Run: forever(s.queue.run)},
		{Name: "uploads", Run: forever(s.sweepUploads)},
	}
	if trackers != nil {
		parts = append(parts, daemon.Part{Name: "trackers", Run: trackers.Run})
	}
	return parts
}

// openServer opens what the origin keeps on disk.
func openServer(ctx, work context.Context, cfg Config, reg prometheus.Registerer) (_ *server, err error) {
	s := &server{cfg: cfg, backends: cfg.Stores, metrics: newMetrics(reg), work: work}
	if s.backends == nil {
		s.backends = here{}
	}
	s.seeder = newSeeder(s)
	s.store, err = content.Open(ctx, content.Config{
		Root: cfg.Root, CacheBytes: int64(cfg.Cache.Size), FreeFloor: cfg.Cache.FreeFloor, Observer: s.seeder,
		CloseIdle: func(ctx context.Context, need int64) { s.seeder.CloseIdle(ctx, need) },
		Report:    func(err error) { log.G(work).WithError(err).Warn("content directory") },
	})
	if err != nil {
		return nil, err
	}
	s.seeder.store.Store = s.store
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
		Cluster: s.cfg.Cluster, Node: name, Zone: s.cfg.Zone, Role: wire.RoleOrigin,
		Advertise: advertise, Listener: l, Store: seeding.Store{Store: s.store},
		OnReport: func(r swarm.Report) { seeding.LogReport(ctx, r) },
		OnWanted: s.seeder.Wanted,
	}
	node, err := seeding.NewNode(nc, s.identity)
	if err != nil {
		return nil, nil, err
	}
	node.SetLimits(int64(s.cfg.Swarm.Upload), 0)
	if len(s.cfg.Trackers) == 0 {
		return node, nil, nil
	}
	return node, tracker.New(seeding.Trackers(ctx, s.cfg.Trackers, nc, s.identity), s.seeder), nil
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
