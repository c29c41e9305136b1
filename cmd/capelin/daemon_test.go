package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/log"

	"github.com/capelin-io/capelin/gateway"
	"github.com/capelin-io/capelin/indexd"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/origind"
	"github.com/capelin-io/capelin/plugin"
	"github.com/capelin-io/capelin/trackerd"
)

// daemons are the commands that run one, and what this test must know of each.
var daemons = []struct {
	command string
	up      string // what it logs when it is up
	config  func() any
	// local are arguments that make it run beside others.
	local func(dir string) []string
	// at returns an address on which the role itself answers; line is its "is up".
	at func(dir string, line *log.Entry) (network, addr string)
}{
	{"agent", "agent is up", func() any { return new(plugin.DefaultConfig()) }, func(dir string) []string {
		return []string{"--set", "root=" + dir + "/c", "--set", "socket=" + dir + "/c.sock", "--set", "admin=", "--set", "listen=127.0.0.1:0",
			"--set", "shim.listen=", "--set", "unpack=false", "--set", "node=n"}
	}, func(dir string, _ *log.Entry) (string, string) { return "unix", dir + "/c.sock" }},
	{"trackerd", "tracker is up", func() any { return new(trackerd.DefaultConfig()) }, func(string) []string {
		return []string{"--set", "listen=127.0.0.1:0"}
	}, logsListen},
	{"origind", "origin is up", func() any { return new(origind.DefaultConfig()) }, func(dir string) []string {
		return []string{"--set", "listen=127.0.0.1:0", "--set", "swarm.listen=127.0.0.1:0", "--set", "root=" + dir + "/o"}
	}, logsListen},
	{"indexd", "index is up", func() any { return new(indexd.DefaultConfig()) }, func(dir string) []string {
		return []string{"--set", "listen=127.0.0.1:0", "--set", "storage.file.path=" + dir + "/i"}
	}, logsListen},
	{"gateway", "gateway is up", func() any { return new(gateway.DefaultConfig()) }, func(string) []string {
		return []string{"--set", "listen=127.0.0.1:0"}
	}, logsListen},
}

func logsListen(_ string, line *log.Entry) (string, string) {
	addr, _ := line.Data["listen"].(string)
	return "tcp", addr
}

