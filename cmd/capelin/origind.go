package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/origind"
)

func origindCommand(hangups chan os.Signal) *cobra.Command {
	cmd, s := daemonCommand(role[origind.Config]{
		name:     "origind",
		short:    "Run an origin: takes pushes, keeps blobs, seeds them, and reads and writes backends",
		defaults: origind.DefaultConfig,
		run:      origind.Run,
		reload:   func(c *origind.Config, live <-chan origind.Config) { c.Reload = live },
		tune:     func(*origind.Config) { relaxTimers() },
	}, hangups)
	cmd.AddCommand(exportV1Command(s))
	return cmd
}

// exportV1Command is the way back to releases before the ring.
func exportV1Command(s *source) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export-v1 DIR",
		Short: "Write the records of a stopped origin as releases before the ring have them",
		Long: `Write the records of a stopped origin as releases before the ring have them.

DIR must not be there; below the origin's root it is "records". The origin must be
the last one of its ring: the others were drained, and have left. Before an earlier
release is started, move "ring" away, which is below the root, too.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg := origind.DefaultConfig()
			if err := s.load(&cfg); err != nil {
				return err
			}
			roots := cfg.Roots()
			if len(roots) > 1 {
				return fmt.Errorf("releases before the ring know one directory, and data has %d: take the others out of it, start the origin, "+
					"and wait until it has taken their blobs", len(roots))
			}
			n, err := origind.ExportV1(roots[0], args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d records are in %s; move %s away before an earlier release is started\n",
				n, args[0], filepath.Join(roots[0], "ring"))
			return err
		},
	}
	cmd.Flags().StringArrayVar(&s.set, "set", nil, config.Usage(origind.DefaultConfig()))
	return cmd
}
