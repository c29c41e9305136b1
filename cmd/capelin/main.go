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
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		signal.Stop(signals) // a second one ends the process at once
		cancel()
	}()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "capelin:", err)
		os.Exit(1)
	}
}

// run executes a command line, and ends early when ctx does.
func run(ctx context.Context, args []string) error {
	root := command()
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}

// command returns capelin with all its subcommands.
func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "capelin",
		Short:         "Peer-to-peer distribution of container images, as containerd's own content store",
		Version:       version.Version(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		agentCommand(), serverCommand(), trackerdCommand(), origindCommand(), indexdCommand(), gatewayCommand(),
		imageCommand(), nodeCommand(), statusCommand(), caCommand(),
	)
	return root
}
