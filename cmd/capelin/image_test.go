package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"

	"github.com/capelin-io/capelin/trackerd"
)

// execute runs a command line and returns what it printed.
func execute(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // for hangs only
	defer cancel()
	cmd := command(nil)
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	err = cmd.ExecuteContext(ctx)
	return out.String(), errs.String(), err
}

// startTracker runs a tracker without nodes.
func startTracker(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := trackerd.DefaultConfig()
	cfg.Listener, cfg.Metrics = l, ""
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- trackerd.Run(ctx, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func TestImageCommands(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer s.Close()
	reg, dir := strings.TrimPrefix(s.URL, "http://"), filepath.Join(t.TempDir(), "l")
	ii := v1.ImageIndex(empty.Index)
	for _, a := range []string{"amd64", "arm64"} {
		img, err := random.Image(1000, 2)
		if err != nil {
			t.Fatal(err)
		}
		ii = mutate.AppendManifests(ii, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux",
			Architecture: a}}})
	}
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AppendIndex(ii); err != nil {
		t.Fatal(err)
	}
	digest, err := ii.Digest()
	if err != nil {
		t.Fatal(err)
	}
	tracker := startTracker(t)

	for _, tt := range []struct {
		args []string
		want []string // in the output
		err  string   // in the error; "": none
	}{
		{[]string{"push", dir, reg + "/a/b:v1"}, []string{reg + "/a/b:v1@" + digest.String(), "in 6 blobs, 0 of them were there"}, ""},
		{[]string{"push", dir, reg + "/a/b:v2", "--json"}, []string{`"digest": "` + digest.String() + `"`, `"skipped": 6`, `"bytes": 0`}, ""},
		{[]string{"push", dir, reg + "/a/b:v3", "--platform", "linux/s390x"}, nil, "no image for linux/s390x"},
		{[]string{"push", dir}, nil, "accepts 2 arg"},
		{[]string{"pull", reg + "/a/b:v1", filepath.Join(dir, "..", "x.tar")}, []string{digest.String()}, ""},
		{[]string{"pull", reg + "/a/b:nothing", filepath.Join(dir, "..", "y.tar")}, nil, "MANIFEST_UNKNOWN"},
		{[]string{"ls", reg}, []string{reg + "/a/b\n"}, ""},
		{[]string{"ls", reg + "/a/b"}, []string{"v1", digest.String(), "linux/amd64 linux/arm64"}, ""},
		{[]string{"ls", reg + "/a/b", "--json", "--limit", "1"}, []string{`"name": "v1"`, `"platforms"`}, ""},
		{[]string{"ls", reg + "/a/b", "--limit", "0"}, nil, "--limit"},
		{[]string{"inspect", reg + "/a/b:v1"}, []string{"config", "layer", "linux/arm64"}, ""},
		{[]string{"inspect", reg + "/a/b:v1", "--tracker", tracker}, []string{"0 nodes"}, ""},
		{[]string{"inspect", dir, "--json"}, []string{`"manifests"`}, ""},
		{[]string{"tag", reg + "/a/b:v1", "v4"}, []string{reg + "/a/b:v4@" + digest.String()}, ""},
		{[]string{"tag", reg + "/a/b:v4", reg + "/c:1", "--json"}, []string{`"digest": "` + digest.String() + `"`}, ""},
		{[]string{"tree", reg + "/c:1"}, []string{reg + "/c:1\n└ ", digest.String(), "\n  └ linux/arm64  sha256:"}, ""},
		{[]string{"tree", reg + "/a/b:v1", "--json"}, []string{`"manifests"`}, ""},
		{[]string{"rm", reg + "/a/b:v4"}, []string{"deleted " + reg + "/a/b:v4"}, ""},
		{[]string{"inspect", reg + "/a/b:v4"}, nil, "MANIFEST_UNKNOWN"},
		{[]string{"rm", reg + "/a/b"}, nil, "names neither a tag nor a digest"},
		{[]string{"ls", reg, "--password-stdin"}, nil, "needs --user"},
		{[]string{"inspect", "oci:/nowhere:", "--user", "x"}, nil, "names none"},
		{[]string{"ls", reg, "--user", "x"}, nil, "$CAPELIN_PASSWORD"},
		{[]string{"preheat", reg + "/a/b:v1"}, nil, "--tracker"},
		{[]string{"preheat", reg + "/a/b:v1", "--tracker", tracker, "--platform", "linux/arm64"}, nil, "no"},
		{[]string{"preheat", reg + "/a/b:v1", "--tracker", tracker, "--platform", "arm64"}, nil, "os/architecture"},
	} {
		out, _, err := execute(t, append([]string{"image"}, tt.args...)...)
		if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%v: error %v, want %q", tt.args, err, tt.err)
		}
		for _, want := range tt.want {
			if !strings.Contains(out, want) {
				t.Errorf("%v: no %q in %s", tt.args, want, out)
			}
		}
		if tt.err == "" && strings.Contains(strings.Join(tt.args, " "), "--json") && !json.Valid([]byte(out)) {
			t.Errorf("%v: not JSON: %s", tt.args, out)
		}
	}
	if out, _, err := execute(t, "node", "ls", "--tracker", tracker, "--json"); err != nil || strings.TrimSpace(out) != "[]" {
		t.Errorf("nodes: %s, %v", out, err)
	}
}

// Installing into an image and out of it again, by command.
func TestAgentInstallCommand(t *testing.T) {
	root := t.TempDir()
	if out, _, err := execute(t, "agent", "install", "--root", root, "--dry-run"); err != nil ||
		!strings.Contains(out, "create    /etc/capelin/agent.toml\n  +# ") {
		t.Errorf("%s, %v", out, err)
	}
	if _, _, err := execute(t, "agent", "uninstall", "--root", root); err == nil {
		t.Error("a dry run installed something")
	}
	out, _, err := execute(t, "agent", "install", "--root", root, "--tracker", "a:1", "--tracker", "b:2", "--set", "zone=z1")
	if err != nil || strings.Contains(out, "  +") || !strings.Contains(out, "systemctl --root="+root) {
		t.Errorf("%s, %v", out, err)
	}
	if b, err := os.ReadFile(filepath.Join(root, "etc/capelin/agent.toml")); err != nil || !strings.Contains(string(b),
		"trackers = ['a:1', 'b:2']\n") {
		t.Errorf("%s, %v", b, err)
	}
	if _, _, err := execute(t, "agent", "install", "--root", root, "--start"); err == nil {
		t.Error("started an image")
	}
	if out, _, err := execute(t, "agent", "uninstall", "--root", root); err != nil || !strings.Contains(out,
		"remove    /etc/containerd/conf.d/capelin.toml") {
		t.Errorf("%s, %v", out, err)
	}
}
