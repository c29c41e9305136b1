package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/fetcher/limit"
	"github.com/capelin-io/capelin/fetcher/moving"
	"github.com/capelin-io/capelin/internal/daemon/config"
)

func moveCommand(a *access) *cobra.Command {
	var rate config.Rate
	var gone []string
	var giveUp bool
	cmd := &cobra.Command{
		Use:   "move FROM [TO]",
		Short: "Move an index to another storage, while it serves",
		Long: `Move an index to another storage, while it serves.

All indexes that share the storage FROM are told TO first: the table [next] of their
configuration names it as [storage] names FROM, and they are restarted, one after the
other. Then this command copies all objects, compares both storages, copies what was
changed meanwhile, and has the indexes use the new one. Writes wait only while the last
objects are copied. If it is ended before, run it again: it goes on where it was, and
an index that does not find it ended stays with FROM.

When it has ended, TO becomes the [storage] of the indexes, and [next] goes. An index that
is still configured for FROM alone does not start any more.

` + storageHelp,
		Example: `  capelin index move /var/lib/capelin/server/index new.toml --rate 50MB/s
  capelin index move /var/lib/capelin/server/index --give-up`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if giveUp != (len(args) == 1) {
				return misused(cmd, errors.New("it moves FROM somewhere TO somewhere, or gives up with FROM alone"))
			}
			from, err := openStorage(args[0], true)
			if err != nil {
				return err
			}
			defer from.Close()
			if giveUp {
				return moving.GiveUp(cmd.Context(), from)
			}
			open, err := storageOpener(args[1], false)
			if err != nil {
				return err
			}
			to, err := open()
			if err != nil {
				return err
			}
			defer to.Close()
			said := newSaid(cmd.ErrOrStderr())
			m := &moving.Mover{
				From: limit.Rates(from, int64(rate), 0), To: to, Again: open, Gone: gone,
				Say: func(p moving.Progress) { said.say(p.String()) },
			}
			done, err := m.Run(cmd.Context())
			if err != nil {
				return advisedMove(err)
			}
			return a.print(cmd.OutOrStdout(), done, func(w io.Writer) {
				fmt.Fprintf(w, "the index has moved to %s: make that its [storage], and remove [next]\n%s\n", to.Name(), done)
			})
		},
	}
	f := cmd.Flags()
	f.TextVar(&rate, "rate", rate, "bytes per second that are read at most, such as 50MB/s; 0: no limit")
	f.StringArrayVar(&gone, "gone", nil, "name of an index that is registered, and does not run any more; repeat for others")
	f.BoolVar(&giveUp, "give-up", false, "end a move that has not ended: the index stays where it is")
	return cmd
}

// advisedMove adds what there is to do about an error.
func advisedMove(err error) error {
	var untold *moving.UntoldError
	if !errors.As(err, &untold) {
		return err
	}
	text := ""
	for _, m := range untold.Members {
		text += " --gone " + m.Name
	}
	return fmt.Errorf("%w\nif none of them runs any more:%s", err, text)
}

// said tells people how far something is: on a terminal often, elsewhere now and then.
type said struct {
	w    io.Writer
	last time.Time
}

func newSaid(w io.Writer) *said { return &said{w: w, last: time.Now()} }

const sayEach = 10 * time.Second

func (s *said) say(text string) {
	if time.Since(s.last) < sayEach {
		return
	}
	s.last = time.Now()
	fmt.Fprintln(s.w, text)
}
