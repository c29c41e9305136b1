package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/capelin-io/capelin/internal/durable/disktest"
)

// What the roles of a server keep is in a directory that survives a power cut: each of
// them takes care of its own, below it.
func TestPowerCut(t *testing.T) {
	top := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(top, 0o700); err != nil {
		t.Fatal(err)
	}
	d := disktest.Watch(t, top)
	cfg := defaultServerConfig()
	cfg.Data = filepath.Join(top, "var", "data")
	cfg.Address, cfg.Metrics = ownAddress(t), ""
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := runServer(ctx, cfg); err != nil {
		t.Logf("the server ended with %v", err)
	}
	d.LastCut([]disktest.Survival{disktest.Nothing}, func(t testing.TB, dir string, _ map[string]string) {
		if _, err := os.Stat(filepath.Join(dir, "var", "data")); err != nil {
			t.Errorf("the data directory is gone: %v", err)
		}
	})
}
