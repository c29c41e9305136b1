package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/version"
)

// roles are the subcommands; each of the files beside this one adds its own.
var roles []func() *cobra.Command

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "capelin:", err)
		os.Exit(1)
	}
}

// loadConfig reads a role's configuration into into: from path, or if that is
// empty from usual, if it exists. It returns the file that it read, "" if
// there was none and into keeps its defaults.
func loadConfig(path, usual string, into any) (string, error) {
	if path == "" {
		switch _, err := os.Stat(usual); {
		case errors.Is(err, os.ErrNotExist):
			return "", nil
		case err != nil:
			return "", err
		}
		path = usual
	}
	return path, config.Load(path, into)
}

// configCommand prints a role's defaults.
func configCommand(defaults any) *cobra.Command {
	return &cobra.Command{
		Use:   "config",
		Short: "Print the configuration's defaults, with comments",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return config.Print(cmd.OutOrStdout(), defaults)
		},
	}
}

// run executes a command line, and ends early when ctx does.
func run(ctx context.Context, args []string) error {
	root := &cobra.Command{
		Use:           "capelin",
		Short:         "Peer-to-peer distribution of container images, as containerd's own content store",
		Version:       version.Version(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	for _, role := range roles {
		root.AddCommand(role())
	}
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}
