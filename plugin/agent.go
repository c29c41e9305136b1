package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/log"
	systemd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/internal/daemon"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/seeding"
	"github.com/capelin-io/capelin/plugin/fetch"
	"github.com/capelin-io/capelin/plugin/shim"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// agent is a running node agent.
type agent struct {
	cfg           Config
	name          string       // of the node
	shimAddr      atomic.Value // string: of the listener; none: it is not up
	started       time.Time
	metrics       *metrics
	registryBytes atomic.Int64
	missing       atomic.Int32 // parts that are not up yet: see up
	daemon        *daemon.Daemon

	disk    *disk
	fetches *fetch.Fetches
	images  *images
	names   *registryNames // nil: containerd is not asked
	seeder  *seeding.Seeder
	network atomic.Pointer[network]      // nil until it is up
	limits  atomic.Pointer[LimitsConfig] // nil: those of cfg

	listeners listeners
	door      *door
	mirror    atomic.Pointer[shim.Mirror] // nil: the shim is not up
	sessions  *sessions
	stopping  atomic.Bool
}

// network is what the agent has to do with other machines.
type network struct {
	advertise string
	node      *swarm.Node
	trackers  *trackers // nil: none are configured
}

// Run runs the node agent until ctx is done, and then stops it: it serves as ever until no
// call is under way that takes long, for five minutes at most; sessions that wait for the
// swarm are answered with what there is after Config.Wait.Stop. An error says what failed, at the start or later; nil
// means that ctx ended it. Several agents may run in one process, on different
// content directories; with Config.Unpack only one, because the place of
// temporary mounts is the process's.
func Run(ctx context.Context, cfg Config) error {
	cfg.Patient = true
	if cfg.Alone != "" {
		cfg = cfg.alone()
	}
	return daemon.Run(ctx, "agent", &cfg, func(ctx context.Context, d *daemon.Daemon) (err error) {
		a := &agent{cfg: cfg, started: time.Now(), metrics: newMetrics(d.Metrics), daemon: d}
		defer func() {
			d.Stop()
			if cerr := a.close(); err == nil {
				err = cerr
			}
		}()
		if err := a.open(ctx, d); err != nil {
			return err
		}
		a.assemble(ctx)
		return d.Serve(ctx, a.parts(ctx))
	})
}

// open finds out who this node is, and opens its sockets and content directory. containerd's
// calls wait for the rest from the first moment on.
func (a *agent) open(ctx context.Context, d *daemon.Daemon) (err error) {
	if a.name, err = a.cfg.node(); err != nil {
		return fmt.Errorf("the name of this node: %w", err)
	}
	if a.cfg.Alone != "" { // before anybody can ask
		d.Obstruct("configuration", "no part in the swarm, blobs come from the registry: "+a.cfg.Alone)
	}
	if err := a.listen(ctx, d); err != nil {
		return err
	}
	if a.door, err = newDoor(a.listeners.content, a.cfg.Unpack, a.metrics); err != nil {
		return err
	}
	if _, err := os.Stat(a.cfg.Root); errors.Is(err, os.ErrNotExist) {
		log.G(ctx).WithField("root", a.cfg.Root).Warn("containerd's content directory is not there, and is made: is root right?")
	}
	store, err := content.Open(ctx, content.Config{
		Root: a.cfg.Root, CacheBytes: int64(a.cfg.Cache.Size), FreeFloor: a.cfg.Cache.FreeFloor, Observer: a,
		Unlend: func(ctx context.Context, ids []piece.ID, need int64) { a.seeder.Unlend(ctx, ids, need) },
		GiveUp: func(ctx context.Context) { a.fetches.GiveUp(ctx) },
		Report: func(err error) { log.G(d.Work).WithError(err).Warn("content directory") },
	})
	if err != nil {
		return fmt.Errorf("content directory %s: %w", a.cfg.Root, err)
	}
	a.disk = &disk{store}
	return nil
}

// assemble makes what answers containerd and the shim's clients.
func (a *agent) assemble(ctx context.Context) {
	cfg, store := &a.cfg, a.disk.Store
	a.fetches = fetch.New(fetch.Config{
		Rules: fetch.Rules{
			AuthorizeBlob: cfg.Authorize == "blob",
			Find:          cfg.Wait.Find.D(), Stall: cfg.Wait.Stall.D(), Prefetch: cfg.Wait.Prefetch.D(),
			MaxPrefetch: 32,
		},
		OnAnswer:   a.metrics.answered,
		OnRegistry: func(n int) { a.registryBytes.Add(int64(n)) },
		Keep:       func(id piece.ID) { a.seeder.Keep(id) },
	}, a.disk)
	a.seeder = newSeeder(a.disk, a.fetches.Has, a.announcer)
	a.images = newImages(a.fetches, store)
	var visible ctrdcontent.Store = store
	if cfg.Authorize == "blob" {
		visible = hidingStore{store, a.disk.hidden}
	}
	svc := newService(visible, a.disk, a.fetches, a.images)
	svc.called = a.metrics.called
	if cfg.Containerd != "" {
		var err error
		if a.names, err = newRegistryNames(a.images, cfg.Containerd); err != nil {
			log.G(ctx).WithError(err).Warn("containerd is not asked where images come from")
		}
	}
	svc.registries = a.names
	a.sessions = svc.sessions
	a.metrics.watch(a)

	var diff diffapi.DiffServer
	if cfg.Unpack {
		diff = a.unpack(ctx, visible)
	}
	a.door.open(svc, diff)
}

