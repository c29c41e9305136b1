package integration

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/capelin-io/capelin/integration/harness"
)

// containerd starts after the agent: with 100,000 blobs and a cold page cache it
// has to answer within a second, on a machine of its own. What is judged is the
// processors' time, which others who want the machine do not add to.
func TestStartWithManyBlobs(t *testing.T) {
	e := newEnv(t)
	n := e.stopped(t, "many", harness.NodeOptions{Trackers: []string{}})
	blobs := filepath.Join(n.ContentDir(), "blobs", "sha256")
	must(t, os.MkdirAll(blobs, 0o755))
	must(t, os.MkdirAll(filepath.Join(n.ContentDir(), "ingest"), 0o755))
	last := ""
	for i := range 100_000 { // sparse: what counts is how many there are
		last = fmt.Sprintf("%x", sha256.Sum256(fmt.Append(nil, i)))
		f := get(os.OpenFile(filepath.Join(blobs, last), os.O_CREATE|os.O_WRONLY, 0o444))(t)
		must(t, errors.Join(f.Truncate(1<<20), f.Close()))
	}
	must(t, n.StartAgent(e.ctx)) // warm: makes what a first start makes
	must(t, n.StopAgent())
	syncDisk()
	must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200))

	conn := get(n.AgentConn())(t)
	defer conn.Close()
	// Asked before the agent is there: its socket outlives it.
	answer := do(func() time.Time {
		ctx := metadata.AppendToOutgoingContext(e.ctx, "containerd-namespace", "default")
		_, err := contentapi.NewContentClient(conn).Info(ctx, &contentapi.InfoRequest{Digest: "sha256:" + last}, grpc.WaitForReady(true))
		if err != nil {
			t.Error(err)
		}
		return time.Now()
	})
	must(t, n.StartAgent(e.ctx))
	took := answer().Sub(n.Agent().Started)
	cpu := get(harness.ProcessCPU(n.Agent().PID()))(t)
	t.Logf("first answer %v after the start, and %v of processors' time, with 100,000 blobs and a cold cache",
		took.Round(time.Millisecond), cpu)
	if cpu > 2*time.Second {
		t.Errorf("the first answer took %v of processors' time", cpu)
	}
}

// What runs under containerd's locks is answered from memory, under full load too.
func TestAnswersUnderLoad(t *testing.T) {
	e := newEnv(t)
	seed := e.node(t, "seed", harness.NodeOptions{})
	n := e.tapped(t, "loaded", harness.NodeOptions{})
	small, smallRef := e.image(t, "load/small", harness.ImageOptions{Layers: 4, LayerBytes: 64 << 10})
	for i := range 2 {
		_, ref := e.image(t, fmt.Sprintf("load/%d", i), harness.ImageOptions{Layers: 4, LayerBytes: 24 << 20, Files: 8, Incompress: true})
		must(t, seed.PullCRI(e.ctx, ref, nil))
		wait := do(func() error { return n.PullCRI(e.ctx, ref, nil) })
		// Meanwhile: opens, commits, deletes and look-ups of something else.
		busy, cancel := context.WithCancel(e.ctx)
		other := do(func() error {
			for busy.Err() == nil {
				if err := errors.Join(n.PullCRI(e.ctx, smallRef, nil), n.RemoveCRI(e.ctx, smallRef)); err != nil {
					return err
				}
			}
			return nil
		})
		err := wait()
		cancel()
		must(t, errors.Join(err, other()))
	}
	_ = small
	took := map[string][]time.Duration{}
	add := func(name string, d time.Duration) { took[name] = append(took[name], d) }
	for _, c := range n.tap.Calls() {
		switch {
		case c.Session != nil:
			for i, st := range c.Session.Steps {
				switch {
				case !st.Answered:
				case i == 0:
					add("open", st.Took)
				case st.Action == contentapi.WriteAction_COMMIT:
					add("commit", st.Took)
				}
			}
		case c.Took == 0 || c.Method == "Read" || c.Method == "List":
		default:
			add(c.Method, c.Took)
		}
	}
	for name, d := range took {
		t.Logf("as containerd sees it: %-14s %5d answers, p50 %v, p99 %v, longest %v", name, len(d), percentile(d, 50),
			percentile(d, 99), percentile(d, 100))
	}

	// The agent's own clock knows nothing of the tap, and less of whoever else wants the processors.
	text := get(n.HTTP(e.ctx, "http://"+n.Addr+":7403/metrics"))(t)
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families := get(parser.TextToMetricFamilies(strings.NewReader(text)))(t)
	var all, within5, within50 uint64
	for _, m := range families["capelin_agent_call_seconds"].GetMetric() {
		method := ""
		for _, l := range m.GetLabel() {
			if l.GetName() == "method" {
				method = l.GetValue()
			}
		}
		if slices.Contains([]string{"Read", "List", "Write/wait", "Write/write", "Apply"}, method) {
			continue // streams, and what is meant to take its time
		}
		h := m.GetHistogram()
		all += h.GetSampleCount()
		for _, b := range h.GetBucket() {
			switch b.GetUpperBound() {
			case 0.005:
				within5 += b.GetCumulativeCount()
			case 0.05:
				within50 += b.GetCumulativeCount()
			}
		}
	}
	if all == 0 {
		t.Fatal("no calls were counted")
	}
	share := func(n uint64) float64 { return 100 * float64(n) / float64(all) }
	// 99% within 5 ms is the goal on a machine of its own; not judged, since this one may be busy.
	t.Logf("by the agent's clock: %d answers under containerd's locks, %.2f%% within 5 ms, %.2f%% within 50 ms", all,
		share(within5), share(within50))
}

func percentile(d []time.Duration, p int) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[min(len(d)-1, len(d)*p/100)].Round(10 * time.Microsecond)
}
