package ring

import (
	"fmt"
	"math"
	"slices"
	"testing"
)

func names(n int) []string {
	var s []string
	for i := range n {
		s = append(s, fmt.Sprintf("10.0.0.%d:7470", i))
	}
	return s
}

func key(i int) string { return fmt.Sprintf("sha256:%064x", i) }

// Agents of different versions must agree, so these values never change.
func TestScoreVectors(t *testing.T) {
	for _, tt := range []struct {
		node, key string
		want      uint64
	}{
		{"a", "b", 0x59b271ae1bbcb1d3},
		{"10.0.0.1:7470", "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", 0xc22c0891f5c389e0},
	} {
		if got := Score(tt.node, tt.key); got != tt.want {
			t.Errorf("Score(%q, %q) = %#x, want %#x", tt.node, tt.key, got, tt.want)
		}
	}
}

func TestTop(t *testing.T) {
	for _, tt := range []struct{ nodes, n, want int }{{0, 2, 0}, {1, 2, 1}, {2, 2, 2}, {7, 2, 2}, {7, 0, 0}} {
		if got := Top(names(tt.nodes), key(1), tt.n); len(got) != tt.want {
			t.Errorf("%d of %d nodes: got %v", tt.n, tt.nodes, got)
		}
	}
	nodes := names(7)
	want := Top(nodes, key(1), 3)
	slices.Reverse(nodes)
	if got := Top(nodes, key(1), 3); !slices.Equal(got, want) {
		t.Errorf("order of names matters: %v, %v", got, want)
	}
}

// When a node goes, only keys that it had move, and each to one that was next.
func TestStable(t *testing.T) {
	nodes := names(6)
	counts := map[string]int{}
	const keys = 6000
	for i := range keys {
		before := Top(nodes, key(i), 2)
		three := Top(nodes, key(i), 3)
		counts[before[0]]++
		after := Top(nodes[1:], key(i), 2)
		var want []string
		for _, n := range three {
			if n != nodes[0] {
				want = append(want, n)
			}
		}
		if !slices.Equal(after, want[:2]) {
			t.Fatalf("key %d: %v became %v", i, three, after)
		}
	}
	for n, c := range counts {
		if dev := math.Abs(float64(c)-keys/6) / math.Sqrt(keys/6); dev > 5 {
			t.Errorf("%s is first for %d of %d keys", n, c, keys)
		}
	}
}

func BenchmarkTop2Of3(b *testing.B) {
	nodes, k := names(3), key(1)
	for b.Loop() {
		Top(nodes, k, 2)
	}
}
