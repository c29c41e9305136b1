package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/control/index"
)

// unable is why a command could not find out what it was asked.
type unable struct{ error }

func (u unable) Unwrap() error { return u.error }

func fsckCommand(a *indexAccess) *cobra.Command {
	opts := index.DefaultFsck
	cmd := &cobra.Command{
		Use:   "fsck",
		Short: "Look through an index's storage for what is not as it should be, and mend it",
		Long: `Look through an index's storage for what is not as it should be, and mend it.

The index does it, while it and others serve, no faster than --rate: every object is
read, and the origins are asked for every blob. What is wrong is looked at again after
--settle, so that what somebody is just writing is no finding. Each finding says what is
wrong, and what --repair does about it.

The status is 0 if nothing was found, 1 if something was, mended or not, and 2 if not all
could be looked at. With --json each line is a JSON object.`,
		Args: cobra.NoArgs,
		Example: `  capelin index fsck --index index-1:7490
  capelin index fsck --index index-1:7490 --repair`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return unable{err}
			}
			defer c.Close()
			p := &fsckPrinter{out: cmd.OutOrStdout(), progress: cmd.ErrOrStderr(), json: a.json, repair: opts.Repair}
			if err := c.Fsck(cmd.Context(), opts, p.event); err != nil {
				return unable{err}
			}
			switch r := p.done; {
			case r.Unknown > 0:
				return unable{fmt.Errorf("%d objects could not be looked at", r.Unknown)}
			case r.Findings > r.Mended:
				return fmt.Errorf("%d things are wrong", r.Findings-r.Mended)
			case r.Findings > 0:
				return errors.New("something was wrong, and is mended")
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&opts.Repair, "repair", false, "mend what can be mended")
	f.IntVar(&opts.Rate, "rate", opts.Rate, "requests to the storage and the origins per second at most")
	f.DurationVar(&opts.Settle, "settle", opts.Settle, "for how long something must be wrong; less only if nobody writes")
	return cmd
}

// fsckPrinter prints what an index says.
type fsckPrinter struct {
	out, progress io.Writer
	json, repair  bool
	done          index.FsckResult
	said          time.Time
}

func (p *fsckPrinter) event(e index.FsckEvent) error {
	if e.Done != nil {
		p.done = *e.Done
	}
	if e.Progress != nil {
		p.say(e.Progress)
		return nil
	}
	if p.json {
		return json.NewEncoder(p.out).Encode(e)
	}
	var err error
	switch f, r := e.Finding, e.Done; {
	case f != nil:
		where := f.Key
		if f.Tag != "" {
			where = "tag " + f.Repository + ":" + f.Tag
		} else if f.Repository != "" {
			where = f.Repository
		}
		_, err = fmt.Fprintf(p.out, "%s: %s: %s\n    %s\n", f.Kind, where, f.Text, p.mending(f))
	case e.Orphan != nil:
		_, err = fmt.Fprintf(p.out, "orphan: %s@%s: no tag, index or subject reaches it (that is no error)\n",
			e.Orphan.Repository, e.Orphan.Digest)
	case e.Unknown != "":
		_, err = fmt.Fprintf(p.out, "not looked at: %s\n", e.Unknown)
	case r != nil:
		_, err = fmt.Fprintf(p.out, "%d repositories, %d objects: %d findings, %d of them mended; %d orphans; %d not looked at\n",
			r.Repositories, r.Objects, r.Findings, r.Mended, r.Orphans, r.Unknown)
	}
	return err
}

func (p *fsckPrinter) mending(f *index.Finding) string {
	switch {
	case f.Mended:
		return "mended: " + f.Mend
	case f.Error != "":
		return "not mended: " + f.Error
	case f.Mend == "":
		return "the index cannot mend it"
	}
	return "--repair would: " + f.Mend
}

// say prints how far it is, a line from time to time.
func (p *fsckPrinter) say(r *index.FsckProgress) {
	now := time.Now()
	if now.Sub(p.said) < sayStillEvery {
		return
	}
	p.said = now
	text := fmt.Sprintf("%d repositories, %d objects, %d findings", r.Repositories, r.Objects, r.Findings)
	switch {
	case r.Wait > 0:
		text += fmt.Sprintf("; looks at %d again in %v", r.Again, r.Wait.Round(time.Second))
	case r.Again > 0:
		text += fmt.Sprintf("; looks at %d again", r.Again)
	case r.Repository != "":
		text += "; at " + r.Repository
	}
	fmt.Fprintf(p.progress, "%s %s\n", now.Format(time.TimeOnly), text)
}
