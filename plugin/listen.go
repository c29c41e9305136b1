package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/log"
	"github.com/coreos/go-systemd/v22/activation"

	"github.com/capelin-io/capelin/internal/daemon"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/hostaddr"
	"github.com/capelin-io/capelin/plugin/shim"
)

// listeners are what the agent listens on, from the start; all but content may be nil.
type listeners struct {
	content, admin, swarm, shim net.Listener
	own                         []string // Unix sockets to be removed
}

// listen opens the listeners, but takes Unix sockets from systemd if it has them.
func (a *agent) listen(ctx context.Context, d *daemon.Daemon) error {
	l := &a.listeners
	given, err := activated()
	if err != nil {
		return err
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
		return err
	}
	if a.cfg.Admin != "" {
		if l.admin, err = unix(a.cfg.Admin); err != nil {
			return err
		}
	}
	for path, g := range given {
		g.Close()
		return fmt.Errorf("systemd passed the socket %s, but the configuration names %s", path, a.cfg.Socket)
	}
	// What these are for waits for them, if they cannot be had now.
	if a.cfg.Alone == "" {
		l.swarm, _ = d.Listen(ctx, "listen", a.cfg.Listen, nil)
	}
	if a.cfg.Shim.Listen != "" {
		if l.shim, err = d.Listen(ctx, "shim.listen", a.cfg.Shim.Listen, nil); err == nil {
			a.shimAddr.Store(l.shim.Addr().String())
		}
	}
	return nil
}

// swarmless is what an agent runs without as long as it has no network.
const swarmless = "the swarm, blobs come from the registry"

// awaitNetwork waits for what the swarm needs: a certificate, if one is configured, and its
// port.
func (a *agent) awaitNetwork(ctx context.Context) (l net.Listener, id *identity.Source, err error) {
	l = a.listeners.swarm
	if l != nil && a.cfg.Identity.Enabled() && a.daemon.Identity == nil {
		l.Close() // peers would wait for an answer
		l = nil
	}
	if l == nil {
		a.fetches.Connect(nil, nil)
	}
	if id, err = a.daemon.Identify(ctx, swarmless); err == nil && l == nil {
		l, err = a.daemon.Patiently(ctx, "listen", swarmless, a.cfg.Listen)
	}
	return l, id, err
}

// serveShim serves the registry shim, as soon as it can before ctx is done, until serving is.
func (a *agent) serveShim(ctx, serving context.Context) error {
	const without = "the registry shim"
	mc := a.cfg.Shim
	if mc.CA == "" {
		mc.CA = a.cfg.Identity.CA
	}
	mc.AuthorizeBlob = a.cfg.Authorize == "blob"
	mc.OnRelayed = func(n int) { a.registryBytes.Add(int64(n)) }
	var m *shim.Mirror
	l := a.listeners.shim
	if err := a.daemon.Overcome(ctx, "shim", without, func() (err error) {
		if m, err = shim.NewMirror(mc, shimBlobs{a.fetches, a.disk}); err != nil && l != nil {
			l.Close() // clients would wait for an answer
			l = nil
		}
		return err
	}); err != nil {
		return nil // the agent ends
	}
	defer m.Close()
	a.daemon.Metrics.MustRegister(m)
	if l == nil {
		var err error
		if l, err = a.daemon.Patiently(ctx, "shim.listen", without, mc.Listen); err != nil {
			return nil
		}
		a.shimAddr.Store(l.Addr().String())
	}
	a.mirror.Store(m)
	a.up()
	// Requests have had their time. This is what containerd's calls wait for the next agent.
	return m.Serve(serving, l, 100*time.Millisecond)
}

func (l *listeners) close() {
	for _, x := range []net.Listener{l.content, l.admin} {
		if x != nil {
			x.Close()
		}
	}
	for _, path := range l.own {
		os.Remove(path)
	}
}

// activated returns the listeners that systemd passed, by the path of their
// Unix socket. It can be called once in a process.
func activated() (map[string]net.Listener, error) {
	ls, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("taking sockets from systemd: %w", err)
	}
	m := map[string]net.Listener{}
	for _, l := range ls {
		if l != nil && l.Addr().Network() == "unix" {
			m[l.Addr().String()] = l
		}
	}
	return m, nil
}

// listenUnix makes a Unix socket that only root may connect to. A socket that is
// left over is replaced; one on which somebody answers is [daemon.ErrInUse]. The socket
// appears under its name only when it is ready, in one step. The caller removes
// it.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	switch c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path); {
	case err == nil:
		c.Close()
		return nil, fmt.Errorf("socket %s: another process answers on it: %w", path, daemon.ErrInUse)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("socket %s: a file that is not a socket is in its place", path)
	}
	dir := filepath.Dir(path)
	// A directory below one that is not there either is rather a slip than meant.
	switch err := os.Mkdir(dir, 0o711); {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("socket %s: there is no directory %s: is the path right? Only the last directory of it is made",
			path, filepath.Dir(dir))
	case err == nil && dir != filepath.Dir(DefaultConfig().Socket): // which is gone after each boot
		log.G(ctx).WithFields(log.Fields{"socket": path, "directory": dir}).
			Warn("made the directory of a socket, which was not there: is the path right?")
	case err != nil && !errors.Is(err, os.ErrExist):
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	// A directory of its own keeps others out until the mode is set.
	tmp, err := os.MkdirTemp(dir, ".s")
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	defer os.RemoveAll(tmp)
	at := filepath.Join(tmp, "s")
	l, err := net.Listen("unix", at)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	err = os.Chmod(at, 0o600)
	if err == nil {
		err = os.Rename(at, path)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return l, nil
}

// advertised returns the addresses that others are told: the configured one, or those of
// the listener.
func advertised(ctx context.Context, cfg Config, l net.Addr) []string {
	if cfg.Advertise != "" {
		return []string{cfg.Advertise}
	}
	return hostaddr.Advertised(ctx, l, cfg.Trackers)
}
