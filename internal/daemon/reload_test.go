package daemon

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/containerd/log"
)

// At each signal what can change does, and what was refused changes nothing.
func TestReload(t *testing.T) {
	t.Cleanup(func() { _ = log.SetLevel("info"); _ = log.SetFormat(log.TextFormat) })
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		signals, live := make(chan os.Signal), make(chan testConfig, 1)
		next, broken := *newConfig(), error(nil)
		done := make(chan struct{})
		go func() {
			defer close(done)
			Reload(ctx, signals, *newConfig(), func() (testConfig, error) { return next, broken }, live, new(File))
		}()
		for _, step := range []struct {
			name  string
			do    func()
			size  int // that is sent; -1: nothing is sent
			level log.Level
		}{
			{"nothing", func() {}, -1, log.InfoLevel},
			{"a key that needs a restart", func() { next.Name = "x" }, -1, log.InfoLevel},
			{"the level", func() { next.LogLevel = "debug" }, 0, log.DebugLevel},
			{"one of the role's", func() { next.Size = 3 }, 3, log.DebugLevel},
			{"a broken file", func() { next.Size, next.LogLevel, broken = 4, "warn", errors.New("broken") }, -1, log.DebugLevel},
			{"the same, mended", func() { broken = nil }, 4, log.WarnLevel},
			{"as it was", func() { next = *newConfig() }, 0, log.InfoLevel},
		} {
			step.do()
			signals <- syscall.SIGHUP
			synctest.Wait()
			size := -1
			select {
			case c := <-live:
				size = c.Size
				if c.Name != "" {
					t.Errorf("%s: the name is sent, which needs a restart", step.name)
				}
			default:
			}
			if size != step.size || log.GetLevel() != step.level {
				t.Errorf("%s: size %d is sent, want %d; level %v, want %v", step.name, size, step.size, log.GetLevel(), step.level)
			}
		}
		cancel()
		<-done
	})
}

// A role that takes no more changes does not keep a reload from ending.
func TestReloadEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		signals, done := make(chan os.Signal), make(chan struct{})
		go func() {
			defer close(done)
			Reload(ctx, signals, *newConfig(), func() (testConfig, error) {
				c := *newConfig()
				c.Size = 1
				return c, nil
			}, make(chan testConfig), new(File))
		}()
		signals <- syscall.SIGHUP
		synctest.Wait()
		cancel()
		<-done
	})
}