// parts are what runs. Containers start from what the content service answers, so
// systemd starts containerd as soon as that serves, before there is a swarm.
func (a *agent) parts(ctx context.Context) daemon.Parts {
	shimServing, stopShim := context.WithCancel(a.daemon.Work)
	p := daemon.Parts{
		Servers: []daemon.Part{{Name: "content service", Run: func(serving context.Context) error {
			defer stopShim()
			if err := a.door.serve(serving); err != nil {
				return err
			}
			return a.shut(ctx)
		}}},
		Work: []daemon.Part{
			{Name: "content directory", Run: a.disk.Run},
			{Name: "fetches", Run: a.fetches.Run},
			{Name: "network", Run: a.runNetwork},
			{Name: "learning", Run: func(ctx context.Context) error { a.images.run(ctx, a.sessions.ids); return nil }},
			{Name: "limits", Run: func(ctx context.Context) error { reload(ctx, a.cfg.Reload, a); return nil }},
			{Name: "watchdog", Run: func(ctx context.Context) error { watchdog(ctx); return nil }},
		},
		Log: log.Fields{"node": a.name, "root": a.cfg.Root, "socket": a.cfg.Socket,
			"took": time.Since(a.started).Round(time.Millisecond).String()},
		Up: func(net.Addr) {
			notify(ctx, systemd.SdNotifyReady)
			if a.cfg.Up != nil {
				a.cfg.Up()
			}
			a.up()
		},
		Stopping: func() {
			a.stopping.Store(true)
			notify(ctx, systemd.SdNotifyStopping)
		},
	}
	a.missing.Store(2) // the servers, and the network
	if a.cfg.Shim.Listen != "" {
		a.missing.Add(1)
		p.Servers = append(p.Servers, daemon.Part{Name: "registry shim", Run: func(ctx context.Context) error {
			return a.serveShim(ctx, shimServing)
		}})
	}
	if a.listeners.admin != nil {
		p.Work = append(p.Work, daemon.HTTP("admin socket", a.listeners.admin,
			&http.Server{Handler: a.adminHandler(), ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second}, time.Second))
	}
	return p
}

// up is called by each part that has come up.
func (a *agent) up() {
	if a.missing.Add(-1) == 0 && a.cfg.Working != nil {
		a.cfg.Working()
	}
}

// drainAtMost is how long what containerd has under way may keep an agent from ending that
// was told to. It is served as ever meanwhile, so it costs only whoever waits for that.
const drainAtMost = 5 * time.Minute

// shut closes containerd's door when what is under way has come to its end: nothing of it can be handed to
// the next agent. The shim serves until then, as well. ctx is done if the agent was told to end,
// and not if it has failed.
func (a *agent) shut(ctx context.Context) error {
	patience, wait := drainAtMost, a.cfg.Wait.Stop.D()
	if ctx.Err() == nil {
		patience, wait = wait, 0
	}
	// The swarm has its time, and then containerd's own download.
	drain := time.AfterFunc(wait, a.fetches.Drain)
	defer drain.Stop()
	enough := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { extend(ctx, enough) })
	defer func() { close(enough); wg.Wait() }()
	if m := a.mirror.Load(); m != nil {
		quiet, cancel := context.WithTimeout(a.daemon.Work, a.cfg.Wait.Stop.D())
		m.Quiet(quiet)
		cancel()
	}
	return a.door.shut(a.daemon.Work, patience)
}

