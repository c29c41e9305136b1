package main

import (
	"github.com/containerd/log"
	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/indexd"
)

func init() { roles = append(roles, indexdCommand) }

// indexdConfigPath is read if no --config is given and it exists.
const indexdConfigPath = "/etc/capelin/indexd.toml"

func indexdCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "indexd",
		Short: "Run an index: what tags name, and what repositories have",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := indexd.DefaultConfig()
			if _, err := loadConfig(path, indexdConfigPath, &cfg); err != nil {
				return err
			}
			if err := log.SetLevel(cfg.LogLevel); err != nil {
				return err
			}
			return indexd.Run(cmd.Context(), cfg)
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", "", "configuration file (default "+indexdConfigPath+", if it exists)")
	cmd.AddCommand(configCommand(indexd.DefaultConfig()))
	return cmd
}
