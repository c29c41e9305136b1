package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/internal/daemon/identity"
)

func caCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Make the certificates that nodes and servers prove themselves with",
	}
	cmd.AddCommand(caInitCommand(), caIssueCommand(), caShowCommand())
	return cmd
}

func caInitCommand() *cobra.Command {
	var dir, cluster string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a cluster's certificate authority",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ca, err := identity.InitCA(dir, cluster)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "The authority of cluster %q is in %s. Keep %s where few can read it: whoever has it can be any node "+
				"or server.\n",
				ca.Cluster, dir, filepath.Join(dir, identity.CAKey))
			return nil
		},
	}
	cmd.Flags().StringVar(&cluster, "cluster", "default", "name of the cluster, as in the roles' configuration")
	cmd.Flags().StringVarP(&dir, "dir", "d", "/etc/capelin/ca", "directory of the authority")
	return cmd
}

func caIssueCommand() *cobra.Command {
	var role, hosts []string
	var dir, name, out string
	var days int
	cmd := &cobra.Command{
		Use:   "issue",
		Short: "Make a certificate for a node or server",
		Long: `Make a certificate for a node or server: ca.crt, tls.crt and tls.key in the directory --out.

Roles are node, origin, tracker, index, gateway and admin. "capelin server" needs
tracker,origin,index,gateway. The name is that of the role's configuration (node,
by default the host's name). Clients such as Docker know a gateway by --host.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if days < 1 {
				return errors.New("--days must be at least 1")
			}
			ca, err := identity.OpenCA(dir)
			if err != nil {
				return err
			}
			id := identity.ID{Cluster: ca.Cluster, Name: name}
			for _, r := range role {
				id.Roles = append(id.Roles, identity.Role(r))
			}
			if out == "" {
				out = name
			}
			if err := ca.Issue(out, id, hosts, time.Duration(days)*24*time.Hour); err != nil {
				return err
			}
			if id.Has(identity.RoleGateway) && len(hosts) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "capelin: without --host Docker and containerd refuse this gateway: give each name or address by "+
					"which they know it")
			}
			return printIssued(cmd.OutOrStdout(), id, out)
		},
	}
	cmd.Flags().StringSliceVar(&role, "role", nil, "what the owner is, several separated by commas")
	cmd.Flags().StringVar(&name, "name", "", "name of the node or server")
	cmd.Flags().StringSliceVar(&hosts, "host", nil, "DNS name or IP address by which other programs reach it; may be repeated")
	cmd.Flags().IntVar(&days, "days", 365, "how long it is valid")
	cmd.Flags().StringVarP(&out, "out", "o", "", "directory of the files (default: the name)")
	for _, f := range []string{"role", "name"} {
		if err := cmd.MarkFlagRequired(f); err != nil {
			panic(err) // no such flag
		}
	}
	cmd.Flags().StringVarP(&dir, "dir", "d", "/etc/capelin/ca", "directory of the authority")
	return cmd
}

// printIssued says where a certificate is, and what to do with it.
func printIssued(w io.Writer, id identity.ID, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	ca, cert, key := filepath.Join(dir, identity.CACert), filepath.Join(dir, identity.Cert), filepath.Join(dir, identity.Key)
	fmt.Fprintf(w, "A certificate for %s is in %s.", id, dir)
	if id.Has(identity.RoleAdmin) {
		fmt.Fprintf(w, " Use it with \"capelin image\" and \"capelin node\":\n\n--ca %s --cert %s --key %s\n", ca, cert, key)
		if len(id.Roles) == 1 {
			return nil
		}
	}
	fmt.Fprintf(w, " In the role's configuration, with the paths that they have there:\n\n[identity]\nca = %q\ncert = %q\nkey = %q\n",
		ca, cert, key)
	return nil
}

func caShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show FILE",
		Short: "Say whom a certificate is for, and until when",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cert, id, err := identity.ReadCert(args[0])
			if cert == nil {
				return err
			}
			who := id.String()
			switch {
			case err != nil && cert.IsCA:
				who = "an authority: " + cert.Subject.String()
			case err != nil:
				who = err.Error()
			}
			w := cmd.OutOrStdout()
			fmt.Fprintf(w, "for     %s\nissuer  %s\nvalid   %s to %s (%s)\n", who, cert.Issuer,
				cert.NotBefore.Format(time.RFC3339), cert.NotAfter.Format(time.RFC3339), left(time.Until(cert.NotAfter)))
			hosts := append([]string{}, cert.DNSNames...)
			for _, ip := range cert.IPAddresses {
				hosts = append(hosts, ip.String())
			}
			if len(hosts) > 0 {
				fmt.Fprintf(w, "hosts   %s\n", strings.Join(hosts, ", "))
			}
			return nil
		},
	}
}

func left(d time.Duration) string {
	if d <= 0 {
		return "expired"
	}
	return fmt.Sprintf("%d days left", int(d.Hours()/24))
}
