package integration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/capelin-io/capelin/integration/harness"
)

// slow is an image whose download takes a while, in few large blobs.
func (e *env) slow(t *testing.T, repo string, mb int) (*harness.Image, string) {
	t.Helper()
	return e.image(t, repo, harness.ImageOptions{Layers: 2, LayerBytes: int64(mb) << 19, Files: 8, Incompress: true})
}

// halfway waits until a node has a part of an image, from wherever.
func (e *env) halfway(t *testing.T, n *harness.Node, img *harness.Image) {
	t.Helper()
	before := e.fetched(t, n)
	e.poll(t, "half of a pull", func() bool { return e.fetched(t, n)-before > img.Bytes()/3 })
}

// What nobody has is downloaded by containerd itself: on a machine of its own at most
// 200 ms later.
func TestNobodyHasIt(t *testing.T) {
	e := newEnv(t)
	for _, tt := range []struct {
		name    string
		prepare func(n *harness.Node)
		opts    harness.NodeOptions
	}{
		{name: "alone in the cluster"},
		{name: "no tracker configured", opts: harness.NodeOptions{Trackers: []string{}}},
		{name: "tracker refuses", opts: harness.NodeOptions{Trackers: []string{"198.18.0.1:9"}}},
		{name: "tracker is silent", opts: harness.NodeOptions{Trackers: []string{"198.18.0.250:7470"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			img, ref := e.image(t, "nobody", harness.ImageOptions{Layers: 3})
			n := e.tapped(t, strings.ReplaceAll(tt.name, " ", "-"), tt.opts)
			must(t, n.PullCRI(e.ctx, ref, nil))
			e.check(t, n.Node, ref, img)
			e.once(t, img)
			var worst time.Duration
			for _, d := range append([]string{img.Config}, img.Layers...) {
				se, ok := n.session(t, d)
				if !ok {
					t.Fatalf("%s was not opened", d)
				}
				worst = max(worst, se.Steps[1].Took)
			}
			t.Logf("the longest waiting STAT took %v", worst) // not judged: the machine may be busy
		})
	}
}

// The tracker goes away: pulls end well, and it is full again when it is back.
func TestTrackerAway(t *testing.T) {
	e := newEnv(t)
	a, b := e.node(t, "a", harness.NodeOptions{}), e.node(t, "b", harness.NodeOptions{})
	t.Run("in mid-pull", func(t *testing.T) {
		img, ref := e.slow(t, "away/mid", 24)
		e.reg.Limit(8e6)
		wa := do(func() error { return a.PullCRI(e.ctx, ref, nil) })
		wb := do(func() error { return b.PullCRI(e.ctx, ref, nil) })
		must(t, e.reg.WaitFor(e.ctx, "a third", func([]harness.Request) bool { return e.upstream(img) > img.Bytes()/3 }))
		e.tracker.Kill()
		must(t, errors.Join(wa(), wb()))
		e.reg.Limit(0)
		e.check(t, a, ref, img)
		e.check(t, b, ref, img)
	})
	t.Run("before a pull", func(t *testing.T) {
		img, ref := e.image(t, "away/before", harness.ImageOptions{Layers: 3})
		must(t, errors.Join(a.PullCRI(e.ctx, ref, nil), b.PullCRI(e.ctx, ref, nil)))
		e.check(t, b, ref, img)
	})
	t.Run("back", func(t *testing.T) {
		img, ref := e.image(t, "away/back", harness.ImageOptions{Layers: 3})
		must(t, a.PullCRI(e.ctx, ref, nil)) // announced when there is a tracker again
		must(t, e.tracker.Start(e.ctx))
		e.poll(t, "agents reconnected", func() bool { return e.connected(t, a) && e.connected(t, b) })
		must(t, b.PullCRI(e.ctx, ref, nil))
		e.noBlobs(t, b, img)
	})
}

// A tracker that hangs takes connections and says nothing. It is found out within the first pull, and
// costs the next ones nothing; when it goes on it is asked again.
func TestTrackerHangs(t *testing.T) {
	e := newEnv(t)
	n := e.node(t, "n", harness.NodeOptions{})
	pull := func(what string) (img *harness.Image, ref string) {
		img, ref = e.image(t, what, harness.ImageOptions{Layers: 2, LayerBytes: 4 << 20})
		began := time.Now()
		must(t, n.PullCRI(e.ctx, ref, nil))
		t.Logf("%s: a pull of %.2f s", what, time.Since(began).Seconds())
		e.check(t, n, ref, img)
		return img, ref
	}
	pull("before")
	must(t, e.tracker.Signal(syscall.SIGSTOP))
	pull("hangs")
	pull("still")
	if s := get(n.Status(e.ctx))(t); len(s.Trackers) != 1 || !strings.Contains(s.Trackers[0].Error, "no answer") {
		t.Errorf("the status of a tracker that hangs: %+v", s.Trackers)
	}
	if log := n.Agent().Tail(10_000); strings.Count(log, "tracker is silent") != 1 {
		t.Errorf("the log does not say once that the tracker is silent")
	}
	must(t, e.tracker.Signal(syscall.SIGCONT))
	e.poll(t, "the tracker is asked again", func() bool {
		s := get(n.Status(e.ctx))(t)
		return s.Trackers[0].Connected && s.Trackers[0].Error == ""
	})
	img, _ := pull("after")
	must(t, e.tracker.AwaitHolder(e.ctx, "n", img))
}

func (e *env) connected(t *testing.T, n *harness.Node) bool {
	s, err := n.Status(e.ctx)
	must(t, err)
	for _, tr := range s.Trackers {
		if !tr.Connected {
			return false
		}
	}
	return true
}

// All peers go away in the middle of a pull: containerd goes on from what was verified.
func TestPeersAway(t *testing.T) {
	e := newEnv(t)
	img, ref := e.slow(t, "peers", 24)
	for _, tt := range []struct {
		name string
		away func(n *harness.Node) error
	}{
		{"killed", func(n *harness.Node) error { n.KillAgent(); return nil }},
		{"frozen", func(n *harness.Node) error { return n.SignalAgent(syscall.SIGSTOP) }},
		{"unplugged", func(n *harness.Node) error { return e.c.SetLink(n.Host, false) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := e.node(t, "a-"+tt.name, harness.NodeOptions{Agent: map[string]string{"limits.upload": `"8MB/s"`}})
			must(t, a.PullCRI(e.ctx, ref, nil))
			e.reg.Reset()
			b := e.node(t, "b-"+tt.name, harness.NodeOptions{})
			wait := do(func() error { return b.PullCRI(e.ctx, ref, nil) })
			e.halfway(t, b, img)
			must(t, tt.away(a))
			gone := time.Now()
			must(t, wait())
			e.check(t, b, ref, img)
			sent := e.upstream(img)
			t.Logf("ended %.1f s after the loss; the registry sent %d of %d bytes: %v", time.Since(gone).Seconds(), sent, img.Bytes(),
				e.reg.Blobs(img.Layers...))
			// A third had come when it was lost, but for what was under way, and nearly all of it in order.
			if sent > img.Bytes()*3/4 {
				t.Errorf("the registry sent %d of %d bytes, a third of which had come", sent, img.Bytes())
			}
		})
	}
}

// One seeder with a limit, and an image of three layers: each takes longer than a session waits for a
// byte, and none stands still. A machine that is too busy may find the swarm slow, and
// go to the registry for that; but nothing stalls.
func TestLimited(t *testing.T) {
	e := newEnv(t)
	img, ref := e.image(t, "limited", harness.ImageOptions{Layers: 3, LayerBytes: 42 << 20, Files: 4, Incompress: true})
	seed := e.node(t, "seed", harness.NodeOptions{Agent: map[string]string{"limits.upload": `"8MB/s"`}})
	must(t, seed.PullCRI(e.ctx, ref, nil))
	e.reg.Reset()
	a, b := e.node(t, "a", harness.NodeOptions{}), e.node(t, "b", harness.NodeOptions{})
	wait := do(func() error { return a.PullCRI(e.ctx, ref, nil) })
	must(t, b.PullCRI(e.ctx, ref, nil))
	must(t, wait())
	slow := false
	for _, n := range []*harness.Node{a, b} {
		e.check(t, n, ref, img)
		text := get(n.HTTP(e.ctx, "http://"+n.Addr+":7403/metrics"))(t)
		ended := func(outcome string) bool {
			return regexp.MustCompile(`(?m)^capelin_agent_sessions_total{outcome="` + outcome + `"} [1-9]`).MatchString(text)
		}
		if ended("stalled") || !ended("complete") {
			t.Errorf("%s: a layer stood still", n.Name)
		}
		slow = slow || ended("slow")
	}
	if sent := e.upstream(img); sent > 0 {
		t.Logf("the registry sent %d of %d bytes", sent, img.Bytes())
		if !slow {
			t.Errorf("that were from a swarm that was not slow: %v", e.reg.Blobs(img.Layers...))
		}
	}
}

// A seeder's disk has rotted: its pieces do not verify, and nobody takes them.
func TestRottenSeeder(t *testing.T) {
	e := newEnv(t)
	img, ref := e.image(t, "rotten", harness.ImageOptions{Layers: 3, LayerBytes: 4 << 20, Incompress: true})
	a := e.node(t, "a", harness.NodeOptions{})
	must(t, a.PullCRI(e.ctx, ref, nil))
	for _, d := range img.Layers {
		_, hex, _ := strings.Cut(d, ":")
		file := filepath.Join(a.ContentDir(), "blobs", "sha256", hex)
		must(t, os.Chmod(file, 0o644))
		f := get(os.OpenFile(file, os.O_WRONLY, 0))(t)
		for at := int64(1 << 20); at < 4<<20; at += 1 << 20 {
			_, err := f.WriteAt([]byte("rot"), at)
			must(t, err)
		}
		must(t, f.Close())
	}
	for _, restarted := range []bool{false, true} {
		if restarted { // which forgets what it knew of the sums' proof
			must(t, a.StopAgent())
			must(t, a.StartAgent(e.ctx))
			e.poll(t, "reconnected", func() bool { return e.connected(t, a) })
		}
		name := fmt.Sprintf("b-%v", restarted)
		b := e.node(t, name, harness.NodeOptions{})
		if err := b.PullCRI(e.ctx, ref, nil); err != nil {
			t.Logf("%s: %v", name, err)
			must(t, b.PullCRI(e.ctx, ref, nil))
		}
		e.check(t, b, ref, img)
	}
	t.Logf("the registry sent %d bytes of %d", e.upstream(img), img.Bytes())
}

// A registry that has enough of one node: another one gets the lease.
func TestUpstreamRefusesLeaseHolder(t *testing.T) {
	e := newEnv(t)
	for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusForbidden} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			img, ref := e.image(t, fmt.Sprintf("refuse/%d", status), harness.ImageOptions{Layers: 3, LayerBytes: 4 << 20})
			nodes := []*harness.Node{
				e.node(t, fmt.Sprintf("x%d", status), harness.NodeOptions{}),
				e.node(t, fmt.Sprintf("y%d", status), harness.NodeOptions{}),
			}
			var mu sync.Mutex
			refused := "" // whoever asks first for a layer is refused from then on
			isLayer := map[string]bool{}
			for _, d := range img.Layers {
				isLayer[d] = true
			}
			e.reg.Disturb(func(r harness.Request) harness.Fault {
				mu.Lock()
				defer mu.Unlock()
				if !isLayer[r.Blob] {
					return harness.Fault{}
				}
				if refused == "" {
					refused = r.Client
				}
				if r.Client == refused {
					return harness.Fault{Status: status, RetryAfter: "1"}
				}
				return harness.Fault{}
			})
			defer e.reg.Disturb(nil)
			var wait []func() error
			for _, n := range nodes {
				wait = append(wait, do(func() error { return n.PullCRI(e.ctx, ref, nil) }))
			}
			failed := map[string]error{}
			for i, w := range wait {
				if err := w(); err != nil {
					failed[nodes[i].Name] = err
				}
			}
			mu.Lock()
			holder := refused
			mu.Unlock()
			for _, n := range nodes {
				if err := failed[n.Name]; err != nil {
					t.Logf("%s: %v", n.Name, err)
					if n.Name != holder {
						t.Error("it was not the one that the registry refused")
					}
					must(t, n.PullCRI(e.ctx, ref, nil)) // the other one has it by now
				}
				e.check(t, n, ref, img)
			}
		})
	}
}