// socketDir is t.TempDir with a name that is short enough for a socket's path.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Every daemon means the same by the common keys, and refuses the same with the same
// words.
func TestCommonKeys(t *testing.T) {
	fine := []string{"", "pprof = true", `metrics = ""`, `metrics = ":1"`, `log_format = "json"`, "insecure = true", `cluster = "c"`,
		"[identity]\nca = \"/ca\"\ncert = \"/cert\"\nkey = \"/key\""}
	for _, level := range []string{"trace", "debug", "info", "warn", "error"} {
		fine = append(fine, fmt.Sprintf("log_level = %q", level))
	}
	refused := map[string]string{
		`log_level = "loud"`:             `F:1:1: log_level: "loud" is not trace, debug, info, warn or error`,
		`log_level = "warning"`:          `F:1:1: log_level: "warning" is not trace, debug, info, warn or error`,
		`log_level = ""`:                 `F:1:1: log_level: "" is not trace, debug, info, warn or error`,
		`log_format = "xml"`:             `F:1:1: log_format: "xml" is not text or json`,
		`cluster = ""`:                   `F:1:1: cluster: "" has 0 bytes, not 1 to 64`,
		`metrics = "7501"`:               `F:1:1: metrics: "7501" is not host:port`,
		"metrics = \"\"\npprof = true":   `F:2:1: pprof: needs a metrics address`,
		"metrics = \":1\"\npprof = true": `F:2:1: pprof: is served on loopback only, and metrics is ":1"`,
		"[identity]\nca = \"/ca\"": "F: identity.cert: must be set, because others of the identity are\nF: identity.key: " +
			"must be set, because others of the identity are",
		"pprof = 1":                   "F:1:9: pprof: is true or false, without quotes",
		"log_lvl = \"info\"":          "F:1:1: log_lvl: no such key",
		`cluster = "${CAPELIN_NONE}"`: `F:1:11: cluster: the environment has no variable CAPELIN_NONE`,
		"log_level = \"x\"\nlog_format = \"y\"": "F:1:1: log_level: \"x\" is not trace, debug, info, warn or error\nF:2:1: log_format: " +
			"\"y\" is not text or json",
		`cluster = "` + strings.Repeat("c", 65) + `"`: `F:1:1: cluster: "` + strings.Repeat("c", 65) + `" has 65 bytes, not 1 to 64`,
	}
	listen := map[string]string{
		`listen = "7500"`: `F:1:1: listen: "7500" is not host:port`,
		`listen = ""`:     `F:1:1: listen: "" is not host:port`,
	}
	all := func(of ...map[string]string) map[string]string {
		m := map[string]string{}
		for _, one := range of {
			for doc, want := range one {
				m[doc] = want
			}
		}
		return m
	}
	check := func(role string, cfg func() any, refused map[string]string) {
		for _, doc := range fine {
			if err := config.Parse("F", []byte(doc), cfg()); err != nil {
				t.Errorf("%s refuses %q: %v", role, doc, err)
			}
		}
		for doc, want := range refused {
			if err := config.Parse("F", []byte(doc), cfg()); fmt.Sprint(err) != want {
				t.Errorf("%s: %q: got\n%v\nwant\n%s", role, doc, err, want)
			}
		}
	}
	for _, d := range daemons {
		check(d.command, d.config, all(refused, listen))
		// What other machines reach wants certificates, everywhere.
		err := config.Parse("F", []byte(`listen = "0.0.0.0:1"`), d.config())
		if err == nil || !strings.HasPrefix(err.Error(), `F:1:1: listen: "0.0.0.0:1" is reached from other machines`) ||
			!strings.Contains(err.Error(), "or say insecure = true") {
			t.Errorf("%s listens on all interfaces: %v", d.command, err)
		}
		if err := config.Parse("F", []byte("listen = \"0.0.0.0:1\"\ninsecure = true"), d.config()); err != nil {
			t.Errorf("%s, insecure: %v", d.command, err)
		}
	}
	check("server", func() any { return new(defaultServerConfig()) }, refused)
}

// What `config` prints are the defaults, and a file to start from.
func TestConfigCommands(t *testing.T) {
	roles := map[string]func() any{"server": func() any { return new(defaultServerConfig()) }}
	for _, d := range daemons {
		roles[d.command] = d.config
	}
	for command, defaults := range roles {
		out, _, err := execute(t, command, "config")
		if err != nil {
			t.Fatal(err)
		}
		got := defaults()
		if err := config.Load(file(t, out), got); err != nil || !reflect.DeepEqual(got, defaults()) {
			t.Errorf("%s config is read back as\n%+v, %v, want\n%+v", command, got, err, defaults())
		}
		for _, key := range []string{"\nlog_level = ", "\nlog_format = ", "\ncluster = ", "\nmetrics = ", "\npprof = ", "\ninsecure = ",
			"\n[identity]\n"} {
			if strings.Count(out, key) != 1 && command != "server" || !strings.Contains(out, key) {
				t.Errorf("%s config has %q %d times", command, key, strings.Count(out, key))
			}
		}
	}
}

