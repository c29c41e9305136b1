package integration

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/capelin-io/capelin/integration/harness"
	"github.com/capelin-io/capelin/plugin"
)

// What an operator sees of two nodes, one of which took an image from the other.
func TestStatus(t *testing.T) {
	e := newEnv(t)
	a, b := e.node(t, "a", harness.NodeOptions{}), e.node(t, "b", harness.NodeOptions{})
	img, ref := e.image(t, "status", harness.ImageOptions{Layers: 3})
	must(t, a.PullCRI(e.ctx, ref, nil))
	must(t, b.PullCRI(e.ctx, ref, nil))
	bin := get(harness.Built("capelin"))(t)

	var st plugin.Status
	out := get(b.Command(e.ctx, nil, bin, "status", "--json", "--socket", b.AdminSocket()))(t)
	must(t, json.Unmarshal([]byte(out), &st))
	if st.Node != "b" || st.Bytes.FromPeers < img.Bytes() || st.Bytes.FromRegistry >= img.Bytes() || len(st.Peers) != 1 ||
		st.Peers[0].Node != "a" {
		t.Errorf("the status of b is %s", out)
	}
	text := get(b.Command(e.ctx, nil, bin, "status", "--socket", b.AdminSocket()))(t)
	for _, want := range []string{"b", "a", e.tracker.Listen} {
		if !strings.Contains(text, want) {
			t.Errorf("the status in words does not name %q:\n%s", want, text)
		}
	}
	for url, want := range map[string]string{
		"http://" + b.Addr + ":7403/metrics":         `capelin_agent_`,
		"http://" + b.Addr + ":7403/healthz":         "ok",
		"http://" + b.Addr + ":7403/readyz":          "ok",
		"http://" + e.tracker.Addr + ":7471/metrics": "capelin_tracker",
		"http://" + e.tracker.Addr + ":7471/readyz":  "ok",
	} {
		if got := get(b.HTTP(e.ctx, url))(t); !strings.Contains(got, want) {
			t.Errorf("%s has no %q:\n%s", url, want, got)
		}
	}
	if _, err := b.HTTP(e.ctx, "http://"+b.Addr+":7403/debug/pprof/"); err == nil {
		t.Error("the profiler is served by default")
	}
	for _, role := range []string{"agent", "trackerd"} {
		if out := get(b.Command(e.ctx, nil, bin, role, "config"))(t); !strings.Contains(out, "listen = ") {
			t.Errorf("capelin %s config printed %q", role, out)
		}
	}
}
