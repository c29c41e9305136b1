package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/indexd"
)

func indexdCommand(hangups chan os.Signal) *cobra.Command {
	cmd, _ := daemonCommand(role[indexd.Config]{
		name:     "indexd",
		short:    "Run an index: what tags name, and what repositories have",
		defaults: indexd.DefaultConfig,
		run:      indexd.Run,
	}, hangups)
	return cmd
}
