package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/integration/benchkit"
	"github.com/capelin-io/capelin/integration/harness"
)

// scenario is how one blob is moved.
type scenario struct {
	To   int   `json:"to"`   // how many agents want it
	Size int64 `json:"size"` // bytes of each blob
	TLS  bool  `json:"tls"`
	Disk bool  `json:"disk"` // on the machine's disk instead of in memory
	Many int   `json:"many"` // blobs at once
	Zero bool  `json:"zero"` // sparse files of zeros
}

func (s scenario) String() string {
	name := fmt.Sprintf("to%d", s.To)
	if s.TLS {
		name += "_tls"
	}
	if s.Disk {
		name += "_disk"
	}
	if s.Zero {
		name = "rss"
	}
	return name
}

// scenarios are the usual ones. A size of 0 is one that takes a second or more, and fits
// into memory as often as it is received.
func scenarios(to []int, fixed int64) (all []scenario) {
	for _, n := range to {
		size := fixed
		if size == 0 {
			size = min(max(4<<30/int64(n), 256<<20), 1<<30)
		}
		all = append(all, scenario{To: n, Size: size, Many: 1})
		if n <= 8 {
			all = append(all, scenario{To: n, Size: size, TLS: true, Many: 1}, scenario{To: n, Size: size, Disk: true, Many: 1})
		}
	}
	return all
}

type options struct {
	scenarios []scenario
	runs      int
	against   string // another binary of capelin, measured in turn with the tree's; "": none
	json      string
	out       io.Writer
}

func main() {
	o := options{out: os.Stdout}
	to := flag.String("to", "1,8,16,32", "how many agents want the blob, a list")
	size := flag.Int64("size", 0, "bytes of the blob; 0: 1 GiB, less if many want it")
	rss := flag.Bool("rss", false, "measure the memory of one agent that receives four blobs of 8 GiB of zeros at once, instead")
	flag.IntVar(&o.runs, "runs", 3, "runs of each scenario, of which the median counts")
	flag.StringVar(&o.against, "against", "", "another binary of capelin, such as one of the commit before, measured in turn with the tree's")
	flag.StringVar(&o.json, "json", "", "file for all results")
	flag.Parse()
	var err error
	var list []int
	for s := range strings.SplitSeq(*to, ",") {
		n, perr := strconv.Atoi(s)
		err = errors.Join(err, perr)
		list = append(list, n)
	}
	o.scenarios = scenarios(list, *size)
	if *rss {
		o.scenarios, o.runs = []scenario{{To: 1, Size: 8 << 30, Disk: true, Many: 4, Zero: true}}, 1
	}
	benchkit.Main("bench-swarm", "it needs root, for a network namespace", func(ctx context.Context) error {
		if err != nil {
			return err
		}
		return run(ctx, o)
	})
}

// result is one run.
type result struct {
	Rate float64 `json:"mib_per_second"`      // all receivers together
	CPU  float64 `json:"cpu_seconds_per_gib"` // of all processes, for each GiB that was received
	Peak int64   `json:"peak_rss"`            // of the receiver that had most
	Sent int64   `json:"seeder_peak_rss"`     // of the agent that has the blobs
}

// result is what moving all the blobs took, and how much of processors.
func (s scenario) result(took, cpu time.Duration) *result {
	bytes := float64(s.Size) * float64(s.Many) * float64(s.To)
	return &result{Rate: bytes / (1 << 20) / took.Seconds(), CPU: cpu.Seconds() / (bytes / (1 << 30))}
}

// speed adds what runs took to the figures, and returns it for people.
func speed(f *benchkit.Figures, name string, rs []result) string {
	var rate, cpu []float64
	for _, r := range rs {
		rate, cpu = append(rate, r.Rate), append(cpu, r.CPU)
	}
	f.Add(name+"_mib_s", benchkit.Median(rate))
	f.Add(name+"_cpu_s_per_gib", benchkit.Median(cpu))
	return fmt.Sprintf("%7.0f MiB/s in all %.0f, %5.2f s of CPU per GiB", benchkit.Median(rate), rate, benchkit.Median(cpu))
}

func run(ctx context.Context, o options) error {
	all := map[string][]result{}
	f := &benchkit.Figures{}
	for _, s := range o.scenarios {
		floors, against := s.String()+"_floor", s.String()+"_against"
		for i := range o.runs {
			if !s.TLS && !s.Disk {
				r, err := s.floor(ctx, uint64(i))
				if err != nil {
					return fmt.Errorf("%s: %w", floors, err)
				}
				all[floors] = append(all[floors], *r)
			}
			pair := []string{s.String(), against}
			if i%2 == 1 { // neither is always the first
				slices.Reverse(pair)
			}
			for _, name := range pair {
				if name == against && o.against == "" {
					continue
				}
				harness.Use(map[string]string{against: o.against}[name])
				r, err := measure(ctx, s, uint64(i))
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				all[name] = append(all[name], *r)
			}
		}
		harness.Use("")
		for _, name := range []string{s.String(), against} {
			if all[name] != nil {
				report(o, f, s, name, all[name])
			}
		}
		if rs := all[floors]; rs != nil {
			fmt.Fprintf(o.out, "%-23s %s\n", floors, speed(f, floors, rs))
		}
	}
	fmt.Fprintln(o.out, f)
	return benchkit.WriteJSON(o.json, map[string]any{"scenarios": all, "figures": f})
}

// report adds what a scenario's runs took to the figures, and says it.
func report(o options, f *benchkit.Figures, s scenario, name string, rs []result) {
	var peak, sent int64
	for _, r := range rs {
		peak, sent = max(peak, r.Peak), max(sent, r.Sent)
	}
	fs := "tmpfs"
	if s.Disk {
		fs = "disk"
	}
	fmt.Fprintf(o.out, "%-17s %-5s %s, peak RSS %3.0f MiB (seeder %3.0f)\n",
		name, fs, speed(f, name, rs), float64(peak)/(1<<20), float64(sent)/(1<<20))
	f.Add(name+"_rss_mib", float64(peak)/(1<<20))
}

