package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/image"
)

// access is how commands reach registries and trackers.
type access struct {
	registry image.Config
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
