package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/capelin-io/capelin/internal/image"
	"github.com/capelin-io/capelin/plugin"
)

// A command line that means nothing is told from work that failed.
func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		args string
		code int
		text string
	}{
		{"imgae", 2, `unknown command "imgae" for "capelin"; did you mean image? (see "capelin --help")`},
		{"image inspct", 2, `unknown command "inspct" for "capelin image"; did you mean inspect? (see "capelin image --help")`},
		{"agent statsu", 2, `unknown command "statsu" for "capelin agent" (see "capelin agent --help")`},
		{"agent chekc", 2, `unknown command "chekc" for "capelin agent"; did you mean check? (see "capelin agent --help")`},
		{"doctor", 2, `unknown command "doctor" for "capelin"; did you mean "capelin agent doctor"? (see "capelin --help")`},
		{
			"agent status", 2,
			`unknown command "status" for "capelin agent"; did you mean "capelin index replicate status" or ` +
				`"capelin status"? (see "capelin agent --help")`,
		},
		{"check", 2, `unknown command "check" for "capelin"; did you mean "capelin agent check" or "capelin gateway check" or `},
		{"decode-zstd", 2, `unknown command "decode-zstd" for "capelin" (see "capelin --help")`},
		{"agent check a b", 2, `accepts at most 1 arg(s), received 2 (see "capelin agent check --help")`},
		{"agent check a --config b", 2, `either FILE or --config (see "capelin agent check --help")`},
		{"status --frob", 2, `unknown flag: --frob (see "capelin status --help")`},
		{"image pull", 2, `accepts 2 arg(s), received 0 (see "capelin image pull --help")`},
		{"ca issue", 2, `required flag(s) "name", "role" not set (see "capelin ca issue --help")`},
		{"agent fallback --undo --now", 2, `if any flags in the group [undo now return] are set none of the others can be; `},
		{"image", 0, ""},
		{"", 0, ""},
		{"version", 0, ""},
		{"status --socket /nobody", 1, "asking the agent on /nobody (is it running?)"},
	} {
		out, _, err := execute(t, strings.Fields(tt.args)...)
		text, code := exit(err, nil)
		if code != tt.code || !strings.HasPrefix(text, tt.text) {
			t.Errorf("capelin %s: %q, status %d; want %q, %d", tt.args, text, code, tt.text, tt.code)
		}
		if code == 0 && out == "" {
			t.Errorf("capelin %s prints nothing", tt.args)
		}
	}
	asked, _, _ := execute(t, "version")
	if flag, _, _ := execute(t, "--version"); asked != flag {
		t.Errorf("capelin version says %q, --version %q", asked, flag)
	}
}

func TestExit(t *testing.T) {
	gave := errors.New("the work failed")
	for _, tt := range []struct {
		name       string
		err, cause error
		text       string
		code       int
	}{
		{"done", nil, nil, "", 0},
		{"failed", gave, nil, "the work failed", 1},
		{"Ctrl-C", fmt.Errorf("reading 1, 2 and 3: %w", context.Canceled), ended{os.Interrupt}, "interrupted", 130},
		{"SIGTERM", gave, ended{syscall.SIGTERM}, "terminated", 143},
		{"Ctrl-C when all was done", nil, ended{os.Interrupt}, "", 0},
		{"a daemon's end", failed{gave}, ended{syscall.SIGTERM}, "the work failed", 1},
	} {
		if text, code := exit(tt.err, tt.cause); text != tt.text || code != tt.code {
			t.Errorf("%s: %q, %d", tt.name, text, code)
		}
	}
}

// The way back from the ring looks where the configuration says, and says what is not there.
func TestExportV1(t *testing.T) {
	root := t.TempDir()
	_, _, err := execute(t, "origind", "export-v1", "--set", "root="+root, root+"/records")
	if err == nil || !strings.Contains(err.Error(), root) {
		t.Errorf("what is no origin's directory was exported: %v", err)
	}
	if _, _, err := execute(t, "origind", "export-v1"); err == nil {
		t.Error("exported to nowhere")
	}
}

// Ctrl-C in a process: one line.
func TestInterrupt(t *testing.T) {
	silent, err := net.Listen("unix", socketDir(t)+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "status", "--socket", silent.Addr().String())
	cmd.Env = append(os.Environ(), "CAPELIN_TEST_MAIN=1")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	asks, err := silent.Accept() // it waits for an answer, and so for signals as well
	if err != nil {
		t.Fatal(err)
	}
	defer asks.Close()
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	said, _ := io.ReadAll(stderr)
	err = cmd.Wait()
	if string(said) != "capelin: interrupted\n" || cmd.ProcessState.ExitCode() != 130 {
		t.Errorf("%v, %q", err, said)
	}
}

