package harness

import (
	"testing"
	"time"
)

// A process counts while it runs, and when it has ended.
func TestCPU(t *testing.T) {
	c, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	h, err := c.NewHost("busy")
	if err != nil {
		t.Fatal(err)
	}
	before, err := h.CPU()
	if err != nil {
		t.Fatal(err)
	}
	// The shell's child counts, although only the shell waits for it.
	p, err := h.Start("burn", nil, nil, "/bin/sh", "-c", "(i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done); sleep 100")
	if err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		now, err := h.CPU()
		if err != nil {
			t.Fatal(err)
		}
		if now-before >= 100*time.Millisecond {
			break
		}
		if time.Since(start) > hangs {
			t.Fatalf("only %v", now-before)
		}
	}
	if rss, err := p.PeakRSS(); err != nil || rss < 64<<10 || rss > 1<<30 {
		t.Errorf("%d bytes, %v", rss, err)
	}
	other, err := c.NewHost("idle")
	if err != nil {
		t.Fatal(err)
	}
	if now, err := other.CPU(); err != nil || now > 500*time.Millisecond {
		t.Errorf("an idle host used %v (%v)", now, err)
	}
	p.Kill()
}
