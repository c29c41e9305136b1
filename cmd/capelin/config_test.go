package main

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/capelin-io/capelin/gateway"
	"github.com/capelin-io/capelin/indexd"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/origind"
	"github.com/capelin-io/capelin/plugin"
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
		{"", file + "/below", file + "/below", "default", true},
	} {
		cfg := trackerd.DefaultConfig()
		s := &source{path: tt.path, usual: tt.usual}
		from, _ := s.file()
		err := s.load(&cfg)
		if from != tt.from || cfg.Cluster != tt.cluster || (err != nil) != tt.fails {
			t.Errorf("%q, %q: from %q, cluster %q, %v", tt.path, tt.usual, from, cfg.Cluster, err)
		}
	}
}

// What earlier versions printed as their defaults still is a configuration, and means
// the same.
func TestEarlierConfigs(t *testing.T) {
	// The roles of a server had an address each for their metrics.
	server := defaultServerConfig()
	server.Tracker.Metrics, server.Origin.Metrics = "127.0.0.1:7471", "127.0.0.1:7482"
	server.Index.Metrics, server.Gateway.Metrics = "127.0.0.1:7491", "127.0.0.1:7501"
	for _, tt := range []struct {
		role      string
		got, want any // pointers
	}{
		{"agent", new(plugin.DefaultConfig()), new(plugin.DefaultConfig())},
		{"trackerd", new(trackerd.DefaultConfig()), new(trackerd.DefaultConfig())},
		{"origind", new(origind.DefaultConfig()), new(origind.DefaultConfig())},
		{"indexd", new(indexd.DefaultConfig()), new(indexd.DefaultConfig())},
		{"gateway", new(gateway.DefaultConfig()), new(gateway.DefaultConfig())},
		{"server", new(defaultServerConfig()), &server},
	} {
		path := filepath.Join("testdata", "7c156ac", tt.role+".toml")
		if err := config.Load(path, tt.got); err != nil {
			t.Error(err)
		}
		if !reflect.DeepEqual(tt.got, tt.want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", path, tt.got, tt.want)
		}
	}
}
