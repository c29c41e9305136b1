package origind

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/control/ring"
	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/fetcher/backends"
	"github.com/capelin-io/capelin/internal/daemon"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/seeding"
	"github.com/capelin-io/capelin/origind/ringstate"
	"github.com/capelin-io/capelin/origind/ringstate/mirror"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
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
		cfg.Node = name
		if err := cfg.Ring.checkAddress(name, cfg.Listen); err != nil && cfg.Listener == nil {
			return err
		}
		if cfg.Stores == nil && len(cfg.Backends) > 0 {
			set, err := backends.OpenSet(cfg.Backends, backends.User{Cluster: cfg.Cluster, Name: name})
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
		s, err := openServer(ctx, d.Work, cfg, d.Identity, api.Addr().String(), d.Metrics)
		if err != nil {
			return err
		}
		defer func() {
			d.Stop()
			s.requests.Wait()
			if cerr := s.close(); err == nil {
				err = cerr
			}
		}()
		node, trackers, err := s.network(d.Work, peers, name)
		if err != nil {
			return err
		}
		s.metrics.watch(s, node)
		if n := len(cfg.Ring.List()); n > 0 && n <= cfg.Ring.MinReplicas && cfg.Ring.Static() {
			log.G(ctx).WithField("members", n).WithField("min_replicas", cfg.Ring.MinReplicas).
				Warn("with as many members as ring.min_replicas, pushes wait while one of them is away")
		}
		return d.Serve(ctx, daemon.Parts{
			Servers: []daemon.Part{daemon.HTTP("API", api, s.httpServer(), shutdownTimeout)},
			Work:    s.background(node, trackers),
			Log:     log.Fields{"node": name, "root": strings.Join(cfg.Roots(), " "), "listen": api.Addr().String(), "swarm": peers.Addr().String()},
			Up: func(metrics net.Addr) {
				if cfg.OnListen != nil {
					cfg.OnListen(api.Addr(), peers.Addr(), metrics)
				}
			},
		})
	})
}

// httpServer serves the API. Bodies and answers have deadlines of their own (moving,
// sending).
func (s *server) httpServer() *http.Server {
	api := &http.Server{Handler: s.handler()}
	if s.identity != nil {
		api.TLSConfig = s.identity.ServerTLS(readers...) // writers are among them
	}
	return api
}

// background is what runs under work all the time; trackers may be nil.
func (s *server) background(node *swarm.Node, trackers *tracker.Client) []daemon.Part {
	forever := func(run func(context.Context)) func(context.Context) error {
		return func(ctx context.Context) error { run(ctx); return nil }
	}
	parts := []daemon.Part{
		{Name: "disks", Run: s.store.Run},
		{Name: "swarm", Run: node.Run},
		{Name: "seeding", Run: forever(func(ctx context.Context) { s.seeder.Run(ctx, node) })},
		{Name: "ring", Run: s.member.failed},
		{Name: "records", Run: forever(s.blobs.ledger.run)},
		{Name: "members", Run: forever(s.runMembers)},
		{Name: "backends", Run: forever(s.storages.run)},
		{Name: "scrub", Run: forever(s.scrub.run)},
		{Name: "uploads", Run: forever(s.runUploads)},
		{Name: "reload", Run: forever(func(ctx context.Context) { reload(ctx, s.cfg.Reload, node) })},
	}
	if trackers != nil {
		parts = append(parts, daemon.Part{Name: "trackers", Run: trackers.Run})
	}
	return parts
}

// reload applies what can change while the origin runs.
func reload(ctx context.Context, configs <-chan Config, node interface{ SetLimits(up, down int64) }) {
	for {
		select {
		case cfg := <-configs:
			node.SetLimits(int64(cfg.Swarm.Upload), 0)
		case <-ctx.Done():
			return
		}
	}
}

// lateObserver is a store's observer that is made after the store.
type lateObserver struct{ content.Observer }

