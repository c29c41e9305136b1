package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/plugins/content/local"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/integration/benchkit"
	"github.com/capelin-io/capelin/integration/harness"
	"github.com/capelin-io/capelin/plugin/unpack"
)

// options are the flags.
type options struct {
	cases   []testCase
	rate    int64  // bytes per second of every link, each way
	images  string // where they are kept
	json    string
	profile string // directory for profiles; "": none
	igzip   bool   // a stock containerd with igzip, too
	many    int    // rounds of many
	against string // another binary of capelin for many; "": none
	out     io.Writer
}

const seeders = 4

func main() {
	o := options{out: os.Stdout}
	rounds := flag.Int("rounds", 3, "pulls of each big image by each node")
	smallRounds := flag.Int("small-rounds", 20, "pulls of the small image by each node")
	rate := flag.Float64("rate", 300e6, "bytes per second of every link, each way")
	only := flag.String("cases", "gzip,zstd,small,many", "which images: gzip, zstd and small; many small ones at once that nobody has; "+
		"and tiny, which needs, like many, no packages of Debian's")
	flag.StringVar(&o.images, "images", "bin/bench-images", "directory in which the images are kept")
	flag.StringVar(&o.json, "json", "", "file for all results")
	flag.StringVar(&o.profile, "profile", "",
		"directory for CPU profiles of containerd and agent, in one more pull of each case that is not counted")
	flag.StringVar(&o.against, "against", "", "another binary of capelin, such as one of an older commit: many is measured with it, too")
	floor := flag.String("floor", "", "serve the content store in this directory on file 3: this is how the floor's process is started")
	flag.Parse()
	if *floor != "" {
		fmt.Fprintln(os.Stderr, serveFloor(*floor))
		os.Exit(1)
	}
	o.rate = int64(*rate)
	for _, c := range append(cases(*rounds, *smallRounds), tiny(*rounds)) {
		if slices.Contains(strings.Split(*only, ","), c.name) {
			o.cases = append(o.cases, c)
		}
	}
	if slices.Contains(strings.Split(*only, ","), "many") {
		o.many = *rounds
	}
	_, err := exec.LookPath("igzip")
	o.igzip = err == nil
	const root = "it needs root: it makes network namespaces and runs containerd with overlayfs"
	benchkit.Main("bench-pull", root, func(ctx context.Context) error {
		_, err := run(ctx, o)
		return err
	})
}

// bench is a run.
type bench struct {
	options
	c       *harness.Cluster
	reg     *harness.BareRegistry
	tracker *harness.Tracker
	nodes   int
	seed    uint64 // of the last image of many
}

// pull is one measured pull.
type pull struct {
	Wall       float64 `json:"wall_seconds"`
	CPU        float64 `json:"cpu_seconds"`
	PluginCPU  float64 `json:"plugin_cpu_seconds,omitempty"` // of that, the agent's or the floor's
	Containerd int64   `json:"containerd_peak_rss"`
	Plugin     int64   `json:"plugin_peak_rss,omitempty"`
	Busy       float64 `json:"machine_busy"` // of all processors, sources included
}

// caseResult is what becomes of a case.
type caseResult struct {
	Layers   []int64           `json:"layer_bytes"`
	Entries  int               `json:"entries,omitempty"`
	Bytes    int64             `json:"uncompressed_bytes,omitempty"`
	Pulls    map[string][]pull `json:"pulls"` // by who pulled
	Download []float64         `json:"download_seconds"`
	Swarm    []float64         `json:"swarm_download_seconds"`
	Unpack   []float64         `json:"unpack_seconds"`
}

type results struct {
	Rate     int64                  `json:"rate_bytes_per_second"`
	CPUs     int                    `json:"cpus"`
	Cases    map[string]*caseResult `json:"cases"`
	Figures  *benchkit.Figures      `json:"figures"`
	Started  time.Time              `json:"started"`
	Duration float64                `json:"seconds"`
}

