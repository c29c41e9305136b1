package daemon

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"github.com/containerd/log"

	"github.com/capelin-io/capelin/internal/daemon/config"
)

// SetLog makes the process log as a configuration says, which was checked.
func SetLog(cfg Config) error { return cfg.common().setLog() }

// Track makes a role show the state of its file.
func Track(cfg Config, f *File) { cfg.common().File = f }

// fileEvery is how often a file that is refused is looked at.
const fileEvery = 5 * time.Second

// Reload reads a role's configuration again at each signal, until ctx is done. Keys that
// can change while the role runs (the tag live) apply: those of the log here, and others
// by what is sent to live, which may be nil if the role has none. The log says what
// applies and what needs a restart. A configuration that cannot be read, or is refused,
// changes nothing; it is looked at every few seconds, and read again when the file has
// changed, without a signal. A role that was started with something else than its file
// then is started anew, if f says how; so is one that would not run on with all that it has
// (Otherwise).
func Reload[C any, P interface {
	*C
	Config
}](ctx context.Context, signals <-chan os.Signal, running C, load func() (C, error), live chan<- C, f *File) {
	var seen stamp
	for awaitReload(ctx, signals, f, &seen) {
		f.Mark()
		next, err := load()
		if err != nil {
			f.Refuse(err, "what it was started with", false)
			if refuse(log.G(ctx).WithError(err), err, f) {
				return
			}
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
		f.accept(restart)
		if len(restart) == 0 && f.Used != nil {
			f.Used()
		}
		l := log.G(ctx).WithFields(log.Fields{"applied": strings.Join(changed, " "), "restart": strings.Join(restart, " ")})
		switch {
		case f.outdated(restart) && f.Anew != nil:
			l.Warn("the configuration is good again, and the role is started anew with it")
			f.Anew()
			return
		case f.outdated(restart):
			l.Warn("the configuration is good again, and needs a restart to be used")
		case len(restart) > 0:
			l.Warn("the configuration was read again, and what has changed needs a restart")
		case len(changed) == 0:
			l.Info("the configuration was read again, and nothing has changed")
		default:
			l.Info("the configuration was read again")
		}
	}
}

// Otherwise is why a file is refused that a role, if it were started now, would answer by doing
// less than it does, or by doing again what it does not: such as one that may have changed who may have what.
type Otherwise struct{ Err error }

func (o Otherwise) Error() string { return o.Err.Error() }
func (o Otherwise) Unwrap() error { return o.Err }

// refuse says what becomes of a role whose changed file is refused, and reports whether it ends.
func refuse(l *log.Entry, err error, f *File) (ends bool) {
	_, otherwise := errors.AsType[Otherwise](err)
	switch {
	case otherwise && f.Anew != nil:
		l.Error("the changed configuration is refused, and the role is started anew, with less of the former one, or more")
		f.Anew()
		return true
	case otherwise:
		l.Error("the changed configuration is refused, the former one stays in use until a restart, and then less of it, or more")
	default:
		l.Error("the changed configuration is refused, the former one stays in use")
	}
	return false
}

// awaitReload waits for a reason to read the file again; false: ctx is done.
func awaitReload(ctx context.Context, signals <-chan os.Signal, f *File, seen *stamp) bool {
	for {
		var look <-chan time.Time
		if f.refused() {
			look = time.After(fileEvery)
		}
		select {
		case <-signals:
			return true
		case <-look:
			if f.changed(seen) {
				return true
			}
		case <-ctx.Done():
			return false
		}
	}
}
