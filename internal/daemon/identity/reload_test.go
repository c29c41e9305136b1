package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capelin-io/capelin/internal/reload"
)

// running starts Run and returns what it told since the last call.
func running(t *testing.T, s *Source) (told func() []string) {
	t.Helper()
	var mu sync.Mutex
	var all []string
	s.Warn = func(what string) {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, what)
	}
	s.Report = func(err error) {
		if err == nil {
			s.Warn("read")
		} else {
			s.Warn(err.Error())
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	// From here on the test acts between two looks of Run's, which would otherwise be
	// at the same instant, in the middle of the files that a test writes.
	synctest.Wait()
	time.Sleep(reload.Every / 2)
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return func() []string {
		time.Sleep(2 * reload.Every)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		now := all
		all = nil
		return now
	}
}

// Files that change are used for the next connection; nonsense in them is not, and
// connections that are there go on.
func TestReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		authority := t.TempDir()
		old, err := InitCA(authority, "prod")
		if err != nil {
			t.Fatal(err)
		}
		replaced := newCA(t, "prod")
		cfg := old.issue(t, "s", time.Hour, RoleTracker)
		dir := filepath.Dir(cfg.Cert)
		s := load(t, cfg, "prod")
		told := running(t, s)
		serve, former := s.ServerTLS(RoleNode), load(t, old.issue(t, "c", time.Hour, RoleNode), "prod").ClientTLS(RoleTracker)
		traffic := func(when string) {
			t.Helper()
			if a, b := shake(t, serve, former); a != nil || b != nil {
				t.Errorf("%s: server: %v, client: %v", when, a, b)
			}
		}
		if got := told(); got != nil {
			t.Errorf("nothing changed: %q", got)
		}

		before := s.NotAfter()
		whole, err := os.ReadFile(cfg.Cert)
		if err != nil {
			t.Fatal(err)
		}
		for _, nonsense := range [][]byte{nil, whole[:len(whole)/2], []byte("no certificate")} {
			if err := os.WriteFile(cfg.Cert, nonsense, 0o600); err != nil {
				t.Fatal(err)
			}
			if got := told(); len(got) != 1 || !strings.Contains(got[0], cfg.Cert) || !strings.Contains(got[0], "the former ones stay in use") {
				t.Errorf("%q: %q", nonsense, got)
			}
			traffic("with nonsense in the file")
		}
		if err := os.Remove(cfg.Key); err != nil {
			t.Fatal(err)
		}
		if got := told(); len(got) != 1 {
			t.Errorf("without a key: %q", got)
		}
		traffic("without a key")
		if !s.NotAfter().Equal(before) || s.ID().Name != "s" {
			t.Error("something else is in use")
		}

		// A new certificate of the same CA: all goes on.
		if err := old.Issue(dir, ID{Name: "s", Roles: []Role{RoleTracker}}, nil, 2*time.Hour); err != nil {
			t.Fatal(err)
		}
		if got := told(); len(got) != 1 || got[0] != "read" || s.NotAfter().Equal(before) {
			t.Errorf("a new certificate: %q", got)
		}
		traffic("with a new certificate")

		// Two authorities while one replaces the other, then the new one.
		at := filepath.Join(authority, CACert)
		if err := os.WriteFile(at, append(slices.Clone(old.pem), replaced.pem...), 0o600); err != nil {
			t.Fatal(err)
		}
		both, err := OpenCA(authority)
		if err != nil {
			t.Fatal(err)
		}
		if err := both.Issue(dir, ID{Name: "s", Roles: []Role{RoleTracker}}, nil, 2*time.Hour); err != nil {
			t.Fatal(err)
		}
		if got := told(); len(got) != 1 || got[0] != "read" {
			t.Errorf("two authorities: %q", got)
		}
		traffic("with two authorities")
		next := load(t, replaced.issue(t, "c", time.Hour, RoleNode), "prod").ClientTLS(RoleTracker)
		if a, _ := shake(t, serve, next); a == nil || strings.Contains(a.Error(), "unknown authority") {
			t.Errorf("the server refuses the next authority's client: %v", a) // who refuses the server, still
		}
		if err := replaced.Issue(dir, ID{Name: "s", Roles: []Role{RoleTracker}}, nil, 2*time.Hour); err != nil {
			t.Fatal(err)
		}
		if got := told(); len(got) != 1 || got[0] != "read" {
			t.Errorf("the new authority: %q", got)
		}
		if a, b := shake(t, serve, next); a != nil || b != nil {
			t.Errorf("the new authority: server: %v, client: %v", a, b)
		}
		if a, _ := shake(t, serve, former); a == nil {
			t.Error("the former authority's certificate is accepted")
		}
	})
}

