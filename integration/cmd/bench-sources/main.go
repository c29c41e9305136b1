package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/capelin-io/capelin/integration/benchkit"
	"github.com/capelin-io/capelin/integration/harness"
)

// Who is measured.
const (
	stock = "stock"
	base  = "against" // the binary of -against
	tree  = "tree"
)

// scenarios are all, in the order of the table.
var scenarios = slices.Concat(unreachable, slow, limited, lost, lying, blobByBlob, nobody)

type options struct {
	only    *regexp.Regexp
	runs    int
	against string // another binary of capelin; "": none
	capped  time.Duration
	json    string
	logs    int // lines of each daemon's log that are printed after each measurement
	out     io.Writer
}

func main() {
	o := options{out: os.Stdout}
	only := flag.String("only", ".", "regular expression of scenarios, as \"<item> <name>\"")
	list := flag.Bool("list", false, "list the scenarios, and run none")
	flag.IntVar(&o.runs, "runs", 1, "measurements of each scenario with each binary; the table has medians")
	flag.StringVar(&o.against, "against", "", "another binary of capelin, such as one of an older commit, measured in turn with the tree's")
	flag.DurationVar(&o.capped, "cap", time.Minute, "a pull that takes longer is given up")
	flag.StringVar(&o.json, "json", "", "file for all results")
	flag.IntVar(&o.logs, "logs", 0, "how many of the last lines of each daemon's log are printed after each measurement")
	flag.Parse()
	root := "it needs root: it makes network namespaces and runs containerd"
	if *list {
		root = ""
	}
	benchkit.Main("bench-sources", root, func(ctx context.Context) (err error) {
		if o.only, err = regexp.Compile(*only); err != nil {
			return err
		}
		if *list {
			for _, s := range scenarios {
				fmt.Println(s)
			}
			return nil
		}
		return run(ctx, o)
	})
}

func (s scenario) String() string { return s.Item + " " + s.Name }

func run(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "capelin-images-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	who := []string{stock, tree}
	if o.against != "" {
		if o.against, err = filepath.Abs(o.against); err != nil {
			return err
		}
		who = []string{stock, base, tree}
	}
	if _, err := harness.Built("capelin"); err != nil { // before any time is taken
		return err
	}
	defer harness.Use("")
	pics := &images{dir: dir}
	var rows []*measured
	start := time.Now()
	for _, s := range scenarios {
		if !o.only.MatchString(s.String()) {
			continue
		}
		ms, err := compare(ctx, o, s, who, pics)
		if err != nil {
			return fmt.Errorf("%v: %w", s, err)
		}
		rows = append(rows, ms...)
	}
	fmt.Fprintf(o.out, "\nall of it took %.0f s\n\n", time.Since(start).Seconds())
	table(o.out, who, rows)
	f := figures(who, rows)
	fmt.Fprintln(o.out, f)
	if err := benchkit.WriteJSON(o.json, map[string]any{"rows": rows, "figures": f}); err != nil {
		return err
	}
	return failures(rows)
}

// failures are one for each scenario and binary: the rows of a scenario fail together.
func failures(rows []*measured) (err error) {
	said := map[string]bool{}
	for _, m := range rows {
		for w, text := range m.Failed {
			if key := m.Scenario + ": " + w; !said[key] {
				said[key] = true
				err = errors.Join(err, fmt.Errorf("%s: %s", key, text))
			}
		}
	}
	return err
}

// compare measures a scenario with each of who, in turn. What fails is in the rows; only
// the end of ctx is an error.
func compare(ctx context.Context, o options, s scenario, who []string, pics *images) ([]*measured, error) {
	ms := make([]*measured, len(s.Rows))
	for i, r := range s.Rows {
		ms[i] = &measured{Scenario: s.String(), Row: r.Name, Values: map[string][]value{}, Failed: map[string]string{}, row: r}
	}
	for i := range o.runs {
		order := slices.Concat(who[i%len(who):], who[:i%len(who)]) // nobody is always the first
		for _, w := range order {
			harness.Use(map[string]string{base: o.against}[w])
			start := time.Now()
			vs, err := measure(ctx, o, s, w, pics)
			switch {
			case ctx.Err() != nil:
				return nil, ctx.Err()
			case err != nil:
				fmt.Fprintf(o.out, "%v: %s failed: %v\n", s, w, err)
				for _, m := range ms {
					m.Failed[w] = err.Error()
				}
				continue
			}
			for k, v := range vs {
				ms[k].Values[w] = append(ms[k].Values[w], v)
				fmt.Fprintf(o.out, "%v: %s: %s: %.2f s, %.1f MB from registries", s, s.Rows[k].Name, w, v.Wall, float64(v.Registry)/1e6)
				if s.Rows[k].Unit != "" {
					fmt.Fprintf(o.out, ", %.4g %s", v.Count, s.Rows[k].Unit)
				}
				fmt.Fprintln(o.out)
			}
			fmt.Fprintf(o.out, "  (%.0f s)\n", time.Since(start).Seconds())
		}
	}
	for _, m := range ms {
		m.judge()
	}
	return ms, nil
}

// measure runs a scenario once, in a cluster of its own.
func measure(ctx context.Context, o options, s scenario, who string, pics *images) (vs []value, err error) {
	c, err := harness.New()
	if err != nil {
		return nil, err
	}
	defer func() {
		if lines := max(o.logs, 8); ctx.Err() == nil && (err != nil || o.logs > 0) {
			fmt.Fprintln(os.Stderr, c.Logs(lines))
		}
		err = errors.Join(err, c.Close())
	}()
	w := &world{Cluster: c, images: pics, who: who, capped: o.capped}
	if w.registry, err = c.NewRegistry(ctx, harness.Distribution); err != nil {
		return nil, err
	}
	vs, err = s.Measure(ctx, w)
	if err == nil && len(vs) != len(s.Rows) {
		err = fmt.Errorf("%d values for %d rows", len(vs), len(s.Rows))
	}
	return vs, err
}
