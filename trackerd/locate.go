package trackerd

import (
	"context"
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
