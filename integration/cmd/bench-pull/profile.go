package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/capelin-io/capelin/integration/harness"
)

// startProfiles begins CPU profiles of a node's containerd and agent, for as long as profile asks.
// stop waits until they are written.
func startProfiles(ctx context.Context, n *harness.Node, to string) (stop func() error, err error) {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	sources := map[string]func(url string) error{"containerd": func(path string) error {
		dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", n.DebugSocket())
		}
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
		return get(ctx, c, "http://containerd"+profile, path)
	}}
	if !n.Options.Stock {
		sources["agent"] = func(path string) error {
			err := n.Download(ctx, "http://127.0.0.1:7403"+profile, path)
			return errors.Join(err, n.Download(ctx, "http://127.0.0.1:7403/metrics", path+".metrics"))
		}
	}
	done := make(chan error, len(sources))
	for name, save := range sources {
		go func() { done <- save(to + "-" + name + ".pprof") }()
	}
	return func() error {
		defer cancel()
		var err error
		for range sources {
			err = errors.Join(err, <-done)
		}
		return err
	}, nil
}

// profile is of more seconds than a pull of the big image takes.
const profile = "/debug/pprof/profile?seconds=20"

func get(ctx context.Context, c *http.Client, url, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, resp.Body)
	return errors.Join(err, f.Close())
}
