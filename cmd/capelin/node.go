package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/swarm/wire"
)

func nodeCommand() *cobra.Command {
	var a access
	cmd := &cobra.Command{Use: "node", Short: "Show a cluster's nodes"}
	a.flags(cmd)
	ls := &cobra.Command{
		Use:   "ls",
		Short: "List the nodes that are connected to trackers",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, err := a.control()
			if err != nil {
				return err
			}
			defer t.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			nodes, err := t.Nodes(ctx)
			if err != nil {
				return err
			}
			return a.printNodes(cmd.OutOrStdout(), nodes, time.Now())
		},
	}
	a.trackerFlags(ls, "that is asked")
	cmd.AddCommand(ls)
	return cmd
}

// node is a tracker.Node for JSON.
type node struct {
	Name     string    `json:"name"`
	Zone     string    `json:"zone,omitempty"`
	Role     string    `json:"role"`
	Address  string    `json:"address,omitempty"`
	Software string    `json:"software,omitempty"`
	Since    time.Time `json:"since"`
	Blobs    int       `json:"blobs"`
	Wants    int       `json:"wants"`
}

func (a *access) printNodes(w io.Writer, from []tracker.Node, now time.Time) error {
	nodes := make([]node, len(from))
	for i, n := range from {
		role := "agent"
		if n.Role == wire.RoleOrigin {
			role = "origin"
		}
		nodes[i] = node{n.Name, n.Zone, role, n.Addr, n.Software, n.Since, n.Blobs, n.Wants}
	}
	return a.print(w, nodes, func(w io.Writer) {
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintln(t, "NODE\tROLE\tZONE\tADDRESS\tSOFTWARE\tFOR\tBLOBS\tWANTS")
		for _, n := range nodes {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\n", n.Name, n.Role, n.Zone, n.Address, n.Software, now.Sub(n.Since).Round(time.Second),
				n.Blobs, n.Wants)
		}
		t.Flush()
	})
}
