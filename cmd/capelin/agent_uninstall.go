package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/plugin/install"
)

func agentUninstallCommand() *cobra.Command {
	var root string
	var force, dryRun, restart bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove what install wrote; containerd goes back to its own content store",
		Long: `Remove what install wrote; containerd goes back to its own content store.

All images stay usable. Files that somebody has changed since they were installed
are kept without --force. Until containerd is restarted it uses the agent, which
therefore runs on; --restart-containerd does all of it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, h := cmd.OutOrStdout(), install.Local{Root: root}
			if restart && !h.Live() {
				return errors.New("--restart-containerd is for this machine, not for an image below --root")
			}
			r, err := install.NewRemoval(h, force)
			if err != nil {
				return err
			}
			r.Write(out, dryRun)
			if dryRun {
				return nil
			}
			if err := r.Apply(cmd.Context(), h, restart); err != nil {
				return err
			}
			fmt.Fprintln(out, "All images stay usable. What the agent kept beside containerd's blobs, the directories swarm and cache of the "+
				"content directory, can be deleted when it has stopped.")
			printSteps(out, r.NextSteps(h, restart))
			return nil
		},
	}
	hostFlags(cmd, &root, nil)
	cmd.Flags().BoolVar(&force, "force", false, "also remove what has been changed since it was installed")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print what would be removed, and remove nothing")
	cmd.Flags().BoolVar(&restart, "restart-containerd", false, "restart containerd on its own content store and stop the agent")
	return cmd
}
