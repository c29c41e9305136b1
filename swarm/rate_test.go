package swarm

import (
	"testing"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
)

func TestBucket(t *testing.T) {
	var k bucket
	if k.ready(0) != 0 {
		t.Error("no limit, and not ready")
	}
	k.set(1<<20, 0)
	now, taken := time.Duration(0), 0
	for now < 10*time.Second {
		if r := k.ready(now); r > now {
			now = r
			continue
		}
		k.take(piece.MaxBlock)
		taken += piece.MaxBlock
	}
	if got := float64(taken) / 10 / (1 << 20); got < 0.98 || got > 1.06 {
		t.Errorf("%.3f MiB/s with a limit of 1", got)
	}
	k.set(0, now)
	if k.ready(now) != now {
		t.Error("not ready after the limit was lifted")
	}
}
