package identity

import (
	"bytes"
	"crypto/tls"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/capelin-io/capelin/internal/durable/disktest"
)

// The power goes after each operation: an authority and a certificate that were made
// are there, and whole.
func TestPowerCut(t *testing.T) {
	top := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(top, 0o700); err != nil {
		t.Fatal(err)
	}
	d := disktest.Watch(t, top)
	ca, err := InitCA(filepath.Join(top, "etc", "ca"), "test")
	if err != nil {
		t.Fatal(err)
	}
	d.Say("ca", "made")
	if err := ca.Issue(filepath.Join(top, "etc", "node"), ID{Name: "n1", Roles: []Role{RoleNode}}, nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	d.Say("node", "made")
	d.Cuts([]disktest.Survival{disktest.Nothing, disktest.Names}, func(t testing.TB, dir string, said map[string]string) {
		if _, err := OpenCA(filepath.Join(dir, "etc", "ca")); err != nil && said["ca"] != "" {
			t.Errorf("the authority: %v", err)
		}
		node := filepath.Join(dir, "etc", "node")
		if said["node"] == "" {
			return
		}
		if _, err := tls.LoadX509KeyPair(filepath.Join(node, Cert), filepath.Join(node, Key)); err != nil {
			t.Errorf("the certificate: %v", err)
		}
		if b, err := os.ReadFile(filepath.Join(node, CACert)); !bytes.Equal(b, ca.pem) {
			t.Errorf("whom to trust: %q, %v", b, err)
		}
	})
}
