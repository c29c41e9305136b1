package main

import (
	"os"
	"runtime/debug"

	"github.com/containerd/log"
	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/trackerd"
)

func init() { roles = append(roles, trackerdCommand) }

// trackerdConfigPath is read if no --config is given and it exists.
const trackerdConfigPath = "/etc/capelin/trackerd.toml"

func trackerdCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "trackerd",
		Short: "Run a tracker: who has which blob, and who may fetch it from the registry",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := trackerd.DefaultConfig()
			if _, err := loadConfig(path, trackerdConfigPath, &cfg); err != nil {
				return err
			}
			if err := log.SetLevel(cfg.LogLevel); err != nil {
				return err
			}
			if os.Getenv("GOGC") == "" {
				// After a restart all nodes connect and announce at once; most of what is
				// scanned meanwhile are stacks that live on. Costs a tenth more memory and
				// saves a tenth of the work.
				debug.SetGCPercent(200)
			}
			return trackerd.Run(cmd.Context(), cfg)
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", "", "configuration file (default "+trackerdConfigPath+", if it exists)")
	cmd.AddCommand(configCommand(trackerd.DefaultConfig()))
	return cmd
}
