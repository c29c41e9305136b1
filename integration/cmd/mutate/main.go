package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// mutant is one place, broken.
type mutant struct {
	file     string // below the module's directory
	line     int
	what     string // the call, or the decision
	src      []byte // the file as it was read
	from, to int    // bytes of it
	text     string // what is there instead
	head     string // added behind the package clause, on its line
	packages []string
}

func (m *mutant) at() string { return fmt.Sprintf("%s:%d", m.file, m.line) }

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

func run() error {
	dir := flag.String("C", "..", "the module's directory")
	decisions := flag.String("decisions", "cmd/mutate/decisions.txt", "the list of decisions")
	only := flag.String("run", "", "only places that match this, as they are printed")
	list := flag.Bool("list", false, "print the places, and try none")
	workers := flag.Int("j", 2, "how many are tried at the same time")
	limit := flag.Duration("timeout", 3*time.Minute, "how long the tests of one package may take")
	flag.Parse()
	want, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	mod, err := load(ctx, *dir)
	if err != nil {
		return err
	}
	all, err := mod.syncs()
	if err != nil {
		return err
	}
	named, err := mod.decisions(*decisions)
	if err != nil {
		return err
	}
	var todo []*mutant
	for _, m := range append(all, named...) {
		if want.MatchString(m.at() + " " + m.what) {
			todo = append(todo, m)
		}
	}
	if *list {
		for _, m := range todo {
			fmt.Printf("%s %s\t%s\n", m.at(), m.what, strings.Join(m.packages, " "))
		}
		return nil
	}
	return try(ctx, mod, todo, *workers, *limit)
}

// try tries places and prints what became of them.
func try(ctx context.Context, mod *module, todo []*mutant, workers int, limit time.Duration) error {
	tmp, err := os.MkdirTemp("", "mutate-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	results := make([]result, len(todo))
	next := make(chan int)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			t := &trial{mod: mod, dir: fmt.Sprintf("%s/%d", tmp, w), limit: limit}
			for i := range next {
				results[i] = t.try(ctx, todo[i])
				fmt.Fprintf(os.Stderr, "%d/%d %s %s: %s\n", i+1, len(todo), todo[i].at(), todo[i].what, results[i])
			}
		})
	}
	for i := range todo {
		next <- i
	}
	close(next)
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	tw := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	bad := 0
	for i, m := range todo {
		fmt.Fprintf(tw, "%s\t%s\t%s\n", m.at(), m.what, results[i])
		if results[i].killed == "" {
			bad++
		}
	}
	tw.Flush()
	if bad > 0 {
		return fmt.Errorf("%d of %d changes were noticed by no test, or could not be tried", bad, len(todo))
	}
	fmt.Printf("each of %d changes fails a test\n", len(todo))
	return nil
}