func run(ctx context.Context, o options) (res *results, err error) {
	res = &results{
		Rate: o.rate, CPUs: runtime.NumCPU(), Started: time.Now().UTC(),
		Cases: map[string]*caseResult{}, Figures: &benchkit.Figures{},
	}
	c, err := harness.New()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, c.Logs(15))
		}
		err = errors.Join(err, c.Close())
	}()
	b := &bench{options: o, c: c}
	if b.reg, err = c.NewBareRegistry(ctx, "registry"); err != nil {
		return nil, err
	}
	if b.tracker, err = c.NewTracker(ctx, "tracker", nil); err != nil {
		return nil, err
	}
	for _, tc := range o.cases {
		r, err := b.run(ctx, tc)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", tc.name, err)
		}
		res.Cases[tc.name] = r
		b.figures(res.Figures, tc.name, r)
	}
	if o.many > 0 {
		b.say("many: %d images of two layers at once, which nobody has", manyImages)
		r, err := b.many(ctx, o.many)
		if err != nil {
			return nil, fmt.Errorf("many: %w", err)
		}
		res.Cases["many"] = r
		b.figures(res.Figures, "many", r)
	}
	res.Duration = time.Since(res.Started).Seconds()
	fmt.Fprintln(o.out, res.Figures)
	return res, benchkit.WriteJSON(o.json, res)
}

func (b *bench) say(format string, args ...any) { fmt.Fprintf(b.out, format+"\n", args...) }

// run measures one case.
func (b *bench) run(ctx context.Context, tc testCase) (*caseResult, error) {
	dir, err := filepath.Abs(b.images)
	if err != nil {
		return nil, err
	}
	b.say("%s: making the image, unless it is in %s", tc.name, dir)
	img, err := tc.make(ctx, dir)
	if err != nil {
		return nil, err
	}
	ref, err := b.reg.Push(ctx, img, "bench/"+tc.name+":1")
	if err != nil {
		return nil, err
	}
	r := &caseResult{Layers: img.Sizes, Entries: img.Entries, Bytes: img.Uncompressed, Pulls: map[string][]pull{}}
	b.say("%s: %d layers, %.1f MB, %d files and directories of %.0f MB", tc.name, len(img.Layers), float64(img.Bytes())/1e6,
		img.Entries, float64(img.Uncompressed)/1e6)
	if err := b.c.Shape(b.reg.Host, b.rate); err != nil {
		return nil, err
	}
	defer b.c.Shape(b.reg.Host, 0) //nolint:errcheck // it goes with the cluster, and pushes are not measured
	swarm, err := b.swarm(ctx, tc.name, img)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, n := range swarm {
			_ = b.c.Remove(n)
		}
	}()
	warm := func() error { return b.cold(append(slices.Clone(img.Layers), img.Config)) }

	// Not measured: sums are computed when they are first wanted, programs are read from the disk.
	if _, err := b.pull(ctx, "capelin", img, ref, "", warm); err != nil {
		return nil, fmt.Errorf("warming up: %w", err)
	}
	who := []string{"stock", "capelin"}
	if b.igzip && tc.name != "zstd" {
		who = append(who, "stock-igzip")
	}
	for _, w := range who { // nor are these
		if b.profile == "" {
			break
		}
		if _, err := b.pull(ctx, w, img, ref, filepath.Join(b.profile, tc.name+"-"+w), warm); err != nil {
			return nil, fmt.Errorf("profiling %s: %w", w, err)
		}
	}
	for round := range tc.rounds {
		order := append(slices.Clone(who[round%len(who):]), who[:round%len(who)]...)
		for _, w := range order {
			p, err := b.pull(ctx, w, img, ref, "", warm)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", w, err)
			}
			r.Pulls[w] = append(r.Pulls[w], *p)
			if tc.rounds <= 5 {
				b.say("  %-12s %7.2f s, %6.2f s of CPU, machine %2.0f%% busy", w, p.Wall, p.CPU, 100*p.Busy)
			}
		}
		if round >= 3 {
			continue // the floors need no more
		}
		if err := b.floors(ctx, r, img, ref, warm); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// swarm starts agents that have the image. Their blobs are hard links of the registry's
// files: whoever serves, serves the same pages.
func (b *bench) swarm(ctx context.Context, name string, img *harness.Image) ([]*harness.Node, error) {
	nodes := make([]*harness.Node, seeders)
	for i := range nodes {
		n, err := b.c.NewNode(fmt.Sprintf("%s-seed-%d", name, i), harness.NodeOptions{
			Trackers: []string{b.tracker.Listen},
			Agent:    map[string]string{"log_level": `"info"`, "unpack": "false"},
		})
		if err != nil {
			return nil, err
		}
		nodes[i] = n
		blobs := filepath.Join(n.ContentDir(), "blobs", "sha256")
		if err := os.MkdirAll(blobs, 0o755); err != nil {
			return nil, err
		}
		for _, d := range append(slices.Clone(img.Layers), img.Config) {
			if err := os.Link(b.reg.BlobFile(d), filepath.Join(blobs, strings.TrimPrefix(d, "sha256:"))); err != nil {
				return nil, err
			}
		}
		if err := b.c.Shape(n.Host, b.rate); err != nil {
			return nil, err
		}
		if err := errors.Join(n.StartAgent(ctx), n.AwaitTrackers(ctx)); err != nil {
			return nil, err
		}
	}
	return nodes, nil
}

