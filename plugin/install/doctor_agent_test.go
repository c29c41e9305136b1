package install

import (
	"cmp"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/plugin"
	"github.com/capelin-io/capelin/swarm/wire"
)

// The running agent knows what nobody else can tell: which configuration it runs with, what
// it does without, whether its trackers are trackers, and whom it cannot reach.
func TestDoctorAsksTheAgent(t *testing.T) {
	type status = plugin.Status
	refused := func(st *status, alone string) {
		st.Configuration = plugin.ConfigurationStatus{Refused: []string{"F:1:1: nonsense: no such key"}, Since: time.Now(),
			Instead: "the configuration that worked last, of then", RegistryOnly: alone}
		if alone != "" {
			st.Obstacles = append(st.Obstacles, plugin.ObstacleStatus{Key: "configuration", Error: alone})
		}
	}
	peer := func(name, addr string) plugin.PeerStatus { return plugin.PeerStatus{Node: name, Accepts: addr} }
	away := func(name, addr, why string) plugin.UnreachableStatus {
		return plugin.UnreachableStatus{Node: name, Address: addr, Reason: "refused", Error: why}
	}
	for _, tt := range []struct {
		name  string
		set   func(*status)
		check string
		want  []string // severity and a part of text, why or do; of each finding of the check
	}{
		{"all is well", func(*status) {}, "trackers", []string{"ok: the agent is connected to 2 of 2"}},
		{"a tracker that is none", func(st *status) {
			st.Trackers[1] = plugin.TrackerStatus{Address: "10.0.0.1:7480", Error: "tracker 10.0.0.1:7480: it is no tracker"}
		}, "trackers", []string{"ok: the agent is connected to 1 of 2", "warn: tracker 10.0.0.1:7480: it is no tracker|The others|port 7470"}},
		{"no tracker", func(st *status) {
			st.Trackers = []plugin.TrackerStatus{{Address: "dns+t:7470", Error: "lookup t: no such host"}}
		}, "trackers", []string{"fail: dns+t:7470: lookup t: no such host|Nodes do not find each other"}},
		{"refused", func(st *status) { refused(st, "") }, "configuration",
			[]string{"fail: F:1:1: nonsense: no such key|The agent runs with the configuration that worked last, of then.|capelin agent check"}},
		{"alone", func(st *status) { refused(st, "authorize has changed") }, "configuration",
			[]string{"fail: F:1:1: nonsense: no such key|takes no part in the swarm: authorize has changed.|capelin agent check"}},
		{"alone is told once", func(st *status) { refused(st, "authorize has changed") }, "agent", nil},
		{"changed", func(st *status) { st.Configuration.Restart = []string{"zone", "listen"} }, "configuration",
			[]string{"warn: " + ConfigPath + " has changed: zone, listen||systemctl restart"}},
		{"a port is taken", func(st *status) {
			st.Obstacles = []plugin.ObstacleStatus{{Key: "listen", Error: "another process has it"}, {Key: "metrics", Error: "it, too"}}
		}, "agent", []string{"fail: listen: another process has it|takes no part in the swarm|ss -ltnp",
			"fail: metrics: it, too|health|ss -ltnp"}},
		{"a namesake", func(st *status) { st.Node, st.Namesake = "node-1", "10.0.0.7" }, "name",
			[]string{"fail: node-1: another machine at 10.0.0.7 has this name|neither is found|Set node in"}},
		{"no namesake", func(*status) {}, "name", nil},
		{"in no swarm, and so at no tracker", func(st *status) { st.Swarm = "listen: it is taken" }, "trackers",
			[]string{"warn: the agent asks none, because it takes no part in the swarm: listen: it is taken" +
				"|Nodes do not find each other|Mend that"}},
		{"in no swarm, and so nobody is known", func(st *status) { st.Swarm = "listen: it is taken" }, "peers", nil},
		{"a namesake, and so the trackers come and go", func(st *status) {
			st.Namesake = "10.0.0.7"
			st.Trackers[1] = plugin.TrackerStatus{Address: "10.0.0.1:7480", Error: "tracker 10.0.0.1:7480: the node connected anew"}
		}, "trackers", []string{"ok: the agent is connected to 1 of 2",
			"warn: 1 of 2 are away: another machine at 10.0.0.7 has this name, and takes|by their names|two different names"}},
		{"a tracker that hangs", func(st *status) {
			st.Trackers[1].Error = "tracker " + st.Trackers[1].Address + ": connected, and no answer for 1.2s"
		}, "trackers", []string{"ok: the agent is connected to 1 of 2", "warn: tracker |The others do its work"}},
		{"it reaches itself", func(st *status) { st.Advertise = "good:7401" }, "reached", []string{"ok: good:7401 answers from here; whether"}},
		{"it does not reach itself", func(st *status) { st.Advertise = "bad:7401" }, "reached",
			[]string{"warn: this node does not reach itself at bad:7401, which others are told: connection refused|translated|advertise"}},
		{"others reach it", func(st *status) {
			st.Advertise = "good:7401"
			st.Peers = []plugin.PeerStatus{peer("a", "good:1"), {Node: "b", Inbound: true}}
		}, "reached", []string{"ok: b has connected to this node"}},
		{"nobody is told where it is", func(*status) {}, "reached", nil},
		{"nobody is known", func(*status) {}, "peers", []string{"ok: none are known"}},
		{"two peers of many", func(st *status) {
			st.Peers = []plugin.PeerStatus{peer("in", ""), peer("a", "good:1"), peer("b", "good:2"), peer("c", "bad:3")}
		}, "peers", []string{"ok: 2 answer"}},
		{"one that cannot be reached", func(st *status) {
			st.Peers = []plugin.PeerStatus{peer("a", "good:1")}
			st.Unreachable = []plugin.UnreachableStatus{away("b", "bad:1", "cannot reach")}
		}, "peers", []string{"ok: 1 answer", "warn: cannot reach b at bad:1: connection refused|from others|firewalls"}},
		{"one by another of its addresses", func(st *status) {
			st.Peers = []plugin.PeerStatus{peer("a", "bad:1, good:1")}
		}, "peers", []string{"ok: 1 answer"}},
		{"one that speaks no TLS", func(st *status) { st.Peers = []plugin.PeerStatus{peer("a", "plain:1")} }, "peers",
			[]string{"warn: cannot reach a at plain:1: it does not speak TLS|from others|certificates of one CA"}},
		{"one of another CA", func(st *status) { st.Peers = []plugin.PeerStatus{peer("a", "strange:1")} }, "peers",
			[]string{"warn: cannot reach a at strange:1: certificate of peer (node) of cluster default: x509|from others|certificates of one CA"}},
		{"nobody can be reached", func(st *status) {
			st.Unreachable = []plugin.UnreachableStatus{away("b", "bad:1", "x"), away("c", "bad:2", "x"), away("d", "bad:3", "x")}
		}, "peers", []string{"fail: cannot reach b at bad:1: connection refused; " +
			"cannot reach c at bad:2: connection refused|connected to nobody"}},
		{"one that can be reached again", func(st *status) {
			st.Unreachable = []plugin.UnreachableStatus{away("b", "good:1", "connected, and no answer")}
		}, "peers", []string{"warn: b at good:1 answers, but failed as a source: connected, and no answer|tries it again"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, a := well(t)
			dials := map[string]func(string) (net.Conn, error){
				"good": peerOf(t, h), "strange": peerOf(t, newFake(t, nil)), "plain": plainPeer,
			}
			h.dial = func(addr string) (net.Conn, error) {
				host, _, err := net.SplitHostPort(addr)
				if dial := dials[host]; dial != nil {
					return dial(addr)
				}
				return nil, cmp.Or(err, errors.New("connection refused"))
			}
			st := status{Trackers: []plugin.TrackerStatus{{Address: "t1:7470", Connected: true}, {Address: "10.0.0.1:7470", Connected: true}}}
			tt.set(&st)
			h.agent = map[string]plugin.Status{a.Admin: st}
			got := findingsOf(t, tt.check, h, a)
			if len(got) != len(tt.want) {
				t.Fatalf("findings %+v, want %q", got, tt.want)
			}
			for i, f := range got {
				parts := append(strings.Split(tt.want[i], "|"), "", "")
				text := string(f.Severity) + ": " + f.Text
				if !strings.HasPrefix(text, parts[0]) || !strings.Contains(f.Why, parts[1]) || !strings.Contains(f.Do, parts[2]) {
					t.Errorf("%+v, want %q", f, tt.want[i])
				}
			}
		})
	}
}

