package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/capelin-io/capelin/internal/daemon"
	"github.com/capelin-io/capelin/plugin"
)

// agentNode is a directory with an agent's files.
type agentNode struct{ dir string }

func newAgentNode(t *testing.T) *agentNode {
	t.Helper()
	lines.watch(t, nil)
	return &agentNode{socketDir(t)}
}

func (n *agentNode) write(t *testing.T, text string) {
	t.Helper()
	text = fmt.Sprintf("root = %q\nsocket = %q\nadmin = %q\nlisten = \"127.0.0.1:0\"\nunpack = false\nnode = \"n\"\n"+
		"metrics = \"127.0.0.1:0\"\n%s",
		n.dir+"/c", n.dir+"/c.sock", n.dir+"/a.sock", text)
	if err := os.WriteFile(n.dir+"/agent.toml", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (n *agentNode) args() []string {
	return []string{"agent", "--config", n.dir + "/agent.toml", "--state", n.dir + "/state", "--set", "shim.listen="}
}

func (n *agentNode) start(t *testing.T, hangups chan os.Signal) *daemonRun {
	t.Helper()
	return startWith(t, hangups, "agent is up", n.args()...)
}

func (n *agentNode) status(t *testing.T) (st plugin.Status) {
	t.Helper()
	out, _, err := execute(t, "status", "--json", "--config", n.dir+"/agent.toml")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		t.Fatal(err)
	}
	return st
}

// kept waits until a text is kept that has a part.
func (n *agentNode) kept(t *testing.T, part string) {
	t.Helper()
	if !comes(func() bool {
		text, err := os.ReadFile(n.dir + "/state/agent.toml")
		return err == nil && strings.Contains(string(text), part)
	}) {
		t.Fatalf("no text with %q is kept", part)
	}
}

// An agent whose file is refused runs on with what worked last, and everybody can see it;
// when the file is good again it ends, to be started with that.
func TestAgentRunsOn(t *testing.T) {
	supervised(t)
	n := newAgentNode(t)
	hangups := make(chan os.Signal, 1)
	n.write(t, "zone = \"a\"\n")
	run := n.start(t, hangups)
	n.kept(t, "zone = \"a\"")

	// At SIGHUP.
	n.write(t, "zone = \"b\"\nnonsense = 1\n")
	hangups <- syscall.SIGHUP
	if _, err := lines.next(t.Context(), "the changed configuration is refused, the former one stays in use"); err != nil {
		t.Fatal(err)
	}
	st := n.status(t)
	if want := n.dir + "/agent.toml:9:1: nonsense: no such key"; len(st.Configuration.Refused) != 1 || st.Configuration.Refused[0] != want ||
		st.Configuration.Instead != "what it was started with" || st.Zone != "a" || st.Configuration.Since.IsZero() {
		t.Errorf("after SIGHUP: %+v", st.Configuration)
	}
	if _, text := run.get("/metrics"); !strings.Contains(text, "\ncapelin_configuration_refused{role=\"agent\"} 1\n") {
		t.Error("no metric says so")
	}
	run.end(t)

	// At a start.
	run = n.start(t, hangups)
	st = n.status(t)
	if st.Zone != "a" || len(st.Configuration.Refused) != 1 ||
		!strings.HasPrefix(st.Configuration.Instead, "the configuration that worked last, of 2") ||
		st.Configuration.RegistryOnly != "" || st.Advertise == "" && !n.swarmComes(t) {
		t.Errorf("after a start: %+v", st)
	}
	out, _, err := execute(t, "status", "--config", n.dir+"/agent.toml")
	if err != nil || !strings.Contains(out, "REFUSED  "+n.dir+"/agent.toml:9:1: nonsense: no such key\n") ||
		!strings.Contains(out, "instead  the configuration that worked last, of ") {
		t.Errorf("status: %v\n%s", err, out)
	}
	// Another mistake, then none.
	n.write(t, "zone = \"b\"\nlimits.upload = \"fast\"\n")
	hangups <- syscall.SIGHUP
	if _, err := lines.next(t.Context(), "the changed configuration is refused, the former one stays in use"); err != nil {
		t.Fatal(err)
	}
	if c := n.status(t).Configuration; len(c.Refused) != 1 || !strings.Contains(c.Refused[0], "limits.upload") ||
		!strings.HasPrefix(c.Instead, "the configuration that worked last") {
		t.Errorf("another mistake: %+v", c)
	}
	n.write(t, "zone = \"b\"\n")
	hangups <- syscall.SIGHUP
	run.ended(t)
	run = n.start(t, hangups)
	if st := n.status(t); st.Zone != "b" || st.Configuration.Refused != nil {
		t.Errorf("with the good file: %+v", st)
	}
	n.kept(t, "zone = \"b\"")
	// What applies at once works.
	n.write(t, "zone = \"b\"\nlimits.upload = \"7MB/s\"\n")
	hangups <- syscall.SIGHUP
	n.kept(t, "7MB/s")
	run.end(t)
}

func (n *agentNode) swarmComes(t *testing.T) bool {
	return comes(func() bool { return n.status(t).Advertise != "" })
}

// comes reports whether something comes about that only a file or the agent's own word shows.
func comes(f func() bool) bool {
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) { // for hangs only
		if f() {
			return true
		}
	}
	return false
}