// What nobody has is nothing to try again, but something to do.
func TestPreheatFailed(t *testing.T) {
	p := image.Preheated{Nodes: 2, Failed: map[string]string{"n1": "sha256:1: " + plugin.NobodyHasIt}}
	if err := preheatFailed(p, "r/a:1"); err == nil || !strings.HasPrefix(err.Error(), "1 of 2 nodes do not have all of it: ") ||
		!strings.Contains(err.Error(), "pull r/a:1 on one node first") {
		t.Error(err)
	}
	p.Failed["n1"] = "the disk is full"
	if err := preheatFailed(p, "r/a:1"); err == nil || err.Error() != "1 of 2 nodes do not have all of it" {
		t.Error(err)
	}
	if err := preheatFailed(image.Preheated{Nodes: 2}, "r/a:1"); err != nil {
		t.Error(err)
	}
}

// What --set is explained with are keys that the command has.
func TestSetExamples(t *testing.T) {
	for _, d := range daemons {
		out, _, err := execute(t, d.command, "--help")
		if err != nil {
			t.Fatal(err)
		}
		_, text, _ := strings.Cut(out, "such as ")
		text, _, _ = strings.Cut(text, "; repeat")
		args := []string{d.command, "check", "--file-only"}
		for _, e := range strings.FieldsFunc(strings.ReplaceAll(text, " or ", ", "), func(r rune) bool { return r == ',' || r == ' ' }) {
			args = append(args, "--set", strings.ReplaceAll(strings.ReplaceAll(e, "'", ""), "HOST:PORT", "a:1"))
		}
		if _, _, err := execute(t, args...); len(args) < 5 || err != nil && strings.Contains(err.Error(), "no such key") {
			t.Errorf("%s: %s: %v", d.command, text, err)
		}
	}
}

// Every daemon's check says what its start would.
func TestCheck(t *testing.T) {
	good, bad := file(t, "log_level = \"debug\"\n"), file(t, "cluster = \"\"\nlog_lvl = \"debug\"\n")
	invalid := file(t, "cluster = \"\"\nlog_level = \"loud\"\n")
	identity := file(t, "[identity]\nca = \"/none/ca\"\ncert = \"/none/cert\"\nkey = \"/none/key\"\n")
	both := file(t, "cluster = \"\"\n[identity]\nca = \"/none/ca\"\ncert = \"/none/cert\"\nkey = \"/none/key\"\n")
	commands := []string{"server"}
	for _, d := range daemons {
		commands = append(commands, d.command)
	}
	for _, c := range commands {
		out, _, err := execute(t, c, "check", "--config", good)
		if err != nil || out != fmt.Sprintf("%s: good for capelin %s\n", good, c) {
			t.Errorf("%s: %q, %v", c, out, err)
		}
		for path, want := range map[string]string{
			bad:     bad + ":2:1: log_lvl: no such key",
			invalid: invalid + `:1:1: cluster: "" has 0 bytes, not 1 to 64` + "\n" + invalid + `:2:1: log_level: "loud" is not`,
			identity: identity + ":2:1: identity.ca: /none/ca: no such file or directory\n" +
				identity + ":3:1: identity.cert: /none/cert: no such file or directory\n" +
				identity + ":4:1: identity.key: /none/key: no such file or directory",
			both:    both + ":1:1: cluster: \"\" has 0 bytes, not 1 to 64\n" + both + ":3:1: identity.ca: /none/ca: no such file or directory\n",
			"/none": "reading the configuration: open /none: no such file or directory",
		} {
			out, _, err := execute(t, c, "check", "--config", path)
			if _, code := exit(err, nil); code != 1 || out != "" || !strings.HasPrefix(fmt.Sprint(err), want) {
				t.Errorf("%s: %s: %q, status %d, %v", c, path, out, code, err)
			}
		}
		if _, _, err := execute(t, c, "check", "--config", identity, "--file-only"); err != nil {
			t.Errorf("%s, the file only: %v", c, err)
		}
		if _, _, err := execute(t, c, "check", "--config", good, "--set", "log_level=loud"); err == nil {
			t.Errorf("%s: a value of the command line is not looked at", c)
		}
		if out, _, err := execute(t, c, "check", good); err != nil || !strings.HasPrefix(out, good+": good") {
			t.Errorf("%s: a file that is named: %q, %v", c, out, err)
		}
		_, _, err = execute(t, c, "check", "--file-only", "--set", "metrics=127.0.0.1:7999", "--set", "listen=127.0.0.1:7999", good)
		if c != "server" && c != "origind" && !strings.Contains(fmt.Sprint(err), `metrics: "127.0.0.1:7999" is the port of listen`) {
			t.Errorf("%s: one port for two keys: %v", c, err)
		}
	}
}
