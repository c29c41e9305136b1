package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/integration/benchkit"
	"github.com/capelin-io/capelin/integration/harness"
	"github.com/capelin-io/capelin/internal/sim"
)

// scenario is a fan-out.
type scenario struct {
	N    int   `json:"n"`
	Size int64 `json:"size"`
	Rate int64 `json:"rate"` // of each link and direction, bytes per second, headers included
}

func (s scenario) String() string {
	return fmt.Sprintf("n%d_%.0fMB_%.0fMBps", s.N, float64(s.Size)/1e6, float64(s.Rate)/1e6)
}

// The usual ones: the second is what Kraken was measured with.
var usual = []scenario{{32, 128 << 20, 10e6}, {16, 200e6, 20e6}}

type options struct {
	scenarios []scenario
	runs      int
	simulate  bool
	against   string // another binary of capelin, measured in turn with the tree's; "": none
	json      string
	out       io.Writer
}

// maxBusy is the share of all processors' time beyond which a run is void.
const maxBusy = 0.8

func main() {
	o := options{out: os.Stdout}
	n := flag.Int("n", 0, "number of nodes; 0: the usual scenarios")
	size := flag.Float64("size", 128<<20, "bytes of the blob")
	rate := flag.Float64("rate", 10e6, "bytes per second of each link, each way")
	flag.IntVar(&o.runs, "runs", 5, "runs of each scenario, whose times are pooled")
	flag.BoolVar(&o.simulate, "simulate", false, "run each scenario in the simulator, too, and compare")
	flag.StringVar(&o.against, "against", "", "another binary of capelin, such as one of the commit before, measured in turn with the tree's")
	flag.StringVar(&o.json, "json", "", "file for all results")
	flag.Parse()
	o.scenarios = usual
	if *n > 0 {
		o.scenarios = []scenario{{*n, int64(*size), int64(*rate)}}
	}
	benchkit.Main("bench-fanout", "it needs root, for network namespaces", func(ctx context.Context) error { return run(ctx, o) })
}

// result is one run of a scenario.
type result struct {
	Ideal    float64   `json:"ideal_seconds"`
	Plain    int64     `json:"ideal_bytes"`  // that the origin's link counts for the ideal
	Took     []float64 `json:"seconds"`      // by node
	Sent     int64     `json:"origin_bytes"` // that the origin's link counts for all nodes
	Origin   float64   `json:"origin_sent"`  // Sent over Plain: times the blob
	Busy     float64   `json:"machine_busy"` // share of all processors' time
	CPU      float64   `json:"cpu_seconds"`  // of all processes
	LinkUsed float64   `json:"link_used"`    // the rate at which the node whose link carried most received, over the ideal's
}

// floor is what the same links and machine do without a swarm.
type floor struct {
	Took []float64 `json:"seconds"` // by node
	Busy float64   `json:"machine_busy"`
	CPU  float64   `json:"cpu_seconds"`
}

func run(ctx context.Context, o options) error {
	all, floors := map[string][]result{}, map[string]*floor{}
	f := &benchkit.Figures{}
	var void error
	for _, s := range o.scenarios {
		fmt.Fprintf(o.out, "%d nodes, %.1f MB, %.1f MB/s each way, one origin\n", s.N, float64(s.Size)/1e6, float64(s.Rate)/1e6)
		start := time.Now()
		var err error
		if o.against == "" {
			all[s.String()], floors[s.String()], err = measure(ctx, o, s)
		} else {
			err = compare(ctx, o, s, all, floors)
		}
		if err != nil {
			return fmt.Errorf("%v: %w", s, err)
		}
		for _, name := range []string{s.String(), s.String() + against} {
			if all[name] == nil {
				continue
			}
			if busy := figures(f, name, s, all[name], floors[name]); busy > maxBusy {
				void = errors.Join(void, fmt.Errorf("%v is void: the machine was %.0f %% busy", name, 100*busy))
			}
		}
		if o.simulate {
			simulate(o, f, s, all[s.String()])
		}
		fmt.Fprintf(o.out, "  the scenario took %.0f s\n", time.Since(start).Seconds())
	}
	fmt.Fprintln(o.out, f)
	return errors.Join(void, benchkit.WriteJSON(o.json, map[string]any{"scenarios": all, "floors": floors, "figures": f}))
}

// against is at the end of the names of what another binary did.
const against = "_against"

