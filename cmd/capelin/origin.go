package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/daemon/identity"
)

// ringAccess is how commands reach members of a ring of origins.
type ringAccess struct {
	access
	origins []string
}

func originCommand() *cobra.Command {
	var a ringAccess
	cmd := &cobra.Command{
		Use:   "origin",
		Short: "Show a ring of origins, say what is to become of its members, and move its blobs to another storage",
	}
	a.flags(cmd)
	f := cmd.PersistentFlags()
	f.StringArrayVar(&a.origins, "origin", nil, "origin that is asked, host:port; repeat for others to ask if it does not answer")
	f.StringVar(&a.cluster, "cluster", "default", "name of the cluster, if there is a certificate")
	cmd.AddCommand(ringCommand(&a), drainCommand(&a), backendMoveCommand(&a.access))
	return cmd
}

func ringCommand(a *ringAccess) *cobra.Command {
	var w waiting
	cmd := &cobra.Command{
		Use:   "ring",
		Short: "Show the members of a ring of origins, and whether each blob has its copies",
		Long: `Show the members of a ring of origins, and whether each blob has its copies.

The status is 0 if the ring is whole: each blob is proved to be at all its owners.
Else it is 1. With --wait that is so only when nothing is left to wait for: lost disks
may have had the only copies of something. SHORT is how many of a member's blobs it does
not know to be at all their owners.`,
		Args: cobra.NoArgs,
		Example: `  capelin origin ring --origin origin-1:7480 --origin origin-2:7480 --wait
  capelin origin ring forget origin-3 --origin origin-1:7480`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.ring(cmd, &w) },
	}
	w.flags(cmd, "wait until the ring is whole")
	for _, c := range []struct {
		use, short, long string
		do               origin.RingDo
	}{
		{"rm NAME", "Take a member out of the ring, whatever lists and DNS say, until it is readmitted",
			`Take a member out of the ring, whatever lists and DNS say, until it is readmitted.

One that is to leave, and is up, is drained before: see "capelin origin drain".`, origin.RingRemove},
		{"forget NAME", "Say that what a member has lost will never be back",
			`Say that what a member has lost will never be back.

Nobody waits any more for blobs that only its lost disks had: they are gone. A member that
is not alive is taken out of the ring as well, until it is readmitted.`, origin.RingForget},
		{"readmit NAME", "Let a member be one again that was taken out, and have what it has count", "", origin.RingReadmit},
	} {
		cmd.AddCommand(&cobra.Command{
			Use: c.use, Short: c.short, Long: c.long, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error { return a.operate(cmd, args[0], c.do) },
		})
	}
	return cmd
}

func drainCommand(a *ringAccess) *cobra.Command {
	var w waiting
	var cancel bool
	cmd := &cobra.Command{
		Use:   "drain",
		Short: "Have an origin leave its ring, when others have all that it has",
		Long: `Have an origin leave its ring, when others have all that it has.

It is the one of --origin. It serves all that it has until it is drained, and can be
stopped then.`,
		Args:    cobra.NoArgs,
		Example: `  capelin origin drain --origin origin-3:7480 --wait`,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.drain(cmd, &w, cancel) },
	}
	w.flags(cmd, "wait until the origin can be stopped")
	cmd.Flags().BoolVar(&cancel, "cancel", false, "have it stay after all")
	cmd.MarkFlagsMutuallyExclusive("wait", "cancel")
	return cmd
}

// members returns clients of the origins that were given.
func (a *ringAccess) members() (all []*origin.Member, closeAll func(), err error) {
	if len(a.origins) == 0 {
		return nil, nil, errors.New("--origin says which origin to ask, as host:port (its listen)")
	}
	t, err := a.clientTLS(identity.RoleOrigin)
	if err != nil {
		return nil, nil, err
	}
	for _, o := range a.origins {
		m, err := origin.NewMember(origin.Config{Origins: []string{o}, TLS: t})
		if err != nil {
			return nil, nil, fmt.Errorf("--origin: %w", err)
		}
		all = append(all, m)
	}
	return all, func() {
		for _, m := range all {
			m.Close()
		}
	}, nil
}

// askEach asks one member after the other, until one answers.
func askEach(members []*origin.Member, ask func(*origin.Member) error) error {
	var errs []error
	for _, m := range members {
		err := ask(m)
		if err == nil || !errdefs.IsUnavailable(err) {
			return advised(err)
		}
		errs = append(errs, err)
	}
	return advised(errors.Join(errs...))
}

// advised adds what there is to do about an error.
func advised(err error) error {
	switch {
	case errdefs.IsNotImplemented(err):
		return fmt.Errorf("%w; an origin of before has no ring: give it this release", err)
	case errdefs.IsPermissionDenied(err) || errdefs.IsUnauthorized(err):
		return fmt.Errorf("%w; \"capelin ca issue --role admin\" makes a certificate for --cert and --key", err)
	case errdefs.IsConflict(err):
		return fmt.Errorf("%w; have more origins be up, and try again", err)
	case errdefs.IsUnavailable(err):
		return fmt.Errorf("%w\nis the origin running, and does it ask for a certificate (--ca, --cert, --key)?", err)
	}
	return err
}

