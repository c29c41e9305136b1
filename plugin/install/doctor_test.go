package install

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/plugin"
)

// well is an installed node on which all is well.
func well(t *testing.T) (*fakeHost, *Agent) {
	h := modern(t)
	h.put(t, "/run/systemd/system/", "")
	h.put(t, "/proc/filesystems", "nodev\tsysfs\nnodev\toverlay\n\text4\n")
	h.put(t, "/proc/sys/fs/nr_open", "1048576\n")
	h.put(t, stockRoot+"/blobs/sha256/", "")
	h.put(t, "/proc/sys/kernel/hostname", "n1\n")
	cfg := plugin.DefaultConfig()
	cfg.Trackers, cfg.Listen = []string{"t1:7470", "dns+t.example:7470"}, ":7401"
	cfg.Identity = certificate(t, h, "n1", identity.RoleNode)
	mustInstall(t, h, Options{Set: []string{`trackers=["t1:7470","dns+t.example:7470"]`, "listen=:7401",
		"identity.ca=" + cfg.Identity.CA, "identity.cert=" + cfg.Identity.Cert, "identity.key=" + cfg.Identity.Key}})
	h.running = map[string]Containerd{
		"/run/containerd/containerd.sock": {Version: "v2.4.2", Plugins: []Plugin{{Type: typeContent, ID: proxyName}}},
	}
	h.healthy = map[string]error{plugin.DefaultConfig().Socket: nil}
	h.names = map[string][]string{"t.example": {"10.0.0.1", "10.0.0.2"}}
	h.dial = trackerOf(t, h)
	h.run = func(string) (string, error) {
		return "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\nSubState=running\nResult=success\nLimitNOFILE=1048576\n", nil
	}
	return h, &Agent{Config: cfg, Path: ConfigPath}
}

