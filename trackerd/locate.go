package trackerd

import (
	"context"
	"net"
	"net/netip"

	"google.golang.org/grpc/peer"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/internal/hostaddr"
)

// locate replaces what a node's Hello says of its addresses that nobody elsewhere can use: a
// node beside its tracker may know itself as 127.0.0.1 only.
func (st *stream) locate(ctx context.Context, h *trackerpb.Hello) {
	p, _ := peer.FromContext(ctx)
	if p == nil {
		return
	}
	defer func() { st.from = whence(hostaddr.Of(p.Addr), h.Addr) }()
	remote, local := hostaddr.Of(p.Addr), hostaddr.Of(p.LocalAddr)
	if !remote.IsValid() {
		return
	}
	st.machine = hostaddr.Machine(remote, local)
	if h.Addr == "" {
		return
	}
	public, near := hostaddr.Seen(append([]string{h.Addr}, h.Addrs...), remote, func() []netip.Addr { return hostaddr.Own(ctx) })
	st.near = near
	h.Addr, h.Addrs = "", nil
	if len(public) > 0 {
		h.Addr, h.Addrs = public[0], public[1:]
	}
}

// whence says where a machine is of which a stream comes from remote, and which others are
// told to reach at addr.
func whence(remote netip.Addr, addr string) string {
	if hostaddr.Global(remote) {
		return remote.String()
	}
	if host, _, err := net.SplitHostPort(addr); err == nil {
		return host
	}
	return "an unknown address"
}
