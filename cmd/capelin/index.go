package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/internal/daemon/identity"
)

// indexAccess is how commands reach indexes.
type indexAccess struct {
	access
	indexes []string
}

func indexCommand() *cobra.Command {
	var a indexAccess
	cmd := &cobra.Command{
		Use:   "index",
		Short: "Look after the storage of an index, move it, and replicate it",
	}
	a.flags(cmd)
	f := cmd.PersistentFlags()
	f.StringArrayVar(&a.indexes, "index", nil, "index that is asked, host:port; repeat for others to ask if it does not answer")
	f.StringVar(&a.cluster, "cluster", "default", "name of the cluster, if there is a certificate")
	cmd.AddCommand(proveCommand(&a), fsckCommand(&a), indexMoveCommand(&a.access), replicateCommand(&a))
	return cmd
}

// client returns a client of the indexes that were given.
func (a *indexAccess) client() (*index.Client, error) {
	if len(a.indexes) == 0 {
		return nil, errors.New("--index says which index to ask, as host:port (its listen)")
	}
	t, err := a.clientTLS(identity.RoleIndex)
	if err != nil {
		return nil, err
	}
	return index.New(index.Config{Indexes: a.indexes, TLS: t})
}

func proveCommand(a *indexAccess) *cobra.Command {
	return &cobra.Command{
		Use:   "prove",
		Short: "Find out once more whether the index's storage really compares and swaps",
		Long: `Find out once more whether the index's storage really compares and swaps.

An index does it at its first start with a storage: sixteen writers race for an object,
eight times, and one must win each race. Do it again when the storage has got another
release, or other machines. If the storage fails the index says so, and ends: tags that
were acknowledged could be lost.`,
		Args:    cobra.NoArgs,
		Example: `  capelin index prove --index index-1:7490`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			p, err := c.Prove(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), p, func(w io.Writer) {
				fmt.Fprintf(w, "%s compares and swaps (found out at %s by capelin %s)\n", p.Storage, p.Proved.Format(time.RFC3339), p.By)
			})
		},
	}
}