// askStatus returns what one of the members says.
func askStatus(ctx context.Context, members []*origin.Member) (st *origin.RingStatus, err error) {
	err = askEach(members, func(m *origin.Member) error {
		ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		st, err = m.RingStatus(ctx)
		return err
	})
	return st, err
}

func (a *ringAccess) ring(cmd *cobra.Command, w *waiting) error {
	members, closeAll, err := a.members()
	if err != nil {
		return err
	}
	defer closeAll()
	ask := func(ctx context.Context) (*origin.RingStatus, error) { return askStatus(ctx, members) }
	st, err := w.until(cmd, ask, func(st *origin.RingStatus) (bool, error) { return st.Whole || st.Stuck(), nil }, progress)
	if st == nil {
		return err
	}
	if perr := a.print(cmd.OutOrStdout(), st, func(out io.Writer) { printRing(out, st, time.Now()) }); perr != nil {
		return perr
	}
	switch {
	case err != nil:
		return fmt.Errorf("%w: %s", err, notWhole(st, time.Now()))
	case st.Whole:
		return nil
	}
	err = errors.New(notWhole(st, time.Now()))
	if !st.Stuck() && !w.wait {
		err = fmt.Errorf("%w (--wait waits until it is)", err)
	}
	return err
}

func (a *ringAccess) drain(cmd *cobra.Command, w *waiting, cancel bool) error {
	members, closeAll, err := a.members()
	if err != nil {
		return err
	}
	defer closeAll()
	if len(members) > 1 {
		return errors.New("--origin is given more than once: it is the one that is to leave")
	}
	ctx, m := cmd.Context(), members[0]
	if err := advised(m.Drain(ctx, !cancel)); err != nil {
		return err
	}
	ask := func(ctx context.Context) (*origin.RingStatus, error) { return askStatus(ctx, members) }
	st, err := w.until(cmd, ask, drained, leaving)
	if st == nil {
		return err
	}
	if perr := a.print(cmd.OutOrStdout(), st.Member(st.Name), func(out io.Writer) { printDrain(out, st, cancel) }); perr != nil {
		return perr
	}
	return err
}

// drained reports whether the member that says st can be stopped.
func drained(st *origin.RingStatus) (bool, error) {
	switch me := st.Member(st.Name); {
	case me == nil:
		return false, fmt.Errorf("%s does not say how it is itself; is it of another release?", st.Name)
	case me.State == origin.RingUp || me.State == origin.RingJoining:
		return false, fmt.Errorf("%s is %s again: somebody has it stay", st.Name, me.State)
	default:
		return me.State == origin.RingDrained, nil
	}
}

func printDrain(out io.Writer, st *origin.RingStatus, cancel bool) {
	state := origin.RingState("")
	if me := st.Member(st.Name); me != nil {
		state = me.State
	}
	switch {
	case cancel:
		fmt.Fprintf(out, "%s stays\n", st.Name)
	case state == origin.RingDrained:
		fmt.Fprintf(out, "%s is drained: stop it. It leaves the ring by itself when it has been away for long, or at once by "+
			"\"capelin origin ring rm %[1]s\"\n", st.Name)
	default:
		fmt.Fprintf(out, "%s leaves: %d blobs are still to be given to others. Do not stop it before it is drained: --wait waits for that\n",
			st.Name, st.Repair.Blobs)
	}
}

// hearDrained is how long others may take to hear that a member is drained.
const hearDrained = 10 * time.Second

// hearsDrained waits for a while if a member leaves: it may have said that it is drained, and whoever is asked has not heard it yet. Taken
// out before that, what it had would count as lost.
func hearsDrained(ctx context.Context, members []*origin.Member, st *origin.RingStatus, name string) (err error) {
	for over := time.Now().Add(hearDrained); err == nil && time.Now().Before(over); {
		if m := st.Member(name); m == nil || m.State != origin.RingDraining {
			return nil
		}
		select {
		case <-time.After(askRingEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
		st, err = askStatus(ctx, members)
	}
	return err
}

func (a *ringAccess) operate(cmd *cobra.Command, name string, do origin.RingDo) error {
	members, closeAll, err := a.members()
	if err != nil {
		return err
	}
	defer closeAll()
	ctx := cmd.Context()
	st, err := askStatus(ctx, members)
	if err != nil {
		return err
	}
	if st.Member(name) == nil { // it would become one
		var names []string
		for _, m := range st.Members {
			names = append(names, m.Name)
		}
		return fmt.Errorf("the ring has no member %q; it has %s", name, strings.Join(names, ", "))
	}
	if do == origin.RingRemove {
		if err := hearsDrained(ctx, members, st, name); err != nil {
			return err
		}
	}
	if err := askEach(members, func(m *origin.Member) error { return m.Operate(ctx, name, do) }); err != nil {
		return err
	}
	if st, err = askStatus(ctx, members); err != nil {
		return err
	}
	return a.print(cmd.OutOrStdout(), st.Member(name), func(out io.Writer) {
		switch do {
		case origin.RingReadmit:
			fmt.Fprintf(out, "%s may be a member again\n", name)
		case origin.RingForget:
			fmt.Fprintf(out, "nobody waits any more for what only lost disks of %s had\n", name)
		default:
			fmt.Fprintf(out, "%s is no member any more\n", name)
		}
		printWhole(out, st, time.Now())
	})
}
