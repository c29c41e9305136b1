package main

import (
	"fmt"
	"os"
	"strconv"
)

// timerSlack is by how many nanoseconds the kernel may be late with timers, to
// take several together: less than any delay that the swarm decides on.
const timerSlack = 1_000_000

// relaxTimers sets it for all threads; those to come inherit it. With Linux's
// 50 µs the Go runtime's monitor alone wakes a process that has a little to do
// all the time, as behind a slow link, a thousand times a second: a tenth of the
// processor time of a download. Where it is not allowed, nothing changes.
func relaxTimers() {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range threads {
		_ = os.WriteFile(fmt.Sprintf("/proc/%s/timerslack_ns", t.Name()), strconv.AppendInt(nil, timerSlack, 10), 0)
	}
}