// Every daemon shows the same, and ends in the same order: it is no longer ready while
// it still answers, and the metrics are there until it has ended.
func TestDaemons(t *testing.T) {
	for _, d := range daemons {
		t.Run(d.command, func(t *testing.T) {
			dir := socketDir(t)
			role := strings.TrimSuffix(d.up, " is up")
			var mu sync.Mutex
			var up *log.Entry
			var stopping []string // what is wrong when the role begins to stop
			lines.watch(t, func(e *log.Entry) {
				mu.Lock()
				defer mu.Unlock()
				switch e.Message {
				case d.up:
					up = e
				case role + " is stopping":
					metrics, _ := up.Data["metrics"].(string)
					if code, body := get(metrics, "/readyz"); code != 503 || body != "not ready: "+role+"\n" {
						stopping = append(stopping, fmt.Sprintf("/readyz: %d %q", code, body))
					}
					if code, body := get(metrics, "/metrics"); code != 200 {
						stopping = append(stopping, fmt.Sprintf("/metrics: %d %q", code, body))
					}
					network, addr := d.at(dir, up)
					c, err := net.Dial(network, addr)
					if err != nil {
						stopping = append(stopping, err.Error())
						return
					}
					c.Close()
				}
			})
			run := start(t, d.up, append([]string{d.command, "--set", "metrics=127.0.0.1:0", "--set", "pprof=true", "--set", "cluster=c"},
				d.local(dir)...)...)
			for _, path := range []string{"/healthz", "/readyz", "/metrics", "/debug/pprof/cmdline"} {
				if code, body := run.get(path); code != 200 {
					t.Errorf("%s: %d %q", path, code, body)
				}
			}
			if _, text := run.get("/metrics"); !strings.Contains(text, fmt.Sprintf("\ncapelin_info{role=%q,version=", role)) ||
				strings.Count(text, "\ngo_goroutines ") != 1 || !strings.Contains(text, "\nprocess_open_fds ") {
				t.Errorf("/metrics lacks the role's, Go's or the process's:\n%s", text)
			}
			if up.Data["cluster"] != "c" || up.Data["version"] == nil {
				t.Errorf("the line %q has %v", d.up, up.Data)
			}
			run.end(t)
			mu.Lock()
			defer mu.Unlock()
			if len(stopping) > 0 {
				t.Errorf("when it stops: %s", strings.Join(stopping, "; "))
			}
			if code, _ := run.get("/healthz"); code != 0 {
				t.Errorf("after the end somebody answers: %d", code)
			}
		})
	}
}

