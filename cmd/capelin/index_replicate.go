package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/control/index"
)

func replicateCommand(a *indexAccess) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "replicate",
		Short: "Bring tags to other clusters and registries, by rule",
	}
	rule := &cobra.Command{Use: "rule", Short: "Say which tags are brought where"}
	rule.AddCommand(ruleSetCommand(a), ruleRemoveCommand(a), ruleListCommand(a))
	cmd.AddCommand(rule, replicateStatusCommand(a), replicateVerifyCommand(a), replicateRetryCommand(a))
	return cmd
}

// ask calls f with a client of the indexes.
func (a *indexAccess) ask(f func(c *index.Client) error) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c)
}

func ruleSetCommand(a *indexAccess) *cobra.Command {
	var r index.Rule
	cmd := &cobra.Command{
		Use:   "set NAME URL",
		Short: "Add a rule, or replace it",
		Long: `Add a rule, or replace it.

All tags that it is about are compared with the remote's at once, and those that differ are
delivered; from then on each write is. Files are those of the machines with an index.`,
		Example: `  capelin index replicate rule set west https://registry.west.example --namespace 'team/.*' \
    --docker-config /etc/capelin/west.json --index index-1:7490`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Name, r.URL = args[0], args[1]
			if errs := r.Check(""); len(errs) > 0 {
				return misused(cmd, errors.Join(errs...))
			}
			return a.ask(func(c *index.Client) error { return c.SetRule(cmd.Context(), r) })
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&r.Namespaces, "namespace", []string{".*"}, "regular expression for whole names of repositories; repeat for others")
	f.StringArrayVar(&r.Tags, "tag", nil, "regular expression for whole names of tags; repeat for others; none: all")
	f.StringVar(&r.RewritePrefix, "rewrite-prefix", "", "FROM=TO: what names of repositories begin with there instead")
	f.BoolVar(&r.NoReferrers, "no-referrers", false, "signatures and all else that refers to an image stays here")
	f.StringVar(&r.Deletes, "deletes", index.DeleteTags, "tags: those that are deleted here are deleted there; none: they stay")
	f.BoolVar(&r.Forward, "forward", false, "what came from another cluster is passed on")
	f.StringVar(&r.DockerConfig, "docker-config", "", "file of Docker's configuration with the registry's credentials")
	f.StringVar(&r.TokenFile, "token-file", "", "file with a bearer token")
	f.StringVar(&r.CA, "remote-ca", "", "PEM file of the authorities that the registry's certificate is from")
	f.StringVar(&r.Cert, "remote-cert", "", "PEM file of a certificate to show")
	f.StringVar(&r.Key, "remote-key", "", "PEM file of its private key")
	f.TextVar(&r.Bandwidth, "bandwidth", r.Bandwidth, "bytes per second that are sent at most, such as 50MB/s; 0: no limit")
	f.IntVar(&r.Parallel, "parallel", 8, "tags that are delivered at once")
	f.IntVar(&r.Reconcile, "reconcile", 20, "tags per second that are compared all the time")
	return cmd
}

func ruleRemoveCommand(a *indexAccess) *cobra.Command {
	return &cobra.Command{
		Use:     "rm NAME",
		Short:   "Remove a rule; what is at the remote stays",
		Example: `  capelin index replicate rule rm west --index index-1:7490`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(func(c *index.Client) error { return c.RemoveRule(cmd.Context(), args[0]) })
		},
	}
}

func ruleListCommand(a *indexAccess) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Short:   "List the rules",
		Example: `  capelin index replicate rule ls --index index-1:7490`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(func(c *index.Client) error {
				all, err := c.Replication(cmd.Context())
				if err != nil {
					return err
				}
				rules := []index.Rule{}
				for _, r := range all.Rules {
					rules = append(rules, r.Rule)
				}
				return a.print(cmd.OutOrStdout(), rules, func(w io.Writer) {
					t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
					fmt.Fprintln(t, "RULE\tURL\tREPOSITORIES\tTAGS\tDELETES")
					for _, r := range rules {
						fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", r.Name, r.URL, strings.Join(r.Namespaces, " "), strings.Join(r.Tags, " "), r.Deletes)
					}
					t.Flush()
				})
			})
		},
	}
}

