package plugin

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	api "github.com/containerd/containerd/api/services/content/v1"
	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/log"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/daemon/ops"
	"github.com/capelin-io/capelin/internal/daemon/version"
	"github.com/capelin-io/capelin/internal/seeding"
	"github.com/capelin-io/capelin/plugin/shim"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// agent is a running node agent.
type agent struct {
	cfg           Config
	name          string // of the node
	metricsAddr   string // of the listener; empty: none
	shimAddr      string // the same
	started       time.Time
	metrics       *metrics
	registryBytes atomic.Int64
	identity      *identity.Source // nil: none
	ready         atomic.Bool

	disk    *disk
	fetches *fetches
	images  *images
	seeder  *seeder
	network atomic.Pointer[network] // nil until it is up
}

// network is what the agent has to do with other machines.
type network struct {
	advertise string
	node      *swarm.Node
	trackers  *trackers // nil: none are configured
}

// Run runs the node agent until ctx is done, and then stops it: sessions that
// wait for the swarm are answered with what there is, running calls get
// Config.Wait.Stop to end. An error says what failed, at the start or later; nil
// means that ctx ended it. Several agents may run in one process, on different
// content directories; with Config.Unpack only one, because the place of
// temporary mounts is the process's.
func Run(ctx context.Context, cfg Config) (err error) {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("configuration of the agent: %w", err)
	}
	a := &agent{cfg: cfg, started: time.Now(), metrics: newMetrics()}
	if a.name, err = cfg.node(); err != nil {
		return fmt.Errorf("the name of this node: %w", err)
	}
	if cfg.Identity.Enabled() {
		if a.identity, err = identity.Load(cfg.Identity, cfg.Cluster); err != nil {
			return err
		}
		if id := a.identity.ID(); id.Name != a.name || !id.Has(identity.RoleNode) {
			return fmt.Errorf("identity: the certificate %s is for %s, and this is node %q: issue one with that name and the role node, or set node", cfg.Identity.Cert, id, a.name)
		}
		ops.Watch(ctx, a.identity)
	}

	// What ctx ends is the agent's service; the work under it goes on until that
	// has ended.
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()

	store, err := content.Open(ctx, content.Config{
		Root: cfg.Root, CacheBytes: int64(cfg.Cache.Size), FreeFloor: cfg.Cache.FreeFloor, Observer: a,
		Report: func(err error) { log.G(work).WithError(err).Warn("content directory") },
	})
	if err != nil {
		return fmt.Errorf("content directory %s: %w", cfg.Root, err)
	}
	defer func() {
		if cerr := store.Close(); err == nil {
			err = cerr
		}
	}()
	a.disk = &disk{store}

	lis, err := a.listen(ctx)
	if err != nil {
		return err
	}
	defer lis.close()

	a.fetches = newFetches(work, fetchConfig{
		AuthorizeBlob: cfg.Authorize == "blob",
		Find:          cfg.Wait.Find.D(), Stall: cfg.Wait.Stall.D(), Prefetch: cfg.Wait.Prefetch.D(),
		MaxPrefetch: 32,
		OnAnswer:    a.metrics.answered,
		OnRegistry:  func(n int) { a.registryBytes.Add(int64(n)) },
		Keep:        func(id piece.ID) { a.seeder.open.Add(id) },
	}, a.disk)
	a.seeder = newSeeder(a.disk, a.fetches)
	a.images = newImages(a.fetches, store)
	var visible ctrdcontent.Store = store
	if cfg.Authorize == "blob" {
		visible = hidingStore{store, a.disk.hidden}
	}
	svc := newService(visible, a.fetches, a.images)
	svc.called = a.metrics.called
	a.metrics.watch(a)
	var mirror *shim.Mirror
	if lis.shim != nil {
		if cfg.Shim.CA == "" {
			cfg.Shim.CA = cfg.Identity.CA
		}
		cfg.Shim.OnRelayed = func(n int) { a.registryBytes.Add(int64(n)) }
		if mirror, err = shim.NewMirror(cfg.Shim, shimBlobs{a.fetches}); err != nil {
			return fmt.Errorf("registry shim: %w", err)
		}
		defer mirror.Close()
		a.metrics.reg.MustRegister(mirror)
	}

	srv := grpc.NewServer(
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
		grpc.UnaryInterceptor(a.metrics.unary), grpc.StreamInterceptor(a.metrics.stream),
	)
	api.RegisterContentServer(srv, svc)
	if cfg.Unpack {
		a.unpack(ctx, srv, visible)
	}
	hs := health.NewServer()
	healthpb.RegisterHealthServer(srv, hs)

	g, gctx := errgroup.WithContext(ctx) // gctx ends with ctx or the first failure
	run := func(what string, f func() error) {
		g.Go(func() error {
			if err := f(); err != nil && work.Err() == nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			return nil
		})
	}

	// Reads first: containers start from here.
	run("content service", func() error { return srv.Serve(lis.content) })
	notify(gctx, daemon.SdNotifyReady)
	a.ready.Store(true)
	log.G(ctx).WithFields(log.Fields{
		"node": a.name, "cluster": cfg.Cluster, "root": cfg.Root, "socket": cfg.Socket,
		"version": version.Version(), "took": time.Since(a.started).Round(time.Millisecond).String(),
	}).Info("agent is ready")

	run("content directory", func() error { return store.Run(work) })
	if a.identity != nil {
		run("identity", func() error { return a.identity.Run(work) })
		a.metrics.reg.MustRegister(ops.Expiry(a.identity))
	}
	run("network", func() error { return a.runNetwork(work, lis.swarm) })
	run("learning", func() error { a.images.run(work, svc.sessions.ids); return nil })
	if lis.admin != nil {
		run("admin socket", func() error {
			return ops.Serve(work, lis.admin, &http.Server{Handler: a.adminHandler(), ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second}, time.Second)
		})
	}
	if lis.metrics != nil {
		run("metrics", func() error {
			return ops.ServeMetrics(work, lis.metrics, a.metrics.reg, a.ready.Load, a.cfg.Pprof)
		})
	}
	shimStopped := make(chan struct{})
	if mirror != nil {
		run("registry shim", func() error {
			defer close(shimStopped)
			return mirror.Serve(gctx, lis.shim, cfg.Wait.Stop.D())
		})
	} else {
		close(shimStopped)
	}
	run("watchdog", func() error { watchdog(work); return nil })

	g.Go(func() error {
		<-gctx.Done()
		defer stopWork()
		a.ready.Store(false)
		notify(work, daemon.SdNotifyStopping)
		log.G(work).Info("agent is stopping")
		hs.Shutdown()
		a.fetches.drain()
		stopped := make(chan struct{})
		go func() {
			srv.GracefulStop()
			close(stopped)
		}()
		select {
		case <-stopped:
		case <-time.After(cfg.Wait.Stop.D()):
			log.G(work).Warn("calls still run, ending them")
			srv.Stop()
			<-stopped
		}
		<-shimStopped // it gives its requests the same time
		return nil
	})
	err = g.Wait()
	a.fetches.wait()
	return err
}

