package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/integration/benchkit"
	"github.com/capelin-io/capelin/integration/harness"
	"github.com/capelin-io/capelin/swarm/piece"
)

type options struct {
	size  int64
	rate  int64
	known string // digest
	json  string // file for the figures
	out   io.Writer
}

func main() {
	o := options{out: os.Stdout}
	size := flag.Float64("size", 100e9, "bytes of the blob")
	rate := flag.Float64("rate", 200e6, "bytes per second of each link, each way")
	flag.StringVar(&o.known, "digest", "", "the blob's digest, as an earlier run has said it; empty: it is computed first")
	flag.StringVar(&o.json, "json", "", "file for the figures")
	push := flag.Bool("push", false, "the blob is pushed to a gateway instead, and pulled from another server: the disk holds it three times")
	flag.Parse()
	o.size, o.rate = int64(*size), int64(*rate)
	do := cold
	if *push {
		do = there
	}
	benchkit.Main("bench-huge", "it needs root, for network namespaces", func(ctx context.Context) error { return run(ctx, o, do) })
}

// bench is one run.
type bench struct {
	options
	c     *harness.Cluster
	blob  *blob
	id    piece.ID
	roles []*role
	f     benchkit.Figures
}

func run(ctx context.Context, o options, do func(context.Context, *bench) error) (err error) {
	b := &bench{options: o}
	began := time.Now()
	if b.blob, err = newBlob(ctx, o.size, o.known); err != nil {
		return err
	}
	fmt.Fprintf(o.out, "%d bytes, %s (%.0f s)\n", o.size, b.blob.digest, time.Since(began).Seconds())
	if b.id, err = piece.ParseID(string(b.blob.digest), o.size); err != nil {
		return err
	}
	if b.c, err = harness.New(); err != nil {
		return err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, b.c.Logs(20))
		}
		err = errors.Join(err, b.c.Close())
	}()
	if err := do(ctx, b); err != nil {
		return err
	}
	fmt.Fprintln(o.out, &b.f)
	return benchkit.WriteJSON(o.json, map[string]any{"figures": &b.f})
}

// role is a process whose memory is measured.
type role struct {
	name string
	pid  int
	idle int64
}

// watch measures a process's memory from now on, when it has nothing to do.
func (b *bench) watch(name string, pid int) error {
	idle, _, err := harness.Resident(pid)
	if err != nil {
		return err
	}
	b.roles = append(b.roles, &role{name, pid, idle})
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0) // the peak is that from now on
}

// report says how much memory was taken above what was idle.
func (b *bench) report() error {
	for _, r := range b.roles {
		_, peak, err := harness.Resident(r.pid)
		if err != nil {
			return err
		}
		fmt.Fprintf(b.out, "%-8s %4d MiB above %3d MiB idle\n", r.name, (peak-r.idle)>>20, r.idle>>20)
		b.f.Add(r.name+"_above_idle_mib", float64(peak-r.idle)/(1<<20))
	}
	return nil
}

// plain downloads a part of the blob from a host, as anybody would, and returns bytes per second.
func (b *bench) plain(ctx context.Context, h *harness.Host, url string) (float64, error) {
	n := min(b.size, 2e9)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=0-%d", n-1))
	t := &http.Transport{DialContext: h.DialContext}
	defer t.CloseIdleConnections()
	start := time.Now()
	resp, err := t.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if got, err := io.Copy(io.Discard, resp.Body); err != nil || got != n {
		return 0, fmt.Errorf("a plain download of %s: %s, %d bytes of %d: %w", url, resp.Status, got, n, err)
	}
	return float64(n) / time.Since(start).Seconds(), nil
}

// node makes a node whose link has the rate, and starts its agent.
func (b *bench) node(ctx context.Context, trackers ...string) (*harness.Node, error) {
	n, err := b.c.NewNode("node", harness.NodeOptions{Trackers: trackers, Disk: b.disk(), Agent: map[string]string{
		"log_level": `"info"`, "unpack": "false", "shim.listen": `""`, "wait.stall": `"1m"`,
	}})
	if err != nil {
		return nil, err
	}
	if err := errors.Join(b.c.Shape(n.Host, b.rate), n.StartAgent(ctx)); err != nil {
		return nil, err
	}
	return n, errors.Join(n.AwaitTrackers(ctx), b.watch("agent", n.Agent().PID()))
}

// disk is how large a file system is that could hold the blob, in bytes.
func (b *bench) disk() int64 { return b.size + b.size/8 + 1<<30 }

// cold has the blob made by a web server, and go through an origin and the swarm to a node.
func cold(ctx context.Context, b *bench) error {
	web, err := b.c.NewHost("web")
	if err != nil {
		return err
	}
	if err := b.c.Shape(web, b.rate); err != nil {
		return err
	}
	addr, err := b.c.Serve(web, 80, b.blob)
	if err != nil {
		return err
	}
	// On a busy machine nobody is late who takes a second.
	tracker, err := b.c.NewTracker(ctx, "tracker", map[string]string{"lease.lookup": `"4s"`})
	if err != nil {
		return err
	}
	ring, err := b.c.NewRing(harness.RingOptions{
		Members: 1, Rate: b.rate, Trackers: []string{tracker.Listen},
		Keys: map[string]string{"ring.members": "[]", "lookup.budget": `"3s"`, "cache.size": fmt.Sprint(2 * b.size), "log_level": `"info"`},
		TOML: "[[backend]]\nname = \"web\"\nnamespaces = [\".*\"]\nkind = \"http\"\n[backend.http]\nurl = \"http://" + addr + "/{hex}\"\n",
	})
	if err != nil {
		return err
	}
	origin := ring.Members[0]
	if err := errors.Join(origin.MountTmpfs(origin.Root, b.disk()), ring.Start(ctx)); err != nil {
		return err
	}
	if err := b.watch("origin", origin.PID()); err != nil {
		return err
	}
	n, err := b.node(ctx, tracker.Listen)
	if err != nil {
		return err
	}
	rate, err := b.plain(ctx, n.Host, "http://"+addr+"/"+b.blob.digest.Encoded())
	if err != nil {
		return err
	}
	took, err := b.fetch(ctx, n, origin.Path(origin.Root))
	if err != nil {
		return err
	}
	ideal := float64(b.size) / rate
	fmt.Fprintf(b.out, "a plain download at %.1f MB/s would take %.1f s: %.3f times that\n", rate/1e6, ideal, took/ideal)
	b.f.Add("cold_over_link", took/ideal)
	return b.report()
}

// fetch has the node get the blob from an origin, whose content directory is given, while holes are cut into both files. It returns
// how many seconds it took.
func (b *bench) fetch(ctx context.Context, n *harness.Node, origin string) (float64, error) {
	h := &holes{id: b.id, node: n.ContentDir(), files: []string{n.ContentDir(), origin}}
	start := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	hctx, stop := context.WithCancel(gctx)
	g.Go(func() error { return h.run(hctx) })
	g.Go(func() error {
		defer stop()
		return n.FetchBlob(gctx, string(b.blob.digest), b.size)
	})
	if err := g.Wait(); err != nil {
		return 0, err
	}
	took := time.Since(start).Seconds()
	fmt.Fprintf(b.out, "cold to the node: %.1f s, %.1f MB/s; at most %d MB were stored at once\n", took, float64(b.size)/took/1e6, h.most/1e6)
	b.f.Add("cold_s", took)
	b.f.Add("stored_mb", float64(h.most)/1e6)
	return took, nil
}
