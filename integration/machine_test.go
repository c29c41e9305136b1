package integration

import (
	"testing"

	"github.com/capelin-io/capelin/integration/harness"
)

// A machine with systemd as its PID 1, on which the agent is installed as an operator does
// it, pulls and runs a container.
func TestMachine(t *testing.T) {
	e := newEnv(t)
	img, ref := e.image(t, "machine", harness.ImageOptions{Layers: 2, LayerBytes: 1 << 20, Runnable: true})
	m := e.machine(t, "m", harness.NodeOptions{})
	must(t, m.AwaitTrackers(e.ctx))
	must(t, m.PullCRI(e.ctx, ref, nil))
	e.check(t, m.Node, ref, img)
	if out, err := m.Run(e.ctx, ref, "hello", "there"); err != nil || out != "there" {
		t.Errorf("a container said %q, %v", out, err)
	}
	for _, unit := range []string{"capelin-agent.service", "capelin-agent.socket", "containerd.service"} {
		if p := get(m.Show(e.ctx, unit, "ActiveState", "NRestarts"))(t); p["ActiveState"] != "active" {
			t.Errorf("%s: %v\n%s", unit, p, m.Journal(unit))
		}
	}
	if failed := get(m.Systemctl(e.ctx, "list-units", "--failed", "--no-legend"))(t); failed != "" {
		t.Errorf("units have failed:\n%s", failed)
	}
}
