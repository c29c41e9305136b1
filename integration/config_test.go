package integration

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/capelin-io/capelin/integration/harness"
)

const agentFile = "/etc/capelin/agent.toml"

// rollout is a machine whose agent gets files.
type rollout struct {
	*harness.Machine
	e    *env
	file string // that works
}

func newRollout(t *testing.T) *rollout {
	t.Helper()
	e := newEnv(t)
	m := e.machine(t, "m", harness.NodeOptions{})
	must(t, m.AwaitTrackers(e.ctx))
	r := &rollout{Machine: m, e: e}
	file, err := os.ReadFile(m.Path(agentFile))
	must(t, err)
	r.file = string(file)
	e.poll(t, "the configuration is kept", func() bool { return r.has("/var/lib/capelin/agent/agent.toml") })
	return r
}

func (r *rollout) has(path string) bool {
	_, err := os.Lstat(r.Path(path))
	return err == nil
}

// starts is how often containerd was started.
func (r *rollout) starts() int {
	return strings.Count(r.Journal("containerd.service"), "Starting containerd.service") // as systemd says
}

// store returns which content store containerd has: content is its own.
func (r *rollout) store() string {
	out, _ := r.Sh(r.e.ctx, "ctr plugins ls 2> /dev/null | awk '$1 == \"io.containerd.content.v1\" && $NF == \"ok\" { print $2 }'")
	return strings.TrimSpace(out)
}

// pulls has the machine pull an image that it does not have.
func (r *rollout) pulls(t *testing.T, name string) {
	t.Helper()
	_, ref := r.e.image(t, name, harness.ImageOptions{Layers: 2, LayerBytes: 1 << 20})
	if err := r.PullCRI(r.e.ctx, ref, nil); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

// A roll-out of files that are of no use: the agent serves on, and containerd does not notice.
func TestBadConfiguration(t *testing.T) {
	r := newRollout(t)
	starts := r.starts()
	restart := func(t *testing.T, file string) {
		t.Helper()
		must(t, r.Put(agentFile, file))
		began := time.Now()
		get(r.Systemctl(r.e.ctx, "restart", "capelin-agent"))(t)
		must(t, r.AwaitAgent(r.e.ctx))
		t.Logf("serves after %v", time.Since(began).Round(time.Millisecond))
	}
	for _, tt := range []struct {
		name, file string
		alone      bool
	}{
		{"a typo", "nonsense = 1\n" + r.file, false},
		{"no toml", "{{ .Values.agent }}\n" + r.file, true},
		{"authorize has changed", "nonsense = 1\nauthorize = \"blob\"\n" + strings.ReplaceAll(r.file, "authorize = ", "#"), true},
		{"does not come up", strings.ReplaceAll(r.file, "socket = \"/run/capelin/content.sock\"", "socket = \"/run/capelin/other.sock\""), false},
	} {
		t.Run(strings.ReplaceAll(tt.name, " ", "-"), func(t *testing.T) {
			if tt.name == "does not come up" { // systemctl says so of the first start
				must(t, r.Put(agentFile, tt.file))
				_, _ = r.Systemctl(r.e.ctx, "restart", "capelin-agent")
				must(t, r.AwaitAgent(r.e.ctx))
			} else {
				restart(t, tt.file)
			}
			st := get(r.Status(r.e.ctx))(t)
			if len(st.Configuration.Refused) == 0 || (st.Configuration.RegistryOnly != "") != tt.alone {
				t.Errorf("status: %+v", st.Configuration)
			}
			if !tt.alone {
				must(t, r.AwaitTrackers(r.e.ctx))
			}
			r.pulls(t, "bad-"+strings.ReplaceAll(tt.name, " ", "-"))
			// It is mended, and nobody restarts anything.
			must(t, r.Put(agentFile, "# good again, after: "+tt.name+"\n"+r.file))
			r.e.poll(t, "the good file is used", func() bool {
				st, err := r.Status(r.e.ctx)
				return err == nil && len(st.Configuration.Refused) == 0 && st.Configuration.RegistryOnly == "" && len(st.Obstacles) == 0
			})
			must(t, r.AwaitTrackers(r.e.ctx))
		})
	}
	t.Run("a-port-is-taken", func(t *testing.T) {
		get(r.Sh(r.e.ctx, "systemd-run --quiet --unit=taker systemd-socket-activate --listen=17401 /bin/true"))(t)
		restart(t, strings.Replace(r.file, "\nlisten = \"", "\nlisten = \":17401\" # \"", 1))
		r.e.poll(t, "the obstacle is seen", func() bool {
			st, err := r.Status(r.e.ctx)
			return err == nil && len(st.Obstacles) == 1 && st.Obstacles[0].Key == "listen"
		})
		r.pulls(t, "taken")
		get(r.Systemctl(r.e.ctx, "stop", "taker"))(t)
		must(t, r.AwaitTrackers(r.e.ctx))
	})
	if n := r.starts(); n != starts || r.store() != "capelin" {
		t.Errorf("containerd was started %d times, and has the store %q", n-starts, r.store())
	}
	if out := r.Journal("capelin-agent-fallback.service"); strings.Contains(out, "FALLBACK") {
		t.Errorf("the node fell back:\n%s", out)
	}
}

// An agent that cannot run at all: the node goes back to containerd's own store and says
// why, comes back when the cause is gone, and containerd is restarted twice for it.
func TestFallbackAndReturn(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(*rollout) error
		mend  func(*rollout) error
		why   string
	}{
		{
			name:  "no file that works",
			spoil: breakFile,
			mend:  func(r *rollout) error { return r.Put(agentFile, r.file) },
			why:   "nonsense: no such key",
		},
		{
			name: "no program",
			spoil: func(r *rollout) error {
				return os.Rename(r.Path(harness.MachineCapelin), r.Path(harness.MachineCapelin+".away"))
			},
			mend: func(r *rollout) error {
				return os.Rename(r.Path(harness.MachineCapelin+".away"), r.Path(harness.MachineCapelin))
			},
			why: "capelin itself did not run",
		},
	} {
		t.Run(strings.ReplaceAll(tt.name, " ", "-"), func(t *testing.T) {
			r := newRollout(t)
			starts := r.starts()
			must(t, tt.spoil(r))
			began := time.Now()
			get(r.Systemctl(r.e.ctx, "kill", "--signal=KILL", "capelin-agent"))(t)
			r.e.poll(t, "the node falls back", func() bool { return r.has("/var/lib/capelin/fallback") && r.store() == "content" })
			t.Logf("fell back after %v", time.Since(began).Round(time.Second))
			r.e.poll(t, "somebody looks whether the agent works again", func() bool {
				p, err := r.Show(r.e.ctx, "capelin-agent-return.service", "ActiveState")
				return err == nil && (p["ActiveState"] == "active" || p["ActiveState"] == "activating")
			})
			if p := get(r.Show(r.e.ctx, "capelin-agent.socket", "ActiveState"))(t); p["ActiveState"] == "failed" {
				t.Errorf("the sockets are among the units that failed")
			}
			marker, err := os.ReadFile(r.Path("/var/lib/capelin/fallback"))
			must(t, err)
			if !strings.Contains(string(marker), tt.why) {
				t.Errorf("it fell back %s", marker)
			}
			r.pulls(t, "fallen")
			must(t, tt.mend(r))
			began = time.Now()
			r.e.poll(t, "the node comes back", func() bool { return !r.has("/var/lib/capelin/fallback") && r.store() == "capelin" })
			t.Logf("came back after %v", time.Since(began).Round(time.Second))
			must(t, r.AwaitTrackers(r.e.ctx))
			r.pulls(t, "back")
			if n := r.starts(); n != starts+2 {
				t.Errorf("containerd was started %d times", n-starts)
			}
		})
	}
}

