package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/integration/benchkit"
)

// kind is a storage with its server, and the tool that it is compared with.
type kind struct {
	backend fetcher.Backend
	tool    string // its name in figures
	// up and down copy a file with the tool, to and from an object of that name. start does as little as the tool can,
	// so that the time that it takes to start is known.
	up, down func(file, key string) *exec.Cmd
	start    func() *exec.Cmd
}

// kinds start a server below a directory each. What they start ends with t.
var kinds = map[string]func(t *bench, dir string) (*kind, error){
	"s3": startS3,
}

func main() {
	only := flag.String("kinds", "", "kinds to measure, separated by commas; empty: all")
	size := flag.Int64("size", 1e9, "bytes of the object")
	rounds := flag.Int("rounds", 5, "how often each is measured")
	json := flag.String("json", "", "file for the figures")
	flag.Parse()
	benchkit.Main("bench-storages", "", func(ctx context.Context) error {
		b := &bench{ctx: ctx, size: *size, rounds: *rounds, runs: map[string][]float64{}}
		for _, name := range strings.Split(*only, ",") {
			if _, ok := kinds[name]; !ok && name != "" {
				return fmt.Errorf("there is no kind %q", name)
			}
		}
		for name, start := range kinds {
			if *only != "" && !slices.Contains(strings.Split(*only, ","), name) {
				continue
			}
			if err := b.measure(name, start); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		fmt.Println(&b.figures)
		return benchkit.WriteJSON(*json, map[string]any{"figures": &b.figures, "runs": b.runs})
	})
}

// bench is one run. It is what a server's start needs of a test.
type bench struct {
	ctx     context.Context
	size    int64
	rounds  int
	figures benchkit.Figures
	runs    map[string][]float64 // seconds of each

	cleanups []func()
	failed   error
}

func (b *bench) Helper()          {}
func (b *bench) Failed() bool     { return b.failed != nil }
func (b *bench) Cleanup(f func()) { b.cleanups = append(b.cleanups, f) }

func (b *bench) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// fatal is what Fatalf has said.
type fatal struct{ error }

func (b *bench) Fatalf(format string, args ...any) { panic(fatal{fmt.Errorf(format, args...)}) }

func (b *bench) Setenv(key, value string) {
	if err := os.Setenv(key, value); err != nil {
		b.Fatalf("%v", err)
	}
}

func (b *bench) measure(name string, start func(*bench, string) (*kind, error)) (err error) {
	dir, err := os.MkdirTemp("", "capelin-storages-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	defer func() {
		if f, ok := recover().(fatal); ok {
			err = f
		}
		b.failed = err
		for _, f := range slices.Backward(b.cleanups) {
			f()
		}
		b.cleanups = nil
	}()
	k, err := start(b, dir)
	if err != nil {
		return err
	}
	defer k.backend.Close()
	file := filepath.Join(dir, "object")
	sum, err := b.makeFile(file)
	if err != nil {
		return err
	}
	for round := range b.rounds {
		if err := b.round(k, name, file, sum, round); err != nil {
			return err
		}
	}
	idle := benchkit.Median(b.runs[name+"_"+k.tool+"_start"])
	for _, way := range []string{"up", "down"} {
		mb := float64(b.size) / 1e6
		ours := mb / benchkit.Median(b.runs[name+"_"+way])
		theirs := mb / max(benchkit.Median(b.runs[name+"_"+k.tool+"_"+way])-idle, 1e-3) // without its start
		b.figures.Add(name+"_"+way+"_mb_s", ours)
		b.figures.Add(name+"_"+k.tool+"_"+way+"_mb_s", theirs)
		b.figures.Add(name+"_"+way+"_ratio", ours/theirs)
	}
	b.figures.Add(name+"_"+k.tool+"_start_s", idle)
	return nil
}

// round measures both, each way; who comes first changes from round to round.
func (b *bench) round(k *kind, name, file string, sum [sha256.Size]byte, round int) error {
	back := file + ".back"
	turn := func(who string, up, down func(key string) error) error {
		key := fmt.Sprintf("bench/%s-%d", who, round)
		return errors.Join(b.note(who+"_up", func() error { return up(key) }), b.note(who+"_down", func() error { return down(key) }),
			check(back, sum), k.backend.Delete(b.ctx, key))
	}
	ours := func() error {
		return turn(name, func(key string) error { return b.write(k.backend, key, file) },
			func(key string) error { return b.read(k.backend, key, back) })
	}
	theirs := func() error {
		who := name + "_" + k.tool
		return errors.Join(b.note(who+"_start", func() error { return tool(k.start()) }),
			turn(who, func(key string) error { return tool(k.up(file, key)) }, func(key string) error { return tool(k.down(back, key)) }))
	}
	if round%2 == 1 {
		ours, theirs = theirs, ours
	}
	if err := ours(); err != nil {
		return err
	}
	return theirs()
}

// note measures what f does.
func (b *bench) note(name string, f func() error) error {
	began := time.Now()
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	took := time.Since(began).Seconds()
	b.runs[name] = append(b.runs[name], took)
	fmt.Printf("%-20s %6.2f s\n", name, took)
	return nil
}

func (b *bench) write(s fetcher.Backend, key, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = s.Write(b.ctx, key, b.size, f)
	return err
}

func (b *bench) read(s fetcher.Backend, key, file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	r, _, err := s.Open(b.ctx, key, 0, -1)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, r, make([]byte, 1<<20))
	return err
}

func tool(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return nil
}

func (b *bench) makeFile(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Create(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, h), io.LimitReader(rand.NewChaCha8(sum), b.size))
	return [sha256.Size]byte(h.Sum(nil)), err
}

// check looks whether a file came back as it was, and removes it.
func check(path string, want [sha256.Size]byte) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if [sha256.Size]byte(h.Sum(nil)) != want {
		return fmt.Errorf("%s is not what was sent", path)
	}
	return os.Remove(path)
}