func replicateStatusCommand(a *indexAccess) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say what is still to be delivered, since when, and what is refused and why",
		Long: `Say what is still to be delivered, since when, and what is refused and why.

The status is 1 if something is parked: it was refused, is tried again each hour, and needs
somebody to look at it.`,
		Example: `  capelin index replicate status --index index-1:7490`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(func(c *index.Client) error {
				all, err := c.Replication(cmd.Context())
				if err != nil {
					return err
				}
				parked := 0
				for _, r := range all.Rules {
					parked += r.Parked
				}
				err = a.print(cmd.OutOrStdout(), all, func(w io.Writer) { printReplication(w, &all) })
				if err == nil && parked > 0 {
					err = fmt.Errorf("%d tags or manifests are parked", parked)
				}
				return err
			})
		},
	}
}

func printReplication(w io.Writer, all *index.Replication) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "RULE\tURL\tPENDING\tLAG\tPARKED\tCOMPARED")
	for _, r := range all.Rules {
		compared := "never"
		if !r.Compared.IsZero() {
			compared = fmt.Sprintf("%s, %d differed", r.Compared.Format(time.RFC3339), r.Differences)
		}
		lag := time.Duration(r.Lag * float64(time.Second)).Round(time.Second)
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%d\t%s\n", r.Rule.Name, r.Rule.URL, r.Pending, lag, r.Parked, compared)
	}
	t.Flush()
	for _, r := range all.Rules {
		switch {
		case r.Broken != "":
			fmt.Fprintf(w, "%s: does not work: %s\n", r.Rule.Name, r.Broken)
		case !r.Working:
			fmt.Fprintf(w, "%s: no index works for it yet\n", r.Rule.Name)
		}
		for _, p := range r.ParkedOnes {
			name := p.Repository + ":" + p.Tag
			if p.Tag == "" {
				name = p.Repository + "@" + string(p.Digest)
			}
			fmt.Fprintf(w, "%s: %s is parked since %s (%s): %s\n", r.Rule.Name, name, p.Since.Format(time.RFC3339), p.Reason, p.Error)
		}
	}
}

func replicateVerifyCommand(a *indexAccess) *cobra.Command {
	var deep bool
	cmd := &cobra.Command{
		Use:   "verify RULE",
		Short: "Compare all tags with the remote's now, and have those be delivered that differ",
		Long: `Compare all tags with the remote's now, and have those be delivered that differ.

An index does the same by itself, slowly, all the time. The status is 0 if nothing differed,
1 if something did, and 2 if not all could be compared. With --json each line is a JSON object.`,
		Example: `  capelin index replicate verify west --index index-1:7490`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return unable{err}
			}
			defer c.Close()
			out := cmd.OutOrStdout()
			said := newSaid(cmd.ErrOrStderr())
			differences := 0
			err = c.Verify(cmd.Context(), args[0], deep, func(e index.VerifyEvent) error {
				switch {
				case e.Progress != nil:
					said.say(fmt.Sprintf("%d tags compared, %d differ", e.Progress.Tags, e.Progress.Differences))
					return nil
				case e.Done != nil:
					differences = e.Done.Differences
				}
				if a.json {
					return json.NewEncoder(out).Encode(e)
				}
				var err error
				if e.Done != nil {
					_, err = fmt.Fprintf(out, "%d tags compared, %d differ\n", e.Done.Tags, e.Done.Differences)
				} else {
					_, err = fmt.Fprintf(out, "%s differs, and will be delivered\n", e.Difference)
				}
				return err
			})
			if err != nil {
				return unable{err}
			}
			if differences > 0 {
				return fmt.Errorf("%d tags differed", differences)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&deep, "deep", false, "look whether all is there that tags reach, and that refers to it")
	return cmd
}

func replicateRetryCommand(a *indexAccess) *cobra.Command {
	var o index.RetryOptions
	cmd := &cobra.Command{
		Use:     "retry RULE",
		Short:   "Try again now what is parked",
		Example: `  capelin index replicate retry west --index index-1:7490`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(func(c *index.Client) error {
				n, err := c.Retry(cmd.Context(), args[0], o)
				if err != nil {
					return err
				}
				return a.print(cmd.OutOrStdout(), index.Retried{Keys: n}, func(w io.Writer) { fmt.Fprintf(w, "%d are tried again\n", n) })
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Repository, "repository", "", "only those of this repository")
	f.StringVar(&o.Tag, "tag", "", "only those of this name")
	return cmd
}
