package install

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capelin-io/capelin/plugin"
)

const drop = "/etc/containerd/conf.d/capelin.toml"

// systemd answers with a state, and fails at the given command.
func systemd(active, sub, result string, failing string) func(string) (string, error) {
	return func(cmd string) (string, error) {
		if failing != "" && strings.HasPrefix(cmd, "systemctl "+failing) {
			return "", errors.New("it failed")
		}
		if strings.HasPrefix(cmd, "systemctl show") {
			return fmt.Sprintf("LoadState=loaded\nActiveState=%s\nSubState=%s\nResult=%s\nNRestarts=10\n", active, sub, result), nil
		}
		if strings.HasPrefix(cmd, "journalctl _SYSTEMD_UNIT=capelin-agent.service ") {
			return "time=now level=info msg=\"agent is starting\"\ncapelin: agent: no such thing\n\n", nil
		}
		return "", nil
	}
}

func quiet(string, ...any) {}

// stopped is what ends the agent.
const stopped = "stop capelin-agent.socket capelin-agent.service|reset-failed capelin-agent.socket"

func TestFallback(t *testing.T) {
	const back = "restart containerd.service|" + stopped
	const returns = "|start capelin-agent-return.service"
	for _, tt := range []struct {
		name                string
		active, sub, result string
		now                 bool
		files               map[string]string // besides an installation
		without             string            // a file that is missing
		failing             string
		ran                 string
		fell                bool // the drop-in was moved
		marker              string
		err                 string
	}{
		{name: "gave up", active: "failed", sub: "failed", result: "exit-code", ran: back + returns, fell: true,
			marker: "the agent failed 10 times (exit-code): agent: no such thing"},
		{name: "gave up, had come back just now", active: "failed", sub: "failed", result: "exit-code", ran: back, fell: true,
			files: map[string]string{returnedPath: time.Now().UTC().Format(time.RFC3339) + "\n"}, marker: stays},
		{name: "gave up, had come back long ago", active: "failed", sub: "failed", result: "exit-code", ran: back + returns, fell: true,
			files: map[string]string{returnedPath: "2025-01-01T00:00:00Z\n"}, marker: "(exit-code): agent: no such thing"},
		{name: "gave up, and nobody looks whether it works again", active: "failed", sub: "failed", result: "exit-code", ran: back + returns,
			fell: true, failing: "start capelin-agent-return", marker: "the agent failed 10 times"},
		{name: "still tried", active: "activating", sub: "auto-restart", result: "exit-code"},
		{name: "between two attempts, of newer systemd", active: "failed", sub: "failed-before-auto-restart", result: "exit-code"},
		{name: "runs", active: "active", sub: "running", result: "success"},
		{name: "runs, and now", active: "active", sub: "running", result: "success", now: true, ran: back, fell: true,
			marker: "it was asked for\n" + stays},
		{
			name: "somebody restarted it too often", active: "failed", sub: "failed", result: "start-limit-hit",
			ran: "reset-failed capelin-agent.service capelin-agent.socket|start capelin-agent.socket capelin-agent.service",
		},
		{name: "again", active: "failed", sub: "failed", result: "exit-code", files: map[string]string{MarkerPath: "since then\n"},
			marker: "since then"},
		{
			name: "interrupted before containerd was restarted", active: "inactive", sub: "dead", result: "exit-code",
			files: map[string]string{MarkerPath: "since then\n" + restarting + "\n"}, ran: back + returns, fell: true, marker: "since then",
		},
		{
			name: "containerd does not restart", active: "failed", sub: "failed", result: "exit-code", failing: "restart containerd",
			ran: "restart containerd.service", fell: true, marker: restarting, err: "not back on its own content store yet",
		},
		{name: "not installed", active: "failed", sub: "failed", result: "exit-code", without: drop, err: "is Capelin installed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := modern(t)
			mustInstall(t, h, Options{})
			for path, text := range tt.files {
				h.put(t, path, text)
			}
			if tt.without != "" {
				if err := remove(h, tt.without); err != nil {
					t.Fatal(err)
				}
			}
			h.run = systemd(tt.active, tt.sub, tt.result, tt.failing)
			err := Fallback(t.Context(), h, tt.now, quiet)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			if got := strings.Join(h.ran, "|"); got != tt.ran {
				t.Errorf("ran %s", got)
			}
			if fell := !exists(h, drop) && exists(h, drop+disabledSuffix); fell != tt.fell {
				t.Errorf("fell: %v", fell)
			}
			if m := Marker(h); !strings.Contains(m, tt.marker) || m != "" && tt.marker == "" || tt.err == "" && strings.Contains(m, restarting) {
				t.Errorf("marker %q", m)
			}
		})
	}
}

