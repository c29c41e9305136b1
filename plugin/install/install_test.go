package install

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/plugin"
)

const stockRoot = "/var/lib/containerd/" + stockContent

// modern is a host with the configuration that "containerd config default" of
// 2.2 and later prints.
func modern(t *testing.T) *fakeHost {
	return newFake(t, map[string]string{
		"/etc/containerd/config.toml": "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n",
		BinaryPath:                    "",
	})
}

func mustPlan(t *testing.T, h Host, o Options) *Plan {
	t.Helper()
	s, err := Look(t.Context(), h, o.Where)
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPlan(h, s, o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustInstall(t *testing.T, h Host, o Options) *Plan {
	t.Helper()
	p := mustPlan(t, h, o)
	if err := p.Apply(h); err != nil {
		t.Fatal(err)
	}
	return p
}

// tree returns all files of a host, with their contents.
func tree(t *testing.T, h *fakeHost) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(h.root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel := strings.TrimPrefix(path, h.root)
		if d.Type() == os.ModeSymlink {
			files[rel] = "link"
			return nil
		}
		b, err := os.ReadFile(path)
		files[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// What is found on hosts of each kind, and where the drop-in goes.
func TestLook(t *testing.T) {
	const k3s, rke2 = "/var/lib/rancher/k3s/agent/etc/containerd/", "/var/lib/rancher/rke2/agent/etc/containerd/"
	for _, tt := range []struct {
		name   string
		files  map[string]string
		host   func(*fakeHost)
		where  Where
		flavor string
		unit   string
		root   string
		dropIn string
		form   Form
		err    string
	}{
		{
			name: "nothing there", flavor: "containerd", unit: "containerd.service", root: stockRoot,
			dropIn: "/etc/containerd/conf.d/capelin.toml", form: FormEdit,
		},
		{
			name: "imports conf.d", files: map[string]string{
				"/etc/containerd/config.toml": "imports = ['/etc/containerd/conf.d/*.toml']\nroot = '/srv/c'\n",
			},
			flavor: "containerd", unit: "containerd.service", root: "/srv/c/" + stockContent, dropIn: "/etc/containerd/conf.d/capelin.toml",
		},
		{
			name: "imports another directory, relative", files: map[string]string{"/etc/containerd/config.toml": "imports = ['extra/*.toml']\n"},
			flavor: "containerd", unit: "containerd.service", root: stockRoot, dropIn: "/etc/containerd/extra/capelin.toml",
		},
		{
			name: "root in an import", files: map[string]string{
				"/etc/containerd/config.toml":    "imports = ['/etc/containerd/conf.d/*.toml']\nroot = '/srv/c'\n",
				"/etc/containerd/conf.d/10.toml": "root = '/srv/d'\n",
			},
			flavor: "containerd", unit: "containerd.service", root: "/srv/d/" + stockContent, dropIn: "/etc/containerd/conf.d/capelin.toml",
		},
		{
			name: "the running containerd knows its root", files: map[string]string{"/etc/containerd/config.toml": ""},
			host: func(h *fakeHost) {
				h.running = map[string]Containerd{"/run/containerd/containerd.sock": {Version: "v2.4.2", Plugins: []Plugin{
					{Type: typeDiff, ID: "walking"}, {Type: typeSnapshots, ID: "overlayfs", Root: "/elsewhere/" + typeSnapshots + ".overlayfs"},
				}}}
			},
			flavor: "containerd", unit: "containerd.service", root: "/elsewhere/" + stockContent,
			dropIn: "/etc/containerd/conf.d/capelin.toml", form: FormEdit,
		},
		{
			name: "kind", files: map[string]string{"/kind/version": "v0.30.0", "/etc/containerd/config.toml": "version = 2\n"},
			flavor: "kind", unit: "containerd.service", root: stockRoot, dropIn: "/etc/containerd/conf.d/capelin.toml", form: FormEdit,
		},
		{
			name: "imports one file", files: map[string]string{
				"/etc/containerd/config.toml": "imports = ['/etc/containerd/one.toml']\n", "/etc/containerd/one.toml": "",
			},
			err: "add \"/etc/containerd/conf.d/*.toml\" to its list",
		},
		{name: "broken", files: map[string]string{"/etc/containerd/config.toml": "imports = [\n"}, err: "/etc/containerd/config.toml"},
		{
			name: "k3s", files: map[string]string{
				k3s + "config.toml":               "version = 3\nimports = ['" + k3s + "config-v3.toml.d/*.toml']\n",
				"/etc/systemd/system/k3s.service": "",
			},
			flavor: "k3s", unit: "k3s.service", root: "/var/lib/rancher/k3s/agent/containerd/" + stockContent,
			dropIn: k3s + "config-v3.toml.d/capelin.toml",
		},
		{
			name: "k3s that has not started yet", files: map[string]string{k3s: ""},
			flavor: "k3s", unit: "k3s-agent.service", root: "/var/lib/rancher/k3s/agent/containerd/" + stockContent,
			dropIn: k3s + "config-v3.toml.d/capelin.toml",
		},
		{
			name: "older k3s", files: map[string]string{k3s + "config.toml": "version = 3\n", "/etc/systemd/system/k3s-agent.service": ""},
			flavor: "k3s", unit: "k3s-agent.service", root: "/var/lib/rancher/k3s/agent/containerd/" + stockContent,
			dropIn: k3s + "config-v3.toml.tmpl", form: FormTemplate,
		},
		{
			name: "RKE2", files: map[string]string{
				rke2 + "config.toml": "version = 3\nimports = ['" + rke2 + "config-v3.toml.d/*.toml']\n",
				"/usr/local/lib/systemd/system/rke2-server.service": "",
			},
			flavor: "rke2", unit: "rke2-server.service", root: "/var/lib/rancher/rke2/agent/containerd/" + stockContent,
			dropIn: rke2 + "config-v3.toml.d/capelin.toml",
		},
		{
			name: "told", files: map[string]string{k3s: ""},
			where:  Where{Flavor: "containerd", Config: "/etc/k0s/containerd.toml", Unit: "k0sworker.service"},
			flavor: "containerd", unit: "k0sworker.service", root: stockRoot, dropIn: "/etc/k0s/conf.d/capelin.toml", form: FormEdit,
		},
		{name: "told nonsense", where: Where{Flavor: "docker"}, err: "none of containerd, k3s, rke2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newFake(t, tt.files)
			if tt.host != nil {
				tt.host(h)
			}
			s, err := Look(t.Context(), h, tt.where)
			var path string
			var form Form
			if err == nil {
				path, form, err = s.place(h)
			}
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if s.Flavor != tt.flavor || s.Unit != tt.unit || s.ContentRoot != tt.root || path != tt.dropIn || form != tt.form {
				t.Errorf("got %s, %s, %s, %s, %d", s.Flavor, s.Unit, s.ContentRoot, path, form)
			}
		})
	}
}

// Installing is idempotent, and after it containerd would load the agent, on
// every kind of host; uninstalling leaves what was there before.
func TestInstallUninstall(t *testing.T) {
	const k3s = "/var/lib/rancher/k3s/agent/etc/containerd/"
	for name, files := range map[string]map[string]string{
		"no configuration": {},
		"no imports":       {"/etc/containerd/config.toml": "version = 2\n[plugins]\n"},
		"imports":          {"/etc/containerd/config.toml": "imports = ['/etc/containerd/conf.d/*.toml']\n"},
		"k3s":              {k3s + "config.toml": "imports = ['" + k3s + "config-v3.toml.d/*.toml']\n"},
		"older k3s":        {k3s + "config.toml": "version = 3\n"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newFake(t, files)
			before := tree(t, h)
			p := mustPlan(t, h, Options{})
			var b bytes.Buffer
			p.Write(&b, true)
			if !strings.Contains(b.String(), "create    "+ConfigPath) || !strings.Contains(b.String(), "  +disabled_plugins = ") {
				t.Errorf("the plan does not show what it writes:\n%s", b.String())
			}
			if after := tree(t, h); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Error("planning wrote something")
			}
			if err := p.Apply(h); err != nil {
				t.Fatal(err)
			}
			cfg := plugin.DefaultConfig()
			if err := config.Load(h.Path(ConfigPath), &cfg); err != nil {
				t.Fatal(err)
			}
			if cfg.Root != p.Survey.ContentRoot {
				t.Errorf("root is %s", cfg.Root)
			}
			if want := p.Survey.Layout.Socket; cfg.Containerd != want {
				t.Errorf("containerd is at %s, want %s", cfg.Containerd, want)
			}
			if name != "older k3s" { // there a template engine is between
				s, err := Look(t.Context(), h, Where{})
				if err != nil {
					t.Fatal(err)
				}
				if !s.Effective.uses(cfg.Socket) {
					t.Errorf("containerd would not use the agent: %+v", s.Effective)
				}
			}
			again := mustPlan(t, h, Options{})
			if again.Changed() {
				again.Write(&b, true)
				t.Errorf("a second installation changes something:\n%s", b.String())
			}
			if err := again.Apply(h); err != nil {
				t.Fatal(err)
			}
			h.put(t, UnitDir+"/multi-user.target.wants/"+agentUnit, "")
			r, err := NewRemoval(h, false)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Apply(t.Context(), h, false); err != nil {
				t.Fatal(err)
			}
			if after := tree(t, h); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("left behind: %v, before: %v", after, before)
			}
			if _, err := NewRemoval(h, false); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("uninstalling twice: %v", err)
			}
		})
	}
}

