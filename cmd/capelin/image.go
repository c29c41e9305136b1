package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/internal/image"
	"github.com/capelin-io/capelin/plugin"
	"github.com/capelin-io/capelin/swarm/wire"
)

func imageCommand() *cobra.Command {
	var a access
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Push, pull, list, inspect, tag, delete and preheat images",
		Long: `Push, pull, list, inspect, tag, delete and preheat images.

Credentials for registries are those of "capelin login" or "docker login", or --user,
which is for the registry of REF alone, or a client certificate.
An image that is in no registry is an OCI layout directory (oci:DIR[:NAME]), an
archive of one (oci-archive:FILE[:NAME]) or of docker save
(docker-archive:FILE[:NAME]); the prefix can be left out where it is clear.`,
	}
	a.flags(cmd)
	a.userFlags(cmd)
	cmd.AddCommand(imageCopyCommand(&a, true), imageCopyCommand(&a, false), imageListCommand(&a), imageInspectCommand(&a),
		imageTreeCommand(&a), imageTagCommand(&a), imageRemoveCommand(&a), imagePreheatCommand(&a))
	return cmd
}

func imageCopyCommand(a *access, push bool) *cobra.Command {
	var platform string
	cmd := &cobra.Command{
		Use:   "pull REF DESTINATION",
		Short: "Bring an image from a registry to a layout, an archive or another registry",
		Args:  cobra.ExactArgs(2),
		Example: `  capelin image pull server-1:7500/team/app:2 oci:app
  capelin image pull server-1:7500/team/app:2 docker-archive:app.tar --platform linux/arm64`,
	}
	if push {
		cmd.Use, cmd.Short = "push SOURCE REF", "Bring an image from a layout, an archive or another registry to a registry"
		cmd.Example = `  capelin image push app.tar server-1:7500/team/app:2
  capelin image push docker://docker.io/library/alpine:3 server-1:7500/team/alpine:3`
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref := args[0]
		if push {
			ref = args[1]
		}
		c, err := a.images(cmd, ref)
		if err != nil {
			return err
		}
		defer c.Close()
		source, target := c.Reference, c.Target
		if push {
			source, target = c.Source, c.Reference
		}
		from, err := source(args[0])
		if err != nil {
			return err
		}
		to, err := target(args[1])
		if err != nil {
			return err
		}
		var o image.Options
		if platform != "" {
			p, err := image.ParsePlatform(platform)
			if err != nil {
				return err
			}
			o.Platform = &p
		}
		bar := newBar(cmd.ErrOrStderr(), strings.Fields(cmd.Use)[0])
		o.Progress = bar.set
		r, err := c.Copy(cmd.Context(), from, to, o)
		bar.end()
		if err != nil {
			return err
		}
		return a.print(cmd.OutOrStdout(), r, func(w io.Writer) {
			fmt.Fprintf(w, "%s\n%s in %d blobs, %d of them were there; %s moved\n", r.Reference, size(r.Size), r.Blobs, r.Skipped, size(r.Bytes))
			if !push {
				fmt.Fprintln(w, r.Digest)
			}
		})
	}
	cmd.Flags().StringVar(&platform, "platform", "", "one image of an index, such as linux/arm64 (default: all of them)")
	return cmd
}

func imageListCommand(a *access) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:   "ls REGISTRY[/REPOSITORY]",
		Short: "List a registry's repositories, or a repository's tags with digests and sizes",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 1 {
				return errors.New("--limit must be at least 1")
			}
			c, err := a.images(cmd, args[0])
			if err != nil {
				return err
			}
			defer c.Close()
			out := cmd.OutOrStdout()
			host, repo, _ := strings.Cut(strings.TrimPrefix(args[0], string(image.Registry)), "/")
			var more bool
			if repo == "" {
				var names []string
				if names, more, err = c.Repositories(cmd.Context(), host, limit); err != nil {
					return err
				}
				err = a.print(out, append([]string{}, names...), func(w io.Writer) {
					for _, n := range names {
						fmt.Fprintln(w, host+"/"+n)
					}
				})
			} else {
				var tags []image.Tag
				if tags, more, err = c.Tags(cmd.Context(), host+"/"+repo, limit); err != nil {
					return err
				}
				err = a.print(out, append([]image.Tag{}, tags...), func(w io.Writer) { printTags(w, tags) })
			}
			if more {
				fmt.Fprintf(cmd.ErrOrStderr(), "capelin: there are more than %d, see --limit\n", limit)
			}
			return err
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 1000, "how many are listed at most")
	return cmd
}