// The registry breaks off, or hangs, in the middle of what the lease holder
// downloads: the others are not held up.
func TestUpstreamBreaks(t *testing.T) {
	e := newEnv(t)
	for _, how := range []string{"cut", "stalled"} {
		t.Run(how, func(t *testing.T) {
			img, ref := e.slow(t, "breaks/"+how, 16)
			nodes := []*harness.Node{e.node(t, "x-"+how, harness.NodeOptions{}), e.node(t, "y-"+how, harness.NodeOptions{})}
			go1 := make(chan struct{})
			var mu sync.Mutex
			seen := map[string]string{} // digest to who asked for it first
			e.reg.Disturb(func(r harness.Request) harness.Fault {
				mu.Lock()
				defer mu.Unlock()
				first, again := seen[r.Blob]
				if !again && r.Blob != img.Config {
					seen[r.Blob] = r.Client
				}
				switch {
				case r.Blob == img.Config || again && (how == "cut" || first != r.Client):
					return harness.Fault{}
				case how == "cut":
					return harness.Fault{Cut: true, CutAfter: 3 << 20}
				}
				return harness.Fault{Stall: go1, StallAfter: 3 << 20}
			})
			defer e.reg.Disturb(nil)
			start := time.Now()
			wait := []func() error{
				do(func() error { return nodes[0].PullCRI(e.ctx, ref, nil) }),
				do(func() error { return nodes[1].PullCRI(e.ctx, ref, nil) }),
			}
			if how == "stalled" {
				// Every byte is in the cluster although nobody's own download goes on.
				e.poll(t, "all bytes from the registry", func() bool {
					whole := 0
					for i, d := range img.Layers {
						var sum int64
						for _, r := range e.reg.Blobs(d) {
							sum += r.Bytes
						}
						if sum >= img.Sizes[i] {
							whole++
						}
					}
					return whole == len(img.Layers)
				})
				t.Logf("the leases had moved and the downloads ended after %.1f s", time.Since(start).Seconds())
				close(go1)
			}
			for i, w := range wait {
				if err := w(); err != nil {
					t.Logf("%s: %v", nodes[i].Name, err)
					must(t, nodes[i].PullCRI(e.ctx, ref, nil))
				}
				e.check(t, nodes[i], ref, img)
			}
			t.Logf("%.1f s, the registry sent %d bytes of %d", time.Since(start).Seconds(), e.upstream(img), img.Bytes())
		})
	}
}

