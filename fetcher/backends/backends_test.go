package backends

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/fetcher/file"
	"github.com/capelin-io/capelin/fetcher/registry"
	"github.com/capelin-io/capelin/internal/daemon/config"
)

// daemon is how a daemon embeds them.
type daemon struct {
	Listen   string   `toml:"listen" comment:"Address."`
	Backends []Config `toml:"backend" comment:"Where blobs are kept beyond the origins. None: the origins keep them."`
}

func (d *daemon) Validate() error { return errors.Join(Check(d.Backends, "backend")...) }

func TestConfigFile(t *testing.T) {
	for _, tt := range []struct{ name, doc, want string }{
		{"none", "listen = \"x\"\n", ""},
		{"two", `
[[backend]]
name = "hub"
namespaces = ["hub/.*"]
kind = "registry"
registry = { host = "docker.io", strip_prefix = "hub/", timeout = "5s" }

[[backend]]
name = "main"
namespaces = [".*"]
kind = "file"
[backend.file]
path = "/var/lib/x"
`, ""},
		{"unknown keys", `
[[backend]]
name = "a"
nmaespaces = ["x"]
[[backend]]
name = "b"
[backend.file]
pth = "/x"
[backend.registry]
timeout = 5
`, "F:4:1: backend[0].nmaespaces: no such key\nF:8:1: backend[1].file.pth: no such key\n" +
			"F:10:11: backend[1].registry.timeout: a duration needs a unit, such as \"150ms\", \"5s\" or \"1h30m\""},
		{"next", `
[[backend]]
name = "a"
namespaces = ["x"]
kind = "file"
file.path = "/a"
next = { kind = "hdfs", hdfs = { namenodes = ["http://n:1"], path = "relative" } }

[[backend]]
name = "b"
namespaces = ["x"]
kind = "registry"
registry = { host = "docker.io" }
next = { kind = "file", file.path = "/b" }

[[backend]]
name = "c"
namespaces = ["x"]
kind = "file"
file.path = "/a"
next = { kind = "http", http.url = "http://x/{alg}/{hex}" }

[[backend]]
name = "d"
namespaces = ["x"]
kind = "none"
next = { kind = "file", file.path = "/b" }
`, `F:2:1: backend[0].next.hdfs.path: "relative" is not
F:12:1: backend[1].kind: "registry" is not written
F:16:1: backend[2].next.kind: "http" is not written
F:26:1: backend[3].kind: "none" is not written`},
		{"wrong values", `
[[backend]]
name = "Main"
namespaces = ["a)(b", "("]
kind = "file"
file.path = "relative"
[[backend]]
kind = "tape"
namespaces = []
[[backend]]
name = "x"
namespaces = ["x"]
kind = "none"
[[backend]]
name = "x"
namespaces = ["x"]
kind = "registry"
`, `F:3:1: backend[0].name: "Main" is not
F:4:1: backend[0].namespaces: "a)(b": error parsing regexp
F:4:1: backend[0].namespaces: "(": error parsing regexp
F:6:1: backend[0].file.path: "relative" is not an absolute path
F:7:1: backend[1].name: "" is not
F:8:1: backend[1].kind: "tape" is not "file", 
F:9:1: backend[1].namespaces: must have a pattern
F:14:1: backend[3].registry.host: "" is not a host
F:15:1: backend[3].name: there is another backend "x"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var d daemon
			got := ""
			if err := config.Parse("F", []byte(tt.doc), &d); err != nil {
				got = err.Error()
			}
			gots, wants := strings.Split(got, "\n"), strings.Split(tt.want, "\n")
			ok := len(gots) == len(wants)
			for i := range wants {
				ok = ok && strings.HasPrefix(gots[i], wants[i]) && (wants[i] != "" || gots[i] == "")
			}
			if !ok {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

// The printed example works.
func TestExample(t *testing.T) {
	var b bytes.Buffer
	if err := config.Print(&b, daemon{Listen: "x"}); err != nil {
		t.Fatal(err)
	}
	var doc strings.Builder
	_, example, ok := strings.Cut(b.String(), "#\n# [[backend]]")
	if !ok {
		t.Fatalf("no example in\n%s", b.String())
	}
	for line := range strings.Lines("# [[backend]]" + example) {
		doc.WriteString(strings.TrimPrefix(strings.TrimPrefix(line, "#"), " "))
		if len(line) > 80 {
			t.Errorf("line too long: %s", line)
		}
	}
	var d daemon
	if err := config.Parse("F", []byte(doc.String()), &d); err != nil {
		t.Errorf("%v in\n%s", err, doc.String())
	}
	if len(d.Backends) != 1 || d.Backends[0].Name != "main" || d.Backends[0].File.Path == "" {
		t.Errorf("parsed %+v", d.Backends)
	}
}

func TestSet(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenSet([]Config{
		{Name: "hub", Namespaces: []string{"hub/.*", "docker"}, Storage: Storage{Kind: KindRegistry,
			Registry: registry.Config{Host: "docker.io", StripPrefix: "hub/"}}},
		{Name: "here", Namespaces: []string{"scratch|tmp"}, Storage: Storage{Kind: KindNone}},
		{Name: "main", Namespaces: []string{"team-[ab]/.*"}, Storage: Storage{Kind: KindFile,
			File: file.Config{Path: filepath.Join(dir, "main")}}},
	}, User{"c", "o"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	for namespace, want := range map[string]string{
		"hub/nginx": "hub", "docker": "hub", "xhub/nginx": "", "docker/x": "", "docker\n": "", "hub/": "hub",
		"scratch": "here", "tmp": "here", "scratchtmp": "", "xtmp": "",
		"team-a/app": "main", "team-c/app": "", "": "",
	} {
		name, b, ok := s.Match(namespace)
		if name != want || ok != (want != "") || (b == nil) != (want == "" || want == "here") {
			t.Errorf("%q: %q, %v, %v, want %q", namespace, name, b, ok, want)
		}
	}
	if all := s.All(); len(all) != 2 || all["hub"] == nil || all["main"] == nil || all["main"].Name() != "file:"+filepath.Join(dir, "main") {
		t.Errorf("all: %v", all)
	}
	if b, ok := s.Get("here"); b != nil || !ok {
		t.Errorf("here: %v, %v", b, ok)
	}
	if _, ok := s.Get("nowhere"); ok {
		t.Error("nowhere is there")
	}

	// All or none.
	if _, err := OpenSet([]Config{
		{Name: "a", Namespaces: []string{"a"}, Storage: Storage{Kind: KindFile, File: file.Config{Path: filepath.Join(dir, "a")}}},
		{Name: "b", Namespaces: []string{"b"}, Storage: Storage{Kind: KindFile, File: file.Config{Path: "/dev/null/x"}}},
	}, User{}); err == nil || !strings.Contains(err.Error(), `"b"`) {
		t.Error(err)
	}
	if _, err := OpenSet([]Config{{Name: "a"}}, User{}); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	for _, c := range []Config{{Name: "a"}, {Name: "a", Namespaces: []string{"a"}, Storage: Storage{Kind: KindFile}}} {
		if b, err := Open(c, User{}); b != nil || !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v, %v", b, err)
		}
	}

	for _, entries := range [][]Entry{
		{{Name: "a", Namespaces: []string{"("}}},
		{{Name: "a"}, {Name: "a"}},
	} {
		if _, err := NewSet(entries...); !errdefs.IsInvalidArgument(err) {
			t.Error(err)
		}
	}
	fake, err := NewSet(Entry{"mem", []string{".*"}, new(fetchertest.Memory)})
	if err != nil {
		t.Fatal(err)
	}
	if name, b, ok := fake.Match("x"); name != "mem" || b == nil || !ok {
		t.Errorf("%q, %v, %v", name, b, ok)
	}
}
