package main

import (
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/plugin"
)

// agentConfigPath is read if no --config is given and it exists.
const agentConfigPath = "/etc/capelin/agent.toml"

func agentCommand(hangups chan os.Signal) *cobra.Command {
	cmd, s := daemonCommand(role[plugin.Config]{
		name:     "agent",
		short:    "Run the node agent: containerd's content store, with a swarm behind it",
		defaults: plugin.DefaultConfig,
		run:      plugin.Run,
		reload:   func(c *plugin.Config, live <-chan plugin.Config) { c.Reload = live },
		survive: func(last, refused plugin.Config, why []*config.Problem) (plugin.Config, bool) {
			use := plugin.Survive(last, refused, why)
			return use, use.Alone != ""
		},
		watch: func(c *plugin.Config, up, working func()) { c.Up, c.Working = up, working },
		tune: func(c *plugin.Config) {
			spareProcessors(c)
			c.DecodeZstd = []string{"/proc/self/exe", "agent", decodeZstd} // the same program, whatever it was replaced by
			relaxTimers()
			if os.Getenv("GOGC") == "" {
				relaxCollector()
			}
		},
	}, hangups)
	cmd.AddCommand(containerdConfigCommand(s), agentInstallCommand(s), agentUninstallCommand(), agentFallbackCommand(s), agentDoctorCommand(s),
		decodeZstdCommand())
	return cmd
}

const decodeZstd = "decode-zstd"

// decodeZstdCommand is what the agent starts to unpack layers that take much memory.
func decodeZstdCommand() *cobra.Command {
	return &cobra.Command{
		Use:    decodeZstd,
		Short:  "Decode zstd from standard input to standard output, for the agent",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return plugin.DecodeZstd(cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}

// agentConfig loads the agent's configuration.
func agentConfig(s *source) (plugin.Config, error) {
	cfg := plugin.DefaultConfig()
	err := s.load(&cfg)
	return cfg, err
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
