package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/daemon/ops"
	"github.com/capelin-io/capelin/internal/daemon/version"
)

// Config is a role's configuration: a pointer to a struct that embeds [Common].
type Config interface {
	Validate() error
	common() *Common
}

// ErrInUse says that somebody else answers on a socket or port that a role was told
// to use.
var ErrInUse = errors.New("already in use")

// Daemon is a role that runs.
type Daemon struct {
	// Work is what everything but servers runs under. It has the values of Run's
	// context and ends later: when all servers have ended, or with Stop.
	Work context.Context
	// Identity is who the role is; nil: it has none.
	Identity *identity.Source
	// Metrics are the role's own; those of Go and the process are not among them.
	Metrics *prometheus.Registry
	// Page is what is shown on the address of the metrics: the role, and what it adds.
	Page *ops.Page

	role      string
	config    Config
	cfg       *Common
	stop      context.CancelFunc
	obstacles obstacles
	page      atomic.Value  // string: where Page is
	late      chan struct{} // closed when the identity of a Patient role is loaded; nil: it was there at once, or there is none

	mu        sync.Mutex
	listeners []net.Listener
	closed    bool
}

// Run checks a role's configuration, loads its identity, and calls run, which makes
// the role's parts and has [Daemon.Serve] run them. When run has returned, Work has
// ended and all listeners are closed. An error says of which role it is; nil means
// that ctx has ended.
func Run(ctx context.Context, role string, cfg Config, run func(ctx context.Context, d *Daemon) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", role, err)
		}
	}()
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	d := &Daemon{role: role, config: cfg, cfg: cfg.common(), Metrics: prometheus.NewRegistry(), Page: ops.NewPage()}
	d.Metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "capelin_info", Help: "Always 1.", ConstLabels: prometheus.Labels{"role": role, "version": version.Version()},
	}, func() float64 { return 1 }))
	d.Metrics.MustRegister(newObstacleCollector(d))
	if d.cfg.File != nil {
		d.Metrics.MustRegister(newFileCollector(d.cfg.File, role))
	}
	d.Work, d.stop = context.WithCancel(context.WithoutCancel(ctx))
	defer d.stop()
	if d.cfg.Identity.Enabled() {
		switch err := d.identify(ctx); {
		case err != nil && d.cfg.Patient:
			d.late = make(chan struct{})
		case err != nil:
			return err
		}
	}
	defer d.close()
	return run(ctx, d)
}

// identify loads the identity.
func (d *Daemon) identify(ctx context.Context) error {
	s, err := loadIdentity(d.config)
	if err != nil {
		return err
	}
	ops.Watch(ctx, s)
	d.Metrics.MustRegister(ops.Expiry(s, d.role))
	d.Identity = s
	return nil
}

// Identify returns the identity of a [Common.Patient] role, or nil if it has none. A
// certificate that cannot be used is an [Obstacle] to be overcome. It is called once.
func (d *Daemon) Identify(ctx context.Context, without string) (*identity.Source, error) {
	if d.late == nil {
		return d.Identity, nil
	}
	if err := d.Overcome(ctx, "identity", without, func() error { return d.identify(ctx) }); err != nil {
		return nil, err
	}
	close(d.late)
	return d.Identity, nil
}

func (d *Daemon) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	for _, l := range d.listeners {
		l.Close()
	}
}

