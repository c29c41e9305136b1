package install

import (
	"strings"
	"testing"
	"time"

	"github.com/capelin-io/capelin/internal/durable/disktest"
	"github.com/capelin-io/capelin/plugin"
)

// The power goes after each operation of an installation, a fallback and its undoing.
// What was done stays, and never is there a drop-in beside the marker that keeps the
// agent from being started: it would stop containerd.
func TestPowerCut(t *testing.T) {
	h := modern(t)
	d := disktest.Watch(t, h.root)
	mustInstall(t, h, Options{})
	d.Say("node", "installed")
	h.run = systemd("failed", "failed", "exit-code", "")
	d.Say("node", "")
	if err := Fallback(t.Context(), h, false, quiet); err != nil {
		t.Fatal(err)
	}
	d.Say("node", "fallen")
	cfg := plugin.DefaultConfig()
	h.healthy = map[string]error{cfg.Socket: nil}
	d.Say("node", "")
	if err := Undo(t.Context(), h, cfg, 10*time.Millisecond, quiet); err != nil {
		t.Fatal(err)
	}
	d.Say("node", "installed")
	d.Cuts([]disktest.Survival{disktest.Nothing, disktest.Names, disktest.Anything(1), disktest.Anything(2)},
		func(t testing.TB, dir string, said map[string]string) {
			h := &fakeHost{root: dir}
			up, marker := exists(h, drop), Marker(h)
			if up && marker != "" {
				t.Errorf("a drop-in beside the marker %q", marker)
			}
			if !up && said["node"] == "installed" {
				t.Error("the drop-in is gone")
			}
			fallen := !up && exists(h, drop+disabledSuffix) && marker != "" && !strings.Contains(marker, restarting)
			if !fallen && said["node"] == "fallen" {
				t.Errorf("not fallen any more: marker %q", marker)
			}
			if said["node"] != "" {
				r, err := installed(h)
				if err != nil || r.DropIn != drop || len(r.Files) == 0 {
					t.Errorf("the receipt is %+v, %v", r, err)
					return
				}
			}
		})
}