// A file that changes is read again at SIGHUP, by every daemon alike.
func TestReload(t *testing.T) {
	for _, d := range daemons {
		t.Run(d.command, func(t *testing.T) {
			t.Cleanup(func() { _ = log.SetLevel("info"); _ = log.SetFormat(log.TextFormat) })
			dir := socketDir(t)
			path := filepath.Join(dir, "f.toml")
			write := func(text string) {
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write("cluster = \"one\"\nlog_level = \"warn\"\n")
			lines.watch(t, nil)
			// The command line goes over the file, also when that is read again.
			start(t, d.up, append([]string{d.command, "--config", path, "--set", "metrics=127.0.0.1:0", "--set", "log_level=info"},
				d.local(dir)...)...)
			for _, step := range []struct {
				name, file       string
				message          string
				applied, restart string
				format           string
			}{
				{"nothing", "cluster = \"one\"\nlog_level = \"error\"\n", "the configuration was read again, and nothing has changed", "", "", "text"},
				{"the log's format", "cluster = \"one\"\nlog_format = \"json\"\n", "the configuration was read again", "log_format", "", "json"},
				{"the cluster", "cluster = \"two\"\nlog_format = \"json\"\n", "the configuration was read again, and what has changed needs a restart",
					"", "cluster", "json"},
				{"a broken file", "cluster = \"two\"\nlog_format = \"text\"\nlog_lvl = 1\n",
					"the changed configuration is refused, the former one stays in use", "", "", "json"},
				{"a value that is refused", "cluster = \"\"\nlog_format = \"text\"\n",
					"the changed configuration is refused, the former one stays in use", "", "", "json"},
				{"both", "cluster = \"two\"\npprof = true\n", "the configuration was read again, and what has changed needs a restart", "log_format",
					"cluster pprof", "text"},
			} {
				write(step.file)
				hangup(t)
				line, err := lines.next(t.Context(), step.message)
				if err != nil {
					t.Fatalf("%s: %v", step.name, err)
				}
				if broken := line.Data["error"]; broken != nil {
					if !strings.Contains(fmt.Sprint(broken), path+":") {
						t.Errorf("%s: the log says %v, not where", step.name, broken)
					}
				} else if line.Data["applied"] != step.applied || line.Data["restart"] != step.restart {
					t.Errorf("%s: the log says %v, want applied %q, restart %q", step.name, line.Data, step.applied, step.restart)
				}
				if json := strings.HasPrefix(asLogged(t), "{"); json != (step.format == "json") {
					t.Errorf("%s: the log is JSON: %t, want %s", step.name, json, step.format)
				}
			}
		})
	}
}

// A SIGHUP that came before there was a configuration is not lost, and ends nothing.
func TestEarlyHangup(t *testing.T) {
	var once sync.Once
	reloaded := make(chan struct{})
	lines.watch(t, func(e *log.Entry) {
		if e.Message == "the configuration was read again, and nothing has changed" {
			once.Do(func() { close(reloaded) })
		}
	})
	hangups := make(chan os.Signal, 1)
	hangups <- syscall.SIGHUP
	startWith(t, hangups, "gateway is up", "gateway", "--set", "listen=127.0.0.1:0", "--set", "metrics=")
	select {
	case <-reloaded:
	case <-time.After(5 * time.Minute): // for hangs only
		t.Fatal("the configuration was not read again")
	}
}

// asLogged returns a line as the log's format has it.
func asLogged(t *testing.T) string {
	b, err := log.L.Logger.Formatter.Format(log.L.WithField("a", 1))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// What is given on the command line and what a file has wrong is told before anything runs.
func TestDaemonErrors(t *testing.T) {
	bad := file(t, "[lease]\nstal = \"3s\"\nstall = \"3\"\n")
	for _, tt := range []struct {
		name string
		args []string
		want []string
	}{
		{"a file with mistakes", []string{"trackerd", "--config", bad}, []string{bad + ":2:1: lease.stal: no such key", bad +
			`:3:9: lease.stall: "3" is not a duration`}},
		{"no file", []string{"indexd", "--config", "/nowhere/f.toml"}, []string{"reading the configuration", "no such file"}},
		{"a value", []string{"origind", "--set", "queue.workers=0"}, []string{"--set queue.workers=0: queue.workers: 0 is not positive"}},
		{"no value", []string{"gateway", "--set", "listen"}, []string{"--set listen: is not key=value"}},
		{"no such key", []string{"server", "--set", "tracker.lisen=:1"}, []string{"--set tracker.lisen=:1: tracker.lisen: no such key"}},
		{"a variable", []string{"agent", "--set", "node=${CAPELIN_NONE}"}, []string{"node: the environment has no variable CAPELIN_NONE"}},
		{"an unknown flag", []string{"trackerd", "--cnofig"}, []string{"unknown flag"}},
		{"a stray argument", []string{"origind", "start"}, []string{"start"}},
		{"an identity", []string{"indexd", "--set", "identity.ca=/nowhere/ca", "--set", "identity.cert=/nowhere/c", "--set",
			"identity.key=/nowhere/k"}, []string{"index: identity.ca: /nowhere/ca: no such file or directory"}},
	} {
		err := run(t.Context(), nil, tt.args)
		for _, want := range tt.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %s", tt.name, err, want)
			}
		}
	}
}

// The first signal is patient with what runs, the second is not.
func TestSecondSignal(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0],
		"gateway", "--set", "listen=127.0.0.1:0", "--set", "metrics=", "--set", "log_format=json")
	cmd.Env = append(os.Environ(), "CAPELIN_TEST_MAIN=1")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(stderr)
	next := func(message string) (line struct{ Msg, Listen string }) {
		for said.Scan() {
			if json.Unmarshal(said.Bytes(), &line) == nil && line.Msg == message {
				return line
			}
		}
		t.Fatalf("it does not say %q: %v", message, cmd.Wait())
		return line
	}
	c, err := net.Dial("tcp", next("gateway is up").Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// A push whose bytes do not come. The gateway asks for them when it has begun to read.
	fmt.Fprintf(c, "PUT /v2/a/manifests/sha512:%0128d HTTP/1.1\r\nHost: g\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n", 0)
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 100 ") {
		t.Fatalf("the gateway answers %q, %v", line, err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	next("gateway is stopping")
	begun := time.Now()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("after the second signal, %v later: %v, want an end by that signal", time.Since(begun), err)
	}
}
