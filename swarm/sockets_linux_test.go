package swarm

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"

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

// BBR is replaced, and nothing else.
func TestCongestionControl(t *testing.T) {
	for _, tt := range [][2]string{{"reno", "reno"}, {"bbr", "cubic"}} {
		a, _ := tcpPair(t)
		raw, err := a.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			if err := unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, tt[0]); err != nil {
				t.Skipf("no %s here: %v", tt[0], err)
			}
		})
		tune(a)
		raw.Control(func(fd uintptr) {
			if got, err := unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION); err != nil || got != tt[1] {
				t.Errorf("%s became %s, %v", tt[0], got, err)
			}
		})
	}
}