// peerOf dials a peer that accepts those with certificates of a host's CA.
func peerOf(t *testing.T, h *fakeHost) func(string) (net.Conn, error) {
	t.Helper()
	c := certificate(t, h, "peer", identity.RoleNode)
	src, err := identity.Load(identity.Config{CA: h.Path(c.CA), Cert: h.Path(c.Cert), Key: h.Path(c.Key)}, "default")
	if err != nil {
		t.Fatal(err)
	}
	return func(string) (net.Conn, error) {
		a, b := net.Pipe()
		go answerAsPeer(tls.Server(b, src.PeerTLS(identity.RoleNode))) // until a is closed
		return a, nil
	}
}

func plainPeer(string) (net.Conn, error) {
	a, b := net.Pipe()
	go answerAsPeer(b)
	return a, nil
}

// answerAsPeer answers a Hello that is not spoken.
func answerAsPeer(c net.Conn) {
	defer c.Close()
	_, err := wire.NewReader(c, nil).Next()
	if f, ok := errors.AsType[*wire.Fault](err); ok {
		p, _ := wire.Append(nil, &wire.Error{Code: f.Code, Text: f.Reason})
		_, _ = c.Write(p)
	}
}

// On a node that fell back nobody asks the agent; why it fell, and what there is to do, is
// said.
func TestDoctorFallen(t *testing.T) {
	for text, do := range map[string]string{
		"since then, because the agent failed 10 times (exit-code): agent: no room\n": "comes back by itself",
		"since then, because it was asked for\n" + stays + "\n":                       "Mend that, then",
	} {
		h, a := well(t)
		h.put(t, MarkerPath, text)
		h.agent = map[string]plugin.Status{a.Admin: {Configuration: plugin.ConfigurationStatus{Refused: []string{"not to be asked"}}}}
		found := false
		for _, f := range Doctor(t.Context(), h, *a, Where{}) {
			switch f.Check {
			case "fallback":
				found = strings.Contains(f.Text, strings.Split(text, "\n")[0]) && strings.Contains(f.Do, do)
			case "configuration":
				if f.Severity != OK {
					t.Errorf("%+v", f)
				}
			}
		}
		if !found {
			t.Errorf("%q is not told", text)
		}
	}
}
