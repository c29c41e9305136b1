package benchkit

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Median of values; NaN of none.
func Median(values []float64) float64 { return Percentile(values, 50) }

// Percentile returns the smallest value that p percent of the values do not exceed;
// NaN of none.
func Percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	v := slices.Sorted(slices.Values(values))
	return v[max(0, min(len(v)-1, int(math.Ceil(float64(len(v))*p/100))-1))]
}

// Figures are named results in the order in which they were added.
type Figures struct {
	names  []string
	values map[string]float64
}

// Add adds a figure.
func (f *Figures) Add(name string, value float64) {
	if f.values == nil {
		f.values = map[string]float64{}
	}
	if _, ok := f.values[name]; !ok {
		f.names = append(f.names, name)
	}
	f.values[name] = value
}

// Get returns a figure; NaN if there is none of that name.
func (f *Figures) Get(name string) float64 {
	if v, ok := f.values[name]; ok {
		return v
	}
	return math.NaN()
}

// String is one line of key=value.
func (f *Figures) String() string {
	parts := make([]string, len(f.names))
	for i, n := range f.names {
		parts[i] = n + "=" + strconv.FormatFloat(f.values[n], 'g', 4, 64)
	}
	return strings.Join(parts, " ")
}

// MarshalJSON makes an object, in which what is not a number is null.
func (f *Figures) MarshalJSON() ([]byte, error) {
	m := map[string]any{}
	for n, v := range f.values {
		m[n] = v
		if math.IsNaN(v) || math.IsInf(v, 0) {
			m[n] = nil
		}
	}
	return json.Marshal(m)
}

// WriteJSON writes v to a file, unless path is "".
func WriteJSON(path string, v any) error {
	if path == "" {
		return nil
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// Machine is what all processors have done until a moment.
type Machine struct{ busy, total float64 }

// Now reads it from /proc/stat.
func Now() (m Machine, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return m, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	for i, s := range strings.Fields(line)[1:] {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return m, fmt.Errorf("/proc/stat: %q", line)
		}
		if i >= 8 { // guests' time is in the user's already
			break
		}
		m.total += v
		if i != 3 && i != 4 { // idle, waiting for a disk
			m.busy += v
		}
	}
	return m, nil
}

// Busy returns which share of all processors' time since before was used, from 0 to 1.
func (m Machine) Busy(before Machine) float64 {
	if m.total == before.total {
		return 0
	}
	return (m.busy - before.busy) / (m.total - before.total)
}
