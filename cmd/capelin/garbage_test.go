package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
)

// Little that lives may have much garbage beside it, and much has half of it.
func TestGCPercent(t *testing.T) {
	for _, tt := range []struct {
		live uint64
		want int
	}{{0, 400}, {2 << 20, 400}, {8 << 20, 200}, {16 << 20, 100}, {32 << 20, 50}, {1 << 30, 50}} {
		if got := gcPercent(tt.live); got != tt.want {
			t.Errorf("%d bytes live: %d %%, want %d", tt.live, got, tt.want)
		}
	}
	was := debug.SetGCPercent(100)
	defer debug.SetGCPercent(was)
	relaxCollector()
	big := make([]byte, 64<<20)
	gogc := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	for metrics.Read(gogc); gogc[0].Value.Uint64() != garbagePercent; metrics.Read(gogc) {
		if t.Context().Err() != nil {
			t.Fatal("with 64 MiB that live GOGC stays")
		}
		runtime.GC() // whose finalizer runs when it likes
	}
	runtime.KeepAlive(big)
}
