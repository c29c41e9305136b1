package main

import (
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/trackerd"
)

func trackerdCommand(hangups chan os.Signal) *cobra.Command {
	cmd, _ := daemonCommand(role[trackerd.Config]{
		name:     "trackerd",
		short:    "Run a tracker: who has which blob, and who may fetch it from the registry",
		defaults: trackerd.DefaultConfig,
		run:      trackerd.Run,
		tune: func(*trackerd.Config) {
			if os.Getenv("GOGC") == "" {
				// After a restart all nodes connect and announce at once; most of what is
				// scanned meanwhile are stacks that live on. Costs a tenth more memory and
				// saves a tenth of the work.
				debug.SetGCPercent(200)
			}
		},
	}, hangups)
	return cmd
}
