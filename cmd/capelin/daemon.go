package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/internal/daemon"
	"github.com/capelin-io/capelin/internal/daemon/config"
)

// role is a command that runs one of the daemons. C is its configuration.
type role[C any] struct {
	name     string // of the command, and of its file below /etc/capelin
	short    string
	defaults func() C
	run      func(context.Context, C) error
	// reload, if not nil, makes a configuration take changes from a channel: there is
	// something in it, beside the log, that can change while the role runs.
	reload func(*C, <-chan C)
	// identity, if not nil, is daemon.CheckIdentity for one that is made of several, each of which may
	// have an identity of its own.
	identity func(C) error
	// survive, if not nil, makes the role run on with the configuration that worked last when
	// its file is refused: it returns that, changed as it must be, and whether that is less.
	survive func(last, refused C, why []*config.Problem) (use C, less bool)
	// watch, if not nil, has up called when the role answers, and working when all is up that
	// the configuration asks for.
	watch func(c *C, up, working func())
	// tune, if not nil, sets up the process as it suits the role.
	tune func(*C)
	// tidy, if not nil, takes out of a configuration that was read what is not used, and
	// warns of it.
	tidy func(context.Context, *C)
}

// source is where a configuration is read from.
type source struct {
	path  string // --config
	usual string // read if there is no --config and it exists
	set   []string
	state string // directory for what is kept between starts; "": none
}

// file returns the file that is read, "" if there is none.
func (s *source) file() (string, error) {
	if s.path != "" {
		return s.path, nil
	}
	_, err := os.Stat(s.usual)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return s.usual, err
}

// load reads a configuration into a pointer to its defaults.
func (s *source) load(into any) error {
	path, err := s.file()
	if err != nil {
		return err
	}
	return config.Load(path, into, s.set...)
}

// daemonCommand returns the command of a role, and where its configuration is from.
// hangups brings the process's SIGHUPs, from its start on.
func daemonCommand[C any, P interface {
	*C
	daemon.Config
}](r role[C], hangups chan os.Signal) (*cobra.Command, *source) {
	s := &source{usual: "/etc/capelin/" + r.name + ".toml"}
	load := func() (C, error) {
		cfg := r.defaults()
		err := s.load(&cfg)
		return cfg, err
	}
	cmd := &cobra.Command{
		Use:   r.name,
		Short: r.short,
		Long: r.short + `.

Values of the configuration may name variables of the environment, as "${NAME}".
SIGHUP has the configuration read again; the log says what applies at once, and
what needs a restart.`,
		Args:        cobra.NoArgs,
		Annotations: map[string]string{reloads: "true"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			tries := &attempts{}
			if r.survive != nil {
				tries = beginAttempt(os.Getenv("RUNTIME_DIRECTORY"), time.Now())
			}
			if err := tries.before(time.Now()); err != nil {
				return err
			}
			b, err := begin[C, P](r, s)
			if err != nil {
				b.ended(cmd.Context(), err)
				return tries.after(err, time.Now())
			}
			cfg := b.cfg
			if err := daemon.SetLog(P(&cfg)); err != nil {
				return err
			}
			b.tell(cmd.Context())
			tidy := func(cfg *C) {
				if r.tidy != nil {
					r.tidy(cmd.Context(), cfg)
				}
			}
			tidy(&cfg)
			if r.tune != nil {
				r.tune(&cfg)
			}
			var live chan C
			if r.reload != nil {
				live = make(chan C)
				r.reload(&cfg, live)
			}
			if r.watch != nil {
				up := func() {
					b.up()
					tries.up()
				}
				r.watch(&cfg, up, func() { b.worked(cmd.Context()) })
			}
			daemon.Track(P(&cfg), b.file)
			ctx, cancel := context.WithCancel(cmd.Context())
			if watched() {
				b.file.Anew = cancel
			}
			reloaded := make(chan struct{})
			go func() {
				defer close(reloaded)
				again := func() (cfg C, err error) {
					cfg = r.defaults()
					text, err := s.read()
					if err == nil {
						err = s.parse(text, &cfg)
					}
					if err != nil {
						return cfg, b.refused(r, cfg, err)
					}
					tidy(&cfg)
					b.file.Used = func() { b.used(cmd.Context(), text) }
					return cfg, nil
				}
				daemon.Reload[C, P](ctx, hangups, cfg, again, live, b.file)
			}()
			err = r.run(ctx, cfg)
			if ctx.Err() != nil && errors.Is(err, context.Canceled) { // told to end before it was up
				err = nil
			}
			cancel()
			<-reloaded
			b.ended(cmd.Context(), err)
			if err != nil {
				err = failed{tries.after(err, time.Now())}
			}
			return err
		},
	}
	cmd.PersistentFlags().StringVarP(&s.path, "config", "c", "", "configuration file (default "+s.usual+", if it exists)")
	cmd.Flags().StringArrayVar(&s.set, "set", nil, config.Usage(r.defaults()))
	if r.survive != nil {
		// systemd sets it; with several directories, which ours has not, the first.
		state, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":")
		cmd.Flags().StringVar(&s.state, "state", state, "directory in which the configuration that worked last is kept, to run on with it "+
			"when the file is refused (default $STATE_DIRECTORY; empty: nothing is kept)")
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "config",
		Short: "Print the configuration's defaults, with comments",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return config.Print(cmd.OutOrStdout(), r.defaults()) },
	}, checkCommand[C, P](r, s, load))
	return cmd, s
}

// checkCommand returns the command that says of a configuration what the daemon would.
func checkCommand[C any, P interface {
	*C
	daemon.Config
}](r role[C], s *source, load func() (C, error)) *cobra.Command {
	var alone bool
	cmd := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a configuration as the daemon would when it starts, and change nothing",
		Long: `Check a configuration as the daemon would when it starts, and change nothing.

The status is 0 if it would start with it, and 1 if not; everything that is wrong
is printed, each with file, line and key. The certificate of [identity] is read as
well, unless --file-only is given, and neither ports nor other files are looked at.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				if s.path != "" {
					return misused(cmd, errors.New("either FILE or --config"))
				}
				s.path = args[0]
			}
			path, err := s.file()
			if err != nil {
				return err
			}
			cfg, err := load()
			if !alone { // of a file that is refused, too: everything is told at once
				why := daemon.CheckIdentity
				if r.identity != nil {
					why = func(daemon.Config) error { return r.identity(cfg) }
				}
				err = errors.Join(err, config.Place(why(P(&cfg)), path, &cfg, s.set...))
			}
			if err != nil {
				return err
			}
			if path == "" {
				path = fmt.Sprintf("there is no %s, and the defaults", s.usual)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: good for capelin %s\n", path, r.name)
			return err
		},
	}
	cmd.Flags().BoolVar(&alone, "file-only", false, "do not read the certificate, such as on another machine than the one that has it")
	cmd.Flags().StringArrayVar(&s.set, "set", nil, config.Usage(r.defaults()))
	return cmd
}
