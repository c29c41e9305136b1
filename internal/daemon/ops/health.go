package ops

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Page is what a process shows of its roles on one address: their metrics together,
// those of Go and the process once; and readiness, which is the readiness of all.
type Page struct {
	process *prometheus.Registry

	mu    sync.Mutex
	roles []*Role
}

// NewPage returns a page without roles.
func NewPage() *Page {
	p := &Page{process: prometheus.NewRegistry()}
	p.process.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return p
}

// Role is a role's place on a page.
type Role struct {
	name string

	mu      sync.Mutex
	metrics prometheus.Gatherer // nil: none
	ready   func() bool         // nil: not yet
}

// Role adds a role, which is not ready before its Show says so.
func (p *Page) Role(name string) *Role {
	r := &Role{name: name}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.roles = append(p.roles, r)
	return r
}

// Show gives the role's readiness, and its metrics, nil for none. The names of
// metrics must be the role's own, or have a label that says the role.
func (r *Role) Show(metrics prometheus.Gatherer, ready func() bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.metrics, r.ready = metrics, ready
}

func (r *Role) shown() (prometheus.Gatherer, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.metrics, r.ready != nil && r.ready()
}

// metrics returns what there is to gather now.
func (p *Page) metrics() prometheus.Gatherers {
	all := prometheus.Gatherers{p.process}
	for _, r := range p.all() {
		if m, _ := r.shown(); m != nil {
			all = append(all, m)
		}
	}
	return all
}

func (p *Page) all() []*Role {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.roles
}

// unready returns the names of the roles that are not ready.
func (p *Page) unready() (names []string) {
	for _, r := range p.all() {
		if _, ready := r.shown(); !ready {
			names = append(names, r.name)
		}
	}
	return names
}

// Handler serves the metrics at /metrics, "ok" at /healthz, and at /readyz "ok" or,
// while some role is not ready, status 503 and its name. With profiler it serves
// /debug/pprof/ as well, and then must be on a loopback address.
func (p *Page) Handler(profiler bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		promhttp.HandlerFor(p.metrics(), promhttp.HandlerOpts{}).ServeHTTP(w, r)
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if names := p.unready(); len(names) > 0 {
			http.Error(w, "not ready: "+strings.Join(names, ", "), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	if profiler {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// Serve serves the page on ln until ctx is done.
func (p *Page) Serve(ctx context.Context, ln net.Listener, profiler bool) error {
	return Serve(ctx, ln, &http.Server{
		Handler:      http.MaxBytesHandler(p.Handler(profiler), 1<<10),
		ReadTimeout:  10 * time.Second,
		WriteTimeout: 10 * time.Minute, // a profile takes as long as it is asked to
	}, time.Second)
}
