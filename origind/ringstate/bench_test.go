package ringstate

import (
	"flag"
	"fmt"
	"runtime"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/origind/record"
)

var blobsHeld = flag.Int("ring.blobs", 100_000, "how many pinned blobs BenchmarkPinned has")

// BenchmarkPinned is what many pinned blobs cost a member of three: memory, a start, finding the
// owners anew after a change of view, and the longest Step of that.
func BenchmarkPinned(b *testing.B) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for b.Loop() {
		before := heap()
		at := Instant{Wall: time.UnixMilli(1_800_000_000_000)}
		r := New(Config{Name: "a", Members: []string{"a", "b", "c", "d", "e"}, Incarnation: 1}, nil, Log{}, at)
		for _, m := range r.members {
			m.mode, m.gone = Up, false
		}
		start := time.Now()
		for i := range *blobsHeld {
			d := digest.FromString(fmt.Sprint(i))
			r.Step(at, EvHeld{Local{Record: record.Pushed(d, 1, record.Place{Backend: "kept"}, "team/a", "a", 5), Have: true}, true})
		}
		held := time.Since(start)
		r.see()
		r.void()
		start = time.Now()
		longest := time.Duration(0)
		for r.blobs.placing() {
			step := time.Now()
			r.Step(at, EvTick{})
			longest = max(longest, time.Since(step))
		}
		n := float64(*blobsHeld)
		b.ReportMetric(float64(heap()-before)/n, "B/blob")
		b.ReportMetric(float64(held.Nanoseconds())/n, "start-ns/blob")
		b.ReportMetric(float64(time.Since(start).Nanoseconds())/n, "place-ns/blob")
		b.ReportMetric(float64(longest.Microseconds()), "longest-step-µs")
		runtime.KeepAlive(r)
	}
}
