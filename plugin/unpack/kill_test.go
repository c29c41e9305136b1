package unpack

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/capelin-io/capelin/plugin/unpack/treetest"
)

// TestKill kills a process in the middle of an Apply, at several places, and
// applies the layer again: to another directory, as containerd does, and on top
// of what was left. Nothing else may be left.
func TestKill(t *testing.T) {
	needRoot(t)
	if blob := os.Getenv("UNPACK_KILL_BLOB"); blob != "" {
		killed(t, blob)
		return
	}
	var es []entry
	for i := range 40 {
		d := fmt.Sprint("d", i)
		es = append(es, directory(d))
		for j := range 50 {
			es = append(es, reg(fmt.Sprint(d, "/", j), strings.Repeat("x", i*j%5000)))
		}
		es = append(es, hardlink(d+"/h", d+"/1"), symlink(d+"/s", "1"), reg(d+"/big", strings.Repeat("y", smallFile+i)))
	}
	blob := layer(t, es...)
	file := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(file, blob, 0o600); err != nil {
		t.Fatal(err)
	}
	since := time.Now().Add(-time.Minute)
	clean := t.TempDir()
	if _, err := applyBytes(t.Context(), clean, blob, Options{Overlay: true}); err != nil {
		t.Fatal(err)
	}
	want := describe(t, clean, since)

	for _, reads := range []int{1, 20, 30} {
		dir, tmp := t.TempDir(), t.TempDir()
		cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), "UNPACK_KILL_BLOB="+file, "UNPACK_KILL_DIR="+dir, "TMPDIR="+tmp)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for i := 0; i < reads && lines.Scan(); i++ {
		}
		cmd.Process.Kill()
		io.Copy(io.Discard, out)
		cmd.Wait()
		if left, _ := os.ReadDir(tmp); len(left) != 0 {
			t.Errorf("after %d reads, temporary files are left: %v", reads, left)
		}
		if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), dir) {
			t.Errorf("after %d reads, a mount is left (%v)", reads, err)
		}
		got := describe(t, dir, since)
		t.Logf("killed after %d reads with %d of %d entries", reads, len(got), len(want))
		if _, err := applyBytes(t.Context(), dir, blob, Options{Overlay: true}); err != nil {
			t.Fatal(err)
		}
		if d := treetest.Diff(want, describe(t, dir, since)); d != "" {
			t.Errorf("after %d reads:\n%s", reads, d)
		}
	}
}

// killed applies a layer and says whenever it reads from it.
func killed(t *testing.T, blob string) {
	_, err := Layer(t.Context(), tellingReaderAt{blob}, size(blob), false, os.Getenv("UNPACK_KILL_DIR"), Options{Overlay: true})
	if err != nil {
		t.Fatal(err)
	}
}

func size(name string) int64 {
	fi, err := os.Stat(name)
	if err != nil {
		return 0
	}
	return fi.Size()
}

type tellingReaderAt struct{ name string }

func (r tellingReaderAt) ReadAt(p []byte, off int64) (int, error) {
	fmt.Println("read at", off)
	f, err := os.Open(r.name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.ReadAt(p, off)
}
