package swarm

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tcpPair returns both ends of a TCP connection.
func tcpPair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	x, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	y, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close(); y.Close() })
	return x.(*net.TCPConn), y.(*net.TCPConn)
}

// A round trip over loopback is known, and short.
func TestRoundTrip(t *testing.T) {
	a, b := tcpPair(t)
	for _, nc := range []net.Conn{a, b, tls.Client(a, &tls.Config{InsecureSkipVerify: true})} {
		if rtt := roundTrip(nc); rtt <= 0 || rtt > time.Second {
			t.Errorf("round trip of %T: %v", nc, rtt)
		}
	}
	c, _ := net.Pipe()
	if rtt := roundTrip(c); rtt != 0 {
		t.Errorf("round trip of a pipe: %v", rtt)
	}
}

// A receiver that waited for a block waits for one byte afterwards, gets what
// comes in parts, and notices the end of the stream in the middle of a block.
func TestReceiver(t *testing.T) {
	a, b := tcpPair(t)
	r := newReceiver(b).(*tcpReceiver)
	want := bytes.Repeat([]byte("block"), 20_000)
	go func() {
		for _, p := range [][]byte{want[:1], want[1:7000], want[7000:]} {
			a.Write(p)
		}
	}()
	got := make([]byte, len(want))
	if err := r.ReadFull(got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("ReadFull: %v", err)
	}
	go a.Write([]byte{1})
	if n, err := r.Read(got); n != 1 || err != nil {
		t.Fatalf("a single byte: %d, %v", n, err)
	}
	go func() {
		a.Write(want[:100])
		a.Close()
	}()
	if err := r.ReadFull(got); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("cut short: %v", err)
	}
}

// BBR is replaced, and nothing else; also in a socket, of whatever this kernel has.
func TestCongestionControl(t *testing.T) {
	for cc, want := range map[string]string{"reno": "reno", "cubic": "cubic", "dctcp": "dctcp", "bbr": "cubic", "bbr2": "cubic"} {
		if got := congestionControl(cc); got != want {
			t.Errorf("%s becomes %s, want %s", cc, got, want)
		}
	}
	for _, cc := range []string{"reno", "bbr"} {
		a, _ := tcpPair(t)
		_, raw := rawTCP(a)
		want := cc
		raw.Control(func(fd uintptr) {
			if err := unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, cc); err != nil {
				want, _ = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION) // this kernel's default
			}
		})
		want = congestionControl(want)
		tune(a)
		raw.Control(func(fd uintptr) {
			if got, err := unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION); err != nil || got != want {
				t.Errorf("%s became %s, %v, want %s", cc, got, err, want)
			}
		})
	}
}