// What a person does by hand: falling back stays until it is undone, and uninstalling leaves
// containerd with its own store.
func TestFallbackByHand(t *testing.T) {
	r := newRollout(t)
	capelin := func(args ...string) {
		t.Helper()
		if out, err := r.Command(r.e.ctx, nil, harness.MachineCapelin, append([]string{"agent"}, args...)...); err != nil {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
	capelin("fallback", "--now")
	if store := r.store(); store != "content" {
		t.Errorf("after --now the store is %q", store)
	}
	_, _ = r.Systemctl(r.e.ctx, "start", "capelin-agent.service", "capelin-agent-return.service")
	for _, unit := range []string{"capelin-agent.service", "capelin-agent-return.service"} {
		r.e.poll(t, unit+" ends, as the fallback was asked for", func() bool { // the latter once it has read that
			return get(r.Show(r.e.ctx, unit, "ActiveState"))(t)["ActiveState"] == "inactive"
		})
	}
	r.pulls(t, "by-hand")
	capelin("fallback", "--undo")
	if store := r.store(); store != "capelin" || r.has("/var/lib/capelin/fallback") {
		t.Errorf("after --undo the store is %q", store)
	}
	r.pulls(t, "undone")
	capelin("uninstall", "--restart-containerd")
	left := get(r.Sh(r.e.ctx, "find /etc/systemd/system /etc/containerd /etc/capelin /var/lib/capelin "+
		"-name '*capelin*' ! -type d 2> /dev/null; true"))(t)
	if store := r.store(); store != "content" || strings.TrimSpace(left) != "" {
		t.Errorf("uninstalled, the store is %q, and there are %s", store, left)
	}
}

func breakFile(r *rollout) error {
	if err := os.RemoveAll(r.Path("/var/lib/capelin/agent")); err != nil {
		return err
	}
	return r.Put(agentFile, "nonsense = 1\n"+r.file)
}
