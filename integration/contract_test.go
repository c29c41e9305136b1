package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"

	"github.com/capelin-io/capelin/integration/harness"
)

// The order in which containerd calls its content store is documented nowhere,
// and Capelin stands on it: these are the facts of the design (section 6, 3 to 9),
// asked of every supported containerd, with a tap between it and the agent.
func TestContract(t *testing.T) {
	e := newEnv(t)
	seed := e.node(t, "seed", harness.NodeOptions{})
	img, ref := e.image(t, "contract", harness.ImageOptions{Layers: 4, LayerBytes: 2 << 20, Runnable: true})
	must(t, seed.PullCRI(e.ctx, ref, nil))

	type setup struct {
		name   string
		client client
		opts   harness.NodeOptions
		stats  int // after the opening: a client outside of containerd asks through two stores
	}
	for _, v := range versions {
		for _, s := range []setup{
			{"cri", criClient, harness.NodeOptions{}, 2},
			{"cri-local", criClient, harness.NodeOptions{LocalPull: true}, 2},
			{"client-isolated", goClient, harness.NodeOptions{SharingPolicy: "isolated"}, 4},
		} {
			t.Run(v+" "+s.name, func(t *testing.T) {
				s.opts.Containerd = v
				t.Run("swarm", func(t *testing.T) {
					n := e.tapped(t, fmt.Sprintf("s%s-%s", v, s.name), s.opts)
					must(t, s.client.pull(e.ctx, n.Node, ref, nil))
					e.noBlobs(t, n.Node, img)
					must(t, n.CheckImage(e.ctx, s.client.namespace, ref, img))
					for _, d := range img.Layers {
						se, ok := n.session(t, d)
						if !ok {
							// Delivered before it was opened: with the shared policy containerd
							// takes such a blob after a mere Info.
							if s.opts.SharingPolicy == "isolated" || !n.tap.Saw("Info", d) {
								t.Errorf("%s was neither opened nor looked up", d)
							}
							continue
						}
						// Opening without Expected; the waiting STAT, answered with everything;
						// more of them, the last in COMMIT's transaction; and COMMIT with the
						// client's own counter, which never moved.
						want := "STAT at 0 of total → 0 of total\n" +
							strings.Repeat("STAT at 0 of 0 → total of total\n", s.stats) +
							"COMMIT at 0 of total expected → total of total\n"
						if d := se.Steps[1].Took; d > time.Second {
							t.Logf("a waiting STAT took %v", d)
						}
						if got := se.String(); got != want {
							t.Errorf("the session of a layer that the swarm has went\n%s, not\n%s", got, want)
						}
						for _, st := range se.Steps[1:] {
							if st.Digest != d {
								t.Errorf("an answer about a complete blob carries the digest %q", st.Digest)
							}
						}
					}
					if s.client.namespace == harness.K8s {
						if out := get(n.Run(e.ctx, ref))(t); !strings.HasPrefix(out, "ok: ") {
							t.Errorf("the container printed %q", out)
						}
					}
				})
				t.Run("alone", func(t *testing.T) {
					s.opts.Trackers = []string{}
					n := e.tapped(t, fmt.Sprintf("a%s-%s", v, s.name), s.opts)
					must(t, s.client.pull(e.ctx, n.Node, ref, nil))
					must(t, n.CheckImage(e.ctx, s.client.namespace, ref, img))
					for _, d := range img.Layers {
						if se, ok := n.session(t, d); ok {
							contractAlone(t, se)
						} else {
							t.Errorf("%s was not opened", d)
						}
					}
				})
			})
		}
	}
}

// contractAlone checks a session in which containerd downloads all itself: its
// WRITEs count from 0 without a gap, and COMMIT says where they ended.
func contractAlone(t *testing.T, se harness.Session) {
	t.Helper()
	if len(se.Steps) < 4 {
		t.Errorf("too short a session:\n%s", &se)
		return
	}
	open, wait, writes, commit := se.Steps[0], se.Steps[1], se.Steps[2:len(se.Steps)-1], se.Steps[len(se.Steps)-1]
	if open.Action != contentapi.WriteAction_STAT || open.Total != se.Total || open.At != 0 || open.Expected != "" {
		t.Errorf("it opens with %+v", open)
	}
	if wait.Action != contentapi.WriteAction_STAT || wait.At != 0 {
		t.Errorf("the opening is followed by %+v", wait)
	}
	var at int64
	for _, w := range writes {
		if w.Action == contentapi.WriteAction_STAT {
			continue // progress
		}
		if w.Action != contentapi.WriteAction_WRITE || w.Offset != at || w.At != at+int64(w.Data) {
			t.Errorf("at %d: %+v", at, w)
		}
		at += int64(w.Data)
	}
	if at != se.Total || commit.Action != contentapi.WriteAction_COMMIT || commit.Offset != at || commit.Expected == "" ||
		commit.At != se.Total {
		t.Errorf("%d bytes of %d, then %+v", at, se.Total, commit)
	}
}

