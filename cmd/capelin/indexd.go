package main

import (
	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/indexd"
)

func indexdCommand() *cobra.Command {
	cmd, _ := daemonCommand(role[indexd.Config]{
		name:     "indexd",
		short:    "Run an index: what tags name, and what repositories have",
		defaults: indexd.DefaultConfig,
		run:      indexd.Run,
	})
	return cmd
}
