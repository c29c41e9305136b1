package daemon

import (
	"context"
	"os"
	"strings"

	"github.com/containerd/log"

	"github.com/capelin-io/capelin/internal/daemon/config"
)

// SetLog makes the process log as a configuration says, which was checked.
func SetLog(cfg Config) error { return cfg.common().setLog() }

// Reload reads a role's configuration again at each signal, until ctx is done. Keys that
// can change while the role runs (the tag live) apply: those of the log here, and others
// by what is sent to live, which may be nil if the role has none. The log says what
// applies and what needs a restart. A configuration that cannot be read, or is refused,
// changes nothing.
func Reload[C any, P interface {
	*C
	Config
}](ctx context.Context, signals <-chan os.Signal, running C, load func() (C, error), live chan<- C) {
	for {
		select {
		case <-signals:
		case <-ctx.Done():
			return
		}
		next, err := load()
		if err != nil {
			log.G(ctx).WithError(err).Error("the changed configuration is refused, the former one stays in use")
			continue
		}
		changed, restart := config.Adopt(&running, &next)
		if err := SetLog(P(&running)); err != nil {
			log.G(ctx).WithError(err).Error("cannot set up the log")
		}
		if live != nil && len(changed) > 0 {
			select {
			case live <- running:
			case <-ctx.Done():
				return
			}
		}
		l := log.G(ctx).WithFields(log.Fields{"applied": strings.Join(changed, " "), "restart": strings.Join(restart, " ")})
		switch {
		case len(restart) > 0:
			l.Warn("the configuration was read again, and what has changed needs a restart")
		case len(changed) == 0:
			l.Info("the configuration was read again, and nothing has changed")
		default:
			l.Info("the configuration was read again")
		}
	}
}