// compare runs a scenario with the tree's binary and with another one, in turn, each
// time in a cluster of its own.
func compare(ctx context.Context, o options, s scenario, all map[string][]result, floors map[string]*floor) error {
	defer harness.Use("")
	runs := o.runs
	o.runs = 1
	for i := range runs {
		pair := []string{s.String(), s.String() + against}
		if i%2 == 1 { // neither is always the first
			slices.Reverse(pair)
		}
		for _, name := range pair {
			harness.Use(map[string]string{s.String() + against: o.against}[name])
			fmt.Fprintf(o.out, "  %s:\n", name)
			rs, fl, err := measure(ctx, o, s)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			all[name], floors[name] = append(all[name], rs...), fl
		}
	}
	return nil
}

// measure runs a scenario.
func measure(ctx context.Context, o options, s scenario) (rs []result, fl *floor, err error) {
	c, err := harness.New()
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, c.Logs(5))
		}
		err = errors.Join(err, c.Close())
	}()
	b := &bench{c: c, scenario: s}
	// So many agents start at once on one machine that answers may take longer than
	// in a cluster. A lease, to go to a registry that there is not, would be an error.
	if b.server, err = c.NewServer(ctx, "origin", harness.ServerOptions{TOML: "tracker.lease.lookup = \"5s\"\n"}); err != nil {
		return nil, nil, err
	}
	if b.alone, err = c.NewHost("alone"); err != nil {
		return nil, nil, err
	}
	for _, h := range []*harness.Host{b.server.Host, b.alone} {
		if err := c.Shape(h, s.Rate); err != nil {
			return nil, nil, err
		}
	}
	for i := range s.N {
		n, err := c.NewNode(fmt.Sprintf("n%d", i), harness.NodeOptions{
			Trackers: []string{b.server.Tracker},
			// Of what was deleted only the last blob is kept: memory is short.
			Agent: map[string]string{"log_level": `"warn"`, "unpack": "false", "cache.size": fmt.Sprintf(`"%d"`, s.Size)},
			// In memory: disks are not what is measured. Of two deleted blobs the older
			// one may still be open for others, for up to 40 s.
			Disk: 3*s.Size + 64<<20,
			// There are more machines than processors: each has a part of one.
			Env: []string{"GOMAXPROCS=1"},
		})
		if err != nil {
			return nil, nil, err
		}
		if err := c.Shape(n.Host, s.Rate); err != nil {
			return nil, nil, err
		}
		if err := errors.Join(n.StartAgent(ctx), n.AwaitTrackers(ctx)); err != nil {
			return nil, nil, err
		}
		b.nodes = append(b.nodes, n)
	}
	if fl, err = b.floor(ctx); err != nil {
		return nil, nil, err
	}
	for i := range o.runs {
		start := time.Now()
		r, err := b.run(ctx, i)
		if err != nil {
			return nil, nil, err
		}
		rs = append(rs, *r)
		fmt.Fprintf(o.out, "  ideal %.2f s; p50 %.3f, max %.3f over it; the origin sent %.3f ×; machine %.0f%% busy; all in %.1f s\n",
			r.Ideal, benchkit.Median(r.Took)/r.Ideal, benchkit.Percentile(r.Took, 100)/r.Ideal, r.Origin, 100*r.Busy, time.Since(start).Seconds())
	}
	ideal := rs[0].Ideal
	fmt.Fprintf(o.out, "  floor: p50 %.3f, max %.3f over the first ideal; machine %.0f%% busy\n", benchkit.Median(fl.Took)/ideal,
		benchkit.Percentile(fl.Took, 100)/ideal, 100*fl.Busy)
	return rs, fl, nil
}

type bench struct {
	scenario
	c      *harness.Cluster
	server *harness.Server
	alone  *harness.Host
	nodes  []*harness.Node
}

// goodput is the share of a link's bytes that are TCP's payload, with an MTU of 1500.
const goodput = 1448.0 / 1514

