package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/integration/benchkit"
	"github.com/capelin-io/capelin/integration/harness"
	"github.com/capelin-io/capelin/swarm/piece"
)

const (
	listen  = "127.0.0.1:17470"
	metrics = "127.0.0.1:17471"
	groups  = 20
	within  = 5 * time.Minute // for the tracker to be full

	perAgent = 128 << 10 // bytes that the tracker takes for one, with 1,000 blobs, or less
)

func main() {
	agents := flag.Int("agents", 15000, "live streams; each takes a file descriptor here and one in the tracker")
	blobs := flag.Int("blobs", 1000, "blobs of each agent")
	json := flag.String("json", "", "file for the figures")
	flag.Parse()
	debug.SetGCPercent(400)
	benchkit.Main("bench-tracker", "", func(ctx context.Context) error {
		f, err := run(ctx, *agents, *blobs)
		if err != nil {
			return err
		}
		fmt.Println(f)
		return benchkit.WriteJSON(*json, map[string]any{"figures": f})
	})
}

func run(ctx context.Context, agents, blobs int) (*benchkit.Figures, error) {
	dir, err := os.MkdirTemp("", "capelin-tracker-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	t := &trackerd{dir: dir}
	if err := benchkit.WarmMemory(int64(agents) * perAgent); err != nil {
		return nil, err
	}
	if err := t.start(); err != nil {
		return nil, err
	}
	defer t.kill()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	c := &cluster{blobs: blobs, want: make(chan struct{}), answered: make(chan time.Time, agents)}
	for g := range groups {
		o, err := offers(g, blobs)
		if err != nil {
			return nil, err
		}
		c.offers = append(c.offers, o)
	}
	want := &trackerpb.Want{Blob: trackerpb.FromID(blobID("wanted")), Waiting: true, Grant: true, Seq: 1}
	if c.wanted, err = encode(&trackerpb.FromAgent{Wants: []*trackerpb.Want{want}}); err != nil {
		return nil, err
	}
	begin := time.Now()
	for i := range agents {
		wg.Go(func() { c.agent(ctx, i) })
	}
	all := int64(agents) * int64(blobs)
	if err := t.await(ctx, c, int64(agents), all); err != nil {
		return nil, err
	}
	first := time.Since(begin)
	fmt.Printf("%d agents with %d blobs each have connected and announced them within %.1f s\n", agents, blobs, first.Seconds())
	idle, err := t.idle(ctx)
	if err != nil {
		return nil, err
	}
	fmt.Printf("with nothing to do the tracker takes %.1f %% of a core\n", 100*idle)
	answers, err := c.burst(ctx, agents)
	if err != nil {
		return nil, err
	}
	fmt.Printf("all agents want one more blob at once: answered after %.0f ms at p10, %.0f at p50, %.0f at most\n",
		1e3*benchkit.Percentile(answers, 10), 1e3*benchkit.Median(answers), 1e3*benchkit.Percentile(answers, 100))
	rss, peak, err := harness.Resident(t.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	if err := benchkit.WarmMemory(int64(agents) * perAgent); err != nil {
		return nil, err
	}
	t.kill()
	begin = time.Now()
	if err := t.start(); err != nil {
		return nil, err
	}
	if err := t.await(ctx, c, int64(agents), all); err != nil {
		return nil, err
	}
	refill := time.Since(begin)
	cpu, err := harness.ProcessCPU(t.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	rss2, peak2, err := harness.Resident(t.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	fmt.Printf("killed and started again, it knew all after %.1f s, for which it took %.1f s of processor time; %d MiB resident, %d at most\n",
		refill.Seconds(), cpu.Seconds(), max(rss, rss2)>>20, max(peak, peak2)>>20)
	f := &benchkit.Figures{}
	f.Add("agents", float64(agents))
	f.Add("blobs", float64(blobs))
	f.Add("first_fill_s", first.Seconds())
	f.Add("refill_s", refill.Seconds())
	f.Add("refill_tracker_cpu_s", cpu.Seconds())
	f.Add("idle_tracker_cpu", idle)
	f.Add("burst_p50_ms", 1e3*benchkit.Median(answers))
	f.Add("burst_max_ms", 1e3*benchkit.Percentile(answers, 100))
	f.Add("rss_mib", float64(max(rss, rss2)>>20))
	f.Add("peak_rss_mib", float64(max(peak, peak2)>>20))
	return f, nil
}

// offer is what control/tracker offers at once of what an agent has.
type offer struct {
	encoded []byte
	blobs   []piece.ID
	hashes  [][32]byte // of their sums
}

// offers are those of one group's agents.
func offers(group, blobs int) (all []*offer, err error) {
	for at := 0; at < blobs; at += trackerpb.MaxBatch {
		o, m := &offer{}, &trackerpb.Offer{}
		for i := at; i < min(at+trackerpb.MaxBatch, blobs); i++ {
			name := fmt.Sprint("all ", i)
			if i >= blobs/2 {
				name = fmt.Sprint(group, " ", i)
			}
			id := blobID(name)
			hash := sha256.Sum256(id.Sum[:])
			m.Add(id, &hash)
			o.blobs = append(o.blobs, id)
			o.hashes = append(o.hashes, hash)
		}
		if o.encoded, err = encode(&trackerpb.FromAgent{Offers: []*trackerpb.Offer{m}}); err != nil {
			return nil, err
		}
		all = append(all, o)
	}
	return all, nil
}

// accepted returns the announcements that the tracker accepts of an offer, encoded, as
// many at once as control/tracker sends.
func (o *offer) accepted(a *trackerpb.Accept) (all [][]byte, err error) {
	i := 0
	for left := a.Count(); left > 0; {
		n := min(left, trackerpb.MaxBatch/2)
		left -= n
		v := &trackerpb.Inventory{
			Blobs:      &trackerpb.Blobs{Digests: make([]byte, 0, 32*n), Sizes: make([]int64, 0, n)},
			SumsHashes: make([]byte, 0, 32*n),
		}
		for ; v.Blobs.Len() < n; i++ {
			if a.Has(i) {
				v.Add(o.blobs[i], &o.hashes[i])
			}
		}
		m, err := encode(&trackerpb.FromAgent{Inventory: []*trackerpb.Inventory{v}})
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

// cluster is all agents.
type cluster struct {
	blobs  int
	offers [][]*offer            // by group
	wanted []byte                // encoded
	live   atomic.Int64          // streams
	broke  atomic.Pointer[error] // why the last one that ended did

	want     chan struct{}  // closed when all agents are to want a blob
	answered chan time.Time // when each of them was told what to expect
}

// burst has all agents want a new blob, as those of a daemon set's new version do,
// and returns how many seconds each waited for the tracker's verdict. It can be
// called once.
func (c *cluster) burst(ctx context.Context, agents int) ([]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	begin := time.Now()
	close(c.want)
	var took []float64
	for range agents {
		select {
		case at := <-c.answered:
			took = append(took, at.Sub(begin).Seconds())
		case <-ctx.Done():
			return nil, fmt.Errorf("%d of %d agents were told about a blob: %w", len(took), agents, ctx.Err())
		}
	}
	return took, nil
}

func blobID(name string) piece.ID {
	id := piece.ID{Alg: piece.SHA256, Size: 50 << 20}
	sum := sha256.Sum256([]byte(name))
	copy(id.Sum[:], sum[:])
	return id
}

// trackerd is the tracker's process.
type trackerd struct {
	dir string
	cmd *exec.Cmd
}

func (t *trackerd) start() error {
	bin, err := harness.Built("capelin")
	if err != nil {
		return err
	}
	config := filepath.Join(t.dir, "trackerd.toml")
	text := fmt.Appendf(nil, "listen = %q\nmetrics = %q\nlog_level = \"error\"\n", listen, metrics)
	if err := os.WriteFile(config, text, 0o644); err != nil {
		return err
	}
	t.cmd = exec.Command(bin, "trackerd", "--config", config)
	t.cmd.Stderr = os.Stderr
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := t.cmd.Start(); err != nil {
		return err
	}
	for range 500 {
		conn, err := net.Dial("tcp", listen)
		if err == nil {
			return conn.Close()
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("the tracker does not listen")
}

func (t *trackerd) kill() {
	if t.cmd != nil && t.cmd.Process != nil {
		_ = t.cmd.Process.Kill()
		_ = t.cmd.Wait()
		t.cmd = nil
	}
}

// idle returns which share of a processor the tracker takes while nothing happens.
func (t *trackerd) idle(ctx context.Context) (float64, error) {
	const pause, span = 5 * time.Second, 10 * time.Second
	var cpu [2]time.Duration
	for i, d := range []time.Duration{pause, span} {
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		var err error
		if cpu[i], err = harness.ProcessCPU(t.cmd.Process.Pid); err != nil {
			return 0, err
		}
	}
	return float64(cpu[1]-cpu[0]) / float64(span), nil
}

// await waits until all agents are connected and the tracker has counted their
// announcements.
func (t *trackerd) await(ctx context.Context, c *cluster, agents, announced int64) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var n int64
	for {
		if live := c.live.Load(); live == agents {
			n = count(ctx)
			if n >= announced {
				return nil
			}
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			err := ctx.Err()
			if broke := c.broke.Load(); broke != nil {
				err = fmt.Errorf("%w (a stream ended: %w)", err, *broke)
			}
			return fmt.Errorf("%d of %d agents are connected, and the tracker knows %d of %d announcements: %w",
				c.live.Load(), agents, n, announced, err)
		}
	}
}

// count returns the announcements that the tracker has counted since it started.
func count(ctx context.Context) int64 {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metrics+"/metrics", nil)
	if err != nil {
		return 0
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	for s := bufio.NewScanner(resp.Body); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "capelin_tracker_announces_total "); ok {
			f, _ := strconv.ParseFloat(v, 64)
			return int64(f)
		}
	}
	return 0
}
