package harness

import (
	"context"
	"io"
	"os"
	"testing"
	"time"
)

// A limit of the network is what it says, both ways, and can be lifted.
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
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const size = 4 << 20
	echo := func() time.Duration {
		conn, err := c.Switch.DialContext(ctx, "tcp", h.Addr+":1000")
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
	free := echo()
	if err := c.Shape(h, size); err != nil {
		t.Fatal(err)
	}
	limited := echo()
	if err := c.Shape(h, 0); err != nil {
		t.Fatal(err)
	}
	again := echo()
	if limited < 800*time.Millisecond || limited > 2*time.Second || free > limited/2 || again > limited/2 {
		t.Errorf("4 MiB there and back took %v, %v when limited to 4 MiB/s each way, and %v after that", free, limited, again)
	}
}