// A refused file that says something else about who may have what takes the node out of
// the swarm, until it is mended.
func TestAgentAlone(t *testing.T) {
	supervised(t)
	n := newAgentNode(t)
	hangups := make(chan os.Signal, 1)
	n.write(t, "trackers = [\"127.0.0.1:1\"]\n")
	run := n.start(t, hangups)
	n.kept(t, "trackers")
	run.end(t)
	run = n.start(t, hangups)
	// A node that runs is taken out as well: it is started anew.
	n.write(t, "trackers = [\"127.0.0.1:1\"]\nauthorize = \"blobs\"\n")
	hangups <- syscall.SIGHUP
	run.ended(t)
	run = n.start(t, hangups)
	st := n.status(t)
	if st.Authorize != "blob" || len(st.Trackers) != 0 || st.Advertise != "" || len(st.Obstacles) != 1 ||
		st.Configuration.RegistryOnly != "authorize is among what is refused" {
		t.Errorf("%+v", st)
	}
	if _, text := run.get("/metrics"); !strings.Contains(text, "\ncapelin_obstacle{key=\"configuration\",role=\"agent\"} 1\n") {
		t.Error("no metric says so")
	}
	hangups <- syscall.SIGHUP // it is as it would be after a start
	if _, err := lines.next(t.Context(), "the changed configuration is refused, the former one stays in use"); err != nil {
		t.Fatal(err)
	}
	// With another mistake it would not be alone.
	n.write(t, "trackers = [\"127.0.0.1:1\"]\nnonsense = 1\n")
	hangups <- syscall.SIGHUP
	run.ended(t)
	n.write(t, "trackers = [\"127.0.0.1:1\"]\nauthorize = \"blobs\"\n")
	run = n.start(t, hangups)
	n.write(t, "trackers = [\"127.0.0.1:1\"]\n") // just as it was
	hangups <- syscall.SIGHUP
	run.ended(t)
}

// A file with which the agent does not come up is refused after some tries, and after a
// while it has another chance.
func TestAgentStarts(t *testing.T) {
	n := newAgentNode(t)
	n.write(t, "zone = \"a\"\n")
	run := n.start(t, nil)
	n.kept(t, "zone = \"a\"")
	run.end(t)
	if err := os.WriteFile(n.dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	broken := "zone = \"b\"\n[cache]\nsize = \"1GiB\"\n"
	n.write(t, broken)
	args := append(n.args(), "--set", "root="+n.dir+"/file/c") // also over what is kept
	for i := range startsTried {
		if _, _, err := execute(t, args...); err == nil || !strings.Contains(err.Error(), "file/c") {
			t.Fatalf("start %d: %v", i, err)
		}
	}
	run = n.start(t, nil)
	if st := n.status(t); st.Zone != "a" || len(st.Configuration.Refused) != 1 ||
		!strings.Contains(st.Configuration.Refused[0], "the agent was started with it 3 times and did not come up: agent: content directory") {
		t.Errorf("%+v", st.Configuration)
	}
	run.end(t)
	kept := daemon.Kept{Dir: filepath.Join(n.dir, "state"), Name: "agent"}
	data, err := os.ReadFile(kept.Files()[1])
	if err != nil {
		t.Fatal(err)
	}
	var s daemon.Starts
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	s.Last = s.Last.Add(-startsRecall)
	if data, err = json.Marshal(s); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kept.Files()[1], data, 0o600); err != nil {
		t.Fatal(err)
	}
	run = n.start(t, nil)
	if st := n.status(t); st.Zone != "b" || st.Configuration.Refused != nil {
		t.Errorf("another chance: %+v", st.Configuration)
	}
	n.kept(t, "zone = \"b\"")
	run.end(t)
	if _, err := os.Stat(kept.Files()[1]); !os.IsNotExist(err) {
		t.Errorf("its failures are remembered although it works: %v", err)
	}
}

// Ends in order do not count as failures, whatever the agent had to do without.
func TestAgentStartsEnd(t *testing.T) {
	n := newAgentNode(t)
	n.write(t, "zone = \"a\"\n")
	run := n.start(t, nil)
	n.kept(t, "zone = \"a\"")
	run.end(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	n.write(t, "zone = \"b\"\n")
	for range startsTried + 1 {
		run := startWith(t, nil, "agent is up", append(n.args(), "--set", "listen="+taken.Addr().String())...)
		if st := n.status(t); st.Zone != "b" {
			t.Fatalf("%+v", st.Configuration)
		}
		run.end(t)
	}
	if text, err := os.ReadFile(n.dir + "/state/agent.toml"); err != nil || !strings.Contains(string(text), "zone = \"a\"") {
		t.Errorf("kept although the swarm never came up: %s, %v", text, err)
	}
}

// ended waits until the daemon has ended by itself.
func (d *daemonRun) ended(t *testing.T) {
	t.Helper()
	if err := <-d.done; err != nil {
		t.Errorf("it ended with: %v", err)
	}
	d.done = nil
}

// supervised makes the process one that somebody starts again.
func supervised(t *testing.T) {
	t.Helper()
	path := socketDir(t) + "/notify"
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // what nobody reads blocks who writes
		defer close(done)
		_, _ = io.Copy(io.Discard, c)
	}()
	t.Cleanup(func() { c.Close(); <-done })
	t.Setenv("NOTIFY_SOCKET", path)
}
