package storages

import (
	"bytes"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
)

// memory measures how much more of this process is resident than when it was idle.
type memory struct {
	t    *testing.T
	idle int64
}

// startMemory begins now, when nothing is under way.
func startMemory(t *testing.T) *memory {
	t.Helper()
	debug.FreeOSMemory()
	m := &memory{t: t}
	m.idle = m.status("VmRSS")
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil { // the peak is that from now on
		t.Fatal(err)
	}
	return m
}

// above returns the peak since startMemory, in bytes.
func (m *memory) above() int64 {
	m.t.Helper()
	return m.status("VmHWM") - m.idle
}

func (m *memory) status(key string) int64 {
	m.t.Helper()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		m.t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		if value, ok := strings.CutPrefix(string(line), key+":"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err != nil {
				m.t.Fatal(err)
			}
			return kb << 10
		}
	}
	m.t.Fatalf("/proc/self/status has no %s", key)
	return 0
}
