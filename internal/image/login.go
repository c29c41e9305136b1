package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/credentials"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// As returns credentials for one registry, host[:port]; others get what Docker's configuration has for them.
func As(registry, user, password string) authn.Keychain {
	return authn.NewMultiKeychain(only{registry, &authn.Basic{Username: user, Password: password}}, authn.DefaultKeychain)
}

type only struct {
	registry string
	auth     authn.Authenticator
}

func (o only) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if r.RegistryStr() == o.registry {
		return o.auth, nil
	}
	return authn.Anonymous, nil
}

// RegistryOf returns the registry, host[:port], of a reference, or of what only names a registry; "" if it is neither.
func RegistryOf(s string) string {
	s = strings.TrimPrefix(s, string(Registry))
	if !strings.Contains(s, "/") {
		if r, err := name.NewRegistry(s); err == nil && strings.ContainsAny(s, ".:") {
			return r.RegistryStr()
		}
	}
	ref, err := name.ParseReference(s)
	if err != nil {
		return ""
	}
	return ref.Context().RegistryStr()
}

// Login asks a registry, host[:port], whether it knows a user with a password, and if so keeps both where "docker login" does: in a
// credential helper, or else in Docker's configuration file. It returns the file.
func (c *Client) Login(ctx context.Context, registry, user, password string) (file string, err error) {
	reg, err := name.NewRegistry(registry, c.naming()...)
	if err != nil {
		return "", err
	}
	if err := c.accepts(ctx, reg, &authn.Basic{Username: user, Password: password}); err != nil {
		return "", err
	}
	f, err := dockerConfig()
	if err != nil {
		return "", err
	}
	key := loginKey(reg)
	if err := f.GetCredentialsStore(key).Store(types.AuthConfig{ServerAddress: key, Username: user, Password: password}); err != nil {
		return "", fmt.Errorf("keeping the login for %s: %w", registry, err)
	}
	return f.Filename, nil
}

// Logout forgets what Login has kept. It is an error if there is nothing.
func (c *Client) Logout(registry string) (file string, err error) {
	reg, err := name.NewRegistry(registry, c.naming()...)
	if err != nil {
		return "", err
	}
	f, err := dockerConfig()
	if err != nil {
		return "", err
	}
	key := loginKey(reg)
	store := f.GetCredentialsStore(key)
	if a, err := store.Get(key); err != nil || a.Username == "" && a.IdentityToken == "" && a.RegistryToken == "" && a.Auth == "" {
		return "", errors.Join(fmt.Errorf("%s has no login for %s", f.Filename, registry), err)
	}
	if err := store.Erase(key); err != nil {
		return "", fmt.Errorf("forgetting the login for %s: %w", registry, err)
	}
	return f.Filename, nil
}

// loginKey is by what Docker knows a registry's login.
func loginKey(reg name.Registry) string {
	if reg.RegistryStr() == name.DefaultRegistry {
		return authn.DefaultAuthKey
	}
	return reg.RegistryStr()
}

// dockerConfig is Docker's configuration file, with the helper that docker login would choose. One that cannot be read is left alone.
func dockerConfig() (*configfile.ConfigFile, error) {
	f, err := config.Load(os.Getenv(config.EnvOverrideConfigDir))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Filename, err)
	}
	if !f.ContainsAuth() {
		f.CredentialsStore = credentials.DetectDefaultStore(f.CredentialsStore)
	}
	return f, nil
}

// accepts asks a registry whether it knows somebody.
func (c *Client) accepts(ctx context.Context, reg name.Registry, auth authn.Authenticator) error {
	t, err := transport.NewWithContext(ctx, reg, auth, c.transport, nil)
	if err != nil {
		return fmt.Errorf("logging in to %s: %w", reg, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, reg.Scheme()+"://"+reg.RegistryStr()+"/v2/", http.NoBody)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return fmt.Errorf("logging in to %s: %w", reg, err)
	}
	defer resp.Body.Close()
	if err := transport.CheckError(resp, http.StatusOK); err != nil {
		return fmt.Errorf("logging in to %s: %w", reg, err)
	}
	return nil
}
