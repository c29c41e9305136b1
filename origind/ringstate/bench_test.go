package ringstate

import (
	"flag"
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/origind/record"
)

var blobsHeld = flag.Int("ring.blobs", 100_000, "how many pinned blobs BenchmarkPinned has")

// BenchmarkPinned is what many pinned blobs cost a member of three: memory, a start, finding the
// owners anew after a change of view, and the longest Step of that. A start and a placement are in CPU time, as other
// work on the machine does not change it.
func BenchmarkPinned(b *testing.B) {
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
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
		start := cpu()
		for i := range *blobsHeld {
			d := digest.FromString(fmt.Sprint(i))
			r.Step(at, EvHeld{Local{Record: record.Pushed(d, 1, record.Place{Backend: "kept"}, "team/a", "a", 5), Have: true}, true})
		}
		held := cpu() - start
		r.see()
		r.void()
		start = cpu()
		longest := time.Duration(0)
		for r.blobs.placing() {
			step := time.Now()
			r.Step(at, EvTick{})
			longest = max(longest, time.Since(step))
		}
		placed := cpu() - start
		n := float64(*blobsHeld)
		b.ReportMetric(float64(heap()-before)/n, "B/blob")
		b.ReportMetric(float64(held.Nanoseconds())/n, "start-cpu-ns/blob")
		b.ReportMetric(float64(placed.Nanoseconds())/n, "place-cpu-ns/blob")
		b.ReportMetric(float64(longest.Microseconds()), "longest-step-µs")
		runtime.KeepAlive(r)
	}
}
