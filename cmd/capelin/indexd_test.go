package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestIndexdCommand(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("good.toml", "listen = \"127.0.0.1:0\"\nmetrics = \"127.0.0.1:0\"\n[storage.file]\npath = \""+dir+"/index\"\n")
	for _, tt := range []struct {
		name string
		args []string
		want string // in the error; empty: none
	}{
		{"runs until its context ends", []string{"--config", good}, ""},
		{"prints its configuration", []string{"config"}, ""},
		{"bad file", []string{"--config", file("bad.toml", "listn = \"x\"\n")}, "listn: no such key"},
		{"all interfaces", []string{"--config", file("open.toml", "listen = \":7490\"\n")}, "insecure = true"},
		{"no file", []string{"--config", filepath.Join(dir, "none")}, "no such file"},
		{"stray argument", []string{"start"}, "start"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if tt.want == "" {
				cancel()
			}
			err := run(ctx, append([]string{"indexd"}, tt.args...))
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
