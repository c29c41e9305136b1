package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/plugin"
	"github.com/capelin-io/capelin/plugin/install"
)

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

func agentInstallCommand(s *source) *cobra.Command {
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
				flag := "--start"
				if restart {
					flag = "--restart-containerd"
				}
				return fmt.Errorf("%s is for this machine, not for an image below --root", flag)
			}
			if len(trackers) > 0 {
				list, err := json.Marshal(trackers) // TOML's arrays of strings are JSON's
				if err != nil {
					return err
				}
				o.Set = append(o.Set, "trackers="+string(list))
			}
			o.Config = s.path
			found, err := install.Look(ctx, h, o.Where)
			if err != nil {
				return err
			}
			p, err := install.NewPlan(h, found, o)
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "%s, version %s, content in %s, run by %s\n", found.Flavor, orUnknown(found.Version), found.ContentRoot, found.Unit)
			p.Write(out, dryRun)
			if dryRun {
				return nil
			}
			if restart {
				if err := p.Startable(h); err != nil {
					return err
				}
			}
			if err := p.Apply(h); err != nil {
				return err
			}
			start = start || restart
			if start {
				if err := install.Start(ctx, h, found.Unit, restart && !p.Fallen); err != nil {
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
	cmd.Flags().StringArrayVar(&o.Set, "set", nil, "for a new agent.toml: "+config.Usage(plugin.DefaultConfig()))
	cmd.Flags().BoolVar(&o.Force, "force", false, "replace files that somebody else has changed, and install for a containerd that is too old")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print what would be written, and write nothing")
	cmd.Flags().BoolVar(&start, "start", false, "have systemd load and enable the units and open the agent's sockets")
	cmd.Flags().BoolVar(&restart, "restart-containerd", false, "like --start, and restart the agent and containerd")
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