// loadIdentity reads a role's certificate, which may have to be a certain one.
func loadIdentity(cfg Config) (*identity.Source, error) {
	c := cfg.common()
	s, err := identity.Load(c.Identity, c.Cluster)
	if err != nil {
		return nil, err
	}
	if is, ok := cfg.(interface{ CheckIdentity(id identity.ID) error }); ok {
		if err := is.CheckIdentity(s.ID()); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// CheckIdentity reports what keeps a role from starting with the certificate that its
// configuration names: errors of config.Invalid, all that there are. Of an identity that lacks a file Validate tells.
func CheckIdentity(cfg Config) error {
	if c := cfg.common().Identity; !c.Enabled() || len(c.Check("")) > 0 {
		return nil
	}
	_, err := loadIdentity(cfg)
	return err
}

// PageAddr returns the address on which Page is shown, "" if it is not (yet).
func (d *Daemon) PageAddr() string {
	addr, _ := d.page.Load().(string)
	return addr
}

// Stop ends Work. Serve has done it when it returns; this is for parts that cannot
// be served, because making another one failed.
func (d *Daemon) Stop() { d.stop() }

// Listen listens on the address that key configures, or returns the listener that is
// given in its place, if it is not nil. Run closes it in the end.
func (d *Daemon) Listen(ctx context.Context, key, addr string, given net.Listener) (net.Listener, error) {
	if given == nil {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			return nil, fmt.Errorf("%s address %s: %s has it: %w", key, addr, cmp.Or(holder(addr), "another process"), ErrInUse)
		case err != nil:
			return nil, fmt.Errorf("%s address %s: %w", key, addr, err)
		}
		given = l
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		given.Close()
	}
	d.listeners = append(d.listeners, given)
	return given, nil
}

// Part is something that runs until its context is done. What it returns ends the
// role, if it is an error.
type Part struct {
	Name string // that errors begin with; "": they say it themselves
	Run  func(ctx context.Context) error
}

// Parts are what a role is made of.
type Parts struct {
	// Servers answer others. Each stops when its context is done, and then has its
	// own patience with what it is answering.
	Servers []Part
	// Work is what servers need. It runs under Daemon.Work, until they have ended.
	Work []Part
	// Log is what the log says of the role when it is up.
	Log log.Fields
	// Ready, if not nil, is closed when the role is up; until then the log says only that
	// it is starting. nil: it is up when the servers run.
	Ready <-chan struct{}
	// WhenReady, if not nil, is called after Ready, when the log has said that the role is up.
	WhenReady func()
	// Able, if not nil, says whether the role can do its work, for /readyz.
	Able func() bool
	// Up, if not nil, is called when the servers run, with the address of the metrics
	// or nil if there are none.
	Up func(metrics net.Addr)
	// Stopping, if not nil, is called when the role is no longer ready, before the
	// servers hear of it.
	Stopping func()
}

// Serve runs the parts until ctx is done or one of them fails, and ends them in the
// order that the package's documentation says. All have ended when it returns.
func (d *Daemon) Serve(ctx context.Context, p Parts) error {
	defer d.stop()
	var metrics net.Listener
	if d.cfg.Metrics != "" {
		var err error
		switch metrics, err = d.Listen(ctx, "metrics", d.cfg.Metrics, nil); {
		case err != nil && d.cfg.Patient:
			p.Work = append(p.Work, d.lateMetrics())
		case err != nil:
			return err
		}
	}
	serving, stopServing := context.WithCancel(d.Work)
	defer stopServing()
	g, gctx := errgroup.WithContext(ctx) // gctx ends with ctx or the first failure
	run := func(ctx context.Context, part Part) error {
		err := part.Run(ctx)
		if d.Work.Err() != nil { // an error then only says that it was ended
			err = nil
		}
		if err != nil && part.Name != "" {
			err = fmt.Errorf("%s: %w", part.Name, err)
		}
		return err
	}
	var ready atomic.Bool
	addr := d.show(func() bool { return ready.Load() && (p.Able == nil || p.Able()) }, metrics, &p)
	if p.Ready != nil { // before any server has a word
		d.log(ctx, "starting", p.Log, addr)
	}
	var servers sync.WaitGroup
	for _, part := range p.Servers {
		servers.Add(1)
		g.Go(func() error {
			defer servers.Done()
			return run(serving, part)
		})
	}
	ready.Store(true)
	if p.Ready == nil {
		d.log(ctx, "up", p.Log, addr)
	} else {
		g.Go(func() error {
			select {
			case <-p.Ready:
				d.log(ctx, "up", p.Log, addr)
				if p.WhenReady != nil {
					p.WhenReady()
				}
			case <-gctx.Done():
			}
			return nil
		})
	}
	if p.Up != nil {
		p.Up(addr)
	}
	for _, part := range p.Work {
		g.Go(func() error { return run(d.Work, part) })
	}
	g.Go(func() error {
		<-gctx.Done()
		ready.Store(false)
		if p.Stopping != nil {
			p.Stopping()
		}
		log.G(d.Work).Info(d.role + " is stopping")
		stopServing()
		servers.Wait()
		d.stop()
		return nil
	})
	return g.Wait()
}

// lateMetrics shows the role when the address of its metrics is free.
func (d *Daemon) lateMetrics() Part {
	return Part{"metrics", func(ctx context.Context) error {
		ln, err := d.Patiently(ctx, "metrics", "metrics and health checks", d.cfg.Metrics)
		if err != nil {
			return nil //nolint:nilerr // it ends
		}
		d.page.Store(ln.Addr().String())
		return d.Page.Serve(ctx, ln, d.cfg.Pprof)
	}}
}

// show puts the role on its own page, and on that of its process, if it is one of several; and adds
// to the parts' work what that and the identity need. It returns the own page's address.
func (d *Daemon) show(ready func() bool, ln net.Listener, p *Parts) (addr net.Addr) {
	switch {
	case d.late != nil:
		p.Work = append(p.Work, Part{"identity", func(ctx context.Context) error {
			select {
			case <-d.late:
				return d.Identity.Run(ctx)
			case <-ctx.Done():
				return nil
			}
		}})
	case d.Identity != nil:
		p.Work = append(p.Work, Part{"identity", d.Identity.Run})
	}
	shared := prometheus.Gatherer(d.Metrics)
	if d.cfg.Metrics != "" {
		d.Page.Role(d.role).Show(d.Metrics, ready)
	}
	if ln != nil {
		p.Work = append(p.Work, Part{"metrics", func(ctx context.Context) error { return d.Page.Serve(ctx, ln, d.cfg.Pprof) }})
		addr, shared = ln.Addr(), nil
		d.page.Store(addr.String())
	}
	if d.cfg.Shown != nil {
		d.cfg.Shown.Show(shared, ready)
	}
	return addr
}

func (d *Daemon) log(ctx context.Context, state string, fields log.Fields, metrics net.Addr) {
	own := log.Fields{"cluster": d.cfg.Cluster, "version": version.Version(), "tls": d.cfg.Identity.Enabled()}
	l := log.G(ctx).WithFields(own).WithFields(fields)
	if metrics != nil {
		l = l.WithField("metrics", metrics.String())
	}
	l.Info(d.role + " is " + state)
}
