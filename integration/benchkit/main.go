package benchkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// Main runs a benchmark until it ends, or somebody interrupts it. An error ends the process with 1, and with the command's name before
// it. needsRoot is what is said to whoever is not root; empty: nothing.
func Main(name, needsRoot string, run func(ctx context.Context) error) {
	err := func() error {
		if needsRoot != "" && os.Geteuid() != 0 {
			return errors.New(needsRoot)
		}
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		return run(ctx)
	}()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}