// measure moves the blobs once, between agents that were just started.
func measure(ctx context.Context, s scenario, seed uint64) (_ *result, err error) {
	c, err := harness.New()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, c.Logs(5))
		}
		err = errors.Join(err, c.Close())
	}()
	var pki *harness.PKI
	keys := map[string]string{}
	if s.TLS {
		if pki, err = c.NewPKI(ctx); err != nil {
			return nil, err
		}
		if keys, err = pki.Issue(ctx, "tracker", "tracker"); err != nil {
			return nil, err
		}
	}
	tracker, err := c.NewTracker(ctx, "tracker", keys)
	if err != nil {
		return nil, err
	}
	images, paths := make([]*harness.Image, s.Many), make([]string, s.Many)
	for i := range images {
		if images[i], paths[i], err = s.image(c.Dir, seed+uint64(i)); err != nil {
			return nil, err
		}
	}
	nodes := make([]*harness.Node, 1+s.To) // the first has the blobs
	for i := range nodes {
		name := fmt.Sprintf("n%d", i)
		agent := map[string]string{
			"log_level": `"warn"`, "unpack": "false", "shim.listen": `""`,
			"listen":  fmt.Sprintf("%q", fmt.Sprintf("%s:%d", tracker.Addr, 20000+i)),
			"metrics": fmt.Sprintf("%q", fmt.Sprintf("%s:%d", tracker.Addr, 21000+i)),
		}
		if s.Zero {
			agent["wait.stall"] = `"2m"` // so long may the seeder take to compute sums
		}
		if pki != nil {
			id, err := pki.Issue(ctx, name, "node")
			if err != nil {
				return nil, err
			}
			for k, v := range id {
				agent[k] = v
			}
		}
		opts := harness.NodeOptions{Trackers: []string{tracker.Listen}, Agent: agent}
		if !s.Disk {
			opts.Disk = int64(s.Many)*s.Size + 64<<20
		}
		n, err := c.NewNodeOn(tracker.Host, name, opts)
		if err != nil {
			return nil, err
		}
		nodes[i] = n
		if i == 0 {
			if err := s.give(n, images, paths); err != nil {
				return nil, err
			}
		}
		if err := errors.Join(n.StartAgent(ctx), n.AwaitTrackers(ctx)); err != nil {
			return nil, err
		}
	}
	if !s.Zero {
		// Not measured: sums are computed when they are first wanted.
		warm := nodes[1]
		for _, img := range images {
			if err := errors.Join(fetchSoon(ctx, warm, img.Layers[0], s.Size), warm.StopAgent(), os.RemoveAll(warm.ContentDir()),
				warm.StartAgent(ctx), warm.AwaitTrackers(ctx)); err != nil {
				return nil, err
			}
		}
	}
	if err := benchkit.WarmMemory(s.Size * int64(min(s.Many, 2)*s.To)); err != nil {
		return nil, err
	}
	before, err := tracker.CPU()
	if err != nil {
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	start := time.Now()
	for _, n := range nodes[1:] {
		for _, img := range images {
			g.Go(func() error { return n.FetchBlob(gctx, img.Layers[0], s.Size) })
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	took := time.Since(start)
	after, err := tracker.CPU()
	if err != nil {
		return nil, err
	}
	r := s.result(took, after-before)
	for _, n := range nodes[1:] {
		rss, err := n.Agent().PeakRSS()
		if err != nil {
			return nil, err
		}
		r.Peak = max(r.Peak, rss)
	}
	r.Sent, err = nodes[0].Agent().PeakRSS()
	return r, err
}

// fetchSoon fetches a blob from the seeder, which may not have announced it yet.
func fetchSoon(ctx context.Context, n *harness.Node, digest string, size int64) error {
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		if err := n.FetchBlob(ctx, digest, size); err == nil || ctx.Err() != nil || time.Since(begin) > 20*time.Second {
			return err
		}
	}
}

// image makes a blob: of random bytes, or of zeros without any on the disk.
func (s scenario) image(dir string, seed uint64) (img *harness.Image, path string, err error) {
	if !s.Zero {
		return benchkit.RandomImage(dir, s.Size, seed)
	}
	path = filepath.Join(dir, fmt.Sprintf("zeros-%d", seed))
	f, err := os.Create(path)
	if err != nil {
		return nil, "", err
	}
	_, err = f.WriteAt([]byte{byte(seed)}, 0) // so that they differ
	if err := errors.Join(err, f.Truncate(s.Size), f.Close()); err != nil {
		return nil, "", err
	}
	img, err = harness.ImageOf(harness.LayerBlob{Path: path, Compression: harness.Uncompressed})
	return img, path, err
}

// give puts the layers' blobs where a node's agent finds them when it starts.
func (s scenario) give(n *harness.Node, images []*harness.Image, paths []string) error {
	blobs := filepath.Join(n.ContentDir(), "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	for i, img := range images {
		to := filepath.Join(blobs, strings.TrimPrefix(img.Layers[0], "sha256:"))
		if s.Disk {
			if err := os.Link(paths[i], to); err != nil {
				return err
			}
			continue
		}
		from, err := os.Open(paths[i])
		if err != nil {
			return err
		}
		f, err := os.Create(to)
		if err == nil {
			_, err = io.Copy(f, from)
			err = errors.Join(err, f.Close())
		}
		if err := errors.Join(err, from.Close()); err != nil {
			return err
		}
	}
	return nil
}