func TestChangedFiles(t *testing.T) {
	h := modern(t)
	h.put(t, UnitDir+"/"+socketUnit, "somebody's\n")
	p := mustPlan(t, h, Options{})
	before := tree(t, h)
	if err := p.Apply(h); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), socketUnit) {
		t.Errorf("a unit in the way: %v", err)
	}
	if after := tree(t, h); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Error("a refused installation wrote something")
	}
	mustInstall(t, h, Options{Force: true})
	if got := h.get(t, UnitDir+"/"+socketUnit+".orig"); got != "somebody's\n" {
		t.Errorf("the file in the way became %q", got)
	}

	// A newer version replaces what an older one wrote, and nothing else.
	r, err := LoadReceipt(h)
	if err != nil {
		t.Fatal(err)
	}
	older := "# older\n"
	h.put(t, UnitDir+"/"+agentUnit, older)
	r.Files[UnitDir+"/"+agentUnit] = sum([]byte(older))
	h.put(t, UnitDir+"/obsolete.service", older)
	r.Files[UnitDir+"/obsolete.service"] = sum([]byte(older))
	if err := r.save(h); err != nil {
		t.Fatal(err)
	}
	h.put(t, ConfigPath, h.get(t, ConfigPath)+"# mine\n")
	p = mustInstall(t, h, Options{})
	if got := h.get(t, UnitDir+"/"+agentUnit); !strings.Contains(got, "ExecStart=") {
		t.Errorf("the unit was not replaced: %q", got)
	}
	if exists(h, UnitDir+"/obsolete.service") {
		t.Error("the obsolete unit is still there")
	}
	if !strings.HasSuffix(h.get(t, ConfigPath), "# mine\n") {
		t.Error("agent.toml was replaced")
	}
	if c := p.Conflicts(); len(c) > 0 {
		t.Errorf("conflicts: %v", c)
	}

	// Uninstalling keeps what was changed.
	r2, err := NewRemoval(h, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := r2.Apply(t.Context(), h, false); err != nil {
		t.Fatal(err)
	}
	if !exists(h, ConfigPath) || exists(h, UnitDir+"/"+agentUnit) || exists(h, "/etc/containerd/conf.d/capelin.toml") {
		t.Errorf("left: %v", tree(t, h))
	}
}

