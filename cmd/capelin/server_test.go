package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/log"

	"github.com/capelin-io/capelin/fetcher/backends"
	"github.com/capelin-io/capelin/internal/daemon/config"
)

// ownAddress returns an address of this machine on which no other test has ports.
func ownAddress(t *testing.T) string {
	t.Helper()
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 1+pid>>16%254, pid>>8%256, 1+pid%254)
}

// All roles run in one process, and one address shows them.
func TestServer(t *testing.T) {
	t.Cleanup(func() { _ = log.SetLevel("info") })
	addr := ownAddress(t)
	metrics := addr + ":7501"
	base := fmt.Sprintf("address = %q\ndata = %q\nmetrics = %q\npprof = true\n", addr, filepath.Join(t.TempDir(), "data"), metrics)
	path := file(t, base)
	lines.watch(t, func(e *log.Entry) {
		if e.Message == "server is stopping" {
			if code, body := get(metrics, "/readyz"); code != 503 || !strings.HasPrefix(body, "not ready: server") {
				t.Errorf("when it stops, /readyz: %d %q", code, body)
			}
		}
	})
	s := start(t, "server is starting", "server", "--config", path, "--set", "origin.zone=z", "--set", "index.metrics="+addr+":7491")
	waiting := map[string]bool{"tracker is up": true, "origin is up": true, "index is up": true, "gateway is up": true,
		"tracker connected": true, "server is up": true}
	for len(waiting) > 0 { // in any order
		line, err := lines.next(t.Context(), "")
		if err != nil {
			t.Fatalf("%v; missing: %v", err, waiting)
		}
		role, ok := strings.CutSuffix(line.Message, " is up")
		for r := range waiting {
			if role == "server" && r != line.Message && strings.HasSuffix(r, " is up") {
				t.Errorf("%q is logged before %q", line.Message, r)
			}
		}
		if ok && role != "server" && line.Data["role"] != role {
			t.Errorf("the line %q has the role %v", line.Message, line.Data["role"])
		}
		delete(waiting, line.Message)
	}
	if s.metrics != metrics {
		t.Errorf("the metrics are on %q, want %q", s.metrics, metrics)
	}
	for _, path := range []string{"/healthz", "/readyz", "/debug/pprof/cmdline"} {
		if code, body := s.get(path); code != 200 {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	code, text := s.get("/metrics")
	for want, n := range map[string]int{
		`capelin_info{role="server",`: 1, `capelin_info{role="tracker",`: 1, `capelin_info{role="origin",`: 1, `capelin_info{role="gateway",`: 1,
		`capelin_info{role="index",`: 0, // it has an address of its own
		"\ngo_goroutines ":           1, "\nprocess_open_fds ": 1, "\ncapelin_tracker_streams 1\n": 1, "\ncapelin_origin_uploads 0\n": 1,
	} {
		if code != 200 || strings.Count(text, want) != n {
			t.Errorf("/metrics: %d, %q stands there %d times, want %d", code, want, strings.Count(text, want), n)
		}
	}
	if code, text := get(addr+":7491", "/metrics"); code != 200 || !strings.Contains(text, `capelin_info{role="index",`) {
		t.Errorf("the index's own metrics: %d %q", code, text)
	}
	for _, port := range []string{"7471", "7482"} {
		if c, err := net.Dial("tcp", addr+":"+port); err == nil {
			c.Close()
			t.Errorf("somebody listens on port %s", port)
		}
	}

	// A reload reaches the origin, and the log.
	for _, step := range []struct{ name, more, message, applied, restart string }{
		{"upload", "[origin.swarm]\nupload = \"1MB/s\"\n", "the configuration was read again", "origin.swarm.upload", ""},
		{"a role's log", "[origin]\nlog_level = \"debug\"\n",
			"a role's key is not used, because all roles of a server share its log; leave it out", "", ""},
		{"the log, and a role", "log_level = \"debug\"\n[tracker]\nmax_streams = 7\n",
			"the configuration was read again, and what has changed needs a restart", "log_level", "tracker.max_streams"},
	} {
		if err := os.WriteFile(path, []byte(base+step.more), 0o600); err != nil {
			t.Fatal(err)
		}
		hangup(t)
		line, err := lines.next(t.Context(), step.message)
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if key := line.Data["key"]; key != nil {
			if key != "origin.log_level" || line.Data["instead"] != "log_level" {
				t.Errorf("%s: the log says %v", step.name, line.Data)
			}
		} else if line.Data["error"] == nil && (line.Data["applied"] != step.applied || line.Data["restart"] != step.restart) {
			t.Errorf("%s: the log says %v, want applied %q, restart %q", step.name, line.Data, step.applied, step.restart)
		}
	}
	if log.GetLevel() != log.DebugLevel {
		t.Errorf("the level of the log is %v, want debug", log.GetLevel())
	}
	s.end(t)
}

// What is wrong with a file that a key names is told with the key, as it is written here.
func TestServerFiles(t *testing.T) {
	for _, tt := range []struct{ name, set, want string }{
		{"the server's identity", "identity={ca=\"/nope\",cert=\"/nope\",key=\"/nope\"}",
			"server: identity.ca: /nope: no such file or directory\nidentity.cert: /nope: no such file or directory\n" +
				"identity.key: /nope: no such file or directory"},
		{"a role's identity", "index.identity={ca=\"/nope\",cert=\"/nope\",key=\"/nope\"}",
			"server: index.identity.ca: /nope: no such file or directory\nindex.identity.cert: /nope: no such file or directory\n" +
				"index.identity.key: /nope: no such file or directory"},
		{"the users", "gateway.users=/nope", "server: gateway.users: /nope: no such file or directory"},
	} {
		_, _, err := execute(t, "server", "--set", "address="+ownAddress(t), "--set", "data="+filepath.Join(t.TempDir(), "d"),
			"--set", "metrics=", "--set", tt.set)
		if fmt.Sprint(err) != tt.want {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
	}
}

// A role's table promises nothing that the server refuses.
func TestServerConfigSays(t *testing.T) {
	out, _, err := execute(t, "server", "config")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(strings.ReplaceAll(out, "#", "")), " ") // as before it was wrapped
	if n := strings.Count(text, "SIGHUP applies a change."); n != 3 {           // log_level, log_format, origin.swarm.upload
		t.Errorf("SIGHUP applies %d keys, want 3:\n%s", n, out)
	}
	if n := strings.Count(text, "Not used: the roles share the server's."); n != 8 {
		t.Errorf("%d keys are not used, want 8", n)
	}
}

// An earlier version's file, in which each role has an address for its metrics, keeps
// them, and the one that the server has now shows the rest.
func TestServerOwnMetrics(t *testing.T) {
	c := defaultServerConfig()
	if err := config.Load("testdata/7c156ac/server.toml", &c); err != nil {
		t.Fatal(err)
	}
	full, _ := c.fill()
	got := []string{full.Metrics, full.Tracker.Metrics, full.Origin.Metrics, full.Index.Metrics, full.Gateway.Metrics}
	if want := []string{"127.0.0.1:7501", "127.0.0.1:7471", "127.0.0.1:7482", "127.0.0.1:7491", ""}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("server, tracker, origin, index, gateway: %q, want %q", got, want)
	}
}

// A role's address on the port of the server's default is where all are shown, if nobody
// spoke of the server's.
func TestServerMetricsOfARole(t *testing.T) {
	for _, tt := range []struct {
		doc  string
		set  []string
		want []string // the server's, the gateway's
	}{
		{"", nil, []string{"127.0.0.1:7501", ""}},
		{"[gateway]\nmetrics = \":7501\"", nil, []string{":7501", ""}},
		{"[gateway]\nmetrics = \"0.0.0.0:7501\"", nil, []string{"0.0.0.0:7501", ""}},
		{"", []string{"gateway.metrics=[::]:7501"}, []string{"[::]:7501", ""}},
		{"[gateway]\nmetrics = \":7502\"", nil, []string{"127.0.0.1:7501", ":7502"}},
		{"[gateway]\nmetrics = \"10.0.0.1:7501\"", []string{"metrics=127.0.0.1:7501"}, []string{"127.0.0.1:7501", "10.0.0.1:7501"}},
		{"metrics = \"\"\n[gateway]\nmetrics = \":7501\"", nil, []string{"", ":7501"}},
	} {
		c := defaultServerConfig()
		if err := config.Parse("F", []byte(tt.doc), &c, tt.set...); err != nil {
			t.Errorf("%q %q: %v", tt.doc, tt.set, err)
			continue
		}
		full, _ := c.fill()
		if got := []string{full.Metrics, full.Gateway.Metrics}; !slices.Equal(got, tt.want) {
			t.Errorf("%q %q: the server's and the gateway's are %q, want %q", tt.doc, tt.set, got, tt.want)
		}
	}
}

// One key makes servers a ring, the same on all of them: what else they need to know of each other follows from it.
func TestServerRing(t *testing.T) {
	const members = `[origin.ring]
members = ["a=10.0.0.1:7480", "b=http://10.0.0.2:7480", "c=10.0.0.3:7480"]
[gateway]
indexes = ["10.0.0.1:7490"]
`
	for _, tt := range []struct {
		name, doc                string
		node                     string
		trackers, origins, index string
	}{
		{"alone", "", "", "127.0.0.1:7470", "127.0.0.1:7480", "127.0.0.1:7490"},
		{"the second", "address = \"10.0.0.2\"\n" + members, "b",
			"10.0.0.1:7470 10.0.0.2:7470 10.0.0.3:7470", "10.0.0.1:7480 http://10.0.0.2:7480 10.0.0.3:7480", "10.0.0.1:7490"},
		{"by its name", "address = \"c.example\"\nname = \"c\"\n" + members, "c",
			"10.0.0.1:7470 10.0.0.2:7470 10.0.0.3:7470", "10.0.0.1:7480 http://10.0.0.2:7480 10.0.0.3:7480", "10.0.0.1:7490"},
		{"another port", "address = \"10.0.0.1\"\ntracker.listen = \"10.0.0.1:7770\"\n" + members, "a",
			"10.0.0.1:7770 10.0.0.2:7770 10.0.0.3:7770", "10.0.0.1:7480 http://10.0.0.2:7480 10.0.0.3:7480", "10.0.0.1:7490"},
		{"a name of the DNS, and shared tags", "address = \"10.0.0.1\"\norigin.ring.members = [\"dns+o.example:7480\"]\n" +
			"index.storage.file.path = \"/shared\"", "",
			"10.0.0.1:7470 dns+o.example:7470", "10.0.0.1:7480 o.example:7480", "10.0.0.1:7490"},
		{"on all addresses", "address = \"10.0.0.1\"\norigin.listen = \":7480\"\ntracker.listen = \"[::]:7470\"\n" +
			"index.listen = \"0.0.0.0:7490\"\nindex.storage.file.path = \"/shared\"\norigin.ring.members = [\"dns+o.example:7480\"]", "",
			"10.0.0.1:7470 dns+o.example:7470", "10.0.0.1:7480 o.example:7480", "10.0.0.1:7490"},
		{"shared tags: its own index, and the others' if that does not answer",
			"address = \"10.0.0.2\"\nindex.storage.file.path = \"/shared\"\n" +
				"origin.ring.members = [\"a=10.0.0.1:7480\", \"b=10.0.0.2:7480\", \"c=http://10.0.0.3:7480\"]", "b",
			"10.0.0.1:7470 10.0.0.2:7470 10.0.0.3:7470", "10.0.0.1:7480 10.0.0.2:7480 http://10.0.0.3:7480",
			"10.0.0.2:7490 10.0.0.1:7490 10.0.0.3:7490"},
		{"one storage", "address = \"10.0.0.2\"\nstorage.kind = \"file\"\nstorage.file.path = \"/shared\"\n[origin.ring]\n" +
			"members = [\"a=10.0.0.1:7480\", \"b=10.0.0.2:7480\"]", "b",
			"10.0.0.1:7470 10.0.0.2:7470", "10.0.0.1:7480 10.0.0.2:7480", "10.0.0.2:7490 10.0.0.1:7490"},
		{"what is written stays", "address = \"10.0.0.1\"\n" + members +
			"origins = [\"o:1\"]\n[origin]\ntrackers = [\"t:1\"]\n[index]\norigins = [\"o:1\"]",
			"a", "t:1", "o:1", "10.0.0.1:7490"},
	} {
		c := defaultServerConfig()
		if err := config.Parse("F", []byte("insecure = true\n"+tt.doc), &c); err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		full, _ := c.fill()
		got := []string{full.Origin.Node}
		for _, l := range [][]string{full.Origin.Trackers, full.Index.Origins, full.Gateway.Origins, full.Gateway.Indexes} {
			got = append(got, strings.Join(l, " "))
		}
		if want := []string{tt.node, tt.trackers, tt.origins, tt.origins, tt.index}; !slices.Equal(got, want) {
			t.Errorf("%s: name, trackers, index's and gateway's origins, index:\n%q\nwant\n%q", tt.name, got, want)
		}
	}
}

// A server's storage is for tags and blobs, unless a role says otherwise.
func TestServerStorage(t *testing.T) {
	const shared = "storage.kind = \"file\"\nstorage.file.path = \"/shared\"\n"
	for _, tt := range []struct{ name, doc, tags, blobs string }{
		{"none", "", "/var/lib/capelin/server/index", ""},
		{"as a file of an earlier release says", "[index.storage]\nkind = \"file\"\n[index.storage.file]\npath = \"\"",
			"/var/lib/capelin/server/index", ""},
		{"shared", shared, "/shared", "/shared"},
		{"tags elsewhere", shared + "index.storage.file.path = \"/tags\"", "/tags", "/shared"},
		{"blobs elsewhere", shared + "[[origin.backend]]\nname = \"x\"\nnamespaces = [\".*\"]\nkind = \"file\"\nfile.path = \"/blobs\"",
			"/shared", "/blobs"},
	} {
		c := defaultServerConfig()
		if err := config.Parse("F", []byte(tt.doc), &c); err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		full, _ := c.fill()
		blobs := ""
		if len(full.Origin.Backends) == 1 {
			blobs = full.Origin.Backends[0].File.Path
		}
		if s := full.Index.Storage; s.Kind != backends.KindFile || s.File.Path != tt.tags || blobs != tt.blobs {
			t.Errorf("%s: tags are in %s:%s, blobs in %q", tt.name, s.Kind, s.File.Path, blobs)
		}
	}
}

// Errors name the keys that somebody wrote.
func TestServerConfigErrors(t *testing.T) {
	for _, tt := range []struct{ name, doc, want string }{
		{"nothing", "", "<nil>"},
		{"the log", `log_level = "loud"`, `F:1:1: log_level: "loud" is not trace, debug, info, warn or error`},
		{"a role's log", "[origin]\nlog_level = \"debug\"", "<nil>"},
		{"a role's log as the server's", "log_level = \"debug\"\n[origin]\nlog_level = \"debug\"", "<nil>"},
		{"a role's log, and no level", "[origin]\nlog_level = \"loud\"",
			`F:2:1: origin.log_level: "loud" is not trace, debug, info, warn or error`},
		{"a role's format", "[index]\nlog_format = \"json\"", "<nil>"},
		{"the cluster", `cluster = ""`, `F:1:1: cluster: "" has 0 bytes, not 1 to 64`},
		{"a role's cluster", "[index]\ncluster = \"" + strings.Repeat("c", 65) + "\"", `F:2:1: index.cluster: "` + strings.Repeat("c", 65) +
			`" has 65 bytes, not 1 to 64`},
		{"data", `data = "here"`, `F:1:1: data: "here" is not an absolute path`},
		{"a role's data", "[origin]\nroot = \"here\"", `F:2:1: origin.root: "here" is not an absolute path`},
		{"the address", `address = "10.0.0.1"`, `F:1:1: address: "10.0.0.1:7500" is reached from other machines, and there is no identity`},
		{"no address", `address = ""`, `F:1:1: address: must be set`},
		{"the name", `name = "` + strings.Repeat("n", 254) + `"`, `F:1:1: name: "` + strings.Repeat("n", 254) + `" has more than 253 bytes`},
		{"the zone", `zone = "` + strings.Repeat("z", 65) + `"`, `F:1:1: zone: "` + strings.Repeat("z", 65) + `" has more than 64 bytes`},
		{"the identity", "[identity]\nca = \"/ca\"\ncert = \"/c\"", "F: identity.key: must be set, because others of the identity are"},
		{"a role's identity", "[index.identity]\nca = \"/ca\"\ncert = \"/c\"",
			"F: index.identity.key: must be set, because others of the identity are"},
		{"two of one role", "[tracker]\nmax_streams = 0\nmetrics = \"x\"",
			"F:2:1: tracker.max_streams: must be at least 1, is 0\nF:3:1: tracker.metrics: \"x\" is not host:port"},
		{"one of the server, one of a role", "data = \"here\"\n[tracker]\nmax_streams = 0",
			"F:1:1: data: \"here\" is not an absolute path\nF:3:1: tracker.max_streams: must be at least 1, is 0"},
		{"a role's address", "[tracker]\nlisten = \"7470\"", `F:2:1: tracker.listen: "7470" is not host:port`},
		{"a role's open address", "[tracker]\nlisten = \":7470\"", `F:2:1: tracker.listen: ":7470" is reached from other machines`},
		{"a role's profiler", "[tracker]\npprof = true", "F:2:1: tracker.pprof: needs a metrics address"},
		{"a role on the port of the server's default", "[gateway]\nmetrics = \":7501\"", "<nil>"},
		{"the same, with a profiler", "[gateway]\nmetrics = \":7501\"\npprof = true",
			`F:3:1: gateway.pprof: is served on loopback only, and gateway.metrics is ":7501"`},
		{"a role on the server's port", "metrics = \"127.0.0.1:7501\"\n[gateway]\nmetrics = \"0.0.0.0:7501\"",
			`F:3:1: gateway.metrics: "0.0.0.0:7501" and metrics, "127.0.0.1:7501", are on one port`},
		{"several servers, each with tags of its own", "[origin.ring]\nmembers = [\"a=127.0.0.1:7480\", \"b=127.0.0.2:7480\"]",
			"F: gateway.indexes: must be set, because there are several servers (origin.ring.members)"},
		{"a storage of no kind", "[storage]\nkind = \"tape\"", `F:2:1: storage.kind: "tape" is no storage for an index`},
		{"a storage without a place", "[storage]\nkind = \"file\"", `F: storage.file.path: "" is not an absolute path`},
		{"a storage, and no kind", "[storage]\nfile.path = \"/shared\"", `F: storage.kind: must be set, because others of the storage are`},
		{"a ring of others", "[origin.ring]\nmembers = [\"a=127.0.0.2:7480\"]\n",
			`F:2:1: origin.ring.members: has no member at address, which is "127.0.0.1"`},
		{"a ring of itself", "[origin.ring]\nmembers = [\"a=127.0.0.1:7480\"]\n", "<nil>"},
		{"a member without a name", "[origin.ring]\nmembers = [\"127.0.0.1:7480\"]\n[gateway]\nindexes = [\"i:1\"]",
			`F:2:1: origin.ring.members: "127.0.0.1:7480" is neither name=host:port nor dns+host:port`},
		{"a role on the server's address", "pprof = false\n[gateway]\nmetrics = \"127.0.0.1:7501\"\npprof = true", "<nil>"},
	} {
		c := defaultServerConfig()
		err := config.Parse("F", []byte(tt.doc), &c)
		gots, wants := strings.Split(fmt.Sprint(err), "\n"), strings.Split(tt.want, "\n")
		ok := len(gots) == len(wants)
		for i := range min(len(gots), len(wants)) {
			ok = ok && strings.HasPrefix(gots[i], wants[i])
		}
		if !ok {
			t.Errorf("%s: got\n%v\nwant\n%s", tt.name, err, tt.want)
		}
	}
}