// certificate issues one of the host's CA, which is made if it is not there.
func certificate(t *testing.T, h *fakeHost, name string, roles ...identity.Role) identity.Config {
	t.Helper()
	ca, err := identity.OpenCA(h.Path("/ca"))
	if err != nil {
		ca, err = identity.InitCA(h.Path("/ca"), "default")
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := "/pki/" + name + string(roles[0])
	if err := ca.Issue(h.Path(dir), identity.ID{Cluster: "default", Name: name, Roles: roles}, nil, 365*24*time.Hour); err != nil {
		t.Fatal(err)
	}
	return identity.Config{CA: dir + "/" + identity.CACert, Cert: dir + "/" + identity.Cert, Key: dir + "/" + identity.Key}
}

// trackerOf dials a tracker that accepts nodes with certificates of the host's CA.
func trackerOf(t *testing.T, h *fakeHost) func(string) (net.Conn, error) {
	t.Helper()
	c := certificate(t, h, "t1", identity.RoleTracker)
	src, err := identity.Load(identity.Config{CA: h.Path(c.CA), Cert: h.Path(c.Cert), Key: h.Path(c.Key)}, "default")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	return func(string) (net.Conn, error) {
		a, b := net.Pipe()
		wg.Go(func() {
			defer b.Close()
			cfg := src.ServerTLS(identity.RoleNode)
			cfg.NextProtos = []string{"h2"}
			s := tls.Server(b, cfg)
			if s.HandshakeContext(t.Context()) == nil {
				_, _ = s.Write([]byte("x"))
			}
		})
		return a, nil
	}
}

func TestDoctorWell(t *testing.T) {
	h, a := well(t)
	findings := Doctor(t.Context(), h, *a, Where{})
	var b bytes.Buffer
	WriteFindings(&b, findings)
	for _, f := range findings {
		if f.Severity != OK || f.Why != "" || f.Do != "" {
			t.Errorf("%+v", f)
		}
	}
	if Failed(findings) > 0 || len(findings) < 14 || t.Failed() {
		t.Errorf("findings:\n%s", b.String())
	}
	if text, err := json.Marshal(findings); err != nil || !strings.Contains(string(text), `"check":"containerd","severity":"ok"`) {
		t.Errorf("JSON: %s %v", text, err)
	}
}

// Doctor looks where the installation was told to look.
func TestDoctorElsewhere(t *testing.T) {
	h := newFake(t, map[string]string{
		"/etc/k0s/containerd.toml":                   "imports = ['/etc/k0s/conf.d/*.toml']\n",
		"/var/lib/rancher/k3s/agent/etc/containerd/": "",
	})
	mustInstall(t, h, Options{Where: Where{Flavor: "containerd", Config: "/etc/k0s/containerd.toml", Unit: "k0sworker.service"}})
	got := findingsOf(t, "drop-in", h, &Agent{Config: plugin.DefaultConfig()})
	if len(got) != 1 || got[0].Severity != OK || !strings.Contains(got[0].Text, "/etc/k0s/conf.d/capelin.toml") {
		t.Errorf("the drop-in is not found: %+v", got)
	}
}

// Each of these does one thing to a healthy node, and one check finds it.
func TestDoctorFinds(t *testing.T) {
	systemctl := func(name, text string) func(string) (string, error) {
		return func(cmd string) (string, error) {
			if strings.HasSuffix(cmd, name) {
				return text, nil
			}
			return "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\nLimitNOFILE=1048576\n", nil
		}
	}
	containerd := func(h *fakeHost, c Containerd) {
		h.running = map[string]Containerd{"/run/containerd/containerd.sock": c}
	}
	main := func(t *testing.T, h *fakeHost, text string) {
		h.put(t, "/etc/containerd/config.toml", "imports = ['/etc/containerd/conf.d/*.toml']\n"+text)
	}
	for _, tt := range []struct {
		name  string
		ill   func(*testing.T, *fakeHost, *Agent)
		check string
		sev   Severity
		text  string
	}{
		{"agent.toml is broken", func(_ *testing.T, _ *fakeHost, a *Agent) { a.Err = errors.New("agent.toml:1:1: no such key") },
			"configuration", Fail, "no such key"},
		{"no agent.toml", func(_ *testing.T, _ *fakeHost, a *Agent) { a.Path = "" }, "configuration", Warn, "defaults"},
		{"fallen", func(t *testing.T, h *fakeHost, _ *Agent) { h.put(t, MarkerPath, "since yesterday\n") }, "fallback", Fail, "since yesterday"},
		{"containerd's configuration is broken",
			func(t *testing.T, h *fakeHost, _ *Agent) { h.put(t, "/etc/containerd/config.toml", "[") }, "containerd", Fail,
			"config.toml"},
		{"containerd is old", func(_ *testing.T, h *fakeHost, _ *Agent) {
			containerd(h, Containerd{Version: "2.0.5", Plugins: []Plugin{{Type: typeContent, ID: proxyName}}})
		}, "containerd", Fail, "2.0.5"},
		{"containerd is away", func(_ *testing.T, h *fakeHost, _ *Agent) { h.running = nil }, "containerd", Warn, "unknown version"},
		{"containerd is away, but installed", func(t *testing.T, h *fakeHost, _ *Agent) {
			h.running = nil
			h.put(t, "/usr/bin/containerd", "")
			h.run = systemctl("--version", "containerd github.com/containerd/containerd/v2 v2.2.1 abcdef\n")
		}, "containerd", Fail, "2.2.1 does not answer"},
		{"the drop-in is away", func(t *testing.T, h *fakeHost, _ *Agent) {
			if err := remove(h, drop); err != nil {
				t.Fatal(err)
			}
		}, "drop-in", Fail, "there is none"},
		{"the drop-in was moved aside", func(t *testing.T, h *fakeHost, _ *Agent) {
			if err := remove(h, drop); err != nil {
				t.Fatal(err)
			}
			h.put(t, drop+disabledSuffix, "")
		}, "drop-in", Fail, "moved aside"},
		{"the drop-in is not imported",
			func(t *testing.T, h *fakeHost, _ *Agent) { h.put(t, "/etc/containerd/config.toml", "version = 3\n") }, "drop-in",
			Fail, "does not import"},
		{"the drop-in is another's", func(_ *testing.T, _ *fakeHost, a *Agent) { a.Unpack = false }, "drop-in", Warn, "is not what"},
		{"a snapshotter that came later", func(_ *testing.T, h *fakeHost, _ *Agent) {
			containerd(h, Containerd{Version: "2.4.2", Plugins: []Plugin{{Type: typeContent, ID: proxyName}, {Type: typeSnapshots, ID: "stargz"}}})
		}, "drop-in", Warn, "is not what"},
		{"the sockets differ", func(_ *testing.T, h *fakeHost, a *Agent) { a.Socket = "/run/x"; h.healthy["/run/x"] = nil },
			"content store", Fail, "the agent is on /run/x"},
		{"the stock store is enabled", func(t *testing.T, h *fakeHost, a *Agent) {
			h.put(t, drop, strings.Replace(h.get(t, drop), "disabled_plugins", "required_plugins", 1))
		}, "content store", Fail, "is not disabled"},
		{"another store", func(t *testing.T, h *fakeHost, _ *Agent) {
			main(t, h, "[proxy_plugins.other]\ntype = 'content'\naddress = '/run/other'\n")
		}, "content store", Fail, "other"},
		{"another kind of proxy is fine", func(t *testing.T, h *fakeHost, _ *Agent) {
			main(t, h, "[proxy_plugins.other]\ntype = 'snapshot'\naddress = '/run/other'\n")
		}, "content store", OK, "uses the agent"},
		{"containerd was not restarted", func(_ *testing.T, h *fakeHost, _ *Agent) {
			containerd(h, Containerd{Version: "2.4.2", Plugins: []Plugin{{Type: typeContent, ID: "content", Root: stockRoot}}})
		}, "content store", Fail, "uses content"},
		{"the plugin failed", func(_ *testing.T, h *fakeHost, _ *Agent) {
			containerd(h, Containerd{Version: "2.4.2", Plugins: []Plugin{{Type: typeContent, ID: proxyName, Err: "no"}}})
		}, "content store", Fail, "could not load"},
		{"a unit is missing", func(_ *testing.T, h *fakeHost, _ *Agent) { h.run = systemctl(agentUnit, "LoadState=not-found\n") },
			"units", Fail, "not installed"},
		{"no fallback unit", func(_ *testing.T, h *fakeHost, _ *Agent) { h.run = systemctl(fallbackUnit, "LoadState=not-found\n") },
			"units", Warn, "not installed"},
		{"a unit is disabled", func(_ *testing.T, h *fakeHost, _ *Agent) {
			h.run = systemctl(socketUnit, "LoadState=loaded\nUnitFileState=disabled\n")
		}, "units", Fail, "not enabled"},
		{"the agent is down", func(_ *testing.T, h *fakeHost, _ *Agent) {
			h.run = systemctl(agentUnit, "LoadState=loaded\nUnitFileState=enabled\nActiveState=failed\nResult=exit-code\n")
		}, "units", Fail, "failed (exit-code)"},
		{"unpacking without its drop-in", func(t *testing.T, h *fakeHost, _ *Agent) {
			if err := os.Remove(h.Path(filepath.Join(UnitDir, unpackConf))); err != nil {
				t.Fatal(err)
			}
		}, "units", Fail, "unpack = true"},
		{"the agent does not answer", func(_ *testing.T, h *fakeHost, a *Agent) { h.healthy = nil }, "socket", Fail, "does not answer"},
		{"another directory", func(_ *testing.T, _ *fakeHost, a *Agent) { a.Root = "/elsewhere" }, "content directory", Fail, "/elsewhere"},
		{"two file systems", func(_ *testing.T, h *fakeHost, _ *Agent) {
			h.disk = func(path string) (Disk, error) {
				d := Disk{Device: 1, Size: 100, Free: 80}
				if strings.HasSuffix(path, "/blobs/sha256") {
					d.Device = 2
				}
				return d, nil
			}
		}, "content directory", Fail, "another file system"},
		{"no directory", func(_ *testing.T, h *fakeHost, _ *Agent) {
			h.disk = func(path string) (Disk, error) {
				return Disk{}, &fs.PathError{Op: "stat", Path: path, Err: errors.New("i/o error")}
			}
		}, "content directory", Fail, "i/o error"},
		{"the disk is full", func(_ *testing.T, h *fakeHost, _ *Agent) { h.disk = diskOf(1) }, "disk", Fail, "1% of"},
		{"kubelet evicts", func(_ *testing.T, h *fakeHost, _ *Agent) { h.disk = diskOf(12) }, "disk", Warn, "kubelet evicts below 15%"},
		{"kubelet evicts earlier", func(t *testing.T, h *fakeHost, a *Agent) {
			h.put(t, "/var/lib/kubelet/config.yaml", "evictionHard:\n  imagefs.available: \"30%\"\n")
		}, "disk", Warn, "kubelet evicts below 30%"},
		{"kubelet evicts at a size", func(t *testing.T, h *fakeHost, a *Agent) {
			h.put(t, "/var/lib/kubelet/config.yaml", "evictionHard:\n  imagefs.available: 40Gi\n")
		}, "disk", Warn, "kubelet evicts below 40%"},
		{"kubelet reclaims more", func(t *testing.T, h *fakeHost, a *Agent) {
			h.put(t, "/var/lib/kubelet/config.yaml",
				"evictionHard: {imagefs.available: 15%}\nevictionMinimumReclaim: {imagefs.available: 10%}\n")
		}, "disk", Warn, "free_floor is 20%, and kubelet evicts below 15% until 25% are free"},
		{"kubelet removes images earlier", func(t *testing.T, h *fakeHost, a *Agent) {
			h.put(t, "/var/lib/kubelet/config.yaml", "imageGCHighThresholdPercent: 70\n")
		}, "disk", Warn, "free_floor is 20%, and kubelet removes images below 30% (imageGCHighThresholdPercent)"},
		{"pods are on the same disk", func(t *testing.T, h *fakeHost, a *Agent) {
			h.put(t, "/var/lib/kubelet/config.yaml", "evictionSoft:\n  nodefs.available: 25%\n")
		}, "disk", Warn, "evicts below 25% (evictionSoft, nodefs.available)"},
		{"below the floor", func(_ *testing.T, h *fakeHost, _ *Agent) { h.disk = diskOf(17) }, "disk", Warn, "free_floor (20%)"},
		{"the floor is low", func(_ *testing.T, _ *fakeHost, a *Agent) { a.Cache.FreeFloor = 0.1 }, "disk", Warn, "cache.free_floor is 10%"},
		{"an old kernel", func(_ *testing.T, h *fakeHost, _ *Agent) { h.kernel = "5.4.0-100-generic" }, "kernel", Warn, "5.4.0"},
		{"no overlayfs", func(t *testing.T, h *fakeHost, _ *Agent) { h.put(t, "/proc/filesystems", "\text4\n") }, "overlayfs", Warn,
			"not have it loaded"},
		{"few files", func(t *testing.T, h *fakeHost, _ *Agent) { h.put(t, "/proc/sys/fs/nr_open", "65536\n") }, "files", Fail, "65536"},
		{"a low limit", func(_ *testing.T, h *fakeHost, _ *Agent) {
			h.run = systemctl(agentUnit, "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\nLimitNOFILE=1024\n")
		}, "files", Warn, "1024 files"},
		{"no synchronised clock", func(_ *testing.T, h *fakeHost, _ *Agent) { h.unsynced = true }, "clock", Warn, "not synchronised"},
		{"a clock without a battery", func(_ *testing.T, h *fakeHost, _ *Agent) { h.clock = time.Unix(100, 0) }, "clock", Fail, "1970"},
		{"no tracker", func(_ *testing.T, _ *fakeHost, a *Agent) { a.Trackers = nil }, "trackers", Warn, "none"},
		{"one tracker is down", func(_ *testing.T, h *fakeHost, _ *Agent) {
			there := h.dial
			h.dial = func(addr string) (net.Conn, error) {
				if addr == "t1:7470" {
					return nil, errors.New("connection refused")
				}
				return there(addr)
			}
		}, "trackers", Warn, "t1:7470: connection refused"},
		{"all trackers are down", func(_ *testing.T, h *fakeHost, _ *Agent) { h.dial = nil }, "trackers", Fail, "connection refused"},
		{"trackers of another CA", func(t *testing.T, h *fakeHost, _ *Agent) { h.dial = trackerOf(t, newFake(t, nil)) }, "trackers",
			Fail, "t1:7470: "},
		{"no identity", func(_ *testing.T, h *fakeHost, a *Agent) {
			a.Identity, a.Insecure = identity.Config{}, true
		}, "identity", Warn, "insecure = true"},
		{"an identity that is not there", func(_ *testing.T, _ *fakeHost, a *Agent) { a.Identity.Cert = "/nowhere" }, "identity",
			Fail, "no such file"},
		{"another's identity", func(_ *testing.T, _ *fakeHost, a *Agent) { a.Node = "n2" }, "identity", Fail, "this is node \"n2\""},
		{"another role", func(t *testing.T, h *fakeHost, a *Agent) {
			a.Identity = certificate(t, h, "n1", identity.RoleOrigin)
		}, "identity", Fail, "origin"},
		{"another cluster", func(_ *testing.T, _ *fakeHost, a *Agent) { a.Cluster = "other" }, "identity", Fail, "other"},
		{"a certificate of the future", func(_ *testing.T, h *fakeHost, _ *Agent) { h.clock = h.clock.AddDate(-1, 0, 0) }, "identity",
			Fail, "valid from"},
		{"an old certificate", func(_ *testing.T, h *fakeHost, _ *Agent) { h.clock = h.clock.AddDate(2, 0, 0) }, "identity", Fail, "has ended"},
		{"a certificate that ends soon", func(_ *testing.T, h *fakeHost, _ *Agent) { h.clock = h.clock.AddDate(0, 0, 350) },
			"identity", Warn, "ends on"},
		{"a key for everybody", func(t *testing.T, h *fakeHost, a *Agent) {
			if err := os.Chmod(h.Path(a.Identity.Key), 0o644); err != nil {
				t.Fatal(err)
			}
		}, "identity", Warn, "read by others"},
		{"no such name", func(_ *testing.T, h *fakeHost, _ *Agent) { h.names = nil }, "trackers", Warn, "no such host"},
		{"listens on loopback", func(_ *testing.T, _ *fakeHost, a *Agent) { a.Listen = "127.0.0.1:7401" }, "advertise", Fail, "listen is 127"},
		{"advertises loopback", func(_ *testing.T, _ *fakeHost, a *Agent) { a.Advertise = "localhost:7401" }, "advertise", Fail,
			"advertise is localhost"},
		{"advertises another", func(_ *testing.T, h *fakeHost, a *Agent) {
			a.Advertise = "10.9.9.9:7401"
			h.addrs = []net.Addr{&net.IPNet{IP: net.IPv4(10, 0, 0, 1), Mask: net.CIDRMask(8, 32)}}
		}, "advertise", Warn, "no address of this host"},
		{"loopback only is fine alone", func(_ *testing.T, _ *fakeHost, a *Agent) {
			a.Trackers, a.Listen = []string{"127.0.0.1:7470"}, "127.0.0.1:7401"
		}, "advertise", OK, "loopback only"},
		{"layers are discarded", func(t *testing.T, h *fakeHost, _ *Agent) {
			main(t, h, "[plugins.'io.containerd.cri.v1.images']\ndiscard_unpacked_layers = true\n")
		}, "layers", OK, "seeds what is in its cache"},
		{"layers are discarded without a cache", func(t *testing.T, h *fakeHost, a *Agent) {
			main(t, h, "[plugins.'io.containerd.cri.v1.images']\ndiscard_unpacked_layers = true\n")
			a.Cache.Size = -1
		}, "layers", Warn, "cache.size"},
		{"many downloads", func(t *testing.T, h *fakeHost, _ *Agent) {
			main(t, h, "[plugins.'io.containerd.cri.v1.images']\nmax_concurrent_downloads = 10\n")
		}, "layers", Warn, "is 10"},
		{"isolated namespaces", func(t *testing.T, h *fakeHost, _ *Agent) {
			main(t, h, "[plugins.'io.containerd.metadata.v1.bolt']\ncontent_sharing_policy = 'isolated'\n")
		}, "authorize", Warn, "isolated"},
		{"k3s's own template", func(t *testing.T, h *fakeHost, _ *Agent) {
			const etc = "/var/lib/rancher/k3s/agent/etc/containerd/"
			h.put(t, etc+"config.toml", "version = 3\n")
			h.put(t, etc+"config-v3.toml.tmpl", "version = 3\n")
			if err := remove(h, receipt); err != nil {
				t.Fatal(err)
			}
			h.running["/run/k3s/containerd/containerd.sock"] = Containerd{Version: "2.4.2"}
		}, "containerd", Warn, "own template"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, a := well(t)
			tt.ill(t, h, a)
			findings := Doctor(t.Context(), h, *a, Where{})
			found := false
			for _, f := range findings {
				found = found || f.Check == tt.check && f.Severity == tt.sev && strings.Contains(f.Text, tt.text)
				if f.Severity != OK && f.Why == "" {
					t.Errorf("%+v does not say why it matters", f)
				}
			}
			if !found {
				var b bytes.Buffer
				WriteFindings(&b, findings)
				t.Errorf("no finding of %s with %q:\n%s", tt.check, tt.text, b.String())
			}
		})
	}
}

