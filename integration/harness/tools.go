package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
)

// moduleDir is where the integration module's source is.
var moduleDir = sync.OnceValue(func() string {
	_, file, _, _ := runtime.Caller(0)
	if dir := filepath.Dir(filepath.Dir(file)); filepath.IsAbs(dir) {
		return dir
	}
	// Built with -trimpath: next to the program (bin/demo), or below the working directory.
	if self, err := os.Executable(); err == nil {
		return filepath.Dir(filepath.Dir(self))
	}
	return "."
})

// Tool is the path of a pinned program that `make tools` builds, such as
// "2.4/containerd".
func Tool(name string) (string, error) {
	p := filepath.Join(moduleDir(), "bin", name)
	if _, err := os.Stat(p); err != nil {
		return "", fmt.Errorf("%w (run `make tools` first)", err)
	}
	return p, nil
}

var (
	buildMu sync.Mutex
	built   = map[string]string{}
	foreign bool // capelin is
)

// Built is the path of "capelin" or of a program of this module's cmd/, built
// from the tree once per process.
func Built(name string) (string, error) {
	buildMu.Lock()
	defer buildMu.Unlock()
	if p := built[name]; p != "" {
		return p, nil
	}
	out := filepath.Join(moduleDir(), "bin", name)
	pkg := "./cmd/" + name
	dir := moduleDir()
	if name == "capelin" {
		dir, pkg = filepath.Dir(dir), "./cmd/capelin"
	}
	cmd := exec.Command("go", "build", "-trimpath", "-o", out, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w: %s", name, err, strings.TrimSpace(string(b)))
	}
	built[name] = out
	return out, nil
}

// Use has hosts that are started from now on run this binary of capelin, such as one
// that was built of another commit; "" is the tree's again. It is for benchmarks that
// compare two of them: nothing else may be starting hosts.
func Use(capelin string) {
	buildMu.Lock()
	defer buildMu.Unlock()
	delete(built, "capelin")
	if foreign = capelin != ""; foreign {
		built["capelin"] = capelin
	}
}

// Foreign reports whether hosts run the binary of another commit, which need not know
// each key of the configuration.
func Foreign() bool {
	buildMu.Lock()
	defer buildMu.Unlock()
	return foreign
}

// runc is Debian's.
func runc() (string, error) {
	for _, p := range []string{"/usr/sbin/runc", "/usr/bin/runc"} {
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	p, err := exec.LookPath("runc")
	if err != nil {
		return "", fmt.Errorf("%w (Debian's package is called runc)", err)
	}
	return p, nil
}