// A registry that cannot continue at an offset: the pull fails, and its retry does not ask for that.
func TestRegistryWithoutRanges(t *testing.T) {
	e := newEnv(t)
	inproc := get(e.c.NewRegistry(e.ctx, harness.InProcess))(t)
	img := get(harness.MakeImage(e.c.Dir+"/images", harness.ImageOptions{Seed: 9000, Layers: 1, LayerBytes: 16 << 20, Incompress: true}))(t)
	ref := get(inproc.Push(e.ctx, img, "noranges:1"))(t)
	both := []string{e.reg.Addr, inproc.Addr}
	a := e.node(t, "a", harness.NodeOptions{Registries: both, Agent: map[string]string{"limits.upload": `"5MB/s"`}})
	must(t, a.PullCRI(e.ctx, ref, nil))
	b := e.node(t, "b", harness.NodeOptions{Registries: both, Agent: map[string]string{"wait.stall": `"500ms"`}})
	wait := do(func() error { return b.PullCRI(e.ctx, ref, nil) })
	e.halfway(t, b, img)
	a.KillAgent()
	if err := wait(); err != nil {
		t.Logf("the first pull: %v", err)
		must(t, b.PullCRI(e.ctx, ref, nil))
	}
	e.check(t, b, ref, img)
}

// A pull that its client gives up leaves nothing behind that holds up the next.
func TestCancelledPull(t *testing.T) {
	e := newEnv(t)
	a, b := e.node(t, "a", harness.NodeOptions{}), e.node(t, "b", harness.NodeOptions{})
	img, ref := e.slow(t, "cancel", 16)
	e.reg.Limit(4e6)
	ctx, cancel := context.WithCancel(e.ctx)
	wa := do(func() error { return a.PullCRI(ctx, ref, nil) })
	wb := do(func() error { return b.PullCRI(e.ctx, ref, nil) })
	must(t, e.reg.WaitFor(e.ctx, "a third", func([]harness.Request) bool { return e.upstream(img) > img.Bytes()/3 }))
	cancel()
	if err := wa(); err == nil {
		t.Error("a cancelled pull succeeded")
	}
	e.reg.Limit(0)
	must(t, wb()) // whichever of them held the lease
	e.check(t, b, ref, img)
	must(t, a.PullCRI(e.ctx, ref, nil))
	e.check(t, a, ref, img)
	t.Logf("the registry sent %d bytes of %d", e.upstream(img), img.Bytes())
}

