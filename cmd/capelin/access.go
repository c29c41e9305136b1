package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/image"
)

// access is how commands reach registries and trackers.
type access struct {
	registry image.Config
	user     string // shown to the registry that a command is about; "": Docker's configuration says who
	stdin    bool   // its password is on stdin
	trackers []string
	cluster  string
	json     bool
}

// control returns a client of the trackers; with a certificate it speaks as an
// admin of the cluster.
func (a *access) control() (*tracker.Control, error) {
	if len(a.trackers) == 0 {
		return nil, errors.New("--tracker says which trackers to ask, as host:port")
	}
	t, err := a.clientTLS(identity.RoleTracker)
	if err != nil {
		return nil, err
	}
	return tracker.Dial(a.trackers, t)
}

// clientTLS returns how to speak to servers of a role; nil without a certificate.
func (a *access) clientTLS(role identity.Role) (*tls.Config, error) {
	if a.registry.Cert == "" {
		return nil, nil
	}
	src, err := identity.Load(identity.Config{CA: a.registry.CA, Cert: a.registry.Cert, Key: a.registry.Key}, a.cluster)
	if err != nil { // of identity.ca, which is --ca here
		return nil, errors.Join(config.Renamed(err, func(key string) string { return "--" + strings.TrimPrefix(key, "identity.") })...)
	}
	return src.ClientTLS(role), nil
}

func (a *access) flags(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringVar(&a.registry.CA, "ca", "",
		"PEM file of authorities to trust: beside the system's for registries, instead of them for trackers and origins")
	f.StringVar(&a.registry.Cert, "cert", "", "PEM file of a client certificate, as \"capelin ca issue --role admin\" makes it")
	f.StringVar(&a.registry.Key, "key", "", "PEM file of its key")
	f.BoolVar(&a.json, "json", false, "print the result as JSON")
}

func (a *access) userFlags(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringVarP(&a.user, "user", "u", "", "user to log in as; the password is in $"+passwordVariable+", or asked for")
	f.BoolVar(&a.stdin, "password-stdin", false, "read the password from standard input")
	f.BoolVar(&a.registry.PlainHTTP, "plain-http", false, "speak to registries without TLS")
}

// passwordVariable is the environment's, with the password of --user.
const passwordVariable = "CAPELIN_PASSWORD"

// maxPassword bounds what is read as one: tokens are long.
const maxPassword = 64 << 10 // bytes

// images returns a client of registries; --user is for that of ref.
func (a *access) images(cmd *cobra.Command, ref string) (*image.Client, error) {
	cfg := a.registry
	switch registry := image.RegistryOf(ref); {
	case a.user == "" && a.stdin:
		return nil, misused(cmd, errors.New("--password-stdin needs --user"))
	case a.user == "":
	case registry == "":
		return nil, misused(cmd, fmt.Errorf("--user is for a registry, and %q names none", ref))
	default:
		password, err := a.password(cmd)
		if err != nil {
			return nil, err
		}
		cfg.Credentials = image.As(registry, a.user, password)
	}
	return image.New(cfg)
}

// imageAt returns a client of registries, and what ref names in one of them.
func (a *access) imageAt(cmd *cobra.Command, ref string) (*image.Client, image.Place, error) {
	c, err := a.images(cmd, ref)
	if err != nil {
		return nil, image.Place{}, err
	}
	p, err := c.Reference(ref)
	if err != nil {
		c.Close()
	}
	return c, p, err
}

// password is that of --user.
func (a *access) password(cmd *cobra.Command) (string, error) {
	in := cmd.InOrStdin()
	if a.stdin {
		text, err := io.ReadAll(io.LimitReader(in, maxPassword))
		if err != nil {
			return "", fmt.Errorf("reading the password: %w", err)
		}
		return strings.TrimRight(string(text), "\r\n"), nil
	}
	if p := os.Getenv(passwordVariable); p != "" {
		return p, nil
	}
	f, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return "", misused(cmd, fmt.Errorf("the password of %s: set $%s, or pipe it to --password-stdin", a.user, passwordVariable))
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "password of %s: ", a.user)
	p, err := term.ReadPassword(int(f.Fd()))
	fmt.Fprintln(cmd.ErrOrStderr())
	if err != nil {
		return "", fmt.Errorf("reading the password: %w", err)
	}
	return string(p), nil
}

func (a *access) trackerFlags(cmd *cobra.Command, use string) {
	cmd.Flags().StringArrayVar(&a.trackers, "tracker", nil, "tracker "+use+", host:port or dns+host:port as nodes have it; repeat for all "+
		"of them")
	cmd.Flags().StringVar(&a.cluster, "cluster", "default", "name of the cluster, if there is a certificate")
}

// print writes v as JSON if that is wanted, or else what text does.
func (a *access) print(w io.Writer, v any, text func(io.Writer)) error {
	if !a.json {
		text(w)
		return nil
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
