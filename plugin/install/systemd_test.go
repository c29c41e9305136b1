package install

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSystemd takes an agent through installation, failures, fallback, its undoing
// and uninstallation under a real systemd with a real containerd. It runs as root
// with CAPELIN_TEST_SYSTEMD=1, after "make tools", and takes a minute: systemd waits
// for a second after each failure.
func TestSystemd(t *testing.T) {
	if os.Getenv("CAPELIN_TEST_SYSTEMD") == "" || os.Getuid() != 0 {
		t.Skip("as root with CAPELIN_TEST_SYSTEMD=1")
	}
	top := t.TempDir()
	bin := filepath.Join(top, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		data, err := os.ReadFile(filepath.Join("../../integration/bin/2.4", name))
		if err != nil {
			t.Skip(err)
		}
		if err := os.WriteFile(filepath.Join(bin, name), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script, err := filepath.Abs("testdata/systemd.sh")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(bin, "capelin"), "../..").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.CommandContext(ctx, "unshare", "-m", "-p", "-C", "--fork", "--kill-child", "sh", script, top).CombinedOutput()
	if err != nil || strings.Contains(string(out), "FAIL") || !strings.HasSuffix(strings.TrimSpace(string(out)), "DONE") {
		t.Errorf("%v:\n%s", err, out)
	}
}
