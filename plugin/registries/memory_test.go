package registries

import (
	"fmt"
	"testing"
	"time"
)

var t0 = time.Unix(1_000_000, 0)

func at(d time.Duration) time.Time { return t0.Add(d) }

// bring has a download bring bytes at a steady rate from a time on, in steps of 100 ms.
func bring(m *Memory, host string, from, to time.Duration, rate float64, ds ...*Download) {
	for now := from; now <= to; now += 100 * time.Millisecond {
		for _, d := range ds {
			m.Brought(host, d, int64(rate/10), at(now))
		}
	}
}

func TestRate(t *testing.T) {
	m := New()
	near := func(what string, want float64) {
		t.Helper()
		if got := m.Rate("r"); got < 0.999*want || got > 1.001*want {
			t.Errorf("%s: %.0f bytes a second, want %.0f", what, got, want)
		}
	}
	near("nothing known", 0)
	var small, first, second, third, open Download
	bring(m, "r", 0, 100*time.Millisecond, 1e6, &small)
	m.Over("r", &small)
	near("a small one says nothing", 0)
	bring(m, "r", time.Hour, time.Hour+2*time.Second, 10e6, &first)
	m.Over("r", &first)
	near("the first one", 10e6)
	// Two at once share what the registry gives.
	bring(m, "r", 2*time.Hour, 2*time.Hour+4*time.Second, 2.5e6, &second, &third)
	m.Over("r", &second)
	m.Over("r", &third)
	near("two at once", (10e6+5e6)/4+5e6/2)
	if got := m.Rate("another"); got != 0 {
		t.Errorf("another registry has %v", got)
	}
	m.Over("r", &open)
	near("one that brought nothing", 6.25e6)
}

func TestRanges(t *testing.T) {
	const r = "r.example"
	for _, tt := range []struct {
		name  string
		host  string
		do    func(m *Memory)
		after time.Duration
		want  bool
	}{
		{"nothing known", r, func(*Memory) {}, 0, true},
		{"it broke", r, func(m *Memory) { m.Broke(r, t0) }, time.Minute, false},
		{"it broke a while ago", r, func(m *Memory) { m.Broke(r, t0) }, suspected, true},
		{"another one broke", "other", func(m *Memory) { m.Broke(r, t0) }, 0, true},
		{"it refuses the blob anyhow", r, func(m *Memory) { m.Broke(r, t0); m.Refused(r) }, 0, true},
		{"the blob came from the beginning", r, func(m *Memory) { m.Broke(r, t0); m.Restored(r, t0) }, convicted - 1, false},
		{"that is not for ever", r, func(m *Memory) { m.Broke(r, t0); m.Restored(r, t0) }, convicted, true},
		{"several blobs at once are one trial", r, func(m *Memory) {
			for range 3 {
				m.Broke(r, t0)
			}
			for range 3 {
				m.Restored(r, t0)
			}
		}, convicted, true},
		{"what is refused later does not change it", r, func(m *Memory) { m.Broke(r, t0); m.Restored(r, t0); m.Refused(r) }, 0, false},
		{"what breaks later neither", r, func(m *Memory) { m.Broke(r, t0); m.Restored(r, t0); m.Broke(r, t0); m.Refused(r) }, 0, false},
		{"again after the term", r, func(m *Memory) {
			m.Broke(r, t0)
			m.Restored(r, t0)
			m.Broke(r, at(convicted))
			m.Restored(r, at(convicted))
		}, 3*convicted - 1, false},
		{"one continued after all", r, func(m *Memory) { m.Broke(r, t0); m.Restored(r, t0); m.Continued(r) }, 0, true},
		{"one that can, once broken", r, func(m *Memory) { m.Continued(r); m.Broke(r, t0); m.Restored(r, t0) }, 0, true},
		{"one that could, again and again", r, func(m *Memory) {
			m.Continued(r)
			for range sure {
				m.Broke(r, t0)
				m.Restored(r, t0)
			}
		}, 0, false},
		{"nobody's name: one that can says nothing about others", "", func(m *Memory) { m.Broke("", t0); m.Continued("") }, 0, false},
	} {
		m := New()
		tt.do(m)
		if got := m.Continues(tt.host, at(tt.after)); got != tt.want {
			t.Errorf("%s: may be asked to continue: %t, want %t", tt.name, got, tt.want)
		}
	}
}

// Anybody can name a registry.
func TestBounded(t *testing.T) {
	m := New()
	for i := range 10 * maxHosts {
		m.Broke(fmt.Sprint(i), t0)
	}
	if m.Len() != maxHosts {
		t.Errorf("%d registries are remembered, want %d", m.Len(), maxHosts)
	}
}
