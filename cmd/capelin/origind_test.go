package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOrigindCommand(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	local := "listen = \"127.0.0.1:0\"\nmetrics = \"127.0.0.1:0\"\nroot = \"" + dir + "/origin\"\n"
	good := file("good.toml", local+"[swarm]\nlisten = \"127.0.0.1:0\"\n"+
		"[[backend]]\nname = \"main\"\nkind = \"file\"\nnamespaces = [\".*\"]\nfile.path = \""+dir+"/backend\"\n")
	bad := file("bad.toml", "listen = \":7480\"\n[queue]\nworker = 4\n")
	for _, tt := range []struct {
		name string
		args []string
		want []string // in the error; none: no error
	}{
		{"runs until its context ends", []string{"--config", good}, nil},
		{"bad file", []string{"--config", bad}, []string{bad + ":3:1: queue.worker: no such key"}},
		{"stray argument", []string{"start"}, []string{"start"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if len(tt.want) == 0 {
				cancel()
			}
			err := run(ctx, append([]string{"origind"}, tt.args...))
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
