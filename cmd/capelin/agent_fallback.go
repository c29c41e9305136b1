package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/plugin/install"
)

// undoWait is how long an agent gets to show that it works again.
const undoWait = time.Minute

func agentFallbackCommand(s *source) *cobra.Command {
	var undo, now bool
	cmd := &cobra.Command{
		Use:   "fallback",
		Short: "Put containerd back on its own content store if the agent cannot run, or undo that",
		Long: `Put containerd back on its own content store if the agent cannot run, or undo that.

systemd runs this when it gives the agent up. The drop-in is moved aside, a marker
says so (` + install.MarkerPath + `), and containerd is restarted; images stay.
The agent then is not started again before --undo.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			h := install.Local{}
			if !undo {
				return install.Fallback(cmd.Context(), h, now, sayTo(cmd.ErrOrStderr()))
			}
			cfg, err := agentConfig(s)
			if err != nil {
				return err
			}
			return install.Undo(cmd.Context(), h, cfg, undoWait, sayTo(cmd.ErrOrStderr()))
		},
	}
	cmd.Flags().BoolVar(&undo, "undo", false, "start the agent, and if it works give containerd the drop-in back and restart both")
	cmd.Flags().BoolVar(&now, "now", false, "fall back although the agent runs")
	cmd.MarkFlagsMutuallyExclusive("undo", "now")
	return cmd
}
