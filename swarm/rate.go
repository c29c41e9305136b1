package swarm

import (
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
)

// bucket is a token bucket in virtual time. Its level may go below zero by what
// was last taken, so that any size passes.
type bucket struct {
	rate  float64 // bytes per second; 0: unlimited
	level float64
	at    time.Duration
}

func (k *bucket) burst() float64 { return max(k.rate/20, 2*piece.MaxBlock) }

// set changes the rate; the level is kept within the new burst.
func (k *bucket) set(rate int64, now time.Duration) {
	k.refill(now)
	first := k.rate == 0
	k.rate = float64(max(rate, 0))
	if first {
		k.level = k.burst()
	}
	k.level = min(k.level, k.burst())
	k.level = max(k.level, -k.burst())
}

func (k *bucket) refill(now time.Duration) {
	if k.rate > 0 && now > k.at {
		k.level = min(k.burst(), k.level+k.rate*(now-k.at).Seconds())
	}
	k.at = max(k.at, now)
}

// ready returns when something may be taken: now, or later.
func (k *bucket) ready(now time.Duration) time.Duration {
	if k.rate == 0 {
		return now
	}
	k.refill(now)
	if k.level > 0 {
		return now
	}
	return now + time.Duration((1-k.level)/k.rate*1e9) + 1
}

func (k *bucket) take(n int) {
	if k.rate > 0 {
		k.level -= float64(n)
	}
}

// give returns what was taken for something that did not happen.
func (k *bucket) give(n int) {
	if k.rate > 0 {
		k.level = min(k.burst(), k.level+float64(n))
	}
}

// meter measures bytes per second over the time in which something was under
// way, smoothed over about a second.
type meter struct {
	rate  float64 // bytes per second; 0: not yet known
	bytes int
	busy  time.Duration // busy time that belongs to bytes
	since time.Duration // busy since; never while idle
}

const meterSpan = 100 * time.Millisecond

func (m *meter) start(now time.Duration) {
	if m.since == never {
		m.since = now
	}
}

func (m *meter) stop(now time.Duration) {
	if m.since != never {
		m.busy += now - m.since
		m.since = never
	}
}

// add counts n bytes that arrived or left at now.
func (m *meter) add(n int, now time.Duration) {
	m.bytes += n
	if m.since != never {
		m.busy += now - m.since
		m.since = now
	}
	span := meterSpan
	if m.rate == 0 {
		span /= 8
	}
	if m.busy < span || m.bytes < 2*piece.MinLength {
		return
	}
	r := float64(m.bytes) / m.busy.Seconds()
	if m.rate == 0 {
		m.rate = r
	} else {
		// The weight of a long span is higher.
		w := min(0.9, 0.2*m.busy.Seconds()/meterSpan.Seconds())
		m.rate += w * (r - m.rate)
	}
	m.bytes, m.busy = 0, 0
}
