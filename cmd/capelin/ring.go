package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/control/origin"
)

// waiting says whether a command waits, and for how long.
type waiting struct {
	wait    bool
	timeout time.Duration // 0: for ever
}

const (
	askRingEvery  = time.Second
	sayStillEvery = 5 * time.Second // so that whoever waits sees that something happens
)

var errTooLong = errors.New("it took longer than --timeout")

func (w *waiting) flags(cmd *cobra.Command, what string) {
	cmd.Flags().BoolVar(&w.wait, "wait", false, what)
	cmd.Flags().DurationVar(&w.timeout, "timeout", 0, "how long it waits at most, such as 10m (0: as long as it takes)")
}

// until asks, and with --wait again until done says so. Meanwhile it says how far it is, a line each time that something has
// changed, not more often than every few seconds. It returns what was said last, also with an error; nil: nothing.
func (w *waiting) until(
	cmd *cobra.Command, ask func(context.Context) (*origin.RingStatus, error), done func(*origin.RingStatus) (bool, error),
	line func(st *origin.RingStatus, now time.Time) string,
) (st *origin.RingStatus, err error) {
	ctx := cmd.Context()
	if st, err = ask(ctx); err != nil || !w.wait {
		return st, err
	}
	var over <-chan time.Time
	if w.timeout > 0 {
		over = time.After(w.timeout)
	}
	var said time.Time
	text := ""
	for {
		if ok, err := done(st); ok || err != nil {
			return st, err
		}
		now := time.Now()
		if next := line(st, now); next != text && now.Sub(said) >= sayStillEvery {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s %s\n", now.Format(time.TimeOnly), next)
			said, text = now, next
		}
		select {
		case <-time.After(askRingEvery):
		case <-over:
			return st, errTooLong
		case <-ctx.Done():
			return st, ctx.Err()
		}
		next, err := ask(ctx)
		switch {
		case err == nil:
			st = next
		case !errdefs.IsUnavailable(err):
			return st, err
		case ctx.Err() == nil && now.Sub(said) >= sayStillEvery:
			text, _, _ := strings.Cut(err.Error(), "\n")
			fmt.Fprintf(cmd.ErrOrStderr(), "%s no answer: %s\n", now.Format(time.TimeOnly), text)
			said = now
		}
	}
}

// progress is how far a ring is from being whole, in a line.
func progress(st *origin.RingStatus, now time.Time) string {
	parts := away(st, now)
	if n := shortBlobs(st); n > 0 {
		parts = append([]string{fmt.Sprintf("%d blobs are short", n)}, parts...)
	}
	if r := repair(st); r != "" {
		parts = append(parts, r)
	}
	if len(parts) == 0 {
		parts = st.Why
	}
	return strings.Join(parts, "; ")
}

// leaving is how far a member is that drains, in a line.
func leaving(st *origin.RingStatus, _ time.Time) string {
	if r := repair(st); r != "" {
		return r
	}
	return st.Name + " looks whether anything is still needed"
}

// shortBlobs is how many blobs are not known to be at all their owners, each counted by each member that has it.
func shortBlobs(st *origin.RingStatus) (n int) {
	for _, m := range st.Members {
		if m.Under != nil {
			n += *m.Under
		}
	}
	return n
}

// away names the members that are not as they should be.
func away(st *origin.RingStatus, now time.Time) (all []string) {
	for i := range st.Members {
		m := &st.Members[i]
		if m.State != origin.RingUp && m.State != origin.RingRemoved && m.State != origin.RingDrained {
			all = append(all, m.Name+" is "+m.Text(now))
		}
	}
	return all
}

// repair is what the member that says st is doing.
func repair(st *origin.RingStatus) string {
	r := st.Repair
	if r.Blobs == 0 {
		return ""
	}
	text := fmt.Sprintf("%s repairs %d blobs", st.Name, r.Blobs)
	if r.Bytes > 0 {
		text += fmt.Sprintf(" (%s)", size(r.Bytes))
	}
	if r.Rate > 0 {
		text += fmt.Sprintf(" at %s/s", size(r.Rate))
		if r.Bytes > 0 {
			text += fmt.Sprintf(", %v more", (time.Duration(r.Bytes/r.Rate) * time.Second).Round(time.Second))
		}
	}
	return text
}