// cold writes out what is dirty, forgets all cached files, and reads the blobs that the
// sources send: their disks are not what is measured.
func (b *bench) cold(blobs []string) error {
	syscall.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200); err != nil {
		return err
	}
	for _, d := range blobs {
		f, err := os.Open(b.reg.BlobFile(d))
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, f)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// node is one that pulls.
type node struct {
	*harness.Node
	plugin *harness.Process // the agent or the floor's process; nil: containerd is stock
}

// node starts a fresh one.
func (b *bench) node(ctx context.Context, who string) (*node, error) {
	b.nodes++
	capelin := who == "capelin" || who == "against"
	harness.Use(map[string]string{"against": b.against}[who])
	o := harness.NodeOptions{
		Registries: []string{b.reg.Addr}, Trackers: []string{b.tracker.Listen}, Stock: !capelin,
		Agent: map[string]string{"log_level": `"info"`, "pprof": "true", "metrics": `"127.0.0.1:7403"`},
	}
	if who != "stock-igzip" {
		o.Env = []string{"CONTAINERD_DISABLE_IGZIP=1", "CONTAINERD_DISABLE_PIGZ=1"}
	}
	n, err := b.c.NewNode(fmt.Sprintf("%s-%d", who, b.nodes), o)
	if err != nil {
		return nil, err
	}
	if err := b.c.Shape(n.Host, b.rate); err != nil {
		return nil, err
	}
	var floor *harness.Process
	if who == "floor" {
		if floor, err = startFloor(n); err != nil {
			return nil, err
		}
	}
	if err := n.Start(ctx); err != nil || n.Options.Stock {
		return &node{n, floor}, err
	}
	return &node{n, n.Agent()}, n.AwaitTrackers(ctx)
}

// pull measures one on a fresh node, and fails if not all of it came from the swarm.
func (b *bench) pull(ctx context.Context, who string, img *harness.Image, ref, profile string, warm func() error) (*pull, error) {
	return b.pullAll(ctx, who, []string{ref}, profile, warm, func(n *harness.Node) error {
		if n.Options.Stock {
			return nil
		}
		st, err := n.Status(ctx)
		if err == nil && st.Bytes.FromPeers < img.Bytes() {
			err = fmt.Errorf("not from the swarm: %d of %d bytes came from it, %d from the registry",
				st.Bytes.FromPeers, img.Bytes(), st.Bytes.FromRegistry)
		}
		return err
	})
}

// floors measures the parts of a pull alone: the layers' bytes by HTTP from the registry
// to files, the same from the swarm without unpacking, and unpacking without downloading.
func (b *bench) floors(ctx context.Context, r *caseResult, img *harness.Image, ref string, warm func() error) error {
	for _, f := range []struct {
		to      *[]float64
		measure func(context.Context, *harness.Image, string, func() error) (time.Duration, error)
	}{{&r.Download, b.download}, {&r.Swarm, b.fetch}, {&r.Unpack, b.unpack}} {
		d, err := f.measure(ctx, img, ref, warm)
		if err != nil {
			return err
		}
		*f.to = append(*f.to, d.Seconds())
	}
	return nil
}

// download gets the layers over a node's link, three at once as containerd does.
func (b *bench) download(ctx context.Context, img *harness.Image, ref string, warm func() error) (time.Duration, error) {
	b.nodes++
	h, err := b.c.NewHost(fmt.Sprintf("download-%d", b.nodes))
	if err != nil {
		return 0, err
	}
	if err := b.c.Shape(h, b.rate); err != nil {
		return 0, err
	}
	if err := warm(); err != nil {
		return 0, err
	}
	repo, _, _ := strings.Cut(strings.TrimPrefix(ref, b.reg.Addr), ":")
	start := time.Now()
	slots, errs := make(chan struct{}, 3), make(chan error, len(img.Layers))
	for _, d := range img.Layers {
		go func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			errs <- h.Download(ctx, "http://"+b.reg.Addr+"/v2"+repo+"/blobs/"+d, filepath.Join(h.Dir, strings.TrimPrefix(d, "sha256:")))
		}()
	}
	for range img.Layers {
		err = errors.Join(err, <-errs)
	}
	took := time.Since(start)
	return took, errors.Join(err, os.RemoveAll(h.Dir))
}

