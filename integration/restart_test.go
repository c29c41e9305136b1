package integration

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/capelin-io/capelin/integration/harness"
)

// restarts is a machine whose agent is ended and started again, by its units, while images
// are pulled and containers are started.
type restarts struct {
	*env
	t      *testing.T
	m      *harness.Machine
	tap    *harness.Tap
	binary string
	run    string // an image to start containers of
	pulls  []string
	images []*harness.Image

	starts, startsCut, pullsCut int
	slowest                     time.Duration
}

func newRestarts(t *testing.T) *restarts {
	e := newEnv(t)
	r := &restarts{env: e, t: t, binary: get(harness.Built("capelin"))(t)}
	if other := os.Getenv("CAPELIN_TEST_BINARY"); other != "" { // to compare with
		harness.Use(other)
		t.Cleanup(func() { harness.Use("") })
		r.binary = other
	}
	// One image is nowhere but in the registry, the other is another node's. What the machine
	// has had of them is gone when they are removed.
	for _, from := range []string{"registry", "swarm"} {
		img, ref := e.image(t, from, harness.ImageOptions{Layers: 2, LayerBytes: 3 << 20, Incompress: true})
		r.pulls, r.images = append(r.pulls, ref), append(r.images, img)
	}
	seed := e.node(t, "seed", harness.NodeOptions{Agent: map[string]string{"limits.upload": `"16MB/s"`}})
	must(t, seed.PullCRI(e.ctx, r.pulls[1], nil))
	_, r.run = e.image(t, "starts", harness.ImageOptions{Layers: 1, LayerBytes: 1 << 20, Runnable: true})

	r.m = e.booted(t, "m", harness.NodeOptions{Agent: map[string]string{"cache.size": "-1"}})
	r.tap = get(r.m.NewTap())(t)
	must(t, r.m.Start(e.ctx))
	must(t, r.m.AwaitTrackers(e.ctx))
	must(t, r.m.PullCRI(e.ctx, r.run, nil))
	must(t, r.m.PullCRI(e.ctx, e.reg.Addr+"/"+harness.PauseImage, nil))
	return r
}

// a failed call is one that an agent that is not there leaves behind.
func failed(c harness.Call) bool {
	return c.Err != nil && (status.Code(c.Err) == codes.Unavailable || strings.Contains(c.Err.Error(), "Unavailable"))
}

// round pulls an image and starts containers, calls end in the middle of it, and returns what
// failed: one error for each start, calls, and the pull.
func (r *restarts) round(i int, end func() error) (starts []error, calls []harness.Call, pull error) {
	t, ctx := r.t, r.ctx
	t.Helper()
	ref, img := r.pulls[i%2], r.images[i%2]
	must(t, r.m.RemoveCRI(ctx, ref))
	r.reg.Limit(16e6) // so that a pull lasts for some 400 ms
	defer r.reg.Limit(0)
	r.tap.Reset()
	gone := make(chan struct{})
	pulled := do(func() error {
		defer close(gone)
		return r.m.PullCRI(ctx, ref, nil)
	})
	r.poll(t, "a layer is on its way", func() bool {
		select {
		case <-gone: // it has failed before that
			return true
		default:
		}
		for _, d := range img.Layers {
			for _, s := range r.tap.Sessions(d) {
				if len(s.Steps) > 1 {
					return true
				}
			}
		}
		return false
	})
	over := make(chan struct{})
	started := do(func() (errs []error) {
		for k := 0; ; k++ {
			r.starts++
			say := fmt.Sprintf("%d.%d", i, k)
			if out, err := r.m.Run(ctx, r.run, "hello", say); err != nil || out != say {
				errs = append(errs, errors.Join(fmt.Errorf("start %s said %q", say, out), err))
			}
			select {
			case <-over:
				return errs
			default:
			}
		}
	})
	time.Sleep(time.Duration(i%7) * 30 * time.Millisecond) // another moment each time
	began := time.Now()
	must(t, end())
	must(t, r.m.AwaitAgent(ctx))
	r.slowest = max(r.slowest, time.Since(began))
	pull = pulled()
	close(over)
	starts = started()
	for _, c := range r.tap.Calls() {
		if failed(c) {
			calls = append(calls, c)
		}
	}
	must(t, r.sys("reset-failed", "capelin-agent.service")) // it is not ended that often
	return starts, calls, pull
}

func (r *restarts) sys(args ...string) error {
	_, err := r.m.Systemctl(r.ctx, args...)
	return err
}

// begin begins to count anew.
func (r *restarts) begin(t *testing.T) {
	r.t, r.starts, r.startsCut, r.pullsCut, r.slowest = t, 0, 0, 0, 0
}

func (r *restarts) report(what string) {
	r.t.Logf("%s: %d pulls failed, and %d of %d starts; the agent was there again after %v at most",
		what, r.pullsCut, r.startsCut, r.starts, r.slowest.Round(time.Millisecond))
}

// rounds is how often an agent is ended.
const rounds = 30

// An agent that systemd looks after is ended while images are pulled and containers are started.
func TestRestarts(t *testing.T) {
	r := newRestarts(t)
	t.Run("killed", r.killed)
	t.Run("restarted", r.restarted)
	t.Run("restarted while it unpacks", r.unpacking)
}

