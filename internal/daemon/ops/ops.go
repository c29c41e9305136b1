package ops

import (
	"context"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strings"

	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/capelin-io/capelin/internal/daemon/config"
)

// Handler serves the metrics of reg at /metrics, "ok" at /healthz, and at
// /readyz "ok" or, while ready says no, status 503. With profiler it serves
// /debug/pprof/ as well, and then must be on a loopback address.
func Handler(reg prometheus.Gatherer, ready func() bool, profiler bool) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready() {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
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

// Check returns what is wrong with the address of the metrics (host:port; empty:
// none) and the wish for a profiler there, as errors about the keys metrics and
// pprof.
func Check(metrics string, profiler bool) []error {
	host, _, err := net.SplitHostPort(metrics)
	switch {
	case metrics == "" && profiler:
		return []error{config.Invalid("pprof", "needs a metrics address")}
	case metrics == "":
	case err != nil:
		return []error{config.Invalid("metrics", "%q is not host:port", metrics)}
	case profiler && !loopback(host):
		return []error{config.Invalid("pprof", "is served on loopback only, and metrics is %q", metrics)}
	}
	return nil
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// ErrorLog returns what an http.Server logs to: of ctx's log, at the level debug,
// because it is mostly about clients that went away or speak something else.
func ErrorLog(ctx context.Context) *stdlog.Logger { return stdlog.New(debugLog{ctx}, "", 0) }

type debugLog struct{ ctx context.Context }

func (d debugLog) Write(p []byte) (int, error) {
	log.G(d.ctx).WithField("detail", strings.TrimSpace(string(p))).Debug("http")
	return len(p), nil
}
