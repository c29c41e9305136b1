package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTrackerdCommand(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("good.toml", "listen = \"127.0.0.1:0\"\nmetrics = \"127.0.0.1:0\"\n")
	bad := file("bad.toml", "listen = \"127.0.0.1:0\"\n[lease]\nstal = \"3s\"\nstall = \"3\"\n")
	for _, tt := range []struct {
		name string
		args []string
		want []string // in the error; none: no error
	}{
		{"runs until its context ends", []string{"--config", good}, nil},
		{"bad file", []string{"--config", bad}, []string{bad + ":3:1: lease.stal: no such key", bad + `:4:9: lease.stall: "3" is not a duration`}},
		{"no file", []string{"--config", filepath.Join(dir, "none")}, []string{"reading the configuration", "no such file"}},
		{"log level", []string{"--config", file("loud.toml", "log_level = \"loud\"\n")}, []string{`:1:1: log_level: "loud" is not trace`}},
		{"unknown flag", []string{"--cnofig"}, []string{"unknown flag"}},
		{"stray argument", []string{"start"}, []string{"start"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if len(tt.want) == 0 {
				cancel()
			}
			err := run(ctx, append([]string{"trackerd"}, tt.args...))
			if len(tt.want) == 0 && err != nil {
				t.Errorf("got %v", err)
			}
			for _, want := range tt.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %s", err, want)
				}
			}
		})
	}
}