// runNetwork runs what concerns other machines: the swarm, the trackers' client,
// and seeding.
func (a *agent) runNetwork(ctx context.Context, l net.Listener) error {
	cfg := a.cfg
	n := &network{advertise: advertised(ctx, cfg, l.Addr())}
	nc := swarm.NodeConfig{
		Cluster: cfg.Cluster, Node: a.name, Zone: cfg.Zone, Role: wire.RoleAgent, Software: version.Software(),
		Advertise: n.advertise, Listener: l, Store: a.disk, Workers: cfg.Workers,
		OnReport: a.report(ctx), OnWanted: a.seeder.blobWanted,
	}
	if a.identity != nil {
		seeding.Secure(&nc, a.identity)
	}
	var err error
	n.node, err = swarm.NewNode(nc)
	if err != nil {
		return err
	}
	n.node.SetLimits(int64(cfg.Limits.Upload), int64(cfg.Limits.Download))
	var find finder // nil, not a nil *trackers
	var announce announcer
	if len(cfg.Trackers) > 0 {
		n.trackers = newTrackers(ctx, a, n.node, n.advertise)
		find, announce = n.trackers, n.trackers
	}
	peers := swarmPeers{n.node}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := n.node.Run(gctx); err != nil {
			return fmt.Errorf("swarm: %w", err)
		}
		return nil
	})
	if n.trackers != nil {
		g.Go(func() error { return n.trackers.client.Run(gctx) })
		g.Go(func() error { n.trackers.commands.run(gctx); return nil })
	}
	a.network.Store(n)
	a.fetches.connect(peers, find)
	log.G(ctx).WithFields(log.Fields{"listen": l.Addr().String(), "advertise": n.advertise}).Info("swarm is up")
	g.Go(func() error { a.seeder.run(gctx, peers, announce); return nil })
	g.Go(func() error { a.relimit(gctx, n.node); return nil })
	return g.Wait()
}

// listeners are what the agent listens on; admin, metrics and shim may be nil.
type listeners struct {
	content, admin, swarm, metrics, shim net.Listener
	own                                  []string // Unix sockets to be removed
}

