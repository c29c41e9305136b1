package httpclient

import (
	"net"

	"golang.org/x/sys/unix"
)

// unacknowledged reports whether something that was sent was not acknowledged yet, and whether the other machine seems to be gone.
func unacknowledged(c *net.TCPConn) (pending, gone bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return false, false
	}
	var info *unix.TCPInfo
	cerr := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if cerr != nil || err != nil {
		return false, false
	}
	return judge(info)
}

// judge is unacknowledged. Who lives and takes nothing answers probes, which then count from 0 again.
func judge(info *unix.TCPInfo) (pending, gone bool) {
	pending = info.Unacked > 0 || info.Notsent_bytes > 0
	again := max(info.Retransmits, info.Probes) >= resends
	return pending, pending && again && int64(info.Last_ack_recv) >= silentFor.Milliseconds()
}