// notWhole is why a ring is not whole, in a line, and what there is to do.
func notWhole(st *origin.RingStatus, now time.Time) string {
	if st.Stuck() {
		var forget []string
		for _, name := range st.Missed {
			forget = append(forget, "capelin origin ring forget "+name)
		}
		return fmt.Sprintf("the ring is not whole: what %s had may have been nowhere else. Bring that back, or give it up: %s",
			strings.Join(st.Missed, ", "), strings.Join(forget, "; "))
	}
	parts := away(st, now)
	for _, m := range st.Members {
		if m.Under != nil && *m.Under > 0 {
			parts = append(parts, fmt.Sprintf("%s has %d blobs that may be short", m.Name, *m.Under))
		}
	}
	if len(parts) == 0 {
		parts = st.Why
	}
	return "the ring is not whole: " + strings.Join(parts, ", ")
}

func printRing(w io.Writer, st *origin.RingStatus, now time.Time) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "MEMBER\tSTATE\tZONE\tADDRESS\tSHORT")
	for i := range st.Members {
		m := &st.Members[i]
		under := "-"
		if m.Under != nil {
			under = fmt.Sprint(*m.Under)
		}
		zone, address := m.Zone, m.Address
		if zone == "" {
			zone = "-"
		}
		if address == "" {
			address = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", m.Name, m.Text(now), zone, address, under)
	}
	t.Flush()
	fmt.Fprintf(w, "\n%s has %d blobs that no backend has; each is to have %d copies, and a push waits for %d\n",
		st.Name, st.Blobs, st.Replicas, st.MinReplicas)
	if r := repair(st); r != "" {
		fmt.Fprintln(w, r)
	}
	for _, b := range st.Backends {
		if !b.Up {
			fmt.Fprintf(w, "backend %s cannot be used from %s for %v: %s\n", b.Name, st.Name, now.Sub(b.Since).Round(time.Second), b.Error)
		}
	}
	for _, b := range st.Backends {
		if len(b.Differs) > 0 {
			fmt.Fprintf(w, "backend %s of %s is another storage than that of %s: give all of them the same one\n",
				b.Name, strings.Join(b.Differs, ", "), st.Name)
		}
	}
	for _, d := range st.Disks {
		if !d.Up {
			fmt.Fprintf(w, "disk %s of %s is not used%s: %s\n", d.Path, st.Name, sinceText(d.Since, now), d.Error)
		}
	}
	for i := range st.Members {
		if m := &st.Members[i]; m.Skew != 0 {
			ahead, how := time.Duration(m.Skew)*time.Millisecond, "ahead of"
			if ahead < 0 {
				ahead, how = -ahead, "behind"
			}
			fmt.Fprintf(w, "the clock of %s is %v %s that of %s\n", m.Name, ahead.Round(time.Second), how, st.Name)
		}
	}
	for _, l := range st.Lost {
		if !l.Drained {
			fmt.Fprintf(w, "a disk of %s is lost\n", l.Name)
		}
	}
	printWhole(w, st, now)
}

// sinceText is for how long something is so.
func sinceText(since *time.Time, now time.Time) string {
	if since == nil {
		return ""
	}
	return fmt.Sprintf(" for %v", now.Sub(*since).Round(time.Second))
}

// printWhole says whether a ring is whole, or all that is in the way.
func printWhole(w io.Writer, st *origin.RingStatus, now time.Time) {
	if st.Whole {
		fmt.Fprintln(w, "the ring is whole")
		return
	}
	fmt.Fprintln(w, "the ring is not whole:")
	why := st.Why
	if len(why) == 0 {
		why = away(st, now)
	}
	for _, line := range why {
		fmt.Fprintln(w, "  "+line)
	}
}