func printTags(w io.Writer, tags []image.Tag) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "TAG\tDIGEST\tSIZE\tPLATFORMS")
	for _, tag := range tags {
		if tag.Error != "" {
			fmt.Fprintf(t, "%s\t-\t-\t%s\n", tag.Name, tag.Error)
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", tag.Name, tag.Digest, size(tag.Size), strings.Join(tag.Platforms, " "))
	}
	t.Flush()
}

func imageInspectCommand(a *access) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect REF",
		Short: "Show an image's manifests, platforms and layers, and with --tracker which nodes have them",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.images(cmd, args[0])
			if err != nil {
				return err
			}
			defer c.Close()
			from, err := c.Source(args[0])
			if err != nil {
				return err
			}
			m, err := c.Inspect(cmd.Context(), from)
			if err != nil {
				return err
			}
			if len(a.trackers) > 0 {
				t, err := a.control()
				if err != nil {
					return err
				}
				defer t.Close()
				if err := m.Locate(cmd.Context(), t); err != nil {
					return err
				}
			}
			return a.print(cmd.OutOrStdout(), m, func(w io.Writer) { printManifest(w, m, "", len(a.trackers) > 0) })
		},
	}
	a.trackerFlags(cmd, "that is asked which nodes have each blob")
	return cmd
}

func printManifest(w io.Writer, m *image.Manifest, indent string, located bool) {
	fmt.Fprintf(w, "%s%s  %s", indent, m.Digest, m.MediaType)
	for _, s := range []string{m.Platform, m.ArtifactType} {
		if s != "" {
			fmt.Fprintf(w, "  %s", s)
		}
	}
	fmt.Fprintln(w)
	blob := func(what string, b *image.Blob) {
		fmt.Fprintf(w, "%s  %-6s %s  %s", indent, what, b.Digest, size(b.Size))
		if located {
			fmt.Fprintf(w, "  %d nodes", len(b.Nodes))
			if n := len(b.Nodes); n > 0 {
				fmt.Fprintf(w, ": %s", strings.Join(b.Nodes[:min(n, 8)], " "))
				if n > 8 {
					fmt.Fprint(w, " …")
				}
			}
		}
		fmt.Fprintln(w)
	}
	if m.Config != nil {
		blob("config", m.Config)
	}
	for i := range m.Layers {
		blob("layer", &m.Layers[i])
	}
	for i := range m.Manifests {
		printManifest(w, &m.Manifests[i], indent+"  ", located)
	}
}

func imageTreeCommand(a *access) *cobra.Command {
	return &cobra.Command{
		Use:   "tree REF",
		Short: "Show what refers to an image, such as signatures and SBOMs",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, p, err := a.imageAt(cmd, args[0])
			if err != nil {
				return err
			}
			defer c.Close()
			m, err := c.Tree(cmd.Context(), p)
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), m, func(w io.Writer) {
				fmt.Fprintln(w, p)
				printTree(w, m, "", "")
			})
		},
	}
}

// printTree prints m below what is on the line above.
func printTree(w io.Writer, m *image.Manifest, indent, how string) {
	kind := cmp.Or(m.ArtifactType, m.MediaType)
	if m.Platform != "" {
		kind = m.Platform
	}
	fmt.Fprintf(w, "%s└ %s%s  %s\n", indent, how, kind, m.Digest)
	for i := range m.Referrers {
		printTree(w, &m.Referrers[i], indent+"  ", "referrer: ")
	}
	for i := range m.Manifests {
		printTree(w, &m.Manifests[i], indent+"  ", "")
	}
}

func imageTagCommand(a *access) *cobra.Command {
	return &cobra.Command{
		Use:   "tag REF NEW",
		Short: "Give an image another tag, in its registry; NEW is a tag, or a reference",
		Args:  cobra.ExactArgs(2),
		Example: `  capelin image tag server-1:7500/team/app:2 latest
  capelin image tag server-1:7500/team/app@sha256:… server-1:7500/release/app:2`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, from, err := a.imageAt(cmd, args[0])
			if err != nil {
				return err
			}
			defer c.Close()
			name := args[1]
			if !strings.ContainsAny(name, "/:@") {
				name = from.Ref.Context().Name() + ":" + name
			}
			to, err := c.Reference(name)
			if err != nil {
				return err
			}
			r, err := c.Tag(cmd.Context(), from, to)
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), r, func(w io.Writer) { fmt.Fprintln(w, r.Reference) })
		},
	}
}

