package main

import (
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/plugin"
	"github.com/capelin-io/capelin/plugin/install"
)

// undoWait is how long an agent gets to show that it works again.
const undoWait = time.Minute

func agentFallbackCommand(s *source) *cobra.Command {
	var undo, now, back bool
	cmd := &cobra.Command{
		Use:   "fallback",
		Short: "Put containerd back on its own content store if the agent cannot run, or undo that",
		Long: `Put containerd back on its own content store if the agent cannot run, or undo that.

systemd runs this when it gives the agent up. The drop-in is moved aside, a marker
says so (` + install.MarkerPath + `), and containerd is restarted; images stay.
Then systemd runs it with --return, which looks whether the agent works again and
gives containerd the drop-in back: once a day, and not after --now.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, say := install.Local{}, sayTo(cmd.ErrOrStderr())
			switch {
			case back:
				return install.Return(cmd.Context(), h, func() (plugin.Config, []string) { return agentNeeds(s) }, install.DefaultPatience(), say)
			case undo:
				// Also of a file that is refused: the agent may run on with an earlier one.
				cfg, _ := agentConfig(s)
				return install.Undo(cmd.Context(), h, cfg, undoWait, say)
			}
			return install.Fallback(cmd.Context(), h, now, say)
		},
	}
	cmd.Flags().BoolVar(&undo, "undo", false, "start the agent, and if it works give containerd the drop-in back and restart both")
	cmd.Flags().BoolVar(&now, "now", false, "fall back although the agent runs, and stay so until --undo")
	cmd.Flags().BoolVar(&back, "return", false, "wait until the agent works, and then do what --undo does")
	cmd.MarkFlagsMutuallyExclusive("undo", "now", "return")
	return cmd
}

// agentNeeds returns the agent's configuration, as far as that can be read, and the files on
// which it depends whether the agent starts.
func agentNeeds(s *source) (plugin.Config, []string) {
	cfg, _ := agentConfig(s)
	files := []string{s.path, cfg.Identity.CA, cfg.Identity.Cert, cfg.Identity.Key}
	if self, err := os.Executable(); err == nil {
		files = append(files, self)
	}
	return cfg, files
}
