package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// writeFiles writes files below a directory.
func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Neither is made of, or put into, a storage where the index is not, or from which it goes.
func TestBackupWhere(t *testing.T) {
	const catalog = "index/catalog/a"
	state := func(phase string) string {
		return `{"format":1,"id":"x","phase":"` + phase + `","epoch":1,"to":"file:/new"}`
	}
	for _, tt := range []struct{ command, phase, want string }{
		{"backup", "moved", "has moved to file:/new"},
		{"backup", "copying", ""},
		{"backup", "", ""},
		{"restore", "moved", "has moved to file:/new"},
		{"restore", "copying", "moves to file:/new"},
		{"restore", "", ""},
	} {
		dir := t.TempDir()
		index, other := filepath.Join(dir, "index"), filepath.Join(dir, "other")
		files := map[string]string{"other/capelin-backup": `{"format":1,"whole":true,"started":"2026-01-01T00:00:00Z"}`, "index/x": ""}
		if tt.command == "backup" {
			files["index/"+catalog] = `{"version":1,"repository":"a"}`
		}
		if tt.phase != "" {
			files["index/capelin-move/state"] = state(tt.phase)
		}
		writeFiles(t, dir, files)
		out, _, err := execute(t, tt.command, other, "--index-storage", index, "--origin", "127.0.0.1:1", "--json")
		switch {
		case tt.want == "" && (err != nil || !strings.Contains(out, `"whole": true`)):
			t.Errorf("%+v: %v\n%s", tt, err, out)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%+v: %v", tt, err)
		}
		if left, _ := os.ReadDir(filepath.Join(index, "capelin-move", "members")); len(left) > 0 {
			t.Errorf("%+v: %s is still registered", tt, left[0].Name())
		}
	}
}

// A blob that nobody has is named, and the status is 1.
func TestBackupMissing(t *testing.T) {
	dir := t.TempDir()
	const hex = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
	writeFiles(t, dir, map[string]string{"index/index/repositories/team/app/_blobs/sha256/" + hex: `{"version":1}`})
	out, _, err := execute(t, "backup", filepath.Join(dir, "to"), "--index-storage", dir+"/index", "--origin", "127.0.0.1:1")
	if text, code := exit(err, nil); code != 1 || text != "blobs are missing" ||
		!strings.Contains(out, "\nmissing: team/app@sha256:"+hex+": ") {
		t.Errorf("%q, %d\n%s", text, code, out)
	}
	if _, _, err := execute(t, "backup", dir+"/to", "--index-storage", dir+"/nowhere", "--origin", "127.0.0.1:1"); err == nil {
		t.Error("an index that is not there was backed up")
	}
	writeFiles(t, dir, map[string]string{"bad.toml": "[storage]\nkind = \"http\"\n"})
	if _, _, err := execute(t, "backup", dir+"/bad.toml", "--index-storage", dir+"/index", "--origin", "127.0.0.1:1"); err == nil ||
		!strings.Contains(err.Error(), "storage.http") {
		t.Error(err)
	}
}
