package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/internal/daemon/version"
)

func main() {
	// Before anything else: a daemon that has just been started may be told to reload.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		sig := <-signals
		signal.Stop(signals) // a second one ends the process at once
		cancel(ended{sig})
	}()
	err := run(ctx, hangups, os.Args[1:])
	text, code := exit(err, context.Cause(ctx))
	if text != "" {
		fmt.Fprintln(os.Stderr, "capelin:", text)
	}
	os.Exit(code)
}

// run executes a command line, and ends early when ctx does. hangups brings SIGHUPs.
func run(ctx context.Context, hangups chan os.Signal, args []string) error {
	root := command(hangups)
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}

// ended is why a command ends early: a signal.
type ended struct{ by os.Signal }

func (e ended) Error() string { return e.by.String() }

// failed is why a daemon ended although it was not told to, or could not end in order.
type failed struct{ error }

func (f failed) Unwrap() error { return f.error }

// exit returns what the process says in the end, "" for nothing, and its status: 2 for a
// command line that means nothing, or a question that could not be answered, gaveUp for a
// daemon that is of no use, 128 and its number for a signal that kept a command from doing
// its work. A daemon that ends because it was told to has done all of it.
func exit(err, cause error) (text string, code int) {
	var use usage
	var signal ended
	switch {
	case err == nil:
		return "", 0
	case errors.As(err, &use):
		return err.Error(), 2
	case errors.As(err, new(hopeless)):
		return err.Error(), gaveUp
	case errors.As(cause, &signal) && !errors.As(err, new(failed)):
		text = "interrupted"
		if signal.by != os.Interrupt {
			text = signal.by.String()
		}
		number, _ := signal.by.(syscall.Signal)
		return text, 128 + int(number)
	case errors.As(err, new(unable)):
		return err.Error(), 2
	}
	return err.Error(), 1
}

// command returns capelin with all its subcommands.
func command(hangups chan os.Signal) *cobra.Command {
	root := &cobra.Command{
		Use:           "capelin",
		Short:         "Peer-to-peer distribution of container images, as containerd's own content store",
		Version:       version.Version(),
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			// cobra looks at these, too, but later.
			if err := cmp.Or(cmd.ValidateRequiredFlags(), cmd.ValidateFlagGroups()); err != nil {
				return misused(cmd, err)
			}
			if cmd.Annotations[reloads] != "" {
				return nil
			}
			return dieOf(hangups)
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		agentCommand(hangups), serverCommand(hangups), trackerdCommand(hangups), origindCommand(hangups), indexdCommand(hangups),
		gatewayCommand(hangups),
		imageCommand(), loginCommand(), logoutCommand(), nodeCommand(), originCommand(), indexCommand(), backupCommand(), restoreCommand(),
		statusCommand(), caCommand(), versionCommand(),
	)
	strict(root)
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print which build this is",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "capelin version", version.Version()) // as --version does
			return err
		},
	}
}

// usage is an error of a command line that means nothing.
type usage struct{ error }

func (u usage) Unwrap() error { return u.error }

func misused(cmd *cobra.Command, err error) error {
	return usage{fmt.Errorf("%w (see \"%s --help\")", err, cmd.CommandPath())}
}

// strict makes what is wrong with the command line of cmd, or of a command below it, an
// error of usage. A command that only has others below it, for which cobra would print
// the help, refuses names that it does not know.
func strict(cmd *cobra.Command) {
	args := cmd.Args
	if !cmd.Runnable() {
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		cmd.DisableFlagsInUseLine = true
	}
	if cmd.HasSubCommands() {
		args = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			text := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
			if near := near(cmd, args[0]); len(near) > 0 {
				text += fmt.Sprintf("; did you mean %s?", strings.Join(near, " or "))
			}
			return errors.New(text)
		}
	}
	if args != nil {
		cmd.Args = func(cmd *cobra.Command, given []string) error {
			if err := args(cmd, given); err != nil {
				return misused(cmd, err)
			}
			return nil
		}
	}
	cmd.SetFlagErrorFunc(misused)
	for _, c := range cmd.Commands() {
		strict(c)
	}
}

// near returns commands that somebody may have meant by a name that cmd does not know: those of
// cmd that are like it, or else all that have this name elsewhere, with their paths.
func near(cmd *cobra.Command, name string) []string {
	if cmd.SuggestionsMinimumDistance == 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	if like := cmd.SuggestionsFor(name); len(like) > 0 {
		return like
	}
	var found []string
	var look func(*cobra.Command)
	look = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() && sub.Name() == name {
				found = append(found, strconv.Quote(sub.CommandPath()))
			}
			look(sub)
		}
	}
	look(cmd.Root())
	return found
}

// reloads annotates commands for which SIGHUP means to read the configuration again.
const reloads = "capelin.reloads"

// dieOf has SIGHUP do again what it does to a process that does not ask for it, also one
// that has come already.
func dieOf(hangups chan os.Signal) error {
	signal.Stop(hangups)
	select {
	case <-hangups:
		return syscall.Kill(os.Getpid(), syscall.SIGHUP)
	default:
		return nil
	}
}
