package hostaddr

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Max is how many addresses of one host are told at most.
const Max = 8

// Global reports whether an address means the same host to others, as far as it shows.
func Global(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsValid() && a.IsGlobalUnicast() // which private networks are
}

// Choose returns the addresses, as host:port, that others are told of a listener: that on
// which it is; or, if it is on all, one of each family of those that this host has, routes
// (the addresses from which it reaches others) before interfaces, and in their order. If there is none,
// it is loopback.
func Choose(listen netip.AddrPort, routes, interfaces []netip.Addr) []string {
	at := listen.Addr().Unmap()
	if at.IsValid() && !at.IsUnspecified() {
		return []string{netip.AddrPortFrom(at, listen.Port()).String()}
	}
	var chosen []string
	for _, a := range firsts(slices.Concat(routes, interfaces)) {
		chosen = append(chosen, netip.AddrPortFrom(a, listen.Port()).String())
	}
	if len(chosen) == 0 {
		return []string{net.JoinHostPort("127.0.0.1", strconv.Itoa(int(listen.Port())))}
	}
	return chosen
}

// firsts returns the first address of each family that others can use.
func firsts(all []netip.Addr) (chosen []netip.Addr) {
	var four, six bool
	for _, a := range all {
		a = a.Unmap().WithZone("")
		have := &six
		if a.Is4() {
			have = &four
		}
		if Global(a) && !*have {
			*have = true
			chosen = append(chosen, a)
		}
	}
	return chosen
}

// Own returns by which addresses others reach this host, one of each family that it has.
func Own(ctx context.Context) []netip.Addr {
	return firsts(append(Routes(ctx, nil), Interfaces()...))
}

// Advertised is Choose for a listener of this host, which reaches others at host:port each
// (dns+ before it does not count).
func Advertised(ctx context.Context, l net.Addr, others []string) []string {
	tcp, ok := l.(*net.TCPAddr)
	if !ok {
		return []string{l.String()}
	}
	listen := tcp.AddrPort()
	if a := listen.Addr(); a.IsValid() && !a.IsUnspecified() {
		return Choose(listen, nil, nil)
	}
	return Choose(listen, Routes(ctx, others), Interfaces())
}

// everywhere is where default routes lead: addresses that nobody has (RFC 5737, RFC 3849).
var everywhere = []string{"192.0.2.1:9", "[2001:db8::1]:9"}

// Routes returns the addresses from which this host reaches others, host:port each, and then
// those of its default routes. No packet is sent but what finding a name takes.
func Routes(ctx context.Context, others []string) (from []netip.Addr) {
	d := net.Dialer{Timeout: time.Second}
	for _, to := range slices.Concat(others, everywhere) {
		// Connecting a datagram socket sends nothing; it asks for the route.
		c, err := d.DialContext(ctx, "udp", strings.TrimPrefix(to, "dns+"))
		if err != nil {
			continue
		}
		if a, ok := c.LocalAddr().(*net.UDPAddr); ok {
			from = append(from, a.AddrPort().Addr().Unmap())
		}
		c.Close()
	}
	return from
}

// bridges begin the names of interfaces whose addresses are of networks inside the host.
var bridges = []string{
	"docker", "br-", "cni", "veth", "virbr", "cali", "flannel", "cilium", "lxc", "kube", "nodelocaldns", "podman", "tap", "vnet",
}

// Interfaces returns the addresses of this host's interfaces that are up and lead out of it.
func Interfaces() (all []netip.Addr) {
	ifs, err := net.Interfaces()
	if err != nil {
		return nil
	}
	for _, i := range ifs {
		inside := slices.ContainsFunc(bridges, func(p string) bool { return strings.HasPrefix(i.Name, p) })
		if inside || i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				all = append(all, p.Addr())
			}
		}
	}
	return all
}

// Seen returns what others are to be told of a host that says it is reached at advertised,
// host:port each, and whose connection comes from remote. Addresses that mean another
// machine elsewhere have the place of remote, or, if the host is this very machine, of
// own, which is called at most once. near is for others on the same machine only: what it advertised
// of itself comes first.
func Seen(advertised []string, remote netip.Addr, own func() []netip.Addr) (public, near []string) {
	add := func(to *[]string, addr string) {
		if !slices.Contains(*to, addr) && len(*to) < Max {
			*to = append(*to, addr)
		}
	}
	var instead []netip.Addr
	for _, addr := range advertised {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			continue
		}
		a, ok := literal(host)
		if !ok || Global(a) {
			add(&public, addr)
			continue
		}
		if a.IsLoopback() || a.IsUnspecified() {
			add(&near, addr)
		}
		if instead == nil {
			if Global(remote) {
				instead = []netip.Addr{remote}
			} else if remote.Unmap().IsLoopback() {
				instead = own()
			}
		}
		for _, i := range instead {
			if i = i.Unmap().WithZone(""); Global(i) {
				add(&public, net.JoinHostPort(i.String(), port))
			}
		}
	}
	if len(near) > 0 {
		for _, addr := range public {
			add(&near, addr)
		}
	}
	return public, near
}

// Public returns where a peer is reached that says that it is at addr, and whose connection
// comes from remote.
func Public(addr string, remote netip.Addr) string {
	if !Global(remote) {
		return addr
	}
	public, _ := Seen([]string{addr}, remote, nil)
	if len(public) == 0 {
		return ""
	}
	return public[0]
}

// Machine returns a name of the machine that a connection comes from, as far as it is seen.
func Machine(remote, local netip.Addr) string {
	if remote = remote.Unmap().WithZone(""); remote.IsLoopback() || remote == local.Unmap().WithZone("") {
		return "here"
	}
	return remote.String()
}

// literal returns the address that host is, if it is one; localhost is.
func literal(host string) (netip.Addr, bool) {
	if strings.EqualFold(strings.TrimSuffix(host, "."), "localhost") {
		return netip.IPv6Loopback(), true
	}
	a, err := netip.ParseAddr(host)
	return a.Unmap(), err == nil
}

// Of returns the address of an end of a connection; the zero Addr if it has none.
func Of(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
