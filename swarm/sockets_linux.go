package swarm

import (
	"math"
	"net"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// notSent is how many bytes the kernel takes before it has sent them: enough to
	// keep a link busy while the next block is fetched, few enough that the queue
	// of blocks stays in the Peer's hands, which can still reorder and cancel it,
	// and says in each answer how long it is.
	notSent = 32 << 10

	// resendAfter bounds, in milliseconds, the time between two attempts to send
	// what was not acknowledged (TCP_RTO_MAX_MS, since Linux 6.15). It doubles from
	// 200 ms to minutes otherwise, so that after some seconds without a link a
	// connection would sleep as long again.
	resendAfter = 1000
)

// tune sets up a socket for the swarm. What the kernel does not know or allow does
// no harm.
func tune(nc net.Conn) {
	_, raw := rawTCP(transport(nc))
	if raw == nil {
		return
	}
	_ = raw.Control(func(f uintptr) {
		fd := int(f)
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSent)
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_RTO_MAX_MS, resendAfter)
		if cc, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION); err == nil && congestionControl(cc) != cc {
			_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestionControl(cc))
		}
	})
}

// roundTrip returns the shortest round trip that the kernel has seen on a connection,
// or 0 if it does not tell.
func roundTrip(nc net.Conn) (rtt time.Duration) {
	_, raw := rawTCP(transport(nc))
	if raw == nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil && info.Min_rtt < noRTT {
			rtt = time.Duration(info.Min_rtt) * time.Microsecond
		}
	})
	return rtt
}

// lastReceived returns how long ago the last bytes came on a connection, or a very long time if
// the kernel does not tell.
func lastReceived(nc net.Conn) time.Duration {
	ago := time.Duration(math.MaxInt64)
	_, raw := rawTCP(transport(nc))
	if raw == nil {
		return ago
	}
	_ = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			ago = time.Duration(info.Last_data_recv) * time.Millisecond
		}
	})
	return ago
}

// noRTT is the kernel's answer when it has seen none: all bits set.
const noRTT = 1<<32 - 1

// congestionControl returns what is to be used where cc is. BBR takes the bursts
// that a limited link lets through for its bandwidth, and sends at that: over a
// dozen connections, one segment in forty is lost.
func congestionControl(cc string) string {
	if strings.HasPrefix(cc, "bbr") {
		return "cubic"
	}
	return cc
}

// rawTCP returns nc and its socket if it is plain TCP, and nils otherwise.
func rawTCP(nc net.Conn) (*net.TCPConn, syscall.RawConn) {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nil, nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, nil
	}
	return tcp, raw
}
