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

func indexMoveCommand(a *access) *cobra.Command {
	return (&moveCommand{
		access: a, kind: moving.Index,
		use: "move", short: "Move an index to another storage, while it serves",
		long: `All indexes that share the storage FROM are told TO first: the table [next] of their
configuration names it as [storage] names FROM, and they are restarted, one after the
other. Then this command copies all objects, compares both storages, copies what was
changed meanwhile, and has the indexes use the new one. Writes wait only while the last
objects are copied. If it is ended before, run it again: it goes on where it was, and
an index that does not find it ended stays with FROM.

When it has ended, TO becomes the [storage] of the indexes, and [next] goes. An index that
is still configured for FROM alone does not start any more.`,
		example: `  capelin index move /var/lib/capelin/server/index new.toml --rate 50MB/s
  capelin index move /var/lib/capelin/server/index --give-up`,
		who:   "an index that is registered, and does not run any more",
		moved: "the index has moved to %s: make that its [storage], and remove [next]",
	}).command()
}

func backendMoveCommand(a *access) *cobra.Command {
	return (&moveCommand{
		access: a, kind: moving.Blobs,
		use: "move-backend", short: "Move the blobs of a backend to another storage, while it serves",
		long: `All origins whose backend is FROM are told TO first: the table next of the backend in
their configuration names it, and they are restarted, one after the other. Then this
command copies all blobs and the records beside them, reads each blob from TO and compares
it with its digest, copies what was pushed and removes what was deleted meanwhile, and has
the origins use TO. Until then FROM has everything, afterwards TO has. Pulls never
wait, and pushes only while the last blobs are copied, if their durability is "backend". If
it is ended before, however that was, run it again: it goes on where it was. It is run once
at a time.

When it has ended, TO becomes the backend, under the same name, and next goes. An origin
that is still configured for FROM alone finds and writes nothing there any more, and says
so.

Blobs whose bytes are wrong in FROM are not copied. They are named, and it ends before TO is
used; with --leave-damaged it goes on.`,
		example: `  capelin origin move-backend /srv/blobs new.toml --rate 200MB/s
  capelin origin move-backend old.toml --give-up`,
		who:   "an origin that is registered, and does not run any more",
		moved: "all blobs are in %s: make that the backend, and remove next",
	}).command()
}

// moveCommand moves what is in a storage to another one.
type moveCommand struct {
	access *access
	kind   *moving.Kind

	use, short, long, example, who, moved string

	rate         config.Rate
	gone         []string
	giveUp       bool
	leaveDamaged bool
}

func (m *moveCommand) command() *cobra.Command {
	cmd := &cobra.Command{
		Use: m.use + " FROM [TO]", Short: m.short, Long: m.short + ".\n\n" + m.long + "\n\n" + storageHelp, Example: m.example,
		Args: cobra.RangeArgs(1, 2),
		RunE: m.run,
	}
	f := cmd.Flags()
	f.TextVar(&m.rate, "rate", m.rate, "bytes per second that are read from FROM at most, such as 50MB/s; 0: no limit")
	f.StringArrayVar(&m.gone, "gone", nil, "name of "+m.who+"; repeat for others")
	f.BoolVar(&m.giveUp, "give-up", false, "end a move that has not ended: all stays where it is")
	if m.kind == moving.Blobs {
		f.BoolVar(&m.leaveDamaged, "leave-damaged", false, "move although there are blobs in FROM whose bytes are wrong")
	}
	return cmd
}

func (m *moveCommand) run(cmd *cobra.Command, args []string) error {
	if m.giveUp != (len(args) == 1) {
		return misused(cmd, errors.New("it moves FROM somewhere TO somewhere, or gives up with FROM alone"))
	}
	from, err := openStorage(args[0], true)
	if err != nil {
		return err
	}
	defer from.Close()
	if m.giveUp {
		return m.kind.GiveUp(cmd.Context(), from)
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
	mover := &moving.Mover{
		Kind: m.kind, From: limit.Rates(from, int64(m.rate), 0), To: to, Gone: m.gone, LeaveDamaged: m.leaveDamaged,
		Say: func(p moving.Progress) { said.say(p.String()) },
	}
	if m.kind == moving.Index {
		mover.Again = open
	}
	done, err := mover.Run(cmd.Context())
	if err != nil {
		return advisedMove(err)
	}
	return m.access.print(cmd.OutOrStdout(), done, func(w io.Writer) {
		fmt.Fprintf(w, m.moved+"\n%s\n", to.Name(), done)
	})
}

// advisedMove adds what there is to do about an error.
func advisedMove(err error) error {
	var damaged *moving.DamagedError
	if errors.As(err, &damaged) {
		return fmt.Errorf("%w: --leave-damaged", err)
	}
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