// openServer opens what the origin keeps on disk, and begins to decide. Whoever gets it closes it, when work has ended.
func openServer(
	ctx, work context.Context, cfg Config, id *identity.Source, listen string, reg prometheus.Registerer,
) (_ *server, err error) {
	s := &server{cfg: cfg, identity: id, homes: homes{cfg.Stores}, metrics: newMetrics(reg), tasks: &tasks{ctx: work}}
	if cfg.Stores == nil {
		s.homes = homes{here{}}
	}
	changes := &lateObserver{offline{}}
	s.store, err = openDisks(&cfg, func(d *oneDisk, of int) (*content.Store, error) {
		return content.Open(ctx, content.Config{
			Root: d.root, CacheBytes: cacheOf(cfg.Cache.Size, of), FreeFloor: cfg.Cache.FreeFloor, Observer: changes,
			GiveUp: func(context.Context) { s.giveUp(d) },
			Unlend: func(ctx context.Context, ids []piece.ID, need int64) { s.seeder.Unlend(ctx, ids, need) },
			Wrong: func(id piece.ID, i int) {
				s.scrub.found(id, i)
				s.store.suspect(d)
			},
			Report: func(err error) {
				log.G(work).WithError(err).Warn("content directory")
				s.store.suspect(d)
			},
		})
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	s.blobs = &holdings{store: s.store}
	if len(s.store.all) == 1 {
		if err := dropUnknown(ctx, s.store.all[0].root, s.store); err != nil {
			return nil, err
		}
	}
	if s.blobs.ledger, err = openLedgers(s.store.ledger(ctx, cfg.Node)); err != nil {
		return nil, err
	}
	inc := s.blobs.ledger.incarnation()
	state := cfg.ringState(inc, listen)
	if s.peers, err = newPeers(cfg, origin.Asker{Name: cfg.Node, Incarnation: inc, Address: state.Addr}, id); err != nil {
		return nil, err
	}
	self := ring.Member{Name: cfg.Node, Zone: cfg.Zone}
	s.uploads, err = openUploads(uploadsConfig{
		dirs: s.store.uploads(), place: func() string { return s.store.pick().uploads() }, boot: durable.BootID(),
		max: cfg.Uploads.Max, mirror: cfg.mirror(), peers: s.peers,
		members: func() []mirror.Member { return mirrors(self, s.seen()) },
		room:    s.makeRoom, failed: s.store.failed, keep: s.keep, kept: s.kept, blob: s.file, tasks: s.tasks,
	})
	if err != nil {
		return nil, err
	}
	s.assemble(cfg)
	changes.Observer = s.seeder
	s.member, err = newMember(ctx, state, memberParts{
		ledger: s.blobs.ledger, bytes: s.store, objects: s.objects, copies: s.copies, asks: s.peers, watch: s,
		writers: make(chan struct{}, cfg.Queue.Workers), tasks: s.tasks,
	})
	if err != nil {
		return nil, err
	}
	s.cold.ring, s.locator.ring, s.storages.ring = s.member, s.member, s.member
	s.store.tell(s.lostDisk)
	s.member.begin(work)
	return s, nil
}

// assemble makes the parts that know of each other: what is offered depends on what is
// being read, and the other way round.
func (s *server) assemble(cfg Config) {
	s.verified = newVerified(verifiedBytes)
	s.storages = newStorages(s.homes.All())
	s.objects = &objects{backends: s.homes, blobs: s.store, metrics: s.metrics}
	s.finder = newFinder(cfg.Lookup, s.homes, s.blobs.ledger, s.objects, s.tasks)
	s.objects.known = s.finder
	s.seeder = newSeeder(s.blobs,
		func(ctx context.Context, id piece.ID) (bool, error) { return s.errands.wanted(ctx, id) },
		func(id piece.ID) bool { return s.cold.wanted(id, 0) })
	s.cold = &coldReads{
		cfg: cfg.Cold, blobs: s.blobs, objects: s.finder, peers: s.seeder, metrics: s.metrics, tasks: s.tasks, m: map[piece.ID]*coldRead{},
	}
	s.copies = newCopies(s.store, s.cold, s.donor, int64(cfg.Ring.RepairRate), s.metrics)
	s.scrub = newScrub(s.store, int64(cfg.Ring.Scrub), s.seeder.lost,
		func(d digest.Digest, pieces []int) { s.member.bad(d, pieces) }, s.metrics)
	s.locator = &locator{blobs: s.blobs, cold: s.cold, finder: s.finder, peers: s.peers}
	s.errands = newErrands(s.locator, s.seeder, s.tasks)
}

// donor returns another member, to copy blobs from.
func (s *server) donor(name string) (donor, error) { return s.peers.get(name) }

// seen returns the members as this one sees them, none before it has begun.
func (s *server) seen() []ringstate.Peer {
	if s.member == nil {
		return nil
	}
	return s.member.peers()
}

// close ends what openServer has begun, when the work that it was given has ended. The member first: it begins tasks, and those that
// wait for it hear that it has ended.
func (s *server) close() error {
	var errs []error
	s.store.tell(nil)
	if s.member != nil {
		s.member.close()
	}
	s.tasks.wg.Wait()
	if s.peers != nil {
		s.peers.close()
	}
	if s.blobs != nil && s.blobs.ledger != nil {
		errs = append(errs, s.blobs.ledger.close())
	}
	return errors.Join(append(errs, s.store.Close())...)
}

// network makes the origin's part in the swarm, and its client of the trackers, if it
// has any.
func (s *server) network(ctx context.Context, l net.Listener, name string) (*swarm.Node, *tracker.Client, error) {
	advertise := s.cfg.Swarm.Advertise
	if advertise == "" {
		advertise = l.Addr().String()
	}
	nc := swarm.NodeConfig{
		Cluster: s.cfg.Cluster, Node: name, Zone: s.cfg.Zone, Role: wire.RoleOrigin,
		Advertise: advertise, Listener: l, Store: seeding.Store{Blobs: s.store},
		OnReport: func(r swarm.Report) { seeding.LogReport(ctx, r) },
		OnWanted: s.seeder.Wanted,
	}
	node, err := seeding.NewNode(nc, s.identity)
	if err != nil {
		return nil, nil, err
	}
	node.SetLimits(int64(s.cfg.Swarm.Upload), 0)
	s.seeder.node = node
	if len(s.cfg.Trackers) == 0 {
		return node, nil, nil
	}
	trackers := tracker.New(seeding.Trackers(ctx, s.cfg.Trackers, nc, s.identity), s.errands)
	s.seeder.trackers, s.errands.trackers = trackers, trackers
	return node, trackers, nil
}

// runUploads does what uploads have to do in time.
func (s *server) runUploads(ctx context.Context) {
	for {
		n, next := s.uploads.tick(time.Now())
		if n > 0 {
			log.G(ctx).WithField("uploads", n).Info("expired uploads removed")
		}
		t := time.NewTimer(time.Until(next))
		select {
		case <-t.C:
		case <-s.uploads.sooner:
		case <-ctx.Done():
			t.Stop()
			return
		}
		t.Stop()
	}
}