// Whatever happens in an undo, the node ends in one of two states: fallen with
// its marker, or with the drop-in.
func TestUndo(t *testing.T) {
	const try = "reset-failed capelin-agent.service capelin-agent.socket|start capelin-agent.socket capelin-agent.service"
	for _, tt := range []struct {
		name    string
		failing string
		healthy error
		undone  bool
		ran     string
		old     bool // units of an earlier version
	}{
		{name: "works, with units of an earlier version", undone: true, old: true,
			ran: try + "|restart capelin-agent.service containerd.service"},
		{name: "does not start, with units of an earlier version", failing: "start capelin-agent.socket",
			ran: try + "|" + stopped, old: true},
		{name: "works", undone: true, ran: try + "|restart capelin-agent.service containerd.service"},
		{name: "does not start", failing: "start capelin-agent.socket", ran: try + "|" + stopped},
		{name: "does not answer", healthy: errors.New("not serving"), ran: try + "|" + stopped},
		{name: "containerd does not restart", failing: "restart", undone: true, ran: try + "|restart capelin-agent.service containerd.service"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := modern(t)
			mustInstall(t, h, Options{})
			h.run = systemd("failed", "failed", "exit-code", "")
			if err := Fallback(t.Context(), h, false, quiet); err != nil {
				t.Fatal(err)
			}
			was := Marker(h)
			if tt.old {
				h.put(t, UnitDir+"/"+agentUnit, "[Unit]\nConditionPathExists=!"+MarkerPath+"\n")
			}
			h.ran, h.run = nil, systemd("failed", "failed", "exit-code", tt.failing)
			cfg := plugin.DefaultConfig()
			h.healthy = map[string]error{cfg.Socket: tt.healthy}
			err := Undo(t.Context(), h, cfg, 10*time.Millisecond, quiet)
			if (err == nil) != (tt.undone && tt.failing == "") {
				t.Errorf("error %v", err)
			}
			if got := strings.Join(h.ran, "|"); got != tt.ran {
				t.Errorf("ran %s", got)
			}
			if undone := exists(h, drop) && !exists(h, drop+disabledSuffix) && Marker(h) == ""; undone != tt.undone {
				t.Errorf("undone: %v", undone)
			}
			if exists(h, trialPath) {
				t.Error("the trial has no end")
			}
			if fallen := !exists(h, drop) && exists(h, drop+disabledSuffix) && Marker(h) == was; fallen == tt.undone {
				t.Errorf("fallen: %v", fallen)
			}
		})
	}
	if err := Undo(t.Context(), modern(t), plugin.DefaultConfig(), time.Millisecond, quiet); err == nil {
		t.Error("undone what was not done")
	}
}

// An installation on a fallen node renews everything and leaves it fallen.
func TestInstallFallen(t *testing.T) {
	h := modern(t)
	mustInstall(t, h, Options{})
	h.run = systemd("failed", "failed", "exit-code", "")
	if err := Fallback(t.Context(), h, false, quiet); err != nil {
		t.Fatal(err)
	}
	p := mustInstall(t, h, Options{})
	if exists(h, drop) || !exists(h, drop+disabledSuffix) || p.Changed() ||
		!slices.Contains(p.NextSteps(h, true, false), "capelin agent fallback --undo") {
		t.Errorf("the drop-in is back, or something changed: %v", tree(t, h))
	}
	// Uninstalling removes the drop-in where it is, and the marker.
	r, err := NewRemoval(h, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Apply(t.Context(), h, false); err != nil {
		t.Fatal(err)
	}
	got := tree(t, h)
	delete(got, lockPath) // in memory
	if len(got) != 2 {
		t.Errorf("left behind: %v", got)
	}
}
