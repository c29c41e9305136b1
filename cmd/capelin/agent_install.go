package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/plugin/install"
)

// agentInstallCommands are the agent's subcommands around its installation.
// config points to the agent's --config.
func agentInstallCommands(config *string) []*cobra.Command {
	return []*cobra.Command{
		agentInstallCommand(config), agentUninstallCommand(), agentFallbackCommand(config), agentDoctorCommand(config),
	}
}

// hostFlags choose the host and where its containerd is.
func hostFlags(cmd *cobra.Command, root *string, w *install.Where) {
	if root != nil {
		cmd.Flags().StringVar(root, "root", "/", "root directory of the host, such as an image that is being built")
	}
	if w != nil {
		cmd.Flags().StringVar(&w.Flavor, "flavor", "", "how containerd is installed: containerd, k3s or rke2 (default: what is found)")
		cmd.Flags().StringVar(&w.Config, "containerd-config", "", "containerd's main configuration file (default: the flavor's)")
		cmd.Flags().StringVar(&w.Unit, "containerd-unit", "", "systemd unit that runs containerd (default: the flavor's)")
	}
}

func agentInstallCommand(config *string) *cobra.Command {
	var root string
	var o install.Options
	var dryRun, start, restart bool
	var trackers []string
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Write the agent's configuration, systemd units and containerd's drop-in",
		Long: `Write the agent's configuration, systemd units and containerd's drop-in.

Finds containerd (plain, kind, k3s or RKE2), its version, its content directory
and the directory of drop-ins that it imports. An agent.toml that exists is never
changed. It can be repeated; files that somebody else has changed are not
replaced without --force. containerd is not restarted without --restart-containerd.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, out, h := cmd.Context(), cmd.OutOrStdout(), install.Local{Root: root}
			if (start || restart) && !h.Live() {
				return errors.New("--start is for this machine, not for an image below --root")
			}
			if len(trackers) > 0 {
				list, err := json.Marshal(trackers) // TOML's arrays of strings are JSON's
				if err != nil {
					return err
				}
				o.Set = append(o.Set, "trackers="+string(list))
			}
			o.Config = *config
			s, err := install.Look(ctx, h, o.Where)
			if err != nil {
				return err
			}
			p, err := install.NewPlan(h, s, o)
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "%s, version %s, content in %s, run by %s\n", s.Flavor, orUnknown(s.Version), s.ContentRoot, s.Unit)
			p.Write(out, dryRun)
			if dryRun {
				return nil
			}
			if err := p.Apply(h); err != nil {
				return err
			}
			start = start || restart
			if start {
				if err := install.Start(ctx, h, s.Unit, restart && !p.Fallen); err != nil {
					return err
				}
			}
			if p.Fallen && restart {
				if err := install.Undo(ctx, h, p.Agent, undoWait, sayTo(out)); err != nil {
					return err
				}
				p.Fallen = false
			}
			printSteps(out, p.NextSteps(h, start, restart))
			return nil
		},
	}
	hostFlags(cmd, &root, &o.Where)
	cmd.Flags().StringVar(&o.Binary, "binary", install.BinaryPath, "where the capelin program is on the host")
	cmd.Flags().StringArrayVar(&trackers, "tracker", nil, "tracker for a new agent.toml, host:port; repeat for several")
	cmd.Flags().StringArrayVar(&o.Set, "set", nil, "value for a new agent.toml, such as zone=rack7 or cache.size=50GiB; repeat for several")
	cmd.Flags().BoolVar(&o.Force, "force", false, "replace files that somebody else has changed, and install for a containerd that is too old")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print what would be written, and write nothing")
	cmd.Flags().BoolVar(&start, "start", false, "have systemd load and enable the units and open the agent's sockets")
	cmd.Flags().BoolVar(&restart, "restart-containerd", false, "like --start, and restart the agent and containerd")
	return cmd
}

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
			fmt.Fprintln(out, "All images stay usable. What the agent kept beside containerd's blobs, the directories swarm and cache of the content directory, can be deleted when it has stopped.")
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

// undoWait is how long an agent gets to show that it works again.
const undoWait = time.Minute

func agentFallbackCommand(config *string) *cobra.Command {
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
			cfg, _, err := agentConfig(*config)
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

func agentDoctorCommand(config *string) *cobra.Command {
	var where install.Where
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check this node's containerd, agent, disk, clock, identity and trackers, and explain what is wrong",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			cfg, path, cerr := agentConfig(*config)
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

func sayTo(w io.Writer) func(format string, args ...any) {
	return func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

func printSteps(w io.Writer, steps []string) {
	if len(steps) == 0 {
		return
	}
	fmt.Fprintln(w, "next:")
	for _, s := range steps {
		fmt.Fprintln(w, "  "+s)
	}
}
