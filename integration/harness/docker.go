package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Docker is a real Docker engine on a host: Debian's dockerd with a containerd
// of its own, images as dockerd keeps them. It needs no network of its own, since
// it only pulls and pushes.
type Docker struct {
	*Host

	socket string
	config string // directory of the client's credentials
	proc   *Process
}

// DockerOptions say how an engine is set up.
type DockerOptions struct {
	Mirrors  []string // URLs of registry mirrors, for Docker Hub's images
	Insecure []string // host:port, or a network, whose certificates are not checked
}

// dockerd finds Debian's engine and client.
func dockerd() (engine, client string, err error) {
	for _, p := range []string{"/usr/sbin/dockerd", "/usr/bin/dockerd"} {
		if _, err := os.Stat(p); err == nil {
			engine = p
		}
	}
	client, err = exec.LookPath("docker")
	if engine == "" || err != nil {
		return "", "", errors.New("no Docker engine: install Debian's docker.io")
	}
	return engine, client, nil
}

// StartDocker starts an engine on a host and waits until it answers.
func (h *Host) StartDocker(ctx context.Context, o DockerOptions) (*Docker, error) {
	engine, _, err := dockerd()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(h.Dir, "docker")
	d := &Docker{Host: h, socket: filepath.Join(dir, "docker.sock"), config: filepath.Join(dir, "client")}
	if err := os.MkdirAll(d.config, 0o711); err != nil {
		return nil, err
	}
	config, err := json.Marshal(map[string]any{
		"data-root": filepath.Join(dir, "data"), "exec-root": "/run/docker", "pidfile": filepath.Join(dir, "pid"),
		"hosts": []string{"unix://" + d.socket}, "bridge": "none", "iptables": false, "ip6tables": false, "ip-forward": false,
		"registry-mirrors": o.Mirrors, "insecure-registries": o.Insecure, "max-download-attempts": 1,
	})
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "daemon.json")
	if err := os.WriteFile(file, config, 0o644); err != nil {
		return nil, err
	}
	env := []string{"HTTP_PROXY=", "http_proxy=", "HTTPS_PROXY=", "https_proxy="}
	if d.proc, err = h.Start("dockerd", env, nil, engine, "--config-file", file); err != nil {
		return nil, err
	}
	return d, d.proc.await(ctx, func(ctx context.Context) error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", d.socket)
		if err != nil {
			return err
		}
		conn.Close()
		_, err = d.Run(ctx, "version")
		return err
	})
}

// Run runs the docker client in the host.
func (d *Docker) Run(ctx context.Context, args ...string) (string, error) {
	_, client, err := dockerd()
	if err != nil {
		return "", err
	}
	return d.Command(ctx, []string{"DOCKER_CONFIG=" + d.config, "DOCKER_HOST=unix://" + d.socket}, client, args...)
}

// Login makes the client send a user's name and password to a registry.
func (d *Docker) Login(registry, user, password string) error {
	auth, err := json.Marshal(map[string]any{"auths": map[string]any{registry: map[string]string{"username": user, "password": password}}})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(d.config, "config.json"), auth, 0o600)
}

// ImageID returns the digest of a local image's configuration.
func (d *Docker) ImageID(ctx context.Context, ref string) (string, error) {
	out, err := d.Run(ctx, "image", "inspect", "--format", "{{.Id}}", ref)
	return strings.TrimSpace(out), err
}

// Stop sends SIGTERM and waits.
func (d *Docker) Stop() error {
	if err := d.proc.Stop(); err != nil {
		return fmt.Errorf("docker on %s: %w", d.Name, err)
	}
	return nil
}
