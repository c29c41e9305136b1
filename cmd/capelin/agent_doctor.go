package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/plugin"
	"github.com/capelin-io/capelin/plugin/install"
)

func agentDoctorCommand(s *source) *cobra.Command {
	var where install.Where
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check this node's containerd, agent, disk, clock, identity and trackers, and explain what is wrong",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			path, cerr := s.file()
			cfg := plugin.DefaultConfig()
			if cerr == nil {
				cfg, cerr = agentConfig(s) // of a file that is refused, what can be read
			}
			findings := install.Doctor(ctx, install.Local{}, install.Agent{Config: cfg, Path: path, Err: cerr}, where)
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				if err := enc.Encode(findings); err != nil {
					return err
				}
			} else {
				install.WriteFindings(cmd.OutOrStdout(), findings)
			}
			if n := install.Failed(findings); n > 0 {
				return fmt.Errorf("%d of %d findings are failures", n, len(findings))
			}
			return nil
		},
	}
	hostFlags(cmd, nil, &where)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the findings as JSON")
	return cmd
}