// A full disk fails the pull with a clear error; the agent lives on and space comes back.
func TestDiskFull(t *testing.T) {
	e := newEnv(t)
	seed := e.node(t, "seed", harness.NodeOptions{})
	big, bigRef := e.image(t, "disk/big", harness.ImageOptions{Layers: 3, LayerBytes: 40 << 20, Files: 8, Incompress: true})
	small, smallRef := e.image(t, "disk/small", harness.ImageOptions{Layers: 2, LayerBytes: 2 << 20})
	must(t, seed.PullCRI(e.ctx, bigRef, nil))
	for _, from := range []string{"swarm", "registry"} {
		t.Run(from, func(t *testing.T) {
			o := harness.NodeOptions{Disk: 64 << 20}
			if from == "registry" {
				o.Trackers = []string{}
			}
			n := e.node(t, "full-"+from, o)
			err := n.PullCRI(e.ctx, bigRef, nil)
			if err == nil {
				t.Fatal("an image of 120 MB fits into 64 MB")
			}
			t.Logf("the pull failed: %v", err)
			if s := strings.ToLower(err.Error()); !strings.Contains(s, "no space") {
				t.Errorf("the error does not say that the disk is full: %v", err)
			}
			if !n.Agent().Running() {
				t.Fatal("the agent died")
			}
			if err := n.RemoveCRI(e.ctx, bigRef); err != nil {
				t.Log(err)
			}
			// As kubelet does: again, until what the failed pull left has made room.
			for {
				if err = n.PullCRI(e.ctx, smallRef, nil); err == nil {
					break
				}
				t.Logf("a small image: %v", err)
				if e.ctx.Err() != nil {
					t.Fatal("space did not come back")
				}
			}
			e.check(t, n, smallRef, small)
		})
	}
	e.check(t, seed, bigRef, big)
}