func TestRefusals(t *testing.T) {
	look := func(h *fakeHost, o Options) error {
		s, err := Look(t.Context(), h, o.Where)
		if err == nil {
			_, err = NewPlan(h, s, o)
		}
		return err
	}
	old := modern(t)
	old.running = map[string]Containerd{"/run/containerd/containerd.sock": {Version: "1.7.24"}}
	elsewhere := modern(t)
	elsewhere.put(t, ConfigPath, "root = '/elsewhere'\n")
	bad := modern(t)
	bad.put(t, ConfigPath, "rot = '/elsewhere'\n")
	for _, tt := range []struct {
		name string
		h    *fakeHost
		o    Options
		want string
	}{
		{"old containerd", old, Options{}, "needs 2.1"},
		{"old containerd, forced", old, Options{Force: true}, ""},
		{"another root", elsewhere, Options{}, "all images would be gone"},
		{"broken agent.toml", bad, Options{}, "no such key"},
		{"values for a file that exists", elsewhere, Options{Set: []string{"zone=a"}}, "edit the file"},
		{"a value that is refused", modern(t), Options{Set: []string{"authorize=none"}}, "authorize"},
		{"a key that is not", modern(t), Options{Set: []string{"zoen=none"}}, "no such key"},
	} {
		err := look(tt.h, tt.o)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestSet(t *testing.T) {
	p := mustPlan(t, modern(t),
		Options{Set: []string{`trackers=["a:1","b:2"]`, "zone=rack-7", "cache.size = 50GiB", "unpack=true", "listen=:7401", "insecure=true"}})
	c := p.Agent
	if len(c.Trackers) != 2 || c.Zone != "rack-7" || c.Cache.Size != 50<<30 || !c.Unpack || c.Listen != ":7401" {
		t.Errorf("%+v", c)
	}
	found := false
	for _, ch := range p.Changes {
		found = found || strings.HasSuffix(ch.Path, unpackConf)
	}
	if !found {
		t.Error("unpack = true, and no drop-in for the unit")
	}
}

func TestStart(t *testing.T) {
	for _, restart := range []bool{false, true} {
		h := modern(t)
		h.run = func(string) (string, error) { return "", nil }
		if err := Start(t.Context(), h, "containerd.service", restart); err != nil {
			t.Fatal(err)
		}
		want := "daemon-reload|enable capelin-agent.socket capelin-agent.service capelin-agent-return.service|start capelin-agent.socket"
		if restart {
			want += "|restart capelin-agent.service containerd.service"
		}
		if got := strings.Join(h.ran, "|"); got != want {
			t.Errorf("ran %s", got)
		}
	}
}

// What would keep the agent from starting is said before anything is restarted.
func TestStartable(t *testing.T) {
	for _, tt := range []struct {
		name string
		ill  func(t *testing.T, h *fakeHost, a *plugin.Config)
		want string // "": it can start
	}{
		{"all is well", func(*testing.T, *fakeHost, *plugin.Config) {}, ""},
		{"no identity", func(_ *testing.T, _ *fakeHost, a *plugin.Config) { a.Identity = identity.Config{} }, ""},
		{"no program", func(t *testing.T, h *fakeHost, _ *plugin.Config) {
			if err := remove(h, BinaryPath); err != nil {
				t.Fatal(err)
			}
		}, "there is no program at " + BinaryPath},
		{"a program that is not executable", func(t *testing.T, h *fakeHost, _ *plugin.Config) {
			if err := os.Chmod(h.Path(BinaryPath), 0o644); err != nil {
				t.Fatal(err)
			}
		}, BinaryPath + " is not an executable file"},
		{"a directory", func(_ *testing.T, h *fakeHost, _ *plugin.Config) {
			_ = os.Remove(h.Path(BinaryPath))
			_ = os.Mkdir(h.Path(BinaryPath), 0o755)
		}, "is not an executable file"},
		{"no certificate", func(_ *testing.T, _ *fakeHost, a *plugin.Config) { a.Identity.Cert = "/nope" }, "/nope"},
		{"another's certificate", func(_ *testing.T, _ *fakeHost, a *plugin.Config) { a.Node = "n2" }, `this is node "n2"`},
		{"a certificate of another role", func(t *testing.T, h *fakeHost, a *plugin.Config) {
			a.Identity = certificate(t, h, "n1", identity.RoleOrigin)
		}, "n1 (origin)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, a := well(t)
			if err := os.Chmod(h.Path(BinaryPath), 0o755); err != nil {
				t.Fatal(err)
			}
			p := mustPlan(t, h, Options{})
			p.Agent = a.Config
			tt.ill(t, h, &p.Agent)
			err := p.Startable(h)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) ||
				!strings.HasPrefix(err.Error(), "the agent could not start, so containerd is not restarted")) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// Uninstalling with a restart gives containerd back its content before anything
// that it still uses goes away.
func TestUninstallOrder(t *testing.T) {
	h := modern(t)
	mustInstall(t, h, Options{})
	h.run = func(cmd string) (string, error) {
		if strings.Contains(cmd, "restart containerd") &&
			(exists(h, "/etc/containerd/conf.d/capelin.toml") || !exists(h, UnitDir+"/"+agentUnit)) {
			t.Errorf("at %q: %v", cmd, tree(t, h))
		}
		return "", nil
	}
	r, err := NewRemoval(h, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Apply(t.Context(), h, true); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(h.ran, "|"); got != "restart containerd.service|"+stopped+"|daemon-reload" {
		t.Errorf("ran %s", got)
	}
}

// Other drop-ins that came after ours go on being imported.
func TestSharedImport(t *testing.T) {
	h := newFake(t, map[string]string{"/etc/containerd/config.toml": "version = 3\n"})
	mustInstall(t, h, Options{})
	h.put(t, "/etc/containerd/conf.d/nvidia.toml", "")
	r, err := NewRemoval(h, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Apply(t.Context(), h, false); err != nil {
		t.Fatal(err)
	}
	if got := h.get(t, "/etc/containerd/config.toml"); !strings.HasPrefix(got, "imports = ") {
		t.Errorf("containerd's configuration is %q", got)
	}
}

// Changed reports whether anything would be written.
func (p *Plan) Changed() bool {
	return slices.ContainsFunc(p.Changes, func(c Change) bool {
		return c.Action == Create || c.Action == Update || c.Action == Remove || c.Action == Conflict && p.force
	})
}
