package swarm_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// The data plane knows no registry, no containerd and no daemon, and the
// formats that strangers' bytes are parsed with need the standard library and our own
// SHA-256 only.
func TestDependencies(t *testing.T) {
	const module = "github.com/capelin-io/capelin/"
	for _, tt := range []struct {
		pkg     string
		allowed []string
	}{
		{"swarm/piece", []string{module + "internal/sha256x2"}},
		{"swarm/wire", []string{module + "swarm/piece", module + "internal/sha256x2"}},
		{"swarm", []string{module + "swarm/piece", module + "swarm/wire", module + "internal/sha256x2", "golang.org/x/sys/unix"}},
	} {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", module+tt.pkg).Output()
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		for _, dep := range strings.Fields(string(out)) {
			if dep != module+tt.pkg && !slices.Contains(tt.allowed, dep) {
				t.Errorf("%s imports %s", tt.pkg, dep)
			}
		}
	}
}
