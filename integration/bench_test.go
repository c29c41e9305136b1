package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/capelin-io/capelin/integration/harness"
)

// What bench-fanout says that the origin sent is counted: to one node it sends the blob once.
func TestFanoutCounts(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), get(harness.Built("bench-fanout"))(t), "-n", "1", "-size", "16e6", "-rate", "20e6", "-runs", "1")
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil && !strings.Contains(string(out), "is void") {
		t.Fatalf("%v\n%s", err, out)
	}
	m := regexp.MustCompile(`n1_16MB_20MBps_origin=(\S+)`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("no figure of what the origin sent:\n%s", out)
	}
	if sent := get(strconv.ParseFloat(string(m[1]), 64))(t); sent < 0.99 || sent > 1.03 {
		t.Errorf("the origin sent the one node %.3f times the blob:\n%s", sent, out)
	}
}

// The benchmarks run, with little to do, and say what they are for. How fast is not
// looked at here.
func TestBenchmarks(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		want []string // in the last line
	}{
		{"bench-fanout", []string{"-n", "3", "-size", "2e6", "-rate", "20e6", "-runs", "1", "-simulate"},
			[]string{"n3_2MB_20MBps_p50=", "_origin=", "_sim_max="}},
		{"bench-swarm", []string{"-to", "2", "-size", "4194304", "-runs", "1"},
			[]string{"to2_mib_s=", "to2_tls_cpu_s_per_gib=", "to2_disk_rss_mib="}},
		{"bench-tracker", []string{"-agents", "40", "-blobs", "30"}, []string{"agents=40 ", "refill_s=", "peak_rss_mib="}},
		{"bench-huge", []string{"-size", "40e6", "-rate", "40e6"},
			[]string{"cold_over_link=", "stored_mb=", "origin_above_idle_mib=", "agent_above_idle_mib="}},
		{"bench-huge", []string{"-size", "40e6", "-rate", "40e6", "-push"}, []string{"push_s=", "cold_s=", "second_above_idle_mib="}},
		{"bench-pull", []string{"-cases", "tiny,many", "-rounds", "1", "-rate", "100e6"},
			[]string{"tiny_wall_ratio=", "tiny_cpu_ratio=", "tiny_over_floors=", "many_cpu_ratio=", "many_cpu_over_floor="}},
		{"bench-sources", []string{"-only", "^1 one of three"},
			[]string{"1_one_of_three_drops_one_is_not_stock_s=", "1_one_of_three_drops_one_is_not_tree_count=", "rows=2 missed="}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bin := get(harness.Built(tt.name))(t)
			json := filepath.Join(t.TempDir(), "json")
			cmd := exec.CommandContext(t.Context(), bin, append(tt.args, "-json", json)...)
			cmd.Dir = t.TempDir()
			out, err := cmd.CombinedOutput()
			if err != nil && !strings.Contains(string(out), "is void") { // a busy machine voids figures, not the test
				t.Fatalf("%v\n%s", err, out)
			}
			last := ""
			for line := range strings.Lines(string(out)) {
				if strings.Contains(line, "=") {
					last = line
				}
			}
			for _, w := range tt.want {
				if !strings.Contains(last, w) {
					t.Errorf("the last line lacks %s: %s", w, last)
				}
			}
			if b, err := os.ReadFile(json); err != nil || !strings.Contains(string(b), `"figures": {`) {
				t.Errorf("the JSON file: %.200s (%v)", b, err)
			}
		})
	}
}
