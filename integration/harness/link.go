package harness

import "github.com/vishvananda/netlink"

// LinkBytes returns what the host has received and sent over its link, headers of
// Ethernet, IP and TCP included, in bytes.
func (h *Host) LinkBytes() (received, sent int64, err error) {
	nl, err := netlink.NewHandleAt(h.net)
	if err != nil {
		return 0, 0, err
	}
	defer nl.Close()
	l, err := nl.LinkByName("eth0")
	if err != nil {
		return 0, 0, err
	}
	s := l.Attrs().Statistics
	return int64(s.RxBytes), int64(s.TxBytes), nil
}