// tapped is a node whose agent stands behind a tap.
type tapped struct {
	*harness.Node
	tap *harness.Tap
}

func (e *env) tapped(t *testing.T, name string, o harness.NodeOptions) tapped {
	t.Helper()
	n := e.stopped(t, name, o)
	tap := get(n.NewTap())(t)
	must(t, n.Start(e.ctx))
	return tapped{n, tap}
}

// session returns the one session of a blob, if there was any.
func (n tapped) session(t *testing.T, d string) (harness.Session, bool) {
	t.Helper()
	s := n.tap.Sessions(d)
	if len(s) > 1 {
		t.Fatalf("%d sessions of %s: %v", len(s), d, s)
	}
	if len(s) == 0 {
		return harness.Session{}, false
	}
	return s[0], true
}

// If the swarm has only a beginning, containerd fetches the rest, and writes it
// as if it began at 0.
func TestContractPrefix(t *testing.T) {
	e := newEnv(t)
	for _, v := range versions {
		for _, local := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s local=%v", v, local), func(t *testing.T) {
				img, ref := e.image(t, "prefix", harness.ImageOptions{LayerBytes: 8 << 20, Incompress: true})
				// The source downloads in order and is lost in the middle of it.
				source := e.node(t, fmt.Sprintf("source%s-%v", v, local), harness.NodeOptions{})
				e.reg.Limit(8e6)
				lost := do(func() error { return source.PullCRI(e.ctx, ref, nil) })
				must(t, e.reg.WaitFor(e.ctx, "the download", func([]harness.Request) bool { return e.upstream(img) > 0 }))
				o := harness.NodeOptions{Containerd: v, LocalPull: local, Agent: map[string]string{"wait.stall": `"500ms"`}}
				n := e.tapped(t, fmt.Sprintf("p%s-%v", v, local), o)
				wait := do(func() error { return n.PullCRI(e.ctx, ref, nil) })
				e.poll(t, "a third of the layer", func() bool { return e.fetched(t, n.Node) > img.Sizes[0]/3 })
				must(t, e.c.SetLink(source.Host, false))
				source.KillContainerd()
				source.KillAgent()
				_ = lost()
				e.reg.Limit(0)
				must(t, wait())
				e.check(t, n.Node, ref, img)
				se, _ := n.session(t, img.Layers[0])
				i := slices.IndexFunc(se.Steps, func(s harness.Step) bool { return s.Action == contentapi.WriteAction_WRITE })
				if i < 2 || se.Steps[1].At == 0 {
					t.Fatalf("the session had no beginning from the swarm:\n%s", &se)
				}
				from := se.Steps[1].At
				if se.Steps[i].Offset != 0 {
					t.Errorf("after an answer of %d, the first WRITE says %d", from, se.Steps[i].Offset)
				}
				if c := se.Steps[len(se.Steps)-1]; c.Offset != se.Total-from || c.At != se.Total {
					t.Errorf("after an answer of %d of %d, COMMIT says %+v", from, se.Total, c)
				}
				var mine []harness.Request
				for _, r := range e.reg.Blobs(img.Layers[0]) {
					if r.Client == n.Name {
						mine = append(mine, r)
					}
				}
				if len(mine) != 1 || mine[0].From() != from || mine[0].Bytes != se.Total-from {
					t.Errorf("the registry was asked %v, not once for what is missing after %d", mine, from)
				}
			})
		}
	}
}

// fetched is how many bytes the agent took from peers and from the registry so far.
func (e *env) fetched(t *testing.T, n *harness.Node) int64 {
	t.Helper()
	s, err := n.Status(e.ctx)
	must(t, err)
	return s.Bytes.FromPeers + s.Bytes.FromRegistry
}
