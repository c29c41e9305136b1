package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/limit"
	"github.com/capelin-io/capelin/fetcher/moving"
	"github.com/capelin-io/capelin/internal/backup"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
)

// backupAccess is how back-ups reach a cluster.
type backupAccess struct {
	ringAccess
	index string // the storage
	rate  config.Rate
}

func (a *backupAccess) backupFlags(cmd *cobra.Command) {
	a.flags(cmd)
	f := cmd.Flags()
	f.StringArrayVar(&a.origins, "origin", nil, "origin, host:port; of a ring one that answers is enough")
	f.StringVar(&a.cluster, "cluster", "default", "name of the cluster, if there is a certificate")
	f.StringVar(&a.index, "index-storage", "", "storage of the index: a directory, or a file NAME.toml with a table [storage]")
	f.TextVar(&a.rate, "rate", a.rate, "bytes per second that are moved at most, such as 50MB/s; 0: no limit")
	for _, name := range []string{"origin", "index-storage"} {
		_ = cmd.MarkFlagRequired(name) // it is there
	}
}

// client returns a client of the origins.
func (a *backupAccess) client() (*origin.Client, error) {
	t, err := a.clientTLS(identity.RoleOrigin)
	if err != nil {
		return nil, err
	}
	return origin.New(origin.Config{Origins: a.origins, TLS: t})
}

func backupCommand() *cobra.Command {
	var a backupAccess
	var verify bool
	cmd := &cobra.Command{
		Use:   "backup TO",
		Short: "Copy all tags and images of a cluster into another storage, while it serves",
		Long: `Copy all tags and images of a cluster into another storage, while it serves.

All objects of the index are copied, and all blobs that they name, from the origins or
what these read from. If it was ended, or is done again, only what is new is moved.
What the index has no more is removed from the back-up, but no blob is.

The status is 0 if the back-up is whole, and 1 if something failed or is missing: blobs
that nobody has are named.

` + storageHelp,
		Args: cobra.ExactArgs(1),
		Example: `  capelin backup /backup/capelin --index-storage /var/lib/capelin/server/index --origin 127.0.0.1:7480
  capelin backup s3.toml --index-storage index.toml --origin origin-1:7480 --rate 100MB/s`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.do(cmd, args[0], true, func(index, other fetcher.Backend, c *origin.Client, say func(backup.Report)) (backup.Report, error) {
				b := backup.Backup{Index: index, Origins: c, To: limit.Rates(other, 0, int64(a.rate)), Verify: verify, Say: say}
				return b.Run(cmd.Context())
			})
		},
	}
	a.backupFlags(cmd)
	cmd.Flags().BoolVar(&verify, "verify", false, "read what is in the back-up already, too, and copy anew what is wrong there")
	return cmd
}

func restoreCommand() *cobra.Command {
	var a backupAccess
	var merge, incomplete bool
	cmd := &cobra.Command{
		Use:   "restore FROM",
		Short: "Put all tags and images of a back-up into a cluster",
		Long: `Put all tags and images of a back-up into a cluster.

Origins and indexes run. The blobs go to the origins first, the tags to the index's storage
last. If it was ended, run it again: it goes on where it was. The index must be empty;
with --merge it need not be: a tag stays that has the same revision there or a later one,
and everything else that is there.

The status is 0 if all is in the cluster, and 1 if something failed or is missing.

` + storageHelp,
		Args:    cobra.ExactArgs(1),
		Example: `  capelin restore /backup/capelin --index-storage /var/lib/capelin/server/index --origin 127.0.0.1:7480`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.do(cmd, args[0], false, func(index, other fetcher.Backend, c *origin.Client, say func(backup.Report)) (backup.Report, error) {
				from := limit.Rates(other, int64(a.rate), 0)
				r := backup.Restore{From: from, Origins: c, Index: index, Merge: merge, Incomplete: incomplete, Say: say}
				return r.Run(cmd.Context())
			})
		},
	}
	a.backupFlags(cmd)
	cmd.Flags().BoolVar(&merge, "merge", false, "restore into an index that is not empty")
	cmd.Flags().BoolVar(&incomplete, "incomplete", false, "restore what there is of a back-up that is not whole")
	return cmd
}

// do opens what is needed, and prints the report.
func (a *backupAccess) do(cmd *cobra.Command, arg string, reads bool,
	run func(index, other fetcher.Backend, c *origin.Client, say func(backup.Report)) (backup.Report, error),
) error {
	index, err := openStorage(a.index, reads)
	if err != nil {
		return fmt.Errorf("--index-storage: %w", err)
	}
	if !reads {
		// As an index that is not told where the index moves: it does not move meanwhile.
		index = moving.Index.New(index, nil, "restore")
	}
	defer index.Close()
	other, err := openStorage(arg, !reads)
	if err != nil {
		return err
	}
	defer other.Close()
	c, err := a.client()
	if err != nil {
		return fmt.Errorf("--origin: %w", err)
	}
	defer c.Close()
	here := func() error { return moving.Index.Here(cmd.Context(), index) }
	if s, ok := index.(*moving.Storage); ok {
		here = func() error { return s.Join(cmd.Context()) }
	}
	if err := here(); err != nil {
		return err
	}
	said := newSaid(cmd.ErrOrStderr())
	report, err := run(index, other, c, func(r backup.Report) { said.say(inWords(&r)) })
	if err == nil {
		err = here() // it may have moved meanwhile
	}
	if err != nil {
		return fmt.Errorf("%w\nit goes on where it was when the command is run again (%s)", err, inWords(&report))
	}
	if err := a.print(cmd.OutOrStdout(), &report, func(w io.Writer) { printReport(w, &report) }); err != nil {
		return err
	}
	if !report.Whole {
		return errors.New("blobs are missing")
	}
	return nil
}

func inWords(r *backup.Report) string {
	return fmt.Sprintf("%s: %d objects, %d tags, %d of them written; %d blobs, %d of them copied, %v; %d missing",
		r.Phase, r.Objects, r.Tags, r.Written, r.Blobs, r.BlobsCopied, config.Bytes(r.Bytes), r.MissingBlobs)
}

func printReport(w io.Writer, r *backup.Report) {
	fmt.Fprintf(w, "%s, in %v\n", inWords(r), r.Finished.Sub(r.Started).Round(time.Second))
	for _, m := range r.Missing {
		fmt.Fprintf(w, "missing: %s@%s: %s\n", m.Repository, m.Digest, m.Why)
	}
	if more := r.MissingBlobs - int64(len(r.Missing)); more > 0 {
		fmt.Fprintf(w, "and %d more are missing\n", more)
	}
}
