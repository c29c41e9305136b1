package daemon

import (
	"net"
	"net/netip"

	"github.com/capelin-io/capelin/internal/daemon/config"
)

// Address is one that a role listens on, host:port, and the key that it is from. It may be empty.
type Address struct{ Key, Addr string }

// CheckPorts returns what is wrong with addresses of one process: that a later one cannot
// be listened on beside an earlier one.
func CheckPorts(all ...Address) (errs []error) {
	for i, a := range all {
		for _, b := range all[:i] {
			if Overlap(a.Addr, b.Addr) {
				errs = append(errs, config.Invalid(a.Key, "%q is the port of %s (%q), too: choose another one", a.Addr, b.Key, b.Addr))
				break
			}
		}
	}
	return errs
}

// SamePort reports whether two addresses, host:port, have the same port, other than 0.
func SamePort(a, b string) bool {
	_, p, errA := net.SplitHostPort(a)
	_, q, errB := net.SplitHostPort(b)
	return errA == nil && errB == nil && p == q && p != "0"
}

// Overlap reports whether one cannot listen on both of two addresses, host:port. Names,
// but for localhost, are taken for what they are.
func Overlap(a, b string) bool {
	if !SamePort(a, b) {
		return false
	}
	host := func(addr string) (string, netip.Addr) {
		h, _, _ := net.SplitHostPort(addr)
		if h == "localhost" {
			h = "127.0.0.1"
		}
		ip, _ := netip.ParseAddr(h)
		return h, ip.Unmap()
	}
	h, p := host(a)
	i, q := host(b)
	return h == i || p.IsValid() && p == q || h == "" || i == "" || p.IsUnspecified() || q.IsUnspecified()
}