// extend asks systemd for more time to stop until enough is closed, again and again: one that
// hangs does not.
func extend(ctx context.Context, enough <-chan struct{}) {
	t := time.NewTicker(5 * time.Second)
	defer t.Stop()
	for {
		notify(ctx, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d\nSTATUS=stopping when the calls that run have ended", (20*time.Second).Microseconds()))
		select {
		case <-t.C:
		case <-enough:
			return
		}
	}
}

// close closes what there is, when nothing runs any more.
func (a *agent) close() error {
	if a.door != nil {
		a.door.close()
	}
	a.names.close()
	a.listeners.close()
	if a.disk == nil {
		return nil
	}
	return a.disk.Close()
}

// runNetwork runs what concerns other machines: the swarm, the trackers' client,
// and seeding. What that needs may be missing for now: until it is there, nobody
// waits for a swarm.
func (a *agent) runNetwork(ctx context.Context) error {
	cfg := a.cfg
	if cfg.Alone != "" {
		a.fetches.Connect(nil, nil)
		return nil
	}
	l, id, err := a.awaitNetwork(ctx)
	if err != nil {
		return nil //nolint:nilerr // the agent ends
	}
	ways := advertised(ctx, cfg, l.Addr())
	n := &network{advertise: ways[0]}
	nc := swarm.NodeConfig{
		Cluster: cfg.Cluster, Node: a.name, Zone: cfg.Zone, Role: wire.RoleAgent,
		Advertise: n.advertise, Listener: l, Store: seeding.Store{Blobs: a.disk.Store}, Workers: cfg.Workers,
		OnReport: a.report(ctx), OnWanted: a.seeder.Wanted, OnNoSource: a.fetches.NoSource, OnDoubt: a.fetches.Doubt,
	}
	if n.node, err = seeding.NewNode(nc, id); err != nil {
		return err
	}
	var find fetch.Finder // nil, not a nil pointer
	if len(cfg.Trackers) > 0 {
		tc := seeding.Trackers(ctx, cfg.Trackers, nc, id)
		tc.Hello.Addrs = ways[1:]
		n.trackers = newTrackers(a, n.node, tc)
		find = n.trackers.client
	}
	a.limitNode(n.node)
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
	a.limit() // those that came meanwhile
	a.fetches.Connect(n.node, find)
	log.G(ctx).WithFields(log.Fields{"listen": l.Addr().String(), "advertise": strings.Join(ways, ", ")}).Info("swarm is up")
	a.up()
	g.Go(func() error { a.seeder.Run(gctx, n.node); return nil })
	return g.Wait()
}

// PiecesAdded, BlobAdded and BlobGone make the agent the store's observer.
func (a *agent) PiecesAdded(id piece.ID, from, to int, states []byte) {
	if n := a.network.Load(); n != nil {
		n.node.Appended(id, from, to, states)
	}
}

func (a *agent) BlobAdded(id piece.ID) {
	a.fetches.Changed(id)
	a.seeder.Added(id)
}

func (a *agent) BlobGone(id piece.ID) { a.seeder.Gone(id) }

// announcer returns the trackers, or nil if there are none (yet).
func (a *agent) announcer() announcer {
	if n := a.network.Load(); n != nil && n.trackers != nil {
		return n.trackers
	}
	return nil
}

// report logs and counts what the swarm reports.
func (a *agent) report(ctx context.Context) func(swarm.Report) {
	return func(r swarm.Report) {
		if kind := seeding.ReportKind(r); kind != "" {
			a.metrics.reports.WithLabelValues(kind).Inc()
		}
		if r.Kind == swarm.ReportUnreachable {
			a.metrics.failed.WithLabelValues(string(r.Reason)).Inc()
		}
		seeding.LogReport(ctx, r)
	}
}

// SetLimits sets those of the network, also of one that is still to come.
func (a *agent) SetLimits(up, down int64) {
	a.limits.Store(&LimitsConfig{Upload: config.Rate(up), Download: config.Rate(down)})
	a.limit()
}

// limit gives the network, if it is there, its limits.
func (a *agent) limit() {
	if n := a.network.Load(); n != nil {
		a.limitNode(n.node)
	}
}

func (a *agent) limitNode(n *swarm.Node) {
	l := a.limits.Load()
	if l == nil {
		l = &a.cfg.Limits
	}
	n.SetLimits(int64(l.Upload), int64(l.Download))
	a.fetches.SetLimit(int64(l.Download))
}

// reload applies what can change while the agent runs.
func reload(ctx context.Context, configs <-chan Config, node interface{ SetLimits(up, down int64) }) {
	for {
		select {
		case cfg := <-configs:
			node.SetLimits(int64(cfg.Limits.Upload), int64(cfg.Limits.Download))
		case <-ctx.Done():
			return
		}
	}
}

// notify tells systemd, if it is there.
func notify(ctx context.Context, state string) {
	if _, err := systemd.SdNotify(false, state); err != nil {
		log.G(ctx).WithError(err).Warn("cannot notify systemd")
	}
}

// watchdog tells systemd that the agent lives, if it asked for that.
func watchdog(ctx context.Context) {
	every, err := systemd.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		return
	}
	t := time.NewTicker(every / 2)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			notify(ctx, systemd.SdNotifyWatchdog)
		case <-ctx.Done():
			return
		}
	}
}

// ContainerdConfig returns the drop-in by which containerd uses the agent as its content
// store, without its own, and to unpack if that is configured.
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