// The agent is killed in the middle of a pull: one retry at most, and what was
// verified is kept.
func TestAgentKilledInMidPull(t *testing.T) {
	e := newEnv(t)
	a := e.node(t, "a", harness.NodeOptions{Agent: map[string]string{"limits.upload": `"8MB/s"`}})
	img, ref := e.slow(t, "killed", 24)
	must(t, a.PullCRI(e.ctx, ref, nil))
	again := func(t *testing.T, n *harness.Node, wait func() error) {
		must(t, n.StartAgent(e.ctx))
		if err := wait(); err != nil {
			t.Logf("the pull in flight: %v", err)
			must(t, n.PullCRI(e.ctx, ref, nil))
		}
		e.check(t, n, ref, img)
	}
	t.Run("from the swarm", func(t *testing.T) {
		n := e.node(t, "swarm", harness.NodeOptions{})
		e.reg.Reset()
		wait := do(func() error { return n.PullCRI(e.ctx, ref, nil) })
		e.halfway(t, n, img)
		had := e.fetched(t, n)
		n.KillAgent()
		again(t, n, wait)
		more := e.fetched(t, n)
		t.Logf("%d bytes before, %d after, of %d; registry %d", had, more, img.Bytes(), e.upstream(img))
		if had+more > img.Bytes()*5/4 {
			t.Errorf("%d bytes were fetched before and %d after, of %d: what was verified was not kept", had, more, img.Bytes())
		}
	})
	t.Run("from the registry", func(t *testing.T) {
		n := e.node(t, "registry", harness.NodeOptions{Trackers: []string{}})
		const rate = 5e6
		e.reg.Reset()
		e.reg.Limit(rate)
		defer e.reg.Limit(0)
		wait := do(func() error { return n.PullCRI(e.ctx, ref, nil) })
		must(t, e.reg.WaitFor(e.ctx, "most of it", func([]harness.Request) bool { return e.upstream(img) > img.Bytes()*3/4 }))
		n.KillAgent()
		e.reg.Limit(0)
		again(t, n, wait)
		// What containerd wrote counts after two seconds at most (content/FORMAT.md).
		twice := e.upstream(img) - img.Bytes()
		t.Logf("the registry sent %d bytes of %d twice", twice, img.Bytes())
		if twice > 3*rate {
			t.Errorf("the registry sent %d bytes twice, at %d a second", twice, int64(rate))
		}
	})
}

