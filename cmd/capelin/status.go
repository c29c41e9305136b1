package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/plugin"
	"github.com/capelin-io/capelin/plugin/install"
)

func statusCommand() *cobra.Command {
	var admin string
	s := &source{usual: agentConfigPath}
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the agent on this node does",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if m := install.Marker(install.Local{}); m != "" {
				fmt.Fprintf(cmd.ErrOrStderr(), "FALLBACK: containerd is on its own content store, %s; see \"capelin agent doctor\"\n", m)
			}
			var refused error
			if admin == "" {
				var cfg plugin.Config
				cfg, refused = agentConfig(s)
				admin = cfg.Admin // also of a file that is refused, as far as it can be read
			}
			st, err := plugin.FetchStatus(cmd.Context(), admin)
			if err != nil {
				return errors.Join(refused, err)
			}
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(st)
			}
			return printStatus(cmd.OutOrStdout(), st, time.Now())
		},
	}
	cmd.Flags().StringVar(&admin, "socket", "", "admin socket of the agent (default: the configuration's)")
	cmd.Flags().StringVarP(&s.path, "config", "c", "", "configuration file of the agent (default "+agentConfigPath+", if it exists)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print everything, as JSON")
	return cmd
}

// size writes a number of bytes for people.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return config.Bytes(n).String()
}

// printConfiguration says whether the agent runs with its file.
func printConfiguration(w io.Writer, c plugin.ConfigurationStatus) {
	if n := len(c.Refused); n > 0 {
		more := ""
		if n > 1 {
			more = fmt.Sprintf(" (and %d more: capelin agent check)", n-1)
		}
		fmt.Fprintf(w, "REFUSED\t%s%s\n", c.Refused[0], more)
		fmt.Fprintf(w, "instead\t%s, since %s\n", c.Instead, c.Since.Local().Format(time.DateTime))
	}
	if len(c.Restart) > 0 {
		fmt.Fprintf(w, "restart\tis needed to use what has changed in %s: %s\n", c.File, strings.Join(c.Restart, " "))
	}
}

func printStatus(w io.Writer, st plugin.Status, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	zone := ""
	if st.Zone != "" {
		zone = ", zone " + st.Zone
	}
	at := "at " + st.Advertise
	if st.Swarm != "" {
		at = "not in the swarm: " + st.Swarm
	}
	fmt.Fprintf(t, "node\t%s in cluster %s%s, %s\n", st.Node, st.Cluster, zone, at)
	fmt.Fprintf(t, "agent\t%s, up %s", st.Version, now.Sub(st.Started).Round(time.Second))
	if st.Stopping {
		fmt.Fprint(t, ", stopping")
	}
	fmt.Fprintln(t)
	if st.Namesake != "" {
		fmt.Fprintf(t, "SHARED\t%v\n", st.Namesake)
	}
	for _, o := range st.Obstacles {
		fmt.Fprintf(t, "MISSING\t%s: %s (since %s)\n", o.Key, o.Error, o.Since.Local().Format(time.DateTime))
	}
	printConfiguration(t, st.Configuration)
	fmt.Fprintf(t, "store\t%d blobs of containerd's, %d cached (%s), in %s\n", st.Store.Committed, st.Store.Cached,
		size(st.Store.CacheBytes), st.Root)
	fmt.Fprintf(t, "bytes\t%s from peers, %s from the registry, %s to peers\n", size(st.Bytes.FromPeers), size(st.Bytes.FromRegistry),
		size(st.Bytes.ToPeers))
	if st.Zone != "" {
		fmt.Fprintf(t, "zones\t%s from others, %s to others\n", size(st.Bytes.FromOtherZones), size(st.Bytes.ToOtherZones))
	}
	for _, tr := range st.Trackers {
		state, why := "connected", strings.TrimPrefix(tr.Error, "tracker "+tr.Address+": ")
		switch {
		case st.Swarm != "":
			state = why
		case !tr.Connected:
			state = "away: " + why
		case why != "":
			state = "silent: " + why
		}
		fmt.Fprintf(t, "tracker\t%s %s\n", tr.Address, state)
	}
	if len(st.Trackers) == 0 {
		fmt.Fprint(t, "tracker\tnone\n")
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(st.Peers) > 0 {
		fmt.Fprintln(w)
		fmt.Fprintln(t, "PEER\tADDRESS\tRECEIVED\tSENT\tFOR")
		for _, p := range st.Peers {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", p.Node, p.Address, size(p.BytesIn), size(p.BytesOut), now.Sub(p.Since).Round(time.Second))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if len(st.Unreachable) > 0 {
		fmt.Fprintln(w)
		fmt.Fprintln(t, "UNREACHABLE\tADDRESS\tFOR\tTIMES\tWHY")
		for _, u := range st.Unreachable {
			fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\n", u.Node, u.Address, now.Sub(u.Since).Round(time.Second), u.Fails, cmp.Or(u.Error, u.Reason))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if len(st.Blobs) > 0 {
		fmt.Fprintln(w)
		fmt.Fprintln(t, "BLOB\tSTATE\tVERIFIED\tSIZE\tPEERS\tFROM PEERS\tFROM REGISTRY\tTO PEERS")
		for _, b := range st.Blobs {
			state := b.State
			if b.Lease {
				state += " (lease)"
			}
			fmt.Fprintf(t, "%.19s\t%s\t%d%%\t%s\t%d\t%s\t%s\t%s\n", b.Digest, state, 100*b.Verified/max(b.Size, 1), size(b.Size),
				b.Peers, size(b.FromPeers), size(b.FromRegistry), size(b.ToPeers))
		}
		return t.Flush()
	}
	return nil
}
