package main

import (
	"github.com/containerd/log"
	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/origind"
)

func init() { roles = append(roles, origindCommand) }

// origindConfigPath is read if no --config is given and it exists.
const origindConfigPath = "/etc/capelin/origind.toml"

func origindCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "origind",
		Short: "Run an origin: takes pushes, keeps blobs, seeds them, and reads and writes backends",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := origind.DefaultConfig()
			if _, err := loadConfig(path, origindConfigPath, &cfg); err != nil {
				return err
			}
			if err := log.SetLevel(cfg.LogLevel); err != nil {
				return err
			}
			relaxTimers()
			return origind.Run(cmd.Context(), cfg)
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", "", "configuration file (default "+origindConfigPath+", if it exists)")
	cmd.AddCommand(configCommand(origind.DefaultConfig()))
	return cmd
}
