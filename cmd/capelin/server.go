package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"

	"github.com/containerd/log"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/gateway"
	"github.com/capelin-io/capelin/indexd"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/origind"
	"github.com/capelin-io/capelin/trackerd"
)

func init() { roles = append(roles, serverCommand) }

// serverConfigPath is read if no --config is given and it exists.
const serverConfigPath = "/etc/capelin/server.toml"

// serverConfig is the configuration of `capelin server`: what the four roles have in
// common, and each role's own table, as in its own file.
type serverConfig struct {
	Data    string `toml:"data" comment:"Directory for everything that the server keeps: blobs, tags, the queue. All of it must be on one file system. An absolute path."`
	Address string `toml:"address" comment:"IP address or name of this machine on which the tracker (port 7470), the origin (7480, swarm 7481), the index (7490) and the gateway (7500) listen. All nodes must reach it. The default is for trying Capelin on one machine."`
	Name    string `toml:"name" comment:"Name of this server, unique in the cluster, among its nodes too. Empty: the certificate's, or without identity \"origin-\" and the host's name."`
	Cluster string `toml:"cluster" comment:"Name of the cluster. Agents have the same default."`
	Zone    string `toml:"zone" comment:"Where this server is, such as a rack or an availability zone. May be empty."`

	Identity identity.Config `toml:"identity" comment:"Who this server is. The certificate needs the roles tracker, origin, index and gateway: \"capelin ca issue --role tracker,origin,index,gateway --name NAME --host ADDRESS\"."`
	Insecure bool            `toml:"insecure" comment:"Listen beyond loopback without identity: everybody on that network may then do everything."`
	LogLevel string          `toml:"log_level" comment:"\"debug\", \"info\", \"warn\" or \"error\"."`

	Tracker trackerd.Config `toml:"tracker" comment:"As in \"capelin trackerd config\". Here and below, what is empty follows from the keys above."`
	Origin  origind.Config  `toml:"origin" comment:"As in \"capelin origind config\"."`
	Index   indexd.Config   `toml:"index" comment:"As in \"capelin indexd config\"."`
	Gateway gateway.Config  `toml:"gateway" comment:"As in \"capelin gateway config\"."`
}

func defaultServerConfig() serverConfig {
	c := serverConfig{
		Data: "/var/lib/capelin/server", Address: "127.0.0.1", Cluster: "default", LogLevel: "info",
		Tracker: trackerd.DefaultConfig(), Origin: origind.DefaultConfig(), Index: indexd.DefaultConfig(), Gateway: gateway.DefaultConfig(),
	}
	for _, s := range c.common() {
		*s.at = ""
	}
	c.Origin.Node, c.Origin.Zone = "", ""
	c.Origin.Trackers, c.Index.Origins, c.Gateway.Origins, c.Gateway.Indexes = []string{}, []string{}, []string{}, []string{}
	return c
}

// common are the roles' strings that follow from the server's.
func (c *serverConfig) common() []struct {
	at    *string
	value string
} {
	on := func(port string) string { return net.JoinHostPort(c.Address, port) }
	return []struct {
		at    *string
		value string
	}{
		{&c.Tracker.Listen, on("7470")}, {&c.Origin.Listen, on("7480")}, {&c.Origin.Swarm.Listen, on("7481")}, {&c.Index.Listen, on("7490")}, {&c.Gateway.Listen, on("7500")},
		{&c.Tracker.Cluster, c.Cluster}, {&c.Origin.Cluster, c.Cluster}, {&c.Index.Cluster, c.Cluster}, {&c.Gateway.Cluster, c.Cluster},
		{&c.Tracker.LogLevel, c.LogLevel}, {&c.Origin.LogLevel, c.LogLevel}, {&c.Index.LogLevel, c.LogLevel}, {&c.Gateway.LogLevel, c.LogLevel},
		{&c.Origin.Root, filepath.Join(c.Data, "origin")}, {&c.Index.Storage.File.Path, filepath.Join(c.Data, "index")},
	}
}

// fill returns c with the roles' tables complete.
func (c serverConfig) fill() serverConfig {
	for _, s := range c.common() {
		if *s.at == "" {
			*s.at = s.value
		}
	}
	for _, s := range []struct{ at, value *string }{{&c.Origin.Node, &c.Name}, {&c.Origin.Zone, &c.Zone}} {
		if *s.at == "" {
			*s.at = *s.value
		}
	}
	for _, id := range []*identity.Config{&c.Tracker.Identity, &c.Origin.Identity, &c.Index.Identity, &c.Gateway.Identity} {
		if !id.Enabled() {
			*id = c.Identity
		}
	}
	for _, insecure := range []*bool{&c.Tracker.Insecure, &c.Origin.Insecure, &c.Index.Insecure, &c.Gateway.Insecure} {
		*insecure = *insecure || c.Insecure
	}
	for _, l := range []struct {
		at   *[]string
		addr string
	}{{&c.Origin.Trackers, c.Tracker.Listen}, {&c.Index.Origins, c.Origin.Listen}, {&c.Gateway.Origins, c.Origin.Listen}, {&c.Gateway.Indexes, c.Index.Listen}} {
		if len(*l.at) == 0 {
			*l.at = []string{l.addr}
		}
	}
	return c
}

// Validate reports what is wrong with c, by key.
func (c *serverConfig) Validate() error {
	var errs []error
	if !filepath.IsAbs(c.Data) {
		errs = append(errs, config.Invalid("data", "%q is not an absolute path", c.Data))
	}
	if c.Address == "" {
		errs = append(errs, config.Invalid("address", "must be set"))
	}
	errs = append(errs, c.Identity.Check("identity.")...)
	errs = append(errs, c.Identity.CheckListen("address", net.JoinHostPort(c.Address, "7500"), c.Insecure)...)
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	full := c.fill()
	for _, r := range []struct {
		table string
		err   error
	}{{"tracker", full.Tracker.Validate()}, {"origin", full.Origin.Validate()}, {"index", full.Index.Validate()}, {"gateway", full.Gateway.Validate()}} {
		errs = append(errs, config.Renamed(r.err, func(key string) string { return r.table + "." + key })...)
	}
	return errors.Join(errs...)
}

func serverCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run tracker, origin, index and gateway in one process",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := defaultServerConfig()
			if _, err := loadConfig(path, serverConfigPath, &cfg); err != nil {
				return err
			}
			if err := log.SetLevel(cfg.LogLevel); err != nil {
				return err
			}
			return runServer(cmd.Context(), cfg)
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", "", "configuration file (default "+serverConfigPath+", if it exists)")
	cmd.AddCommand(configCommand(defaultServerConfig()))
	return cmd
}

// runServer runs all roles until ctx is done or one of them fails. They speak to
// each other as they would in processes of their own, and wait for each other.
func runServer(ctx context.Context, cfg serverConfig) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("configuration of the server: %w", err)
	}
	if err := durable.MkdirAll(cfg.Data, 0o750); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	cfg = cfg.fill()
	g, ctx := errgroup.WithContext(ctx)
	role := func(name string, f func(context.Context) error) {
		g.Go(func() error { return f(log.WithLogger(ctx, log.G(ctx).WithField("role", name))) })
	}
	role("tracker", func(ctx context.Context) error { return trackerd.Run(ctx, cfg.Tracker) })
	role("origin", func(ctx context.Context) error { return origind.Run(ctx, cfg.Origin) })
	role("index", func(ctx context.Context) error { return indexd.Run(ctx, cfg.Index) })
	role("gateway", func(ctx context.Context) error { return gateway.Run(ctx, cfg.Gateway) })
	return g.Wait()
}
