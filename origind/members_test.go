package origind

import (
	"fmt"
	"net"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/origind/ringstate"
)

// serveMember runs a member until the test ends. It returns where it is.
func serveMember(t *testing.T, name string) (s *server, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t, t.TempDir(), nil)
	cfg.Node = name
	s, _ = newServer(t, cfg)
	h := s.httpServer()
	go func() { _ = h.Serve(l) }()
	t.Cleanup(func() { _ = h.Close() })
	return s, l.Addr().String()
}

// Members that have changed places are found again, unless the configuration says where they are.
func TestMembersMoved(t *testing.T) {
	s, self := serveMember(t, "a")
	_, b := serveMember(t, "b")
	_, c := serveMember(t, "c")
	for _, given := range []bool{false, true} {
		for name, addr := range map[string]string{"b": c, "c": b, "d": self} {
			if err := s.peers.place(name, addr, given); err != nil {
				t.Fatal(err)
			}
		}
		asked := map[string]error{}
		find := func() { // as DNS gives all three
			for _, addr := range []string{self, b, c} {
				if !s.peers.knows(addr) {
					s.complain(t.Context(), addr, s.meet(t.Context(), addr), asked)
				}
			}
		}
		find()
		for name, at := range map[string]string{"b": c, "c": b, "d": self} {
			if _, _, err := s.peers.ask(t.Context(), name, ringstate.Probe{}); !errdefs.IsUnavailable(err) {
				t.Errorf("%s at %s: %v", name, at, err)
			}
		}
		find()
		for name, at := range map[string]string{"b": b, "c": c, "d": ""} {
			_, _, err := s.peers.ask(t.Context(), name, ringstate.Probe{})
			if ok := !given && at != ""; ok != (err == nil) {
				t.Errorf("given %v, %s: %v", given, name, err)
			}
		}
		if text := fmt.Sprint(asked); !given && text != fmt.Sprint(map[string]error{self: nil, b: nil, c: nil}) {
			t.Errorf("complained: %s", text)
		}
	}
}
