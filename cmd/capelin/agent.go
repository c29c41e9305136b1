package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/containerd/log"
	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/plugin"
)

func init() { roles = append(roles, agentCommand) }

// agentConfigPath is read if no --config is given and it exists.
const agentConfigPath = "/etc/capelin/agent.toml"

func agentCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the node agent: containerd's content store, with a swarm behind it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, path, err := agentConfig(path)
			if err != nil {
				return err
			}
			if err := log.SetLevel(cfg.LogLevel); err != nil {
				return err
			}
			spareProcessors(&cfg)
			relaxTimers()
			if os.Getenv("GOGC") == "" {
				// Most of the memory is buffers of blocks, which are cheap to look through:
				// four blobs of 8 GiB at once take 109 MiB instead of 153.
				debug.SetGCPercent(50)
			}
			relimit := make(chan plugin.LimitsConfig)
			cfg.Relimit = relimit
			ctx, cancel := context.WithCancel(cmd.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				reload(ctx, path, relimit)
			}()
			err = plugin.Run(ctx, cfg)
			cancel()
			<-done
			return err
		},
	}
	cmd.PersistentFlags().StringVarP(&path, "config", "c", "", "configuration file (default "+agentConfigPath+", if it exists)")
	cmd.AddCommand(configCommand(plugin.DefaultConfig()), &cobra.Command{
		Use:   "containerd-config",
		Short: "Print the drop-in by which containerd uses the agent (for /etc/containerd/conf.d/capelin.toml)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, _, err := agentConfig(path)
			if err != nil {
				return err
			}
			fmt.Fprint(cmd.OutOrStdout(), plugin.ContainerdConfig(cfg, plugin.Unpacking{}))
			return nil
		},
	})
	cmd.AddCommand(agentInstallCommands(&path)...)
	return cmd
}

// spareProcessors keeps containerd's calls from waiting behind hashing: Go runs
// at most GOMAXPROCS goroutines at once and looks at sockets only every 10 ms
// while all of them compute. With two more than the machine has, there is
// always one that looks, and the kernel prefers whoever has just woken up.
func spareProcessors(cfg *plugin.Config) {
	if os.Getenv("GOMAXPROCS") != "" {
		return
	}
	cfg.Workers = runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(cfg.Workers + 2)
}

// agentConfig loads the agent's configuration and returns the file it is from,
// "" if it is the defaults.
func agentConfig(path string) (plugin.Config, string, error) {
	cfg := plugin.DefaultConfig()
	path, err := loadConfig(path, agentConfigPath, &cfg)
	return cfg, path, err
}

// reload reads the limits again at each SIGHUP.
func reload(ctx context.Context, path string, relimit chan<- plugin.LimitsConfig) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-hup:
		case <-ctx.Done():
			return
		}
		cfg := plugin.DefaultConfig()
		if path != "" {
			if err := config.Load(path, &cfg); err != nil {
				log.G(ctx).WithError(err).Error("the changed configuration is refused, limits stay")
				continue
			}
		}
		select {
		case relimit <- cfg.Limits:
		case <-ctx.Done():
			return
		}
	}
}