// Secrets of Kubernetes change by one rename of a symbolic link above the files.
func TestReloadThroughLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "prod")
		one, two := ca.issue(t, "s", time.Hour, RoleTracker), ca.issue(t, "s", 2*time.Hour, RoleTracker)
		dir := t.TempDir()
		link := filepath.Join(dir, "data")
		if err := os.Symlink(filepath.Dir(one.Cert), link); err != nil {
			t.Fatal(err)
		}
		s := load(t, Config{CA: filepath.Join(link, CACert), Cert: filepath.Join(link, Cert), Key: filepath.Join(link, Key)}, "prod")
		told := running(t, s)
		if err := os.Symlink(filepath.Dir(two.Cert), link+".new"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(link+".new", link); err != nil {
			t.Fatal(err)
		}
		if got := told(); len(got) != 1 || got[0] != "read" || time.Until(s.NotAfter()) < time.Hour {
			t.Errorf("%q, ends %v", got, s.NotAfter())
		}
	})
}

func TestWarnings(t *testing.T) {
	const day = 24 * time.Hour
	begin := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		valid, after time.Duration
		want         string
	}{
		{365 * day, -time.Second, "is the clock right?"},
		{365 * day, 334 * day, ""},
		{365 * day, 336 * day, "in less than 30 days"},
		{365 * day, 357 * day, "in less than 30 days"},
		{365 * day, 359 * day, "in less than 7 days"},
		{365 * day, 364*day + time.Second, "in less than 1 day"},
		{365 * day, 365*day + time.Second, "has ended"},
		{90 * day, 67 * day, ""}, // one that is renewed after two thirds of its time
		{90 * day, 68 * day, "in less than 30 days"},
		{time.Hour, 44 * time.Minute, ""},
		{time.Hour, 46 * time.Minute, "in less than 1 day"},
	} {
		m := &material{cert: tls.Certificate{Leaf: &x509.Certificate{NotBefore: begin, NotAfter: begin.Add(tt.valid)}}}
		if got := m.warning(begin.Add(tt.after)); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("valid for %v, after %v: %q, want %q", tt.valid, tt.after, got, tt.want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "prod")
		cfg := ca.issue(t, "s", 10*time.Minute, RoleTracker)
		told := running(t, load(t, cfg, "prod"))
		for _, want := range []string{"", "", "in less than 1 day", "has ended", ""} {
			got := told()
			if want == "" && got != nil || want != "" && (len(got) != 1 || !strings.Contains(got[0], want)) {
				t.Errorf("%q, want %q", got, want)
			}
			time.Sleep(4 * time.Minute)
		}
		if err := ca.Issue(filepath.Dir(cfg.Cert), ID{Name: "s", Roles: []Role{RoleTracker}}, nil, time.Hour); err != nil {
			t.Fatal(err)
		}
		if got := told(); len(got) != 1 || got[0] != "read" {
			t.Errorf("a new one: %q", got)
		}
	})
	// A clock that is wrong until a time server is reached.
	cfg := newCA(t, "prod").issue(t, "s", time.Hour, RoleTracker)
	synctest.Test(t, func(t *testing.T) {
		if got := running(t, load(t, cfg, "prod"))(); len(got) != 1 || !strings.Contains(got[0], "is the clock right?") {
			t.Errorf("before it begins: %q", got)
		}
	})
}
