package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/internal/daemon/version"
)

func main() {
	// Before anything else: a daemon that has just been started may be told to reload.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		signal.Stop(signals) // a second one ends the process at once
		cancel()
	}()
	if err := run(ctx, hangups, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "capelin:", err)
		os.Exit(1)
	}
}

// run executes a command line, and ends early when ctx does. hangups brings SIGHUPs.
func run(ctx context.Context, hangups chan os.Signal, args []string) error {
	root := command(hangups)
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
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
		imageCommand(), nodeCommand(), statusCommand(), caCommand(),
	)
	return root
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
