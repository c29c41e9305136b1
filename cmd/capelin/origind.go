package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/origind"
)

func origindCommand(hangups chan os.Signal) *cobra.Command {
	cmd, _ := daemonCommand(role[origind.Config]{
		name:     "origind",
		short:    "Run an origin: takes pushes, keeps blobs, seeds them, and reads and writes backends",
		defaults: origind.DefaultConfig,
		run:      origind.Run,
		reload:   func(c *origind.Config, live <-chan origind.Config) { c.Reload = live },
		tune:     func(*origind.Config) { relaxTimers() },
	}, hangups)
	return cmd
}
