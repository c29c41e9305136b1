package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"regexp"
	"runtime/pprof"
	"strings"
	"sync"
	"time"

	"github.com/capelin-io/capelin/internal/sim"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "sim:", err)
		os.Exit(1)
	}
}

type result struct {
	Scenario string
	Row      sim.Row
	Runs     []sim.Row
	Figures  []sim.Figure
	OK       bool
	Seconds  float64 // of all runs
}

func run() error {
	scale := flag.Int("scale", 1, "a `divisor` of the numbers of hosts")
	coarse := flag.Int("coarse", 8, "how many blocks one stands for; 1 is exact, and takes three times as long")
	seeds := flag.Int("seeds", 0, "of each scenario; 0: as it says")
	only := flag.String("only", ".", "a `regexp` of scenarios")
	jobs := flag.Int("jobs", 2, "how many runs at once")
	out := flag.String("json", "", "a `file` for the figures")
	prof := flag.String("cpuprofile", "", "a `file`")
	flag.Parse()
	re, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	if *prof != "" {
		f, err := os.Create(*prof)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	begin := time.Now()
	var scenarios []sim.Scenario
	for _, s := range sim.Goals(*scale, *coarse) {
		if *seeds > 0 {
			s.Seeds = *seeds
		}
		if re.MatchString(s.Name) {
			scenarios = append(scenarios, s)
		}
	}
	results := make([]result, len(scenarios))
	var mu sync.Mutex
	var wg sync.WaitGroup
	room := make(chan struct{}, max(1, *jobs))
	for k, s := range scenarios {
		results[k] = result{Scenario: s.Name, Runs: make([]sim.Row, s.Seeds)}
		for seed := range s.Seeds {
			room <- struct{}{}
			wg.Go(func() {
				defer func() { <-room }()
				t := time.Now()
				row := s.Measure(uint64(seed + 1))
				mu.Lock()
				defer mu.Unlock()
				results[k].Runs[seed] = row
				results[k].Seconds += time.Since(t).Seconds()
				fmt.Fprintf(os.Stderr, "%s, seed %d: %+v in %v\n", s.Name, seed+1, row, time.Since(t).Round(time.Second))
			})
		}
	}
	wg.Wait()

	missed := 0
	line := []string{}
	fmt.Printf("%-38s %5s  %-10s %9s %9s\n", "scenario", "seeds", "figure", "measured", "goal")
	for k, s := range scenarios {
		r := &results[k]
		r.Row = r.Runs[0]
		for _, o := range r.Runs[1:] {
			r.Row = r.Row.Worst(o)
		}
		r.Figures, r.OK = s.Figures(r.Row), true
		for i, f := range r.Figures {
			name, n, verdict := s.Name, fmt.Sprint(s.Seeds), "ok"
			if i > 0 {
				name, n = "", ""
			}
			if !f.OK() {
				verdict, r.OK = "missed", false
				missed++
			}
			fmt.Printf("%-38s %5s  %-10s %9.4f %9.4f  %s\n", name, n, f.Name, f.Value, f.Max, verdict)
			line = append(line, fmt.Sprintf("%s.%s=%.4f", key(s.Name), f.Name, f.Value))
		}
	}
	if *out != "" {
		b, err := json.MarshalIndent(results, "", "  ")
		if err == nil {
			err = os.WriteFile(*out, append(b, '\n'), 0o644)
		}
		if err != nil {
			return err
		}
	}
	fmt.Printf("missed=%d seconds=%.0f %s\n", missed, math.Ceil(time.Since(begin).Seconds()), strings.Join(line, " "))
	return nil
}

// key makes a name of a scenario that fits before a "=".
func key(name string) string {
	return strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(name), "_"), "_")
}
