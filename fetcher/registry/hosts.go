package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"time"

	"cuelabs.dev/go/oci/ociregistry/ociauth"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerconfig "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"
	"github.com/pelletier/go-toml/v2"
)

const (
	// reloadEvery is how long hosts.toml and all that hangs on it are kept.
	reloadEvery = 5 * time.Minute
	// reloadPause is the time between two loads because of refusals.
	reloadPause = time.Second
	// helperTimeout is how long a credential helper may take.
	helperTimeout = 30 * time.Second
)

// hosts is where a registry is asked, in this order, as loaded at one time.
type hosts struct {
	list       []docker.RegistryHost
	transports map[*http.Transport]struct{}
	loaded     time.Time
	// refused: an authorizer of these got a no. It may have kept an old secret,
	// or a failure, for good.
	refused atomic.Bool
}

func (h *hosts) close() {
	for tr := range h.transports {
		tr.CloseIdleConnections()
	}
}

// current returns the hosts, loaded anew if it is time for that. If that fails it
// returns those that worked before.
func (b *Backend) current() *hosts {
	b.mu.Lock()
	defer b.mu.Unlock()
	age := time.Since(b.hosts.loaded)
	if age < reloadEvery && !(b.hosts.refused.Load() && age >= b.reloadPause) {
		return b.hosts
	}
	fresh, err := b.load()
	if err != nil { // somebody is editing a file; look again later
		b.hosts.loaded = time.Now()
		return b.hosts
	}
	b.hosts.close()
	b.hosts = fresh
	return fresh
}

// load reads hosts.toml and the certificates it names.
func (b *Backend) load() (*hosts, error) {
	h := &hosts{loaded: time.Now(), transports: map[*http.Transport]struct{}{}}
	opts := dockerconfig.HostOptions{
		Credentials: b.credentials,
		UpdateClient: func(c *http.Client) error {
			tr, ok := c.Transport.(*http.Transport)
			if !ok {
				return fmt.Errorf("unknown transport %T", c.Transport)
			}
			tr.ResponseHeaderTimeout = b.cfg.Timeout.D()
			tr.MaxIdleConns, tr.MaxIdleConnsPerHost = 64, 16
			tr.MaxResponseHeaderBytes = 64 << 10
			tr.ReadBufferSize = 64 << 10
			h.transports[tr] = struct{}{}
			return nil
		},
	}
	if b.cfg.PlainHTTP {
		opts.DefaultScheme = "http"
	}
	if b.cfg.HostsDir != "" {
		opts.HostDir = func(host string) (string, error) {
			dir, err := dockerconfig.HostDirFromRoot(b.cfg.HostsDir)(host)
			if err != nil {
				return "", err
			}
			return dir, checkHostsFile(filepath.Join(dir, "hosts.toml"))
		}
	}
	// Its errors are files and values in hosts.toml.
	list, err := dockerconfig.ConfigureHosts(context.Background(), opts)(b.cfg.Host)
	if err == nil && len(list) == 0 {
		err = errors.New("hosts.toml names no host")
	}
	if err != nil {
		return nil, fmt.Errorf("configuring the hosts of %s: %w: %w", b.cfg.Host, err, errdefs.ErrFailedPrecondition)
	}
	h.list = list
	return h, nil
}

// checkHostsFile reports a broken hosts.toml, which containerd logs and passes over:
// then requests would go elsewhere than the file says.
func checkHostsFile(path string) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var any map[string]any
	if err := toml.Unmarshal(data, &any); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// credentials returns the name and the secret for a host, in containerd's way: no
// name means that the secret is a refresh token; neither: there are none.
func (b *Backend) credentials(host string) (name, secret string, err error) {
	if b.cfg.DockerConfig == "" {
		return "", "", nil
	}
	data, err := os.ReadFile(b.cfg.DockerConfig)
	if err != nil {
		return "", "", fmt.Errorf("reading credentials: %w", err)
	}
	file, err := ociauth.LoadWithEnv(runHelper, []string{"DOCKER_AUTH_CONFIG=" + string(data)})
	if err != nil {
		return "", "", fmt.Errorf("reading credentials from %s: %w", b.cfg.DockerConfig, err)
	}
	hosts := []string{host}
	if host == "registry-1.docker.io" { // what docker login writes
		hosts = []string{"https://index.docker.io/v1/", dockerHub, "index.docker.io", host}
	}
	for _, host := range hosts {
		entry, err := file.EntryForRegistry(host)
		if err != nil {
			return "", "", fmt.Errorf("credentials of %s: %w", host, err)
		}
		switch {
		case entry.RefreshToken != "":
			return "", entry.RefreshToken, nil
		case entry.Username != "":
			return entry.Username, entry.Password, nil
		case entry.AccessToken != "":
			return "", "", fmt.Errorf("%s has a registrytoken for %s, which is not supported: use a name and a password, or an identitytoken",
				b.cfg.DockerConfig, host)
		}
	}
	return "", "", nil
}

// runHelper asks a program, docker-credential-<name>, for credentials.
func runHelper(name, serverURL string) (ociauth.ConfigEntry, error) {
	program := "docker-credential-" + name
	if _, err := exec.LookPath(program); err != nil {
		return ociauth.ConfigEntry{}, fmt.Errorf("%w: %w", ociauth.ErrHelperNotFound, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), helperTimeout)
	defer cancel()
	creds, err := client.Get(func(args ...string) client.Program {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.WaitDelay = time.Second
		return helper{cmd}
	}, serverURL)
	switch {
	case credentials.IsErrCredentialsNotFound(err):
		return ociauth.ConfigEntry{}, nil
	case err != nil:
		return ociauth.ConfigEntry{}, fmt.Errorf("%s: %w", program, err)
	case creds.Username == "<token>":
		return ociauth.ConfigEntry{RefreshToken: creds.Secret}, nil
	}
	return ociauth.ConfigEntry{Username: creds.Username, Password: creds.Secret}, nil
}

// helper is a client.Program that ends with its context.
type helper struct{ *exec.Cmd }

func (h helper) Input(in io.Reader) { h.Stdin = in }
