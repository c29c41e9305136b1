package trackerd

import (
	"context"
	"net"
	"slices"
	"testing"

	"google.golang.org/grpc/peer"

	"github.com/capelin-io/capelin/control/trackerpb"
)

// What a node says of its addresses, and what others are told, as its stream is seen.
func TestLocate(t *testing.T) {
	tcp := func(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 5} }
	for _, tt := range []struct {
		name          string
		remote, local string
		says          []string
		told, near    []string
		machine, from string
	}{
		{"all is well", "10.77.0.11", "10.77.0.1", []string{"10.77.0.11:7401", "[fd00::11]:7401"},
			[]string{"10.77.0.11:7401", "[fd00::11]:7401"}, nil, "10.77.0.11", "10.77.0.11"},
		{"what it says was copied from another", "10.77.0.12", "10.77.0.1", []string{"10.77.0.11:7401"},
			[]string{"10.77.0.11:7401"}, nil, "10.77.0.12", "10.77.0.12"},
		{"loopback", "10.77.0.11", "10.77.0.1", []string{"127.0.0.1:7401"}, []string{"10.77.0.11:7401"},
			[]string{"127.0.0.1:7401", "10.77.0.11:7401"}, "10.77.0.11", "10.77.0.11"},
		{"on this machine, by its address", "10.77.0.1", "10.77.0.1", []string{"127.0.0.1:7401"}, []string{"10.77.0.1:7401"},
			[]string{"127.0.0.1:7401", "10.77.0.1:7401"}, "here", "10.77.0.1"},
		{"on this machine, by loopback", "127.0.0.1", "127.0.0.1", []string{"10.77.0.1:7401"}, []string{"10.77.0.1:7401"},
			nil, "here", "10.77.0.1"},
		{"nothing", "127.0.0.1", "127.0.0.1", nil, nil, nil, "here", "an unknown address"},
	} {
		h := &trackerpb.Hello{}
		if len(tt.says) > 0 {
			h.Addr, h.Addrs = tt.says[0], tt.says[1:]
		}
		st := &stream{}
		st.locate(peer.NewContext(context.Background(), &peer.Peer{Addr: tcp(tt.remote), LocalAddr: tcp(tt.local)}), h)
		var told []string
		if h.Addr != "" {
			told = append([]string{h.Addr}, h.Addrs...)
		}
		if !slices.Equal(told, tt.told) || !slices.Equal(st.near, tt.near) || st.machine != tt.machine || st.from != tt.from {
			t.Errorf("%s: others are told %v, those near %v on %q, from %q; want %v, %v, %q, %q", tt.name,
				told, st.near, st.machine, st.from, tt.told, tt.near, tt.machine, tt.from)
		}
	}
}

// Of a node beside its tracker that knows itself as 127.0.0.1 only, others are not told that.
func TestLocateBesideTracker(t *testing.T) {
	h, st := &trackerpb.Hello{Addr: "127.0.0.1:7401"}, &stream{}
	loopback := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5}
	st.locate(peer.NewContext(context.Background(), &peer.Peer{Addr: loopback, LocalAddr: loopback}), h)
	if st.near[0] != "127.0.0.1:7401" || st.machine != "here" {
		t.Errorf("on its own machine: %v on %q", st.near, st.machine)
	}
	for _, addr := range append([]string{h.Addr}, h.Addrs...) { // none, where there is no network
		if host, _, _ := net.SplitHostPort(addr); addr != "" && net.ParseIP(host).IsLoopback() {
			t.Errorf("others are told %s", addr)
		}
	}
}
