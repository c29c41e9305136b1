package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/plugin"
)

func containerdConfigCommand(s *source) *cobra.Command {
	return &cobra.Command{
		Use:   "containerd-config",
		Short: "Print the drop-in by which containerd uses the agent (for /etc/containerd/conf.d/capelin.toml)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := agentConfig(s)
			if err != nil {
				return err
			}
			fmt.Fprint(cmd.OutOrStdout(), plugin.ContainerdConfig(cfg, plugin.Unpacking{}))
			return nil
		},
	}
}
