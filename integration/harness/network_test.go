package harness

import (
	"io"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// A link is no faster than its limit, and the limit can be lifted.
func TestShape(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	c, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		for _, l := range c.Leftovers() {
			t.Error("left behind:", l)
		}
	}()
	h, err := c.NewHost("a")
	if err != nil {
		t.Fatal(err)
	}
	l, err := h.Listen("tcp", h.Addr+":1000")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	const size = 4 << 20
	echo := func() time.Duration {
		conn, err := c.Switch.DialContext(t.Context(), "tcp", h.Addr+":1000")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		start := time.Now()
		go func() { _, _ = conn.Write(make([]byte, size)) }()
		if _, err := io.ReadFull(conn, make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		return time.Since(start)
	}
	if err := c.Shape(h, size); err != nil {
		t.Fatal(err)
	}
	if took := echo(); took < 800*time.Millisecond {
		t.Errorf("4 MiB there and back took %v with a limit of 4 MiB/s each way", took)
	}
	if n := limits(t, h) + limits(t, c.Switch); n != 2 {
		t.Errorf("%d limits, want one at each end", n)
	}
	if err := c.Shape(h, 0); err != nil {
		t.Fatal(err)
	}
	if n := limits(t, h) + limits(t, c.Switch); n != 0 {
		t.Errorf("%d limits are left", n)
	}
	echo()
}

// limits counts the limits of a host's links.
func limits(t *testing.T, host *Host) (n int) {
	t.Helper()
	h, err := netlink.NewHandleAt(host.net)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	qs, err := h.QdiscList(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range qs {
		if q.Type() == "tbf" {
			n++
		}
	}
	return n
}
