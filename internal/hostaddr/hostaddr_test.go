package hostaddr

import (
	"net/netip"
	"reflect"
	"testing"
)

func addrs(all ...string) (out []netip.Addr) {
	for _, a := range all {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestChoose(t *testing.T) {
	for _, tt := range []struct {
		name, listen   string
		routes, ifaces []netip.Addr
		want           []string
	}{
		{"one address", "10.0.0.1:7401", addrs("10.9.9.9"), addrs("fd00::9"), []string{"10.0.0.1:7401"}},
		{"loopback, because it was asked for", "127.0.0.1:7401", addrs("10.9.9.9"), nil, []string{"127.0.0.1:7401"}},
		{"all, beside its tracker", "[::]:7401", addrs("127.0.0.1", "10.77.0.11"), addrs("10.77.0.11", "fe80::1", "fd00::11"),
			[]string{"10.77.0.11:7401", "[fd00::11]:7401"}},
		{"the way to a tracker comes first", "[::]:7401", addrs("fd00::11", "10.77.0.11", "2001:db8:1::5"), nil,
			[]string{"[fd00::11]:7401", "10.77.0.11:7401"}},
		{"no route, but an interface", "0.0.0.0:7401", nil, addrs("fe80::1", "192.168.3.4", "192.168.3.5"), []string{"192.168.3.4:7401"}},
		{"no network", "[::]:7401", addrs("127.0.0.1", "::1"), addrs("169.254.3.3"), []string{"127.0.0.1:7401"}},
		{"IPv4 in IPv6", "[::]:7401", addrs("::ffff:10.0.0.7"), nil, []string{"10.0.0.7:7401"}},
	} {
		if got := Choose(netip.MustParseAddrPort(tt.listen), tt.routes, tt.ifaces); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestSeen(t *testing.T) {
	own := func() []netip.Addr { return addrs("10.77.0.1", "fd00::1") }
	list := func(all ...string) []string { return all }
	for _, tt := range []struct {
		name         string
		advertised   []string
		remote       string
		public, near []string
	}{
		{"what others can use stays", list("10.0.0.1:1", "[fd00::2]:1", "node7:1"), "10.9.9.9",
			list("10.0.0.1:1", "[fd00::2]:1", "node7:1"), nil},
		{"loopback of another machine", list("127.0.0.1:7401"), "10.77.0.11", list("10.77.0.11:7401"), list("127.0.0.1:7401", "10.77.0.11:7401")},
		{"of this one", list("127.0.0.1:7401"), "127.0.0.1", list("10.77.0.1:7401", "[fd00::1]:7401"),
			list("127.0.0.1:7401", "10.77.0.1:7401", "[fd00::1]:7401")},
		{"by name", list("localhost:7401"), "::1", list("10.77.0.1:7401", "[fd00::1]:7401"),
			list("localhost:7401", "10.77.0.1:7401", "[fd00::1]:7401")},
		{"unspecified", list("[::]:7401"), "fd00::5", list("[fd00::5]:7401"), list("[::]:7401", "[fd00::5]:7401")},
		{"link-local", list("[fe80::5%eth0]:7401", "169.254.1.1:7401"), "fd00::5", list("[fd00::5]:7401"), nil},
		{"loopback beside another", list("127.0.0.1:7401", "10.0.0.3:7401"), "10.0.0.3",
			list("10.0.0.3:7401"), list("127.0.0.1:7401", "10.0.0.3:7401")},
		{"seen from a link-local address, nothing is known", list("127.0.0.1:7401"), "fe80::3", nil, list("127.0.0.1:7401")},
	} {
		public, near := Seen(tt.advertised, netip.MustParseAddr(tt.remote), own)
		if !reflect.DeepEqual(public, tt.public) || !reflect.DeepEqual(near, tt.near) {
			t.Errorf("%s: %v, near %v; want %v, near %v", tt.name, public, near, tt.public, tt.near)
		}
	}
}

func TestPublic(t *testing.T) {
	for _, tt := range []struct{ addr, remote, want string }{
		{"127.0.0.1:1", "10.0.0.3", "10.0.0.3:1"},
		{"10.0.0.4:1", "10.0.0.3", "10.0.0.4:1"},
		{"127.0.0.1:1", "127.0.0.1", "127.0.0.1:1"}, // of this machine
		{"[::1]:1", "fd00::3", "[fd00::3]:1"},
		{"", "10.0.0.3", ""},
	} {
		if got := Public(tt.addr, netip.MustParseAddr(tt.remote)); got != tt.want {
			t.Errorf("%s from %s: %s, want %s", tt.addr, tt.remote, got, tt.want)
		}
	}
}

func TestMachine(t *testing.T) {
	for _, tt := range []struct{ remote, local, want string }{
		{"127.0.0.1", "127.0.0.1", "here"},
		{"::1", "::1", "here"},
		{"10.77.0.1", "::ffff:10.77.0.1", "here"},
		{"10.77.0.2", "10.77.0.1", "10.77.0.2"},
	} {
		if got := Machine(netip.MustParseAddr(tt.remote), netip.MustParseAddr(tt.local)); got != tt.want {
			t.Errorf("%s to %s: %s, want %s", tt.remote, tt.local, got, tt.want)
		}
	}
}
