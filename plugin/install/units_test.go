package install

import (
	"bytes"
	"cmp"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/capelin-io/capelin/plugin"
)

var update = flag.Bool("update", false, "write contrib/systemd anew")

// defaultUnits are the units of an agent with defaults on a plain containerd.
func defaultUnits() map[string]string {
	cfg := plugin.DefaultConfig()
	return Units(cfg, BinaryPath, ConfigPath, "containerd.service", "/etc/containerd/conf.d/capelin.toml")
}

// What operators copy is what install writes.
func TestContrib(t *testing.T) {
	for path, want := range defaultUnits() {
		name := filepath.Base(path)
		if strings.HasSuffix(path, unpackConf) {
			name = "capelin-agent-unpack.conf"
		}
		file := filepath.Join("../../contrib/systemd", name)
		if *update {
			if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			t.Errorf("%s differs from what is installed (%v); go test -run TestContrib -update writes it", file, err)
		}
	}
}

func TestUnitValues(t *testing.T) {
	cfg := plugin.DefaultConfig()
	cfg.Admin, cfg.Socket = "", "/run/other/content.sock"
	units := Units(cfg, "/opt/capelin", "/srv/agent.toml", "k3s.service", "/d/capelin.toml")
	for name, want := range map[string][]string{
		agentUnit: {"ExecStart=/opt/capelin agent --config /srv/agent.toml\n", "Before=k3s.service\n",
			"WantedBy=multi-user.target k3s.service\n", "OnFailure=" + fallbackUnit},
		socketUnit: {"ListenStream=/run/other/content.sock\nSocketMode"},
		fallbackUnit: {"ExecStart=-/opt/capelin agent fallback\n", "mv -f /d/capelin.toml /d/capelin.toml.disabled",
			"systemctl restart k3s.service"},
	} {
		for _, w := range want {
			if text := units[filepath.Join(UnitDir, name)]; !strings.Contains(text, w) {
				t.Errorf("%s lacks %q:\n%s", name, w, text)
			}
		}
	}
}

// systemd finds nothing to complain of.
func TestVerify(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze here")
	}
	dir := t.TempDir()
	files := map[string]string{"containerd.service": "[Service]\nExecStart=/bin/true\n"}
	for path, text := range defaultUnits() {
		// The program need not be there.
		files[strings.TrimPrefix(path, UnitDir+"/")] = strings.ReplaceAll(text, BinaryPath, "/bin/true")
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, unit := range []string{agentUnit, socketUnit, fallbackUnit} {
		cmd := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", "--recursive-errors=no", unit)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
		if out, err := cmd.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
			t.Errorf("%s: %v: %s", unit, err, out)
		}
	}
}

// The fallback's second line does by itself what "capelin agent fallback" does,
// if the agent has failed and the drop-in is there, and else nothing.
func TestFallbackWithoutCapelin(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal("no sh here")
	}
	for _, tt := range []struct {
		name           string
		failed, dropIn bool
		acts           bool
	}{
		{"failed", true, true, true},
		{"running", false, true, false},
		{"already done", true, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			units := Units(plugin.DefaultConfig(), BinaryPath, ConfigPath, "containerd.service", dir+"/capelin.toml")
			_, script, ok := strings.Cut(units[filepath.Join(UnitDir, fallbackUnit)], "ExecStart=/bin/sh -c '")
			script, _, ok2 := strings.Cut(script, "'\n")
			if !ok || !ok2 {
				t.Fatal("the unit has no script")
			}
			// As systemd reads it, and not in this machine's directories.
			script = strings.NewReplacer("$$", "$", "%%", "%", StateDir, dir+"/state").Replace(script)
			systemctl := "#!/bin/sh\necho \"$@\" >> " + dir + "/ran\n"
			if !tt.failed {
				systemctl += "[ $1 != is-failed ]\n"
			}
			if err := os.WriteFile(dir+"/systemctl", []byte(systemctl), 0o755); err != nil {
				t.Fatal(err)
			}
			if tt.dropIn {
				if err := os.WriteFile(dir+"/capelin.toml", nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.CommandContext(t.Context(), sh, "-c", script)
			cmd.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH")}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			ran, err := os.ReadFile(dir + "/ran")
			if err != nil {
				t.Fatal(err)
			}
			marker, _ := os.ReadFile(dir + "/state/fallback")
			_, gone := os.Stat(dir + "/capelin.toml.disabled")
			if acted := strings.Contains(string(ran), "restart containerd.service"); acted != tt.acts || (gone == nil) != tt.acts ||
				strings.HasPrefix(string(marker), "since 2") != tt.acts {
				t.Errorf("ran %q, marker %q, moved: %v", ran, marker, gone == nil)
			}
		})
	}
}

