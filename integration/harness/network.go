package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The cluster's network: 198.18.0.0/24 (RFC 2544: for tests, routed nowhere) on
// a bridge in the namespace of the host called "switch", which has .1.
const (
	switchAddr = "198.18.0.1"
	subnetFmt  = "198.18.0.%d"
)

// setupSwitch makes the bridge in the switch's namespace.
func setupSwitch(sw *Host) error {
	h, err := netlink.NewHandleAt(sw.net)
	if err != nil {
		return err
	}
	defer h.Close()
	br := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	br.Name = "br0"
	// One of its own: otherwise a bridge takes the lowest of its ports' addresses,
	// and who has cached the old one is deaf for twenty seconds when a host comes or goes.
	br.HardwareAddr = net.HardwareAddr{0x02, 0xca, 0xbe, 0, 0, 1}
	if err := h.LinkAdd(br); err != nil {
		return fmt.Errorf("adding a bridge: %w", err)
	}
	if err := addAddr(h, br, switchAddr); err != nil {
		return err
	}
	sw.Addr = switchAddr
	if err := upLo(h); err != nil {
		return err
	}
	return sw.in(enterNet, noBridgeFilter)
}

// noBridgeFilter keeps the current network namespace's bridges from showing every
// frame to the firewall, which they do once something (Docker) has loaded
// br_netfilter: a switch has none, and it would be a good part of what a packet costs.
func noBridgeFilter() error {
	err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("0"), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // not loaded
	}
	return err
}

// plug connects a host to the switch as number n (2 to 254).
func plug(sw, host *Host, n int) error {
	h, err := netlink.NewHandleAt(sw.net)
	if err != nil {
		return err
	}
	defer h.Close()
	host.Addr = fmt.Sprintf(subnetFmt, n)
	host.veth = fmt.Sprintf("veth%d", n)
	v := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "eth0", PeerNamespace: netlink.NsFd(int(host.net))}
	v.Name = host.veth
	if err := h.LinkAdd(v); err != nil {
		return fmt.Errorf("adding %s: %w", v.Name, err)
	}
	br, err := h.LinkByName("br0")
	if err != nil {
		return err
	}
	if err := h.LinkSetMaster(v, br); err != nil {
		return err
	}
	if err := h.LinkSetUp(v); err != nil {
		return err
	}
	hh, err := netlink.NewHandleAt(host.net)
	if err != nil {
		return err
	}
	defer hh.Close()
	eth, err := hh.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := addAddr(hh, eth, host.Addr); err != nil {
		return err
	}
	return upLo(hh)
}

func addAddr(h *netlink.Handle, l netlink.Link, addr string) error {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(addr).To4(), Mask: net.CIDRMask(24, 32)}}
	if err := h.AddrAdd(l, a); err != nil {
		return fmt.Errorf("giving %s the address %s: %w", l.Attrs().Name, addr, err)
	}
	return h.LinkSetUp(l)
}

func upLo(h *netlink.Handle) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	return h.LinkSetUp(lo)
}

// The same hosts have the same numbers in fd00:ca9e::/64, once AddIPv6 was called for them.
const subnet6Fmt = "fd00:ca9e::%s"

// AddIPv6 gives a host an address of IPv6, too, and returns it.
func (c *Cluster) AddIPv6(host *Host) (addr string, err error) {
	h, err := netlink.NewHandleAt(host.net)
	if err != nil {
		return "", err
	}
	defer h.Close()
	eth, err := h.LinkByName("eth0")
	if err != nil {
		return "", err
	}
	addr = fmt.Sprintf(subnet6Fmt, host.Addr[strings.LastIndexByte(host.Addr, '.')+1:])
	// Nobody else has it: no need to wait until all have been asked.
	a := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(addr), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD}
	if err := h.AddrAdd(eth, a); err != nil {
		return "", fmt.Errorf("giving %s the address %s: %w", host.Name, addr, err)
	}
	return addr, nil
}

// IPTables adds a rule to the host's firewall, as the command iptables takes it, which
// Debian's docker.io brings along.
func (h *Host) IPTables(ctx context.Context, rule ...string) error {
	_, err := h.Command(ctx, nil, "iptables", append([]string{"--wait", "--append"}, rule...)...)
	return err
}

// ShapeQueue is how long packets wait at most at each end of a limited link. TCP
// fills it.
const ShapeQueue = 20 * time.Millisecond

// Shape limits what the host sends and receives, each to rate bytes per second;
// 0 lifts the limits.
func (c *Cluster) Shape(host *Host, rate int64) error {
	for _, end := range []struct {
		host *Host
		link string
	}{{host, "eth0"}, {c.Switch, host.veth}} {
		h, err := netlink.NewHandleAt(end.host.net)
		if err != nil {
			return err
		}
		err = tbf(h, end.link, rate)
		h.Close()
		if err != nil {
			return fmt.Errorf("limiting %s of %s: %w", end.link, end.host.Name, err)
		}
	}
	return nil
}

func tbf(h *netlink.Handle, link string, rate int64) error {
	l, err := h.LinkByName(link)
	if err != nil {
		return err
	}
	q := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
	}
	if rate == 0 {
		if err := h.QdiscDel(q); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
			return err
		}
		return nil
	}
	burst := max(rate/100, 66<<10) // 10 ms, and more than one segment of offloaded TCP
	q.Rate = uint64(rate)
	q.Limit = uint32(burst + rate*int64(ShapeQueue)/int64(time.Second)) // then packets are dropped
	q.Buffer = netlink.Xmittime(uint64(rate), uint32(burst))
	return h.QdiscReplace(q)
}

// SetLink takes the host's cable out (up false) or puts it back.
func (c *Cluster) SetLink(host *Host, up bool) error {
	h, err := netlink.NewHandleAt(c.Switch.net)
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(host.veth)
	if err != nil {
		return err
	}
	if up {
		return h.LinkSetUp(l)
	}
	return h.LinkSetDown(l)
}

// unreach has host send what is for another one to nobody, or ends that.
func unreach(host, other *Host, yes bool) error {
	h, err := netlink.NewHandleAt(host.net)
	if err != nil {
		return err
	}
	defer h.Close()
	eth, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	n := &netlink.Neigh{
		LinkIndex: eth.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: net.ParseIP(other.Addr).To4(),
		HardwareAddr: net.HardwareAddr{0x02, 0xca, 0xbe, 0, 0xff, 0xff},
	}
	if yes {
		return h.NeighSet(n)
	}
	return h.NeighDel(n)
}
