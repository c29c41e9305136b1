package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/capelin-io/capelin/internal/image"
)

func loginCommand() *cobra.Command {
	var a access
	cmd := &cobra.Command{
		Use:   "login REGISTRY",
		Short: "Log in to a registry, and keep that where \"docker login\" does",
		Long: `Log in to a registry, and keep that where "docker login" does.

That is a credential helper, if Docker's configuration names one or there is one for
this machine, or else that configuration itself (~/.docker/config.json), in which
passwords can be read by whoever can read the file. "capelin image", Docker, crane,
oras, helm and others find it there.`,
		Args: cobra.ExactArgs(1),
		Example: `  capelin login server-1:7500 -u alice
  capelin login server-1:7500 -u ci-1 --password-stdin <token`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.user == "" {
				var err error
				if a.user, err = askUser(cmd); err != nil {
					return err
				}
			}
			password, err := a.password(cmd)
			if err != nil {
				return err
			}
			c, err := image.New(a.registry)
			if err != nil {
				return err
			}
			defer c.Close()
			file, err := c.Login(cmd.Context(), args[0], a.user, password)
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), map[string]string{"registry": args[0], "user": a.user, "file": file}, func(w io.Writer) {
				fmt.Fprintf(w, "logged in to %s as %s (%s)\n", args[0], a.user, file)
			})
		},
	}
	a.flags(cmd)
	a.userFlags(cmd)
	return cmd
}

// askUser asks for a name on a terminal.
func askUser(cmd *cobra.Command) (string, error) {
	if f, ok := cmd.InOrStdin().(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		return "", misused(cmd, errors.New("--user says who logs in"))
	}
	fmt.Fprint(cmd.ErrOrStderr(), "user: ")
	name, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("reading the user's name: %w", err)
	}
	return strings.TrimSpace(name), nil
}

func logoutCommand() *cobra.Command {
	var a access
	cmd := &cobra.Command{
		Use:   "logout REGISTRY",
		Short: "Forget the login to a registry",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := image.New(a.registry)
			if err != nil {
				return err
			}
			defer c.Close()
			file, err := c.Logout(args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "logged out of %s (%s)\n", args[0], file)
			return err
		},
	}
	return cmd
}
