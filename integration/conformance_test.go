package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/capelin-io/capelin/integration/harness"
)

// The OCI distribution specification's own conformance test, all that it has for the next version, against the gateway of a server.
// What is not whole is refused (docs/registry.md), and so sparse manifests are all that is not tried.
func TestConformance(t *testing.T) {
	ctx, c := newCluster(t)
	pki := get(c.NewPKI(ctx))(t)
	user := harness.User{Name: "conformance", Password: "secret", Namespaces: "conformance/.*", Actions: []string{"pull", "push", "delete"}}
	server := get(c.NewServer(ctx, "server", harness.ServerOptions{PKI: pki, Users: []harness.User{user}}))(t)
	bin := get(harness.Tool("conformance"))(t)
	results, config := filepath.Join(c.Dir, "results"), filepath.Join(c.Dir, "conformance.yaml")
	must(t, os.WriteFile(config, []byte("{}\n"), 0o644))
	out, err := server.Command(ctx, []string{
		"OCI_REGISTRY=" + server.Gateway, "SSL_CERT_FILE=" + pki.CA(), "OCI_USERNAME=" + user.Name, "OCI_PASSWORD=" + user.Password,
		"OCI_REPO1=conformance/repo1", "OCI_REPO2=conformance/repo2", "OCI_VERSION=dev",
		"OCI_RESULTS_DIR=" + results, "OCI_CONFIGURATION=" + config, "HTTPS_PROXY=", "https_proxy=",
	}, bin)
	_, summary, ok := strings.Cut(out, "API conformance")
	if err != nil || !ok {
		t.Fatalf("%v\n%s", err, strings.Join(append(lines(out, "FAIL", 40), out[:min(len(out), 500)]), "\n"))
	}
	// It says 0 of some things that it did not do.
	t.Log(summary)
	passed := strings.Count(summary, "Pass\n")
	if left := append(lines(summary, "Disabled", 9), lines(summary, "Skip", 9)...); passed < 50 || strings.Contains(summary, "FAIL") ||
		strings.Contains(summary, "Error\n") || len(left) != 1 || !strings.HasPrefix(left[0], "Sparse Manifests") {
		t.Errorf("%d categories passed; these were not tried: %q", passed, left)
	}
}

// lines returns the lines of a text that hold a word, at most n.
func lines(text, word string, n int) (found []string) {
	for l := range strings.Lines(text) {
		if strings.Contains(l, word) && len(found) < n {
			found = append(found, strings.TrimSpace(l))
		}
	}
	return found
}