// The template of k3s and RKE2 is TOML around what the base makes.
func TestTemplate(t *testing.T) {
	cfg := plugin.DefaultConfig()
	text := strings.TrimPrefix(dropIn(cfg, plugin.Unpacking{}, FormTemplate), templateHead)
	text = strings.Replace(text, `{{ template "base" . }}`,
		"version = 3\nimports = ['/x/*.toml']\nroot = '/r'\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'overlayfs'", 1)
	var f file
	if err := toml.Unmarshal([]byte(text), &f); err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
	e := Effective{}
	e.merge(&f)
	if !e.uses(cfg.Socket) || e.Root != "/r" || f.Version != 3 {
		t.Errorf("%+v of\n%s", e, text)
	}
}

// Real containerds agree with us about what they would load, if they have been
// built (make tools).
func TestRealContainerd(t *testing.T) {
	found := false
	for _, version := range []string{"2.1", "2.2", "2.3", "2.4"} {
		binary, err := filepath.Abs("../../integration/bin/" + version + "/containerd")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(binary); err != nil {
			continue
		}
		found = true
		for name, config := range map[string]string{
			"no imports": "version = 3\nroot = '/srv/c'\n",
			"imports": "version = 2\nimports = ['conf.d/*.toml']\nroot = '/srv/c'\n" +
				"[plugins.'io.containerd.grpc.v1.cri']\n  max_concurrent_downloads = 7\n" +
				"[plugins.'io.containerd.grpc.v1.cri'.containerd]\n  discard_unpacked_layers = true\n" +
				"[plugins.'io.containerd.service.v1.diff-service']\n  default = ['walking']\n" +
				"[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n  snapshotter = 'overlayfs'\n",
		} {
			h := Local{}
			dir := t.TempDir()
			main := filepath.Join(dir, "config.toml")
			if err := write(h, main, []byte(config), 0o644); err != nil {
				t.Fatal(err)
			}
			cfg := plugin.DefaultConfig()
			text := dropIn(cfg, plugin.Unpacking{Differs: []string{"erofs", "walking"}, UnpackTo: []plugin.UnpackTo{
				{Platform: "linux", Snapshotter: "native", Differ: "walking", ConfigType: "x/y", LayerTypes: []string{"a/b"}},
				{Platform: "linux", Snapshotter: "erofs", Differ: "erofs"},
			}}, FormImport)
			if err := write(h, filepath.Join(dir, "conf.d", "capelin.toml"), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			theirs, err := effective(t.Context(), h, binary, main)
			if err != nil || theirs.From != "containerd config dump" {
				t.Fatalf("%s, %s: %v, from %s", version, name, err, theirs.From)
			}
			ours, err := fromFiles(h, main, "")
			if err != nil {
				t.Fatal(err)
			}
			wants := name == "imports"
			if theirs.uses(cfg.Socket) != wants || ours.uses(cfg.Socket) != wants || theirs.Root != "/srv/c" || ours.Root != "/srv/c" ||
				theirs.Discard != wants || wants && theirs.MaxDownloads != 7 {
				t.Errorf("%s, %s: theirs %+v, ours %+v", version, name, theirs, ours)
			}
			// containerd takes our lists instead of others'.
			want := plugin.Unpacking{Differs: []string{"erofs", "capelin-diff", "walking"}, UnpackTo: []plugin.UnpackTo{
				{Platform: "linux", Snapshotter: "native", Differ: "capelin-diff", ConfigType: "x/y", LayerTypes: []string{"a/b"}},
				{Platform: "linux", Snapshotter: "erofs", Differ: "erofs", LayerTypes: []string{}},
			}}
			if wants && !reflect.DeepEqual(theirs.Unpacking, want) {
				t.Errorf("%s unpacks by %+v", version, theirs.Unpacking)
			}
		}
	}
	if !found {
		if os.Getenv("CAPELIN_TEST_TOOLS") != "" {
			t.Fatal("no containerd has been built")
		}
		t.Skip("no containerd has been built; make integration runs this again when there are some")
	}
}

// The drop-in changes who unpacks where containerd's own differ would, and nothing
// else.
func TestUnpacking(t *testing.T) {
	const main, mine = "/etc/containerd/config.toml", "/etc/containerd/conf.d/capelin.toml"
	imports := "imports = ['/etc/containerd/conf.d/*.toml']\n"
	entry := func(snapshotter, differ string) string {
		return "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n  platform = 'linux'\n" +
			"  snapshotter = '" + snapshotter + "'\n  differ = '" + differ + "'\n"
	}
	plugins := []Plugin{
		{Type: typeSnapshots, ID: "overlayfs"}, {Type: typeSnapshots, ID: "native"}, {Type: typeSnapshots, ID: "stargz"},
		{Type: typeSnapshots, ID: "zfs", Err: "skip"}, {Type: typeSnapshots, ID: "erofs"},
		{Type: typeDiff, ID: "erofs"}, {Type: typeDiff, ID: "walking"},
	}
	for _, tt := range []struct {
		name    string
		version string // ""; it does not run
		config  string
		want    []string // snapshotter, differ and whether it is optional
		differs string
	}{
		{name: "not running", want: []string{"overlayfs capelin-diff"}},
		{name: "2.4", version: "2.4.2",
			want: []string{"overlayfs capelin-diff", "erofs erofs optional", "native capelin-diff optional", "stargz capelin-diff optional"}},
		{name: "2.2", version: "2.2.9", want: []string{"overlayfs capelin-diff", "native capelin-diff"}},
		{
			name: "a list of one's own", version: "2.3.7", config: entry("erofs", "walking") + entry("native", "special"),
			want: []string{"erofs walking", "native special", "overlayfs capelin-diff optional", "stargz capelin-diff optional"},
		},
		{name: "differs", config: "[plugins.'io.containerd.service.v1.diff-service']\n  default = ['erofs', 'walking']\n",
			want: []string{"overlayfs capelin-diff"}, differs: "erofs capelin-diff walking"},
		{name: "others only", config: "[plugins.'io.containerd.service.v1.diff-service']\n  default = ['erofs']\n",
			want: []string{"overlayfs capelin-diff"}, differs: "erofs capelin-diff"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newFake(t, map[string]string{main: imports + tt.config})
			if tt.version != "" {
				h.running = map[string]Containerd{"/run/containerd/containerd.sock": {Version: tt.version, Plugins: plugins}}
			}
			var first string
			for range 2 { // what it wrote itself does not count
				s, err := Look(t.Context(), h, Where{})
				if err != nil {
					t.Fatal(err)
				}
				u, err := s.unpacking(h, mine)
				if err != nil {
					t.Fatal(err)
				}
				text := dropIn(plugin.DefaultConfig(), u, FormImport)
				if first != "" && text != first {
					t.Errorf("the second time:\n%s", text)
				}
				first = text
				if err := write(h, mine, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			e, err := fromFiles(h, main, "")
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, u := range e.Unpacking.UnpackTo {
				line := u.Snapshotter + " " + u.Differ
				if u.Optional {
					line += " optional"
				}
				got = append(got, line)
			}
			if !slices.Equal(got, tt.want) || strings.Join(e.Unpacking.Differs, " ") != cmp.Or(tt.differs, "capelin-diff walking") {
				t.Errorf("%q, %q", got, e.Unpacking.Differs)
			}
		})
	}
}

func TestUnpackLayers(t *testing.T) {
	cfg := plugin.DefaultConfig()
	cfg.UnpackLayers = 3
	var f file
	if err := toml.Unmarshal([]byte(dropIn(cfg, plugin.Unpacking{}, FormImport)), &f); err != nil {
		t.Fatal(err)
	}
	transfer, _ := f.Plugins["io.containerd.transfer.v1.local"].(map[string]any)
	if transfer["max_concurrent_unpacks"] != int64(3) || transfer["unpack_config"] == nil {
		t.Errorf("%v", transfer)
	}
}