// The agent is in the path of every container start. It is killed in each of
// twenty, at another point each time: the call that needs it waits until it is
// there again, and none fails.
func TestAgentKilledDuringStarts(t *testing.T) {
	e := newEnv(t)
	n := e.node(t, "a", harness.NodeOptions{})
	_, ref := e.image(t, "starts", harness.ImageOptions{Layers: 2, LayerBytes: 1 << 20, Runnable: true})
	must(t, n.PullCRI(e.ctx, ref, nil))
	must(t, n.PullCRI(e.ctx, e.reg.Addr+"/"+harness.PauseImage, nil))
	for i := range 20 {
		back := func() error { return nil }
		out, err := n.RunPhases(e.ctx, ref, func(phase string) {
			if phase == harness.Phases[i%len(harness.Phases)] {
				n.KillAgent()
				back = do(func() error { return n.StartAgent(e.ctx) })
			}
		}, "hello", fmt.Sprint(i))
		must(t, back())
		if err != nil || out != fmt.Sprint(i) {
			t.Errorf("start %d, killed at %q: %q, %v", i, harness.Phases[i%len(harness.Phases)], out, err)
		}
	}
	// Killed at any moment, all at once: a call that is cut in the middle fails, as
	// it would with any plugin, and the kubelet's next attempt succeeds.
	t.Run("at once", func(t *testing.T) {
		var runs []func() error
		for i := range 20 {
			runs = append(runs, do(func() error {
				_, err := n.Run(e.ctx, ref, "hello", fmt.Sprint(i))
				return err
			}))
		}
		n.KillAgent()
		must(t, n.StartAgent(e.ctx))
		failed := 0
		for i, w := range runs {
			if err := w(); err != nil {
				t.Logf("start %d: %v", i, err)
				failed++
				if _, err := n.Run(e.ctx, ref, "hello", "again"); err != nil {
					t.Errorf("start %d, once more: %v", i, err)
				}
			}
		}
		t.Logf("%d of 20 starts were cut in a call", failed)
	})
}

