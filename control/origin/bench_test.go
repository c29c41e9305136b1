package origin

import (
	"fmt"
	"math"
	"testing"
)

// The order of origins is in the path of each request.
func BenchmarkOrder(b *testing.B) {
	for _, n := range []int{1, 3, 7, 16} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var cfg Config
			for i := range n {
				cfg.Origins = append(cfg.Origins, fmt.Sprintf("10.0.0.%d:7480", i))
			}
			c, err := New(cfg)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			c.members.due.Store(math.MaxInt64)
			b.ReportAllocs()
			for b.Loop() {
				c.order(string(ref.Digest))
			}
		})
	}
}
