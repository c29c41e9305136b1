package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"

	"github.com/containerd/log"
	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/gateway"
	"github.com/capelin-io/capelin/indexd"
	"github.com/capelin-io/capelin/internal/daemon"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/origind"
	"github.com/capelin-io/capelin/trackerd"
)

func serverCommand(hangups chan os.Signal) *cobra.Command {
	cmd, _ := daemonCommand(role[serverConfig]{
		name:     "server",
		short:    "Run tracker, origin, index and gateway in one process",
		defaults: defaultServerConfig,
		run:      runServer,
		reload:   func(c *serverConfig, live <-chan serverConfig) { c.reload = live },
		identity: serverConfig.checkIdentity,
		tidy:     func(ctx context.Context, c *serverConfig) { c.ignoreRoleLogs(ctx) },
	}, hangups)
	return cmd
}

// process is what the roles of a server run in. It has metrics, and no identity: those
// are the roles'.
type process struct{ daemon.Common }

func (*process) Validate() error { return nil }

// runServer runs all roles until ctx is done or one of them fails. They speak to
// each other as they would in processes of their own, and wait for each other.
func runServer(ctx context.Context, cfg serverConfig) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("server: configuration: %w", err)
	}
	_, err := os.Stat(cfg.Data)
	first := errors.Is(err, os.ErrNotExist)
	if err := durable.MkdirAll(cfg.Data, 0o750); err != nil {
		return fmt.Errorf("server: data directory: %w", err)
	}
	full, _ := cfg.fill()
	if cfg.Identity.Enabled() { // the roles load it, too, but it is the server's
		if _, err := identity.Load(cfg.Identity, cfg.Cluster); err != nil {
			return fmt.Errorf("server: %w", err)
		}
	}
	p := &process{daemon.Common{Cluster: full.Cluster, Metrics: full.Metrics, Pprof: full.Pprof, File: cfg.File}}
	return daemon.Run(ctx, "server", p, func(ctx context.Context, d *daemon.Daemon) error {
		for _, r := range full.roles() {
			r.common.Shown = d.Page.Role(r.name)
		}
		origins := make(chan origind.Config)
		full.Origin.Reload = origins
		as := func(name string, run func(context.Context) error) daemon.Part {
			return daemon.Part{Run: func(ctx context.Context) error { // its errors name the role
				err := run(log.WithLogger(ctx, log.G(ctx).WithField("role", name)))
				// The keys are in the role's table here.
				why := config.Renamed(errors.Unwrap(err), func(key string) string { return name + "." + key })
				if len(why) > 0 && config.KeyOf(why[0]) != "" {
					return errors.Join(why...)
				}
				return err
			}}
		}
		up := full.awaitRoles(func() {
			if first {
				fmt.Fprint(os.Stderr, full.howToPush())
			}
		})
		return d.Serve(ctx, daemon.Parts{
			Servers: []daemon.Part{
				as("tracker", func(ctx context.Context) error { return trackerd.Run(ctx, full.Tracker) }),
				as("origin", func(ctx context.Context) error { return origind.Run(ctx, full.Origin) }),
				as("index", func(ctx context.Context) error { return indexd.Run(ctx, full.Index) }),
				as("gateway", func(ctx context.Context) error { return gateway.Run(ctx, full.Gateway) }),
			},
			Work:  []daemon.Part{{Name: "reload", Run: func(ctx context.Context) error { return passOn(ctx, cfg.reload, origins) }}},
			Log:   log.Fields{"data": full.Data, "address": full.Address, "tls": full.Identity.Enabled()},
			Ready: up,
		})
	})
}

// howToPush says, in three lines, what to do with a server that is new.
func (c *serverConfig) howToPush() string {
	at, who, trust := c.reached(c.Gateway.Listen), "everybody may (gateway.users and gateway.rule say who, see docs/access.md)", ""
	if c.Gateway.Guarded() {
		who = "log in to it with: capelin login " + at
		if c.Gateway.Identity.Enabled() {
			trust = " --ca " + c.Gateway.Identity.CA
			who += trust
		}
	}
	return fmt.Sprintf("capelin: this server is new, and takes pushes at %[1]s; %[2]s\n"+
		"  capelin image push docker://docker.io/library/alpine:3 %[1]s/team/alpine:3%[3]s\n"+
		"  docker pull %[1]s/team/alpine:3\n", at, who, trust)
}

// awaitRoles returns a channel that is closed when all roles are up, after then was called.
func (c *serverConfig) awaitRoles(then func()) <-chan struct{} {
	up := make(chan struct{})
	var missing atomic.Int32
	missing.Store(int32(len(c.roles())))
	one := func() {
		if missing.Add(-1) == 0 {
			then()
			close(up)
		}
	}
	c.Tracker.OnListen = func(_, _ net.Addr) { one() }
	c.Origin.OnListen = func(_, _, _ net.Addr) { one() }
	c.Index.OnReady = one
	c.Gateway.OnListen = func(_, _ net.Addr) { one() }
	return up
}

// passOn gives the origin its part of configurations that were read again.
func passOn(ctx context.Context, reload <-chan serverConfig, origins chan<- origind.Config) error {
	for {
		select {
		case cfg := <-reload:
			full, _ := cfg.fill()
			select {
			case origins <- full.Origin:
			case <-ctx.Done():
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}