// A tracker that wants TLS is not one that this node can use without, nor the reverse.
func TestDoctorTrackerTLS(t *testing.T) {
	for _, tt := range []struct {
		name        string
		tracker, us bool // speak TLS
		sev         Severity
		text        string
	}{
		{"both", true, true, OK, "1 of 1 can be connected to"},
		{"neither", false, false, OK, "1 of 1 can be connected to"},
		{"the tracker", true, false, Fail, "it wants TLS, and this node has no [identity]"},
		{"this node", false, true, Fail, "it does not speak TLS, and this node has an [identity]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, a := well(t)
			creds := insecure.NewCredentials()
			if tt.tracker {
				src, err := identity.Load(onHost(h, certificate(t, h, "t1", identity.RoleTracker)), "default")
				if err != nil {
					t.Fatal(err)
				}
				creds = credentials.NewTLS(src.ServerTLS(identity.RoleNode))
			}
			if !tt.us {
				a.Identity, a.Insecure = identity.Config{}, true
			}
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			s := grpc.NewServer(grpc.Creds(creds))
			done := make(chan error)
			go func() { done <- s.Serve(ln) }()
			t.Cleanup(func() { s.Stop(); <-done })
			a.Trackers = []string{ln.Addr().String()}
			h.dial = func(addr string) (net.Conn, error) { return net.Dial("tcp", addr) }
			got := findingsOf(t, "trackers", h, a)
			if len(got) != 1 || got[0].Severity != tt.sev || !strings.Contains(got[0].Text, tt.text) {
				t.Errorf("got %+v, want %s %q", got, tt.sev, tt.text)
			}
		})
	}
}

// findingsOf returns what one check finds.
func findingsOf(t *testing.T, check string, h *fakeHost, a *Agent) (found []Finding) {
	t.Helper()
	for _, f := range Doctor(t.Context(), h, *a, Where{}) {
		if f.Check == check {
			found = append(found, f)
		}
	}
	return found
}

func diskOf(percent int64) func(string) (Disk, error) {
	return func(string) (Disk, error) { return Disk{Device: 1, Size: 100 << 30, Free: percent << 30}, nil }
}

func TestAtLeast(t *testing.T) {
	for _, tt := range []struct {
		version string
		want    bool
	}{
		{"2.1.0", true}, {"v2.1", true}, {"2.10.3-k3s1", true}, {"3.0", true}, {"2.1.0+unknown", true},
		{"2.0.9", false}, {"1.7.24", false}, {"", false}, {"devel", false}, {"2", false}, {"2.x", false},
	} {
		if got := atLeast(tt.version, 2, 1); got != tt.want {
			t.Errorf("%s: %v", tt.version, got)
		}
	}
}
