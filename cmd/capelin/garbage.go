package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// How much garbage the agent may make before it is collected, beside what lives.
const (
	// Most of the memory is buffers of blocks, which are cheap to look through: four blobs of
	// 8 GiB at once take 109 MiB instead of 153.
	garbagePercent = 50
	// Collecting costs the most where little lives: many small pulls at once make 2 MB of
	// garbage, half of what Go takes for the least, every few milliseconds.
	garbageAtLeast = 16 << 20
	garbageMost    = 400 // percent
)

// gcPercent is what GOGC is to be while so many bytes live.
func gcPercent(live uint64) int {
	return int(max(garbagePercent, min(garbageMost, 100*garbageAtLeast/max(live, 1))))
}

// collected is what a collection finalizes: larger than what Go allocates together.
type collected struct{ _ [64]byte }

// relaxCollector sets GOGC now and after each collection.
func relaxCollector() {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	now := 0
	var adjust func(*collected)
	adjust = func(c *collected) {
		metrics.Read(sample)
		var live uint64
		if sample[0].Value.Kind() == metrics.KindUint64 {
			live = sample[0].Value.Uint64()
		}
		if p := gcPercent(live); p < now-now/8 || p > now+now/8 { // it stops the world for a moment
			debug.SetGCPercent(p)
			now = p
		}
		runtime.SetFinalizer(c, adjust) // the next collection runs it
	}
	adjust(&collected{})
}
