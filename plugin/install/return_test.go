package install

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capelin-io/capelin/plugin"
)

// A node that fell back comes back when the agent works again: at once when one of its files
// changes, and else when it is tried again. containerd is restarted once for it. After that
// another fallback stays.
func TestReturn(t *testing.T) {
	const cert = "/etc/capelin/pki/tls.crt"
	for _, tt := range []struct {
		name   string
		mended func(h *fakeHost, at time.Duration) bool // whether the agent works, that long after the fallback
		change time.Duration                            // when a file changes; 0: never
		crash  bool                                     // it answers, and is started anew all the time
		min    time.Duration                            // when the node is back
		max    time.Duration                            // 0: never, within two hours
		tries  int                                      // at most
	}{
		{name: "works at once", mended: func(*fakeHost, time.Duration) bool { return true }, max: 20 * time.Second, tries: 1},
		{name: "a file is mended", mended: func(_ *fakeHost, at time.Duration) bool { return at >= 30*time.Minute }, change: 30 * time.Minute,
			min: 30 * time.Minute, max: 30*time.Minute + 20*time.Second, tries: 12},
		{name: "something else is mended", mended: func(_ *fakeHost, at time.Duration) bool { return at >= 30*time.Minute },
			min: 30 * time.Minute, max: 41 * time.Minute, tries: 12},
		{name: "never works", mended: func(*fakeHost, time.Duration) bool { return false }, tries: 25},
		{name: "crashes when it works", mended: func(*fakeHost, time.Duration) bool { return true }, crash: true, tries: 25},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := modern(t)
			mustInstall(t, h, Options{})
			h.put(t, cert, "old")
			cfg := plugin.DefaultConfig()
			synctest.Test(t, func(t *testing.T) {
				h.run = systemd("failed", "failed", "exit-code", "")
				if err := Fallback(t.Context(), h, false, quiet); err != nil {
					t.Fatal(err)
				}
				began, pid := time.Now(), 0
				h.ran, h.healthy = nil, map[string]error{cfg.Socket: nil}
				h.run = func(cmd string) (string, error) {
					switch {
					case strings.HasPrefix(cmd, "systemctl start capelin-agent.socket") && !tt.mended(h, time.Since(began)):
						return "", errors.New("the job failed")
					case strings.HasPrefix(cmd, "systemctl start capelin-agent.socket") && !exists(h, trialPath),
						strings.HasPrefix(cmd, "systemctl restart") && exists(h, MarkerPath):
						t.Errorf("%s: the units' conditions are not met", cmd)
					case strings.HasPrefix(cmd, "systemctl show"):
						if tt.crash {
							pid++
						}
						return fmt.Sprintf("MainPID=%d\n", pid), nil
					}
					return "", nil
				}
				if tt.change > 0 {
					time.AfterFunc(tt.change, func() { h.put(t, cert, "another") })
				}
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
				defer cancel()
				err := Return(ctx, h, func() (plugin.Config, []string) { return cfg, []string{cert} }, DefaultPatience(), quiet)
				took, ran := time.Since(began), strings.Join(h.ran, "|")
				back := tt.max > 0
				if (err == nil) != back || back && (took < tt.min || took > tt.max) {
					t.Errorf("%v after %v", err, took)
				}
				if n := strings.Count(ran, "restart capelin-agent.service containerd.service"); back && n != 1 || !back && n != 0 ||
					strings.Count(ran, "containerd.service") != n {
					t.Errorf("containerd is restarted %d times: %s", n, ran)
				}
				if n := strings.Count(ran, "|start capelin-agent.socket"); n < 1 || n > tt.tries {
					t.Errorf("tried %d times", n)
				}
				if is := exists(h, drop) && Marker(h) == "" && !exists(h, trialPath); is != back {
					t.Errorf("back: %t, marker %q", is, Marker(h))
				}
				if !back {
					if !strings.HasSuffix(ran, stopped) || exists(h, trialPath) {
						t.Errorf("the agent runs on: %s", ran)
					}
					return
				}
				// Once more, and now it stays.
				h.run = systemd("failed", "failed", "exit-code", "")
				if err := Fallback(t.Context(), h, false, quiet); err != nil {
					t.Fatal(err)
				}
				h.ran = nil
				if err := Return(t.Context(), h, func() (plugin.Config, []string) { return cfg, nil }, DefaultPatience(), quiet); err != nil ||
					len(h.ran) > 0 || Marker(h) == "" {
					t.Errorf("%v, ran %v", err, h.ran)
				}
			})
		})
	}
}

// Two do not fall and come back at the same time.
func TestFallbackAlone(t *testing.T) {
	h := modern(t)
	mustInstall(t, h, Options{})
	unlock, err := lock(h)
	if err != nil {
		t.Fatal(err)
	}
	if err := Fallback(t.Context(), h, true, quiet); err == nil || !strings.Contains(err.Error(), "somebody else is falling back") {
		t.Error(err)
	}
	unlock()
	h.run = systemd("active", "running", "success", "")
	if err := Fallback(t.Context(), h, true, quiet); err != nil {
		t.Error(err)
	}
}

// What the agent said last is why it failed.
func TestLastWords(t *testing.T) {
	for _, tt := range []struct{ journal, kept, want string }{
		{"time=1 msg=a\ncapelin: agent: no room\n", "", ": agent: no room"},
		{"a\npanic: runtime error: index out of range\n\ngoroutine 1 [running]:\nmain.main()\n\t/x/main.go:7 +0x1d\nexit status 2\n", "",
			": panic: runtime error: index out of range"},
		{"panic: before\ngoroutine 1\ncapelin: agent: today's\n", "", ": agent: today's"},
		{"", `{"error":"agent: as it remembers\nmore"}`, ": agent: as it remembers"},
		{"", "", ""},
		{strings.Repeat("ä", 1000) + "\n", "", ": " + strings.Repeat("ä", 250) + " …"},
	} {
		h := modern(t)
		h.run = func(string) (string, error) { return tt.journal, nil }
		if tt.kept != "" {
			h.put(t, keptState.Files()[1], tt.kept)
		}
		if got := lastWords(t.Context(), h); got != tt.want {
			t.Errorf("%q: %q", tt.journal, got)
		}
	}
}