// fetch pulls the image from the swarm without unpacking it.
func (b *bench) fetch(ctx context.Context, _ *harness.Image, ref string, warm func() error) (took time.Duration, err error) {
	n, err := b.node(ctx, "capelin")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, b.c.Remove(n.Node)) }()
	if err := warm(); err != nil {
		return 0, err
	}
	start := time.Now()
	_, err = n.FetchClient(ctx, ref, containerd.WithMaxConcurrentDownloads(3))
	return time.Since(start), err
}

// unpack unpacks the layers, one after the other as containerd does, from files that
// have just been written, to a directory on the same disk.
func (b *bench) unpack(ctx context.Context, img *harness.Image, _ string, warm func() error) (took time.Duration, err error) {
	dir, err := os.MkdirTemp(b.c.Dir, "unpack-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := warm(); err != nil {
		return 0, err
	}
	manifest, err := img.V1.Manifest()
	if err != nil {
		return 0, err
	}
	a := unpack.NewApplier(registryFiles{b.reg}, unpack.Config{})
	start := time.Now()
	for i, l := range manifest.Layers {
		upper := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(upper, 0o755); err != nil {
			return 0, err
		}
		desc := ocispec.Descriptor{MediaType: string(l.MediaType), Digest: digest.Digest(l.Digest.String()), Size: l.Size}
		if _, err := a.Apply(ctx, desc, []mount.Mount{{Type: "overlay", Options: []string{"upperdir=" + upper}}}); err != nil {
			return 0, err
		}
	}
	return time.Since(start), nil
}

// registryFiles provides blobs from a registry's files.
type registryFiles struct{ *harness.BareRegistry }

func (r registryFiles) ReaderAt(_ context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	return local.OpenReader(r.BlobFile(desc.Digest.String()))
}

// figures adds a case's, and says which goals are missed.
func (b *bench) figures(f *benchkit.Figures, name string, r *caseResult) {
	of := func(who string, v func(pull) float64) float64 {
		var all []float64
		for _, p := range r.Pulls[who] {
			all = append(all, v(p))
		}
		return benchkit.Median(all)
	}
	wall := func(p pull) float64 { return p.Wall }
	cpu := func(p pull) float64 { return p.CPU }
	rss := func(p pull) float64 { return float64(p.Containerd+p.Plugin) / 1e6 }
	add := func(key string, v float64) { f.Add(name+"_"+key, v) }
	plugin := func(p pull) float64 { return p.PluginCPU }
	for _, who := range []string{"stock", "stock-igzip", "floor", "against", "capelin"} {
		if len(r.Pulls[who]) == 0 {
			continue
		}
		key := strings.ReplaceAll(who, "-", "_")
		add(key+"_wall_s", of(who, wall))
		add(key+"_cpu_s", of(who, cpu))
		add(key+"_rss_mb", of(who, rss))
		if of(who, plugin) > 0 {
			add(key+"_plugin_cpu_s", of(who, plugin))
		}
	}
	floors := len(r.Download) > 0
	if floors {
		add("download_s", benchkit.Median(r.Download))
		add("swarm_s", benchkit.Median(r.Swarm))
		add("unpack_s", benchkit.Median(r.Unpack))
	}
	for _, to := range []struct{ key, who string }{
		{"ratio", "stock"}, {"ratio_igzip", "stock-igzip"}, {"over_floor", "floor"}, {"ratio_against", "against"},
	} {
		if len(r.Pulls[to.who]) > 0 {
			add("wall_"+to.key, of("capelin", wall)/of(to.who, wall))
			add("cpu_"+to.key, of("capelin", cpu)/of(to.who, cpu))
		}
	}
	if floors {
		add("over_floors", of("capelin", wall)/(benchkit.Median(r.Download)+benchkit.Median(r.Unpack)))
	}
	for _, g := range []struct {
		key  string
		most float64
	}{
		{"gzip_wall_ratio", 0.6}, {"gzip_cpu_ratio", 1}, {"gzip_over_floors", 1.15},
		{"zstd_wall_ratio", 0.8}, {"zstd_cpu_ratio", 1}, {"small_wall_ratio", 1.05},
		{"many_wall_ratio", 1.25}, {"many_cpu_ratio", 1.25},
	} {
		if !strings.HasPrefix(g.key, name+"_") {
			continue
		}
		verdict := "reached"
		if !(f.Get(g.key) <= g.most) {
			verdict = "MISSED"
		}
		b.say("  %-18s %.3f, goal at most %.2f: %s", g.key, f.Get(g.key), g.most, verdict)
	}
}
