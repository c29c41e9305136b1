package main

import (
	"github.com/containerd/log"
	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/gateway"
)

func init() { roles = append(roles, gatewayCommand) }

func gatewayCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "Run a gateway: the registry API over origins and an index",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := gateway.DefaultConfig()
			if _, err := loadConfig(path, "/etc/capelin/gateway.toml", &cfg); err != nil {
				return err
			}
			if err := log.SetLevel(cfg.LogLevel); err != nil {
				return err
			}
			return gateway.Run(cmd.Context(), cfg)
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", "", "configuration file (default /etc/capelin/gateway.toml, if it exists)")
	cmd.AddCommand(configCommand(gateway.DefaultConfig()))
	return cmd
}