func imageRemoveCommand(a *access) *cobra.Command {
	return &cobra.Command{
		Use:   "rm REF",
		Short: "Delete a tag, or by digest an image with all of its tags, from a registry",
		Args:  cobra.ExactArgs(1),
		Example: `  capelin image rm server-1:7500/team/app:2
  capelin image rm server-1:7500/team/app@sha256:…`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, p, err := a.imageAt(cmd, args[0])
			if err != nil {
				return err
			}
			defer c.Close()
			if id := p.Ref.Identifier(); !strings.HasSuffix(args[0], ":"+id) && !strings.HasSuffix(args[0], "@"+id) { // not what nobody has named
				return misused(cmd, fmt.Errorf("%q names neither a tag nor a digest", args[0]))
			}
			if err := c.Remove(cmd.Context(), p); err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), map[string]string{"deleted": p.String()}, func(w io.Writer) {
				fmt.Fprintf(w, "deleted %s\n", p)
			})
		},
	}
}

func imagePreheatCommand(a *access) *cobra.Command {
	var platforms, nodes, zones []string
	var origins bool
	var atOnce int
	cmd := &cobra.Command{
		Use:   "preheat REF",
		Short: "Have nodes or origins fetch an image's config and layers before anybody pulls it",
		Long: `Have nodes or origins fetch an image's config and layers before anybody pulls it.

Without --node, --zone and --origins all connected nodes do. They take the blobs
from each other and from origins, into their caches.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			picked, err := parsePlatforms(platforms)
			if err != nil {
				return err
			}
			c, err := a.images(cmd, args[0])
			if err != nil {
				return err
			}
			defer c.Close()
			t, err := a.control()
			if err != nil {
				return err
			}
			defer t.Close()
			blobs, err := c.Blobs(cmd.Context(), args[0], cmd.Flags().Changed("platform"), picked...)
			if err != nil {
				return err
			}
			r := tracker.PreheatRequest{Nodes: tracker.Selection{Nodes: nodes, Zones: zones}, AtOnce: atOnce}
			if origins {
				r.Nodes.Roles = []wire.Role{wire.RoleOrigin}
			}
			r.Nodes.All = len(nodes)+len(zones)+len(r.Nodes.Roles) == 0
			bar := newBar(cmd.ErrOrStderr(), "preheat")
			told := map[string]bool{}
			p, err := image.Preheat(cmd.Context(), t, blobs, r, func(p image.Preheated) {
				bar.set(p.Bytes, p.Total)
				bar.say(fmt.Sprintf("preheat, %d of %d nodes", p.Done, p.Nodes))
				for _, n := range slices.Sorted(maps.Keys(p.Failed)) {
					if !told[n] {
						told[n] = true
						bar.clear()
						fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", n, p.Failed[n])
					}
				}
			})
			bar.end()
			if err != nil {
				return err
			}
			if err := a.print(cmd.OutOrStdout(), p, func(w io.Writer) {
				fmt.Fprintf(w, "%d blobs are on %d of %d nodes\n", p.Blobs, p.Done, p.Nodes)
			}); err != nil {
				return err
			}
			return preheatFailed(p, args[0])
		},
	}
	a.trackerFlags(cmd, "that is asked for it")
	cmd.Flags().StringArrayVar(&platforms, "platform", []string{"linux/" + runtime.GOARCH},
		"platform, such as linux/arm64, or all; repeat for several")
	cmd.Flags().StringArrayVar(&nodes, "node", nil, "only this node; repeat for several")
	cmd.Flags().StringArrayVar(&zones, "zone", nil, "only nodes of this zone; repeat for several")
	cmd.Flags().BoolVar(&origins, "origins", false, "origins instead of nodes")
	cmd.Flags().IntVar(&atOnce, "at-once", 0, "how many nodes work at the same time (0: all)")
	return cmd
}

// preheatFailed says what there is to do if some nodes do not have all of an image.
func preheatFailed(p image.Preheated, ref string) error {
	if len(p.Failed) == 0 {
		return nil
	}
	err := fmt.Errorf("%d of %d nodes do not have all of it", len(p.Failed), p.Nodes)
	for _, why := range p.Failed {
		if strings.Contains(why, plugin.NobodyHasIt) {
			return fmt.Errorf("%w: nodes preheat from each other and from origins, and never ask a registry; pull %s on one node first, "+
				"push it to the cluster's gateway, or give an origin the registry as a [[backend]] and preheat with --origins, and then repeat this",
				err, ref)
		}
	}
	return err
}

func parsePlatforms(names []string) (all []v1.Platform, err error) {
	if slices.Equal(names, []string{"all"}) {
		return nil, nil
	}
	for _, n := range names {
		p, err := image.ParsePlatform(n)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}
