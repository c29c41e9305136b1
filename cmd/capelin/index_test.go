package main

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/capelin-io/capelin/control/index"
)

// What fsck and prove print, and how they end.
func TestIndexCommands(t *testing.T) {
	dir := t.TempDir()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	startWith(t, nil, "index is up", "indexd", "--set", "listen="+addr, "--set", "metrics=", "--set", "storage.file.path="+dir)
	run := func(code int, args ...string) string {
		t.Helper()
		out, _, err := execute(t, append([]string{"index", "--index", addr}, args...)...)
		if _, got := exit(err, nil); got != code {
			t.Errorf("%v: status %d, want %d: %v\n%s", args, got, code, err, out)
		}
		return out
	}
	if out := run(0, "prove"); !strings.HasPrefix(out, "file:"+dir+" compares and swaps (found out at 2") {
		t.Errorf("prove: %q", out)
	}
	if out := run(0, "fsck"); out != "0 repositories, 1 objects: 0 findings, 0 of them mended; 0 orphans; 0 not looked at\n" {
		t.Errorf("fsck: %q", out)
	}
	catalog := filepath.Join(dir, "index/catalog/team.app")
	for _, name := range []string{catalog, filepath.Join(dir, "index/strange")} {
		if err := os.MkdirAll(filepath.Dir(name), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte("x"), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if out := run(1, "fsck", "--settle", "0"); !strings.Contains(out, "damaged: team/app: index storage file:") ||
		!strings.Contains(out, "\n    --repair would: write it anew\nstranger: index/strange: no index has written an object of that name\n"+
			"    the index cannot mend it\n0 repositories, 3 objects: 2 findings, 0 of them mended;") {
		t.Errorf("fsck: %q", out)
	}
	out := run(1, "fsck", "--settle", "0", "--repair", "--json")
	var mended, done bool
	for line := range strings.Lines(out) {
		var e index.FsckEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Error(err)
		}
		mended = mended || e.Finding != nil && e.Finding.Mended && e.Finding.Repository == "team/app"
		done = done || e.Done != nil && e.Done.Findings == 2 && e.Done.Mended == 1
	}
	if text, err := os.ReadFile(catalog); err != nil || string(text) != `{"version":1,"repository":"team/app"}`+"\n" || !mended || !done {
		t.Errorf("%s, %v; %s", text, err, out)
	}
	os.Remove(filepath.Join(dir, "index/strange"))
	run(0, "fsck", "--repair")
	run(2, "fsck", "--rate", "0")
	if _, _, err := execute(t, "index", "fsck"); err == nil || !strings.Contains(err.Error(), "--index says which index to ask") {
		t.Error(err)
	}
}
