package ops

import (
	"context"
	stdlog "log"
	"strings"

	"github.com/containerd/log"

	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
)

// Check returns what is wrong with the address of the metrics (host:port; empty:
// none) and the wish for a profiler there, as errors about the keys metrics and
// pprof.
func Check(metrics string, profiler bool) []error {
	switch {
	case metrics == "" && profiler:
		return []error{config.Invalid("pprof", "needs a metrics address")}
	case metrics == "":
	case !config.IsListen(metrics):
		return []error{config.Invalid("metrics", "%q is not host:port", metrics)}
	case profiler && !identity.IsLoopback(metrics):
		return []error{config.Invalid("pprof", "is served on loopback only, and metrics is %q", metrics)}
	}
	return nil
}

// ErrorLog returns what an http.Server logs to: of ctx's log, at the level debug,
// because it is mostly about clients that went away or speak something else.
func ErrorLog(ctx context.Context) *stdlog.Logger { return stdlog.New(debugLog{ctx}, "", 0) }

type debugLog struct{ ctx context.Context }

func (d debugLog) Write(p []byte) (int, error) {
	log.G(d.ctx).WithField("detail", strings.TrimSpace(string(p))).Debug("http")
	return len(p), nil
}
