package harness

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Tracker is a `capelin trackerd` on a host of its own.
type Tracker struct {
	*Host
	Listen string // host:port that agents use

	keys   map[string]string
	proc   *Process
	secure *tls.Config // to ask it; nil: plain
}

// NewTracker makes a host and starts a tracker on it. keys are more of its
// configuration, as TOML values.
func (c *Cluster) NewTracker(ctx context.Context, name string, keys map[string]string) (*Tracker, error) {
	h, err := c.NewHost(name)
	if err != nil {
		return nil, err
	}
	return NewTrackerOn(ctx, h, keys)
}

// NewTrackerOn starts a tracker on a host that others are on, too.
func NewTrackerOn(ctx context.Context, h *Host, keys map[string]string) (*Tracker, error) {
	t := &Tracker{Host: h, Listen: h.Addr + ":7470", keys: keys}
	return t, t.Start(ctx)
}

// Signal sends the tracker's process a signal.
func (t *Tracker) Signal(s syscall.Signal) error { return t.proc.Signal(s) }

// Start starts it, again after a Kill or Stop, and waits until it listens.
func (t *Tracker) Start(ctx context.Context) error {
	bin, err := Built("capelin")
	if err != nil {
		return err
	}
	keys := map[string]string{
		"listen":   fmt.Sprintf("%q", t.Listen),
		"metrics":  fmt.Sprintf("%q", t.Addr+":7471"),
		"insecure": "true",
		// No other agents are about to reconnect to a tracker that was just started.
		"lease.warmup": `"0s"`,
	}
	for k, v := range t.keys {
		keys[k] = v
	}
	config := filepath.Join(t.Dir, "trackerd.toml")
	if err := os.WriteFile(config, []byte(tomlOf(keys)), 0o644); err != nil {
		return err
	}
	t.proc, err = t.Host.Start("trackerd", nil, nil, bin, "trackerd", "--config", config)
	if err != nil {
		return err
	}
	return t.proc.await(ctx, t.accepts(t.Listen))
}

// Trust has the tracker asked with a certificate from now on.
func (t *Tracker) Trust(ctx context.Context, p *PKI) error {
	const operator = "operator"
	if _, err := p.Issue(ctx, operator, "admin"); err != nil {
		return err
	}
	dir := filepath.Join(p.Dir, "issued", operator)
	id, err := identity.Load(identity.Config{
		CA: filepath.Join(dir, identity.CACert), Cert: filepath.Join(dir, identity.Cert), Key: filepath.Join(dir, identity.Key),
	}, "default")
	if err == nil {
		t.secure = id.ClientTLS(identity.RoleTracker)
	}
	return err
}

// AwaitHolder waits until the tracker knows that a node has all layers of an image.
func (t *Tracker) AwaitHolder(ctx context.Context, node string, img *Image) error {
	control, err := tracker.NewControl(tracker.ControlConfig{
		Trackers: []string{t.Listen}, TLS: t.secure,
		Dial: func(ctx context.Context, addr string) (net.Conn, error) { return t.DialContext(ctx, "tcp", addr) },
	})
	if err != nil {
		return err
	}
	defer control.Close()
	for i, d := range img.Layers {
		id, err := piece.ParseID(d, img.Sizes[i])
		if err != nil {
			return err
		}
		if err := t.proc.await(ctx, func(ctx context.Context) error {
			ms, err := control.Members(ctx, id)
			if err == nil && !slices.ContainsFunc(ms, func(m tracker.Member) bool { return m.Node == node && m.Complete }) {
				err = fmt.Errorf("it does not know that %s has %s", node, d)
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// Kill ends it with SIGKILL; Stop with SIGTERM.
func (t *Tracker) Kill() { t.proc.Kill() }

// Stop ends it with SIGTERM.
func (t *Tracker) Stop() error { return t.proc.Stop() }

// Tail returns the last lines of its log.
func (t *Tracker) Tail(lines int) string { return t.proc.Tail(lines) }