// An agent of another commit, installed by its own program, is upgraded in the middle of a pull.
// What the old one breaks off when it is told to end is told, and not judged; what it had is there,
// and once the new one has installed its units nothing fails.
func TestUpgrade(t *testing.T) {
	from := get(harness.Tool("old/capelin"))(t)
	now := get(harness.Built("capelin"))(t)
	t.Setenv("CAPELIN_TEST_BINARY", from)
	r := newRestarts(t)
	r.begin(t)
	starts, calls, pull := r.round(0, func() error {
		if err := r.m.PutProgram(now, harness.MachineCapelin); err != nil {
			return err
		}
		return r.sys("restart", "capelin-agent.service")
	})
	t.Logf("%d of %d starts failed, %d calls, and the pull: %v", len(starts), r.starts, len(calls), errors.Join(append(starts, pull)...))
	if pull != nil {
		must(t, r.m.PullCRI(r.ctx, r.pulls[0], nil))
	}
	r.check(t, r.m.Node, r.pulls[0], r.images[0])
	dropIn := get(os.ReadFile(r.m.Path(harness.MachineDropIn)))(t) // names the tap, which is a change by hand
	t.Log(get(r.m.Install(r.ctx, "--start", "--force"))(t))
	must(t, r.m.Put(harness.MachineDropIn, string(dropIn)))
	must(t, r.m.AwaitAgent(r.ctx))
	r.binary = now
	t.Run("restarted", r.restarted)
}

// What fails of a kill is what had a call under way at that instant, and it succeeds when it
// is tried again.
func (r *restarts) killed(t *testing.T) {
	r.begin(t)
	// The tap may be more patient than containerd, which waits for a second.
	if p := get(r.m.Show(r.ctx, "capelin-agent.service", "RestartUSec"))(t); p["RestartUSec"] != "100ms" {
		t.Errorf("systemd lets it wait: %v", p)
	}
	for i := range rounds {
		starts, calls, pull := r.round(i, r.m.KillAgent)
		cut := 0
		for _, c := range calls {
			if c.Standing {
				cut++
				continue
			}
			t.Errorf("round %d: %s, which began when the agent was gone, failed after %v: %v", i, c.Method, c.Took, c.Err)
		}
		r.startsCut += len(starts)
		if n := len(starts); n > 0 && cut == 0 {
			t.Errorf("round %d: %d starts failed, and none of their calls: %v", i, n, errors.Join(starts...))
		}
		if pull != nil {
			r.pullsCut++
			if cut == 0 {
				t.Errorf("round %d: the pull failed, and none of its calls: %v", i, pull)
			}
			if err := r.m.PullCRI(r.ctx, r.pulls[i%2], nil); err != nil {
				t.Errorf("round %d: the pull failed a second time: %v", i, err)
			}
		}
		r.check(t, r.m.Node, r.pulls[i%2], r.images[i%2])
	}
	r.report("kills")
}

// Nothing fails of a restart, half of the times with another program in the old one's place.
func (r *restarts) restarted(t *testing.T) {
	r.begin(t)
	for i := range rounds {
		starts, calls, pull := r.round(i, func() error {
			if i%2 == 1 {
				if err := r.m.PutProgram(r.binary, harness.MachineCapelin, make([]byte, i)...); err != nil {
					return err
				}
			}
			return r.sys("restart", "capelin-agent.service")
		})
		if err := errors.Join(append(starts, pull)...); err != nil {
			t.Errorf("round %d: %v", i, err)
		}
		for _, c := range calls {
			t.Errorf("round %d: %s failed after %v: %v", i, c.Method, c.Took, c.Err)
		}
		r.startsCut += len(starts)
		if pull != nil {
			r.pullsCut++
			if err := r.m.PullCRI(r.ctx, r.pulls[i%2], nil); err != nil {
				t.Errorf("round %d: the pull failed a second time: %v", i, err)
			}
		}
		r.check(t, r.m.Node, r.pulls[i%2], r.images[i%2])
	}
	r.report("restarts")
}

// A layer of many files is unpacked to its end, for longer than the unit gives an agent that
// does not ask for time, and containers start all the while.
func (r *restarts) unpacking(t *testing.T) {
	r.begin(t)
	must(t, r.m.Put("/etc/systemd/system/capelin-agent.service.d/short.conf", "[Service]\nTimeoutStopSec=200ms\n"))
	must(t, r.sys("daemon-reload"))
	_, ref := r.image(t, "files", harness.ImageOptions{Layers: 1, LayerBytes: 20 << 20, Files: 60_000})
	r.tap.Reset()
	pulled := do(func() error { return r.m.PullCRI(r.ctx, ref, nil) })
	r.poll(t, "a layer is unpacked", func() bool {
		for _, c := range r.tap.Calls() {
			if c.Method == "Apply" {
				return true
			}
		}
		return false
	})
	began := time.Now()
	over := make(chan struct{})
	restarted := do(func() error {
		defer close(over)
		return r.sys("restart", "capelin-agent.service")
	})
	for running := true; running; r.starts++ {
		if out, err := r.m.Run(r.ctx, r.run, "hello", "there"); err != nil || out != "there" {
			r.startsCut++
			t.Errorf("a start %v after the restart began: %q, %v", time.Since(began), out, err)
		}
		select {
		case <-over:
			running = false
		default:
		}
	}
	must(t, restarted())
	r.slowest = time.Since(began)
	if err := pulled(); err != nil {
		r.pullsCut++
		t.Errorf("the pull: %v", err)
	}
	for _, c := range r.tap.Calls() {
		if failed(c) {
			t.Errorf("%s failed after %v: %v", c.Method, c.Took, c.Err)
		}
	}
	r.report("restarts in mid-unpack")
}