// run moves one blob, once to one host by plain HTTP and once to all nodes.
func (b *bench) run(ctx context.Context, i int) (*result, error) {
	img, path, err := benchkit.RandomImage(b.c.Dir, b.Size, uint64(i))
	if err != nil {
		return nil, err
	}
	if _, err := b.server.Push(ctx, img, fmt.Sprintf("fanout/%d:1", i), harness.User{}); err != nil {
		return nil, err
	}
	r := &result{}
	_, idle, err := b.server.LinkBytes()
	if err != nil {
		return nil, err
	}
	if r.Ideal, err = b.ideal(ctx, filepath.Base(path)); err != nil {
		return nil, err
	}
	_, sent, err := b.server.LinkBytes()
	if err != nil {
		return nil, err
	}
	r.Plain = sent - idle
	received := make([]int64, len(b.nodes))
	for k, n := range b.nodes {
		if received[k], _, err = n.LinkBytes(); err != nil {
			return nil, err
		}
	}
	cpu, err := b.cpu()
	if err != nil {
		return nil, err
	}
	// The nodes' disks are in memory, and empty.
	if err := benchkit.WarmMemory(b.Size * int64(b.N)); err != nil {
		return nil, err
	}
	before, err := benchkit.Now()
	if err != nil {
		return nil, err
	}
	r.Took = make([]float64, len(b.nodes))
	g, gctx := errgroup.WithContext(ctx)
	start := time.Now()
	for k, n := range b.nodes {
		g.Go(func() error {
			err := n.FetchBlob(gctx, img.Layers[0], b.Size)
			r.Took[k] = time.Since(start).Seconds()
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	wall := time.Since(start).Seconds()
	after, err := benchkit.Now()
	if err != nil {
		return nil, err
	}
	r.Busy = after.Busy(before)
	used, err := b.cpu()
	if err != nil {
		return nil, err
	}
	r.CPU = (used - cpu).Seconds()
	_, now, err := b.server.LinkBytes()
	if err != nil {
		return nil, err
	}
	// A link counts what the kernel hands to it: up to 64 KiB with one header, or each
	// packet with its own. So its counts are compared with each other.
	r.Sent = now - sent
	r.Origin = float64(r.Sent) / float64(r.Plain)
	for k, n := range b.nodes {
		at, _, err := n.LinkBytes()
		if err != nil {
			return nil, err
		}
		r.LinkUsed = max(r.LinkUsed, float64(at-received[k])/wall/(float64(r.Plain)/r.Ideal))
		if err := n.DeleteBlob(ctx, img.Layers[0]); err != nil {
			return nil, err
		}
	}
	return r, os.Remove(path)
}

// floor has every node download a blob from its neighbour at once.
func (b *bench) floor(ctx context.Context) (_ *floor, err error) {
	dir, err := os.MkdirTemp("/dev/shm", "capelin-bench-") // as the nodes' disks: in memory
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	_, path, err := benchkit.RandomImage(dir, b.Size, 0)
	if err != nil {
		return nil, err
	}
	lns := make([]net.Listener, len(b.nodes))
	for i, n := range b.nodes {
		if lns[i], err = n.Listen("tcp", n.Addr+":8080"); err != nil {
			return nil, err
		}
		defer lns[i].Close()
	}
	if err := benchkit.WarmMemory(b.Size * int64(b.N)); err != nil {
		return nil, err
	}
	cpu, err := harness.ProcessCPU(os.Getpid())
	if err != nil {
		return nil, err
	}
	before, err := benchkit.Now()
	if err != nil {
		return nil, err
	}
	f := &floor{Took: make([]float64, len(b.nodes))}
	g, gctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(gctx, func() { // nobody waits for who does not come
		for _, l := range lns {
			l.Close()
		}
	})
	defer stop()
	start := time.Now()
	for i, n := range b.nodes {
		g.Go(func() error { return benchkit.SendFile(lns[i], path) })
		g.Go(func() error {
			c, err := n.DialContext(gctx, "tcp", lns[(i+1)%len(lns)].Addr().String())
			if err != nil {
				return err
			}
			defer c.Close()
			stop := context.AfterFunc(gctx, func() { c.Close() })
			defer stop()
			err = benchkit.ReceiveFile(c, filepath.Join(dir, n.Name), b.Size)
			f.Took[i] = time.Since(start).Seconds()
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	after, err := benchkit.Now()
	if err != nil {
		return nil, err
	}
	now, err := harness.ProcessCPU(os.Getpid())
	if err != nil {
		return nil, err
	}
	f.Busy, f.CPU = after.Busy(before), (now - cpu).Seconds()
	return f, nil
}

// cpu is the processor time of all processes of the cluster.
func (b *bench) cpu() (sum time.Duration, err error) {
	hosts := []*harness.Host{b.server.Host}
	for _, n := range b.nodes {
		hosts = append(hosts, n.Host)
	}
	for _, h := range hosts {
		d, err := h.CPU()
		if err != nil {
			return 0, err
		}
		sum += d
	}
	return sum, nil
}

// ideal is a plain download of the same bytes from the same host.
func (b *bench) ideal(ctx context.Context, name string) (float64, error) {
	l, err := b.server.Listen("tcp", b.server.Addr+":8080")
	if err != nil {
		return 0, err
	}
	s := &http.Server{Handler: http.FileServer(http.Dir(b.c.Dir)), ReadHeaderTimeout: time.Minute}
	defer s.Close()
	go s.Serve(l) //nolint:errcheck // ends with Close
	start := time.Now()
	path := filepath.Join(b.alone.Dir, "blob")
	err = b.alone.Download(ctx, fmt.Sprintf("http://%s/%s", l.Addr(), name), path)
	took := time.Since(start).Seconds()
	return took, errors.Join(err, os.Remove(path))
}

// figures adds a scenario's, and returns how busy the machine was at most.
func figures(f *benchkit.Figures, name string, s scenario, rs []result, fl *floor) (busy float64) {
	var over, ideal, origin, cpu, link []float64
	for _, r := range rs {
		for _, t := range r.Took {
			over = append(over, t/r.Ideal)
		}
		ideal, origin, link = append(ideal, r.Ideal), append(origin, r.Origin), append(link, r.LinkUsed)
		cpu = append(cpu, r.CPU/(float64(s.Size)*float64(s.N)/(1<<30)))
		busy = max(busy, r.Busy)
	}
	add := func(key string, v float64) { f.Add(name+"_"+key, v) }
	add("ideal_s", benchkit.Median(ideal))
	add("p50", benchkit.Median(over))
	add("p99", benchkit.Percentile(over, 99))
	add("max", benchkit.Percentile(over, 100))
	add("origin", benchkit.Percentile(origin, 100))
	add("cpu_s_per_gib", benchkit.Median(cpu))
	var floors []float64
	for _, t := range fl.Took {
		floors = append(floors, t/benchkit.Median(ideal))
	}
	add("floor_p50", benchkit.Median(floors))
	add("floor_max", benchkit.Percentile(floors, 100))
	add("floor_cpu_s_per_gib", fl.CPU/(float64(s.Size)*float64(s.N)/(1<<30)))
	add("floor_busy", fl.Busy)
	add("link_used", benchkit.Percentile(link, 100))
	add("busy", busy)
	return busy
}

// simulate runs the same in virtual time, over links of the same goodput whose latency
// is that of the real ones under load.
func simulate(o options, f *benchkit.Figures, s scenario, rs []result) {
	rate := float64(s.Rate) * goodput
	var p50, most, origin []float64
	for seed := range uint64(len(rs)) {
		cfg := sim.FanOut(s.N, 1, s.Size, rate, 0)
		cfg.Seed, cfg.Latency = seed+1, harness.ShapeQueue
		g := sim.Run(cfg).Figures()
		ideal := float64(s.Size) / rate
		p50, most = append(p50, g.P50.Seconds()/ideal), append(most, g.Max.Seconds()/ideal)
		origin = append(origin, float64(g.Origins)/float64(s.Size))
	}
	name := s.String()
	real50, realMost := f.Get(name+"_p50"), f.Get(name+"_max")
	sim50, simMost := benchkit.Median(p50), benchkit.Percentile(most, 100)
	f.Add(name+"_sim_p50", sim50)
	f.Add(name+"_sim_max", simMost)
	f.Add(name+"_sim_origin", benchkit.Percentile(origin, 100))
	fmt.Fprintf(o.out, "  %s\n", strings.Repeat("-", 60))
	fmt.Fprintf(o.out, "  %-12s %8s %8s %8s\n", "over ideal", "p50", "max", "origin")
	fmt.Fprintf(o.out, "  %-12s %8.3f %8.3f %8.3f\n", "real", real50, realMost, f.Get(name+"_origin"))
	fmt.Fprintf(o.out, "  %-12s %8.3f %8.3f %8.3f\n", "simulated", sim50, simMost, f.Get(name+"_sim_origin"))
	fmt.Fprintf(o.out, "  %-12s %+7.1f%% %+7.1f%%\n", "difference", 100*(real50/sim50-1), 100*(realMost/simMost-1))
}