func (a *agent) listen(ctx context.Context) (_ *listeners, err error) {
	l := &listeners{}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	given, err := activated()
	if err != nil {
		return nil, err
	}
	unix := func(path string) (net.Listener, error) {
		if g := given[path]; g != nil {
			delete(given, path)
			return g, nil
		}
		u, err := listenUnix(ctx, path)
		if err == nil {
			l.own = append(l.own, path)
		}
		return u, err
	}
	if l.content, err = unix(a.cfg.Socket); err != nil {
		return nil, err
	}
	if a.cfg.Admin != "" {
		if l.admin, err = unix(a.cfg.Admin); err != nil {
			return nil, err
		}
	}
	for path, g := range given {
		g.Close()
		return nil, fmt.Errorf("systemd passed the socket %s, but the configuration names %s", path, a.cfg.Socket)
	}
	if l.swarm, err = listenTCP(ctx, "listen", a.cfg.Listen); err != nil {
		return nil, err
	}
	if a.cfg.Metrics != "" {
		if l.metrics, err = listenTCP(ctx, "metrics", a.cfg.Metrics); err != nil {
			return nil, err
		}
		a.metricsAddr = l.metrics.Addr().String()
	}
	if a.cfg.Shim.Listen != "" {
		if l.shim, err = listenTCP(ctx, "shim", a.cfg.Shim.Listen); err != nil {
			return nil, err
		}
		a.shimAddr = l.shim.Addr().String()
	}
	return l, nil
}

func (l *listeners) close() {
	for _, x := range []net.Listener{l.content, l.admin, l.swarm, l.metrics, l.shim} {
		if x != nil {
			x.Close()
		}
	}
	for _, path := range l.own {
		os.Remove(path)
	}
}

// PiecesAdded, BlobAdded and BlobGone make the agent the store's observer.
func (a *agent) PiecesAdded(id piece.ID, from, to int, states []byte) {
	if n := a.network.Load(); n != nil {
		n.node.Appended(id, from, to, states)
	}
}

func (a *agent) BlobAdded(id piece.ID) {
	a.fetches.whole(id)
	a.seeder.blobAdded(id)
}

func (a *agent) BlobGone(id piece.ID) { a.seeder.blobGone(id) }

// report logs and counts what the swarm reports.
func (a *agent) report(ctx context.Context) func(swarm.Report) {
	return func(r swarm.Report) {
		kind := reportKinds[r.Kind]
		if kind == "" {
			return
		}
		a.metrics.reports.WithLabelValues(kind).Inc()
		l := log.G(ctx).WithFields(log.Fields{"peer": r.Node, "digest": r.ID.Digest(), "piece": r.Piece})
		if r.Err != nil {
			l = l.WithError(r.Err)
		}
		switch r.Kind {
		case swarm.ReportConvicted, swarm.ReportSumsReplaced:
			l.Warn("swarm: " + kind)
		default:
			l.Debug("swarm: " + kind)
		}
	}
}

var reportKinds = map[swarm.ReportKind]string{
	swarm.ReportConvicted:    "peer convicted",
	swarm.ReportBadPiece:     "bad piece",
	swarm.ReportStalled:      "peer stalled",
	swarm.ReportSumsReplaced: "sums disproved",
	swarm.ReportFault:        "protocol violated",
}

// relimit applies changed bandwidth limits.
func (a *agent) relimit(ctx context.Context, node *swarm.Node) {
	for {
		select {
		case l := <-a.cfg.Relimit:
			node.SetLimits(int64(l.Upload), int64(l.Download))
			log.G(ctx).WithFields(log.Fields{"upload": l.Upload.String(), "download": l.Download.String()}).Info("limits changed")
		case <-ctx.Done():
			return
		}
	}
}

// swarmPeers is a swarm.Node as fetches and the seeder use it.
type swarmPeers struct{ *swarm.Node }

func (p swarmPeers) Join(ctx context.Context, id piece.ID, as joinAs, onDone func(error)) error {
	if err := p.Node.Join(ctx, id, swarm.JoinOptions{Want: as.want, Priority: as.priority}); err != nil {
		return err
	}
	done := p.Node.Done(id)
	go func() { onDone(<-done) }() // ends with the blob's part in the swarm, or with the node
	return nil
}

// notify tells systemd, if it is there.
func notify(ctx context.Context, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.G(ctx).WithError(err).Warn("cannot notify systemd")
	}
}

// watchdog tells systemd that the agent lives, if it asked for that.
func watchdog(ctx context.Context) {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		return
	}
	t := time.NewTicker(every / 2)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			notify(ctx, daemon.SdNotifyWatchdog)
		case <-ctx.Done():
			return
		}
	}
}

// ContainerdConfig returns the drop-in that makes a containerd use the agent that
// unpacks in that way without it (DESIGN 6.1).
func ContainerdConfig(cfg Config, unpacking Unpacking) string {
	s := fmt.Sprintf(containerdDropIn, cfg.Socket)
	if cfg.Unpack {
		s += unpacking.dropIn(cfg.Socket, cfg.UnpackLayers)
	}
	return s
}

const containerdDropIn = `# containerd uses Capelin's agent as its content store. For
# /etc/containerd/conf.d/capelin.toml, which containerd reads only if "imports"
# in its config.toml names that directory. Removing this file and restarting
# containerd goes back; both use the same files.
version = 3

# Both parts are needed: containerd accepts one content store only.
disabled_plugins = ["io.containerd.content.v1.content"]

[proxy_plugins.capelin]
  type = "content"
  address = %q
`
