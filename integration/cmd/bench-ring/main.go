package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/integration/benchkit"
	"github.com/capelin-io/capelin/integration/harness"
)

type options struct {
	size  int64
	small int
	rate  int64
	runs  int
	out   io.Writer
}

func main() {
	o := options{out: os.Stdout}
	size := flag.Float64("size", 256<<20, "bytes of a large push")
	flag.IntVar(&o.small, "small", 200, "how many pushes of 100 KB are made one after the other")
	rate := flag.Float64("rate", 50e6, "bytes per second of each link, each way")
	flag.IntVar(&o.runs, "runs", 5, "runs of each, in turn")
	flag.Parse()
	o.size, o.rate = int64(*size), int64(*rate)
	benchkit.Main("bench-ring", "it needs root, for network namespaces", func(ctx context.Context) error { return run(ctx, o) })
}

// bench is one kind of origins under measurement.
type bench struct {
	name   string
	c      *harness.Cluster
	ring   *harness.Ring
	client *origin.Client
	seed   uint64

	rate  []float64 // bytes per second of large pushes
	cpu   []float64 // seconds per GiB pushed
	small []float64 // milliseconds of small ones
	syncs float64   // per push
}

func run(ctx context.Context, o options) (err error) {
	single := &bench{name: "single", seed: 1 << 32}
	three := &bench{name: "ring", seed: 2 << 32}
	all := []*bench{single, three}
	defer func() { err = errors.Join(err, single.close(), three.close()) }()
	if err := single.start(ctx, harness.RingOptions{Members: 1, Rate: o.rate, Keys: map[string]string{"ring.members": "[]"}}); err != nil {
		return err
	}
	if err := three.start(ctx, harness.RingOptions{Members: 3, Rate: o.rate}); err != nil {
		return err
	}
	for i := range o.runs + 1 { // the first is a warm-up
		for _, b := range all {
			if err := b.measure(ctx, o, i > 0); err != nil {
				return fmt.Errorf("%s: %w", b.name, err)
			}
		}
	}
	for _, b := range all {
		if b.syncs, err = b.count(ctx, 50); err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
	}
	f := &benchkit.Figures{}
	for _, b := range all {
		f.Add(b.name+"_MBps", benchkit.Median(b.rate)/1e6)
		f.Add(b.name+"_cpu_s_per_GiB", benchkit.Median(b.cpu))
		f.Add(b.name+"_small_ms", benchkit.Median(b.small))
		f.Add(b.name+"_syncs_per_push", b.syncs)
		fmt.Fprintf(o.out, "%-7s %6.1f MB/s (%.1f to %.1f), %.2f CPU s per GiB, small pushes %.2f ms, %.1f synced writes each\n", b.name,
			benchkit.Median(b.rate)/1e6, benchkit.Percentile(b.rate, 0)/1e6, benchkit.Percentile(b.rate, 100)/1e6,
			benchkit.Median(b.cpu), benchkit.Median(b.small), b.syncs)
	}
	f.Add("ring_over_single", benchkit.Median(three.rate)/benchkit.Median(single.rate))
	fmt.Fprintln(o.out, f)
	return nil
}

func (b *bench) close() error {
	if b.c == nil {
		return nil
	}
	return b.c.Close()
}

func (b *bench) start(ctx context.Context, o harness.RingOptions) (err error) {
	if b.c, err = harness.New(); err != nil {
		return err
	}
	if b.ring, err = b.c.NewRing(o); err != nil {
		return err
	}
	if err := b.ring.Start(ctx); err != nil {
		return err
	}
	if b.client, err = b.ring.Open(); err != nil {
		return err
	}
	return b.settle(ctx)
}

// settle waits until all copies are where they belong.
func (b *bench) settle(ctx context.Context) error {
	for {
		st, err := b.ring.Members[0].API().RingStatus(ctx)
		if err == nil && st.Whole {
			return nil
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the ring is not whole: %w", errors.Join(ctx.Err(), err))
		}
	}
}

// measure pushes one large blob and many small ones.
func (b *bench) measure(ctx context.Context, o options, count bool) error {
	before, err := b.cpuTime()
	if err != nil {
		return err
	}
	took, err := b.push(ctx, o.size)
	if err != nil {
		return err
	}
	if err := b.settle(ctx); err != nil { // what is copied afterwards is paid for, too
		return err
	}
	after, err := b.cpuTime()
	if err != nil {
		return err
	}
	start := time.Now()
	for range o.small {
		if _, err := b.push(ctx, 100_000); err != nil {
			return err
		}
	}
	small := time.Since(start)
	if err := b.settle(ctx); err != nil {
		return err
	}
	if count {
		b.rate = append(b.rate, float64(o.size)/took.Seconds())
		b.cpu = append(b.cpu, (after-before).Seconds()/(float64(o.size)/(1<<30)))
		b.small = append(b.small, small.Seconds()*1000/float64(o.small))
	}
	return nil
}

func (b *bench) cpuTime() (all time.Duration, err error) {
	for _, m := range b.ring.Members {
		t, err := m.CPU()
		if err != nil {
			return 0, err
		}
		all += t
	}
	return all, nil
}

// push pushes a new blob, and returns how long it took until it was acknowledged.
func (b *bench) push(ctx context.Context, size int64) (time.Duration, error) {
	b.seed++
	data := make([]byte, size)
	var seed [32]byte
	for i := range 8 {
		seed[i] = byte(b.seed >> (8 * i))
	}
	rand.NewChaCha8(seed).Read(data)
	d := digest.FromBytes(data)
	start := time.Now()
	id, err := b.client.StartUpload(ctx, "bench/app", d)
	if err != nil {
		return 0, err
	}
	if _, err := b.client.Append(ctx, id, 0, bytes.NewReader(data)); err != nil {
		return 0, err
	}
	_, err = b.client.Commit(ctx, id, d)
	return time.Since(start), err
}

// count returns how many synced writes a small push takes, at all members together, copies afterwards included.
func (b *bench) count(ctx context.Context, pushes int) (float64, error) {
	var stop []func() (int, error)
	for _, m := range b.ring.Members {
		s, err := trace(ctx, m.PID())
		if err != nil {
			return 0, err
		}
		stop = append(stop, s)
	}
	for range pushes {
		if _, err := b.push(ctx, 100_000); err != nil {
			return 0, err
		}
	}
	if err := b.settle(ctx); err != nil {
		return 0, err
	}
	all := 0
	for _, s := range stop {
		n, err := s()
		if err != nil {
			return 0, err
		}
		all += n
	}
	return float64(all) / float64(pushes), nil
}

// trace counts the fsyncs and fdatasyncs of a process until it is told to stop.
func trace(ctx context.Context, pid int) (stop func() (int, error), err error) {
	cmd := exec.CommandContext(ctx, "strace", "-f", "-c", "-e", "trace=fsync,fdatasync", "-p", strconv.Itoa(pid))
	out, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(out)
	for attached := false; !attached; attached = strings.Contains(lines.Text(), " attached") {
		if !lines.Scan() {
			return nil, fmt.Errorf("strace does not attach to process %d: %w", pid, cmp.Or(lines.Err(), cmd.Wait(), io.EOF))
		}
	}
	return func() (n int, err error) {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			return 0, err
		}
		defer func() { _ = cmd.Wait() }() // by the signal
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) >= 5 && strings.HasSuffix(fields[len(fields)-1], "sync") {
				calls, err := strconv.Atoi(fields[3])
				if err != nil {
					return 0, fmt.Errorf("strace says %q", lines.Text())
				}
				n += calls
			}
		}
		return n, lines.Err()
	}, nil
}
