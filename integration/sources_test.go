package integration

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/capelin-io/capelin/integration/harness"
)

// A source is who delivers: a seeder that is listed and that nobody reaches, or that says
// nothing, keeps nobody waiting until bytes are missed for 5 s, and does not send everybody to
// the registry. The next image finds it remembered.
func TestSourcesFail(t *testing.T) {
	freezes := func(_ context.Context, s *harness.Node) error { return s.SignalAgent(syscall.SIGSTOP) }
	losesLarge := func(ctx context.Context, s *harness.Node) error {
		return s.IPTables(ctx, "OUTPUT", "-p", "tcp", "--sport", "7401", "-m", "length", "--length", "1000:", "-j", "DROP")
	}
	for _, tt := range []struct {
		name   string
		env    func(*testing.T) *env
		breaks func(ctx context.Context, seeder *harness.Node) error
		log    string // of who pulls
		reason string
	}{
		{"refuses", newEnv, func(ctx context.Context, s *harness.Node) error {
			return s.IPTables(ctx, "INPUT", "-p", "tcp", "--dport", "7401", "-j", "REJECT", "--reject-with", "tcp-reset")
		}, "cannot reach seeder at %s:7401: connection refused", "refused"},
		{"drops", newEnv, func(ctx context.Context, s *harness.Node) error {
			return s.IPTables(ctx, "INPUT", "-p", "tcp", "--dport", "7401", "-j", "DROP")
		}, "cannot reach seeder at %s:7401: no answer", "timeout"},
		{"loses large packets", newEnv, losesLarge, "seeder at %s:7401 brings nothing: connected, and no answer", "silent"},
		// Its kernel connects, and the handshake never ends.
		{"never answers", newEnv, freezes, "cannot reach seeder at %s:7401: no answer", "timeout"},
		{"never answers, TLS", newSecureEnv, freezes, "cannot reach seeder at %s:7401: no answer", "timeout"},
		// Certificates are larger than that.
		{"loses large packets, TLS", newSecureEnv, losesLarge, "cannot reach seeder at %s:7401: no answer", "timeout"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := tt.env(t)
			var imgs []*harness.Image
			var refs []string
			seeder := e.node(t, "seeder", harness.NodeOptions{})
			for i := range 2 {
				img, ref := e.image(t, fmt.Sprint("image", i), harness.ImageOptions{Layers: 2, LayerBytes: 4 << 20})
				must(t, seeder.PullCRI(e.ctx, ref, nil))
				must(t, e.tracker.AwaitHolder(e.ctx, "seeder", img))
				imgs, refs = append(imgs, img), append(refs, ref)
			}
			must(t, tt.breaks(e.ctx, seeder))
			e.reg.Reset()
			var nodes []*harness.Node
			for i := range 3 {
				nodes = append(nodes, e.node(t, fmt.Sprintf("n%d", i), harness.NodeOptions{}))
			}
			for i, img := range imgs {
				var wait []func() error
				for _, n := range nodes {
					wait = append(wait, do(func() error { return n.PullCRI(e.ctx, refs[i], nil) }))
				}
				for k, w := range wait {
					must(t, w())
					e.check(t, nodes[k], refs[i], img)
				}
				e.once(t, img)
			}
			want, said := fmt.Sprintf(tt.log, seeder.Addr), 0
			for _, n := range nodes {
				log := n.Agent().Tail(10_000)
				if k := strings.Count(log, fmt.Sprintf("level=warning msg=%q", want)); k > 1 {
					t.Errorf("%s: «%s» is logged %d times", n.Name, want, k)
				} else if said += k; k == 0 {
					continue
				}
				text := get(n.HTTP(e.ctx, "http://"+n.Addr+":7403/metrics"))(t)
				if strings.Contains(text, fmt.Sprintf("capelin_agent_peers_failed_total{reason=%q} 0\n", tt.reason)) {
					t.Errorf("%s: nothing failed because of %s", n.Name, tt.reason)
				}
				if strings.Contains(text, `capelin_agent_sessions_total{outcome="stalled"}`) &&
					!strings.Contains(text, `capelin_agent_sessions_total{outcome="stalled"} 0`+"\n") {
					t.Errorf("%s: a session waited until nothing had come for 5 s", n.Name)
				}
			}
			if said == 0 {
				t.Errorf("nobody says «%s»", want)
			}
		})
	}
}

// A seeder that runs beside its tracker, and knows that as localhost, is found by others.
func TestSeederBesideTracker(t *testing.T) {
	e := newEnv(t)
	img, ref := e.image(t, "beside", harness.ImageOptions{Layers: 2, LayerBytes: 4 << 20})
	h := get(e.c.NewHost("both"))(t)
	tracker := get(harness.NewTrackerOn(e.ctx, h, map[string]string{"listen": quote(":7470")}))(t)
	_ = tracker
	seeder := get(e.c.NewNodeOn(h, "both", harness.NodeOptions{
		Registries: []string{e.reg.Addr}, Trackers: []string{"localhost:7470"}, Agent: map[string]string{"listen": quote(":7401")},
	}))(t)
	must(t, seeder.Start(e.ctx))
	must(t, seeder.PullCRI(e.ctx, ref, nil))
	must(t, tracker.AwaitHolder(e.ctx, "both", img))
	n := e.node(t, "other", harness.NodeOptions{Trackers: []string{h.Addr + ":7470"}})
	must(t, n.PullCRI(e.ctx, ref, nil))
	e.check(t, n, ref, img)
	e.noBlobs(t, n, img)
}
