package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/capelin-io/capelin/trackerd"
)

// A configuration that is there and cannot be read is an error for every role,
// not a reason to run on the defaults.
func TestLoadConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.toml")
	if err := os.WriteFile(file, []byte("cluster = \"mine\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path, usual, from, cluster string
		fails                      bool
	}{
		{"", file, file, "mine", false},
		{file, "/nowhere", file, "mine", false},
		{"", "/nowhere", "", "default", false},
		{"/nowhere", file, "/nowhere", "default", true},
		{"", file + "/below", "", "default", true},
	} {
		cfg := trackerd.DefaultConfig()
		from, err := loadConfig(tt.path, tt.usual, &cfg)
		if from != tt.from || cfg.Cluster != tt.cluster || (err != nil) != tt.fails {
			t.Errorf("%q, %q: from %q, cluster %q, %v", tt.path, tt.usual, from, cfg.Cluster, err)
		}
	}
}