// containerd is restarted, and killed, under a running agent, idle and in mid-pull.
func TestContainerdRestarted(t *testing.T) {
	e := newEnv(t)
	n := e.node(t, "a", harness.NodeOptions{})
	img, ref := e.slow(t, "restart", 24)
	for i, end := range []func() error{n.StopContainerd, func() error { n.KillContainerd(); return nil }} {
		e.reg.Reset()
		e.reg.Limit(8e6)
		wait := do(func() error { return n.PullCRI(e.ctx, ref, nil) })
		must(t, e.reg.WaitFor(e.ctx, "a half", func([]harness.Request) bool { return e.upstream(img) > img.Bytes()/2 }))
		must(t, end())
		_ = wait()
		must(t, n.StartContainerd(e.ctx))
		e.reg.Limit(0)
		must(t, n.PullCRI(e.ctx, ref, nil))
		e.check(t, n, ref, img)
		t.Logf("round %d: the registry sent %d bytes of %d", i, e.upstream(img), img.Bytes())
		if e.upstream(img) > img.Bytes()*5/4 {
			t.Errorf("round %d: the registry sent %d bytes of %d", i, e.upstream(img), img.Bytes())
		}
		must(t, n.StopContainerd())
		must(t, n.StartContainerd(e.ctx))
		e.check(t, n, ref, img)
		if i == 0 {
			img, ref = e.slow(t, "restart2", 24)
		}
	}
}

// Without systemd the agent makes its socket itself, also where a killed one left its own.
func TestOwnSocket(t *testing.T) {
	e := newEnv(t)
	n := e.node(t, "own", harness.NodeOptions{OwnSocket: true})
	img, ref := e.image(t, "own", harness.ImageOptions{Layers: 2})
	must(t, n.PullCRI(e.ctx, ref, nil))
	n.KillAgent()
	must(t, n.StartAgent(e.ctx))
	e.check(t, n, ref, img)
	must(t, n.StopAgent())
	must(t, n.StartAgent(e.ctx))
	must(t, n.RemoveCRI(e.ctx, ref))
	must(t, n.PullCRI(e.ctx, ref, nil))
	e.check(t, n, ref, img)
}

// What is taken is named at once. Without a store or a socket an agent ends; without a port it runs.
func TestTaken(t *testing.T) {
	e := newEnv(t)
	a := e.node(t, "a", harness.NodeOptions{})
	bin := get(harness.Built("capelin"))(t)
	configured := func(t *testing.T, change map[string]string) (file string) {
		t.Helper()
		b, err := os.ReadFile(a.AgentConfig())
		must(t, err)
		lines := []string{"shim.listen = \"127.0.0.1:7505\"\n"} // the first one's is the default
		for line := range strings.Lines(string(b)) {
			k, _, _ := strings.Cut(line, " = ")
			if v, ok := change[k]; ok {
				line = k + " = " + v + "\n"
			}
			lines = append(lines, line)
		}
		config := filepath.Join(a.Dir, "second.toml")
		must(t, os.WriteFile(config, []byte(strings.Join(lines, "")), 0o644))
		return config
	}
	run := func(t *testing.T, change map[string]string, want ...string) {
		t.Helper()
		out, err := a.Command(e.ctx, nil, bin, "agent", "--config", configured(t, change))
		if err == nil || e.ctx.Err() != nil {
			t.Fatalf("a second agent did not give up (%v):\n%s", err, out)
		}
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("the message does not name %s:\n%s", w, out)
			}
		}
	}
	runOn := func(t *testing.T, change map[string]string, want string) {
		t.Helper()
		p := get(a.Host.Start("second-"+want[1:], nil, nil, bin, "agent", "--config", configured(t, change)))(t)
		e.poll(t, "a second agent is up, and says what it has not", func() bool {
			said := p.Tail(100)
			return !p.Running() || strings.Contains(said, "agent is up") && strings.Contains(said, want)
		})
		if !p.Running() {
			t.Fatalf("a second agent ended:\n%s", p.Tail(100))
		}
		must(t, p.Stop())
	}
	other := map[string]string{
		"root": quote(a.Dir + "/second"), "socket": quote(a.Dir + "/second.sock"), "admin": quote(a.Dir + "/second-admin.sock"),
		"listen": quote(a.Addr + ":7501"), "metrics": quote(a.Addr + ":7503"),
	}
	with := func(keys ...string) map[string]string { // another agent, but for these keys
		m := map[string]string{}
		for k, v := range other {
			m[k] = v
		}
		for _, k := range keys {
			delete(m, k)
		}
		return m
	}
	t.Run("store", func(t *testing.T) { run(t, with("root"), a.ContentDir()) })
	t.Run("swarm port", func(t *testing.T) { runOn(t, with("listen"), ":7401") })
	t.Run("metrics port", func(t *testing.T) { runOn(t, with("metrics"), ":7403") })
	t.Run("socket", func(t *testing.T) { run(t, with("socket"), a.AgentSocket()) })
	t.Run("admin socket", func(t *testing.T) { run(t, with("admin"), a.AdminSocket()) })
	t.Run("unknown key", func(t *testing.T) {
		run(t, map[string]string{"listen": quote(a.Addr+":7501") + "\nlissten = 3"}, "second.toml:", "lissten")
	})
	// The first one is none the worse for it.
	img, ref := e.image(t, "taken", harness.ImageOptions{Layers: 2})
	must(t, a.PullCRI(e.ctx, ref, nil))
	e.check(t, a, ref, img)
}

