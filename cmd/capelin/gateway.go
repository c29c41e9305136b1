package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/gateway"
)

func gatewayCommand(hangups chan os.Signal) *cobra.Command {
	cmd, _ := daemonCommand(role[gateway.Config]{
		name:     "gateway",
		short:    "Run a gateway: the registry API over origins and an index",
		defaults: gateway.DefaultConfig,
		run:      gateway.Run,
	}, hangups)
	return cmd
}
