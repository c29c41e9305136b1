package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/capelin-io/capelin/integration/benchkit"
)

// A scenario is what happens in one cluster, and what is measured there.
type scenario struct {
	Item    string // number of what it belongs to
	Name    string
	Rows    []row
	Measure func(ctx context.Context, w *world) ([]value, error) // one value for each row
}

// A row is a line of the table.
type row struct {
	Name string
	Unit string // of value.Count; "": there is none
	goal
}

// A value is what was measured for a row.
type value struct {
	Wall     float64 `json:"wall_seconds"`
	Registry int64   `json:"registry_bytes"` // bodies of blobs
	Count    float64 `json:"count"`          // in the row's unit
	Capped   bool    `json:"capped"`         // it was given up, when it had taken so long
}

// A goal is a bound on one figure of the tree's binary, given those of stock. The zero
// goal is none.
type goal struct {
	Text string
	of   func(value) float64
	most func(stock value) float64
}

func wallOf(v value) float64     { return v.Wall }
func registryOf(v value) float64 { return float64(v.Registry) }
func countOf(v value) float64    { return v.Count }

// over is at most so many seconds more than stock.
func over(seconds float64) goal {
	return goal{fmt.Sprintf("≤ stock + %g s", seconds), wallOf, func(s value) float64 { return s.Wall + seconds }}
}

// times is at most so many times stock's seconds, and some seconds.
func times(factor, seconds float64) goal {
	text := fmt.Sprintf("≤ %g × stock", factor)
	if seconds > 0 {
		text += fmt.Sprintf(" + %g s", seconds)
	}
	return goal{text, wallOf, func(s value) float64 { return factor*s.Wall + seconds }}
}

// timesCount is at most so many times stock's count.
func timesCount(factor float64) goal {
	return goal{fmt.Sprintf("≤ %g × stock", factor), countOf, func(s value) float64 { return factor * s.Count }}
}

// fromRegistry is at most so many bytes from registries.
func fromRegistry(bytes float64) goal {
	return goal{fmt.Sprintf("≤ %.4g MB from registries", bytes/1e6), registryOf, func(value) float64 { return bytes }}
}

// count is at most so many of the row's unit.
func count(most float64, unit string) goal {
	text := fmt.Sprintf("≤ %g %s", most, unit)
	if most == 0 {
		text = "none"
	}
	return goal{text, countOf, func(value) float64 { return most }}
}

// met reports whether v, which may be the median of several, is within the goal.
func (g goal) met(v, stock value) bool { return !v.Capped && g.of(v) <= g.most(stock) }

// median is of each figure alone.
func median(vs []value) (m value) {
	var wall, registry, counts []float64
	for _, v := range vs {
		wall, registry, counts = append(wall, v.Wall), append(registry, float64(v.Registry)), append(counts, v.Count)
		m.Capped = m.Capped || v.Capped
	}
	m.Wall, m.Registry, m.Count = benchkit.Median(wall), int64(benchkit.Median(registry)), benchkit.Median(counts)
	return m
}

// A measured is a row with what each binary did.
type measured struct {
	Scenario string             `json:"scenario"`
	Row      string             `json:"row"`
	Goal     string             `json:"goal,omitempty"`
	Values   map[string][]value `json:"values"` // by binary
	Failed   map[string]string  `json:"failed,omitempty"`
	Met      bool               `json:"met"`

	row
}

// judge says whether the goal is met, if there is one and everything was measured.
func (m *measured) judge() {
	if m.goal.of == nil || len(m.Values[tree]) == 0 || len(m.Failed) > 0 {
		return
	}
	m.Goal, m.Met = m.goal.Text, m.goal.met(median(m.Values[tree]), median(m.Values[stock]))
}

// verdict is the last column.
func (m *measured) verdict() string {
	switch {
	case len(m.Failed) > 0:
		return "not measured"
	case m.goal.of == nil:
		return ""
	case m.Met:
		return "met"
	}
	return "MISSED"
}

// cell is what a binary did, as text: seconds, and megabytes from registries, or the count.
func (m *measured) cell(who string) string {
	if m.Failed[who] != "" {
		return "failed\t"
	}
	vs := m.Values[who]
	if len(vs) == 0 {
		return "–\t"
	}
	v := median(vs)
	wall := fmt.Sprintf("%.2f s", v.Wall)
	if v.Capped {
		wall = fmt.Sprintf("> %.0f s", v.Wall)
	}
	second := fmt.Sprintf("%.1f MB", float64(v.Registry)/1e6)
	if m.Unit != "" {
		second = fmt.Sprintf("%.4g %s", v.Count, m.Unit)
	}
	return wall + "\t" + second
}

// table prints all rows.
func table(out io.Writer, who []string, rows []*measured) {
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "\t%s\t\tgoal\t\n", strings.Join(who, "\t\t"))
	for _, m := range rows {
		cells := make([]string, len(who))
		for i, w := range who {
			cells[i] = m.cell(w)
		}
		fmt.Fprintf(t, "%s: %s\t%s\t%s\t%s\n", m.Scenario, m.Row, strings.Join(cells, "\t"), m.goal.Text, m.verdict())
	}
	_ = t.Flush() // as much as there is a table without an out
}

// figures are the rows as key=value.
func figures(who []string, rows []*measured) *benchkit.Figures {
	f := &benchkit.Figures{}
	missed := 0
	for _, m := range rows {
		key := strings.NewReplacer(" ", "_", ",", "", "=", "").Replace(m.Scenario + "_" + m.Row)
		for _, w := range who {
			if len(m.Values[w]) == 0 {
				continue
			}
			v := median(m.Values[w])
			f.Add(key+"_"+w+"_s", v.Wall)
			if m.Unit == "" {
				f.Add(key+"_"+w+"_registry_mb", float64(v.Registry)/1e6)
			} else {
				f.Add(key+"_"+w+"_count", v.Count)
			}
		}
		if m.goal.of != nil && !m.Met {
			missed++
		}
	}
	f.Add("rows", float64(len(rows)))
	f.Add("missed", float64(missed))
	return f
}