// Garbage is collected all the time while images are pulled.
func TestGCDuringPulls(t *testing.T) {
	e := newEnv(t)
	a, b := e.node(t, "a", harness.NodeOptions{}), e.node(t, "b", harness.NodeOptions{})
	stop := make(chan struct{})
	var rounds atomic.Int32
	gc := do(func() error {
		img, err := harness.MakeImage(e.c.Dir+"/images", harness.ImageOptions{Seed: 5000, LayerBytes: 64 << 10})
		if err != nil {
			return err
		}
		ref, err := e.reg.Push(e.ctx, img, "gc:1")
		if err != nil {
			return err
		}
		for ; ; rounds.Add(1) {
			select {
			case <-stop:
				return nil
			default:
			}
			for _, n := range []*harness.Node{a, b} {
				if err := errors.Join(n.PullCRI(e.ctx, ref, nil), n.RemoveCRI(e.ctx, ref)); err != nil {
					return err
				}
			}
		}
	})
	e.reg.Limit(30e6)
	for i := 0; i < 4 || rounds.Load() < 3; i++ {
		img, ref := e.image(t, fmt.Sprintf("during/%d", i), harness.ImageOptions{Layers: 5, LayerBytes: 2 << 20})
		wa := do(func() error { return a.PullCRI(e.ctx, ref, nil) })
		wb := do(func() error { return b.PullCRI(e.ctx, ref, nil) })
		must(t, errors.Join(wa(), wb()))
		e.check(t, a, ref, img)
		e.check(t, b, ref, img)
		e.once(t, img)
	}
	t.Logf("%d collections on each node meanwhile", rounds.Load())
	close(stop)
	must(t, gc())
}

// kubelet stops with the machine: SIGTERM answers what waits, and the pull ends
// through the registry or the agent's next life.
func TestAgentStopped(t *testing.T) {
	e := newEnv(t)
	a := e.node(t, "a", harness.NodeOptions{Agent: map[string]string{"limits.upload": `"8MB/s"`}})
	img, ref := e.slow(t, "stopped", 24)
	must(t, a.PullCRI(e.ctx, ref, nil))
	b := e.tapped(t, "b", harness.NodeOptions{})
	wait := do(func() error { return b.PullCRI(e.ctx, ref, nil) })
	e.halfway(t, b.Node, img)
	start := time.Now()
	must(t, b.StopAgent())
	t.Logf("the agent took %v to stop", time.Since(start)) // not judged: the machine may be busy
	answered := false
	for _, se := range b.tap.Sessions("") {
		answered = answered || len(se.Steps) > 1 && se.Steps[1].Answered && se.Steps[1].At > 0
	}
	if !answered {
		t.Error("no waiting session was answered with its prefix")
	}
	must(t, b.StartAgent(e.ctx))
	if err := wait(); err != nil {
		t.Logf("the pull in flight: %v", err)
		must(t, b.PullCRI(e.ctx, ref, nil))
	}
	e.check(t, b.Node, ref, img)
}
