package tracker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/control/tracker/trackertest"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// desk is a tracker's answers to operators.
type desk struct {
	trackerpb.UnimplementedControlServer
	nodes    []*trackerpb.Node
	members  []*trackerpb.Member
	progress []*trackerpb.Progress
	err      error // after these

	preheat *trackerpb.PreheatRequest // the last one
	drop    *trackerpb.DropRequest
}

func (d *desk) ListNodes(_ *trackerpb.ListNodesRequest, g grpc.ServerStreamingServer[trackerpb.ListNodesResponse]) error {
	for _, n := range d.nodes { // in several messages
		if err := g.Send(&trackerpb.ListNodesResponse{Nodes: []*trackerpb.Node{n}}); err != nil {
			return err
		}
	}
	return d.err
}

func (d *desk) Members(_ *trackerpb.MembersRequest, g grpc.ServerStreamingServer[trackerpb.MembersResponse]) error {
	if err := g.Send(&trackerpb.MembersResponse{Members: d.members}); err != nil {
		return err
	}
	return d.err
}

func (d *desk) Preheat(m *trackerpb.PreheatRequest, g grpc.ServerStreamingServer[trackerpb.Progress]) error {
	d.preheat = m
	return d.tell(g)
}

func (d *desk) Drop(m *trackerpb.DropRequest, g grpc.ServerStreamingServer[trackerpb.Progress]) error {
	d.drop = m
	return d.tell(g)
}

func (d *desk) tell(g grpc.ServerStreamingServer[trackerpb.Progress]) error {
	for _, p := range d.progress {
		if err := g.Send(p); err != nil {
			return err
		}
	}
	return d.err
}

// inOffice runs f with a Control of trackers of which desks says what they answer; nil:
// nobody listens there.
func inOffice(t *testing.T, desks map[string]*desk, f func(t *testing.T, c *tracker.Control)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		net := trackertest.NewNet()
		var names []string
		for _, name := range []string{"t1:1", "t2:1"} {
			d, known := desks[name]
			if known {
				names = append(names, name)
			}
			if d == nil {
				continue
			}
			g := grpc.NewServer(grpc.WaitForHandlers(true))
			trackerpb.RegisterControlServer(g, d)
			ln, done := net.Listen(name), make(chan struct{})
			go func() {
				defer close(done)
				_ = g.Serve(ln)
			}()
			defer func() { g.Stop(); <-done }()
		}
		c, err := tracker.NewControl(tracker.ControlConfig{Trackers: names, Dial: net.Dial})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		f(t, c)
	})
}

// What two trackers list is merged: a node's blobs are told to both.
func TestNodesAndMembers(t *testing.T) {
	at := time.UnixMilli(1_000_000)
	first := &desk{
		nodes: []*trackerpb.Node{
			{Node: "b", Zone: "z", Role: 1, Addr: "b:1", Software: "s", SinceUnixMs: at.UnixMilli(), Blobs: 5, Wants: 1},
			{Node: "a", Role: 2, SinceUnixMs: at.UnixMilli(), Blobs: 1},
		},
		members: []*trackerpb.Member{{Node: "b", Complete: true}, {Node: "c", Want: true}},
	}
	second := &desk{
		nodes:   []*trackerpb.Node{{Node: "b", SinceUnixMs: at.UnixMilli() - 1, Blobs: 4, Wants: 1}},
		members: []*trackerpb.Member{{Node: "b", Lease: true}, {Node: "a", Partial: true}},
	}
	failing := &desk{members: []*trackerpb.Member{{Node: "x"}}, err: status.Error(codes.Internal, "broken")}
	for _, tt := range []struct {
		name           string
		desks          map[string]*desk
		nodes, members string
		text           string // of the error
	}{
		{"both", map[string]*desk{"t1:1": first, "t2:1": second}, "a 1/0, b 5/1",
			"{a false true false false} {b true false false true} {c false false true false}", ""},
		{"one is away", map[string]*desk{"t1:1": first, "t2:1": nil}, "a 1/0, b 5/1",
			"{b true false false false} {c false false true false}", ""},
		{"one fails in the middle", map[string]*desk{"t1:1": failing, "t2:1": second}, "b 4/1",
			"{a false true false false} {b false false false true}", ""},
		{"both are away", map[string]*desk{"t1:1": nil, "t2:1": nil}, "", "", "connection refused"},
	} {
		inOffice(t, tt.desks, func(t *testing.T, c *tracker.Control) {
			nodes, err := c.Nodes(t.Context())
			var got []string
			for _, n := range nodes {
				got = append(got, fmt.Sprintf("%s %d/%d", n.Name, n.Blobs, n.Wants))
			}
			if strings.Join(got, ", ") != tt.nodes || (err == nil) != (tt.text == "") {
				t.Errorf("%s: nodes %q, %v; want %q", tt.name, got, err, tt.nodes)
			}
			if tt.name == "both" {
				want := tracker.Node{
					Name: "b", Zone: "z", Role: wire.RoleAgent, Addr: "b:1", Software: "s",
					Since: at.Add(-time.Millisecond), Blobs: 5, Wants: 1,
				}
				if nodes[1] != want {
					t.Errorf("b is %+v, want %+v", nodes[1], want)
				}
			}
			members, err := c.Members(t.Context(), blobID(1))
			if s := strings.Trim(fmt.Sprint(members), "[]"); s != tt.members || (err == nil) != (tt.text == "") {
				t.Errorf("%s: members %s, %v; want %s", tt.name, s, err, tt.members)
			}
			if err != nil && (!strings.Contains(err.Error(), tt.text) || !strings.Contains(err.Error(), "tracker t1:1: ")) {
				t.Errorf("%s: the error is %v", tt.name, err)
			}
		})
	}
}

// An operation is one tracker's; another one is asked for all of it if that goes away.
func TestPreheatAndDrop(t *testing.T) {
	end := &trackerpb.Progress{Nodes: 2, Done: 1, Failed: 1, Bytes: 5, Total: 10, Results: []*trackerpb.NodeResult{
		{Node: "a"}, {Node: "b", Error: "full", Blobs: []*trackerpb.Announce{{Blob: trackerpb.FromID(blobID(1))}, {Blob: &trackerpb.Blob{}}}},
	}}
	away := &desk{progress: []*trackerpb.Progress{{Nodes: 2}}, err: status.Error(codes.Unavailable, "stops")}
	works := &desk{progress: []*trackerpb.Progress{{Nodes: 2}, end}}
	inOffice(t, map[string]*desk{"t1:1": away, "t2:1": works}, func(t *testing.T, c *tracker.Control) {
		var told []tracker.Progress
		last, err := c.Preheat(t.Context(), tracker.PreheatRequest{
			Blobs: []piece.ID{blobID(1), blobID(2)}, AtOnce: 3, Patience: 48 * time.Hour,
			Nodes: tracker.Selection{Zones: []string{"z"}, Roles: []wire.Role{wire.RoleOrigin}},
		}, func(p tracker.Progress) { told = append(told, p) })
		if err != nil || last.Done != 1 || last.Failed != 1 || last.Bytes != 5 || last.Total != 10 || last.Results != nil {
			t.Errorf("preheat: %+v, %v", last, err)
		}
		if want := "[{a  []} {b full [" + blobID(1).String() + "]}]"; len(told) != 3 || fmt.Sprint(told[2].Results) != want {
			t.Errorf("told %+v, want %s at last", told, want)
		}
		m := works.preheat
		if len(m.Blobs) != 2 || m.AtOnce != 3 || m.PatienceMs != uint32((24*time.Hour).Milliseconds()) || len(m.Nodes.Roles) != 1 || m.Nodes.All {
			t.Errorf("asked for %v", m)
		}
		if last, err = c.Drop(t.Context(), []piece.ID{blobID(1)}, tracker.Selection{All: true}, nil); err != nil || last.Done != 1 {
			t.Errorf("drop: %+v, %v", last, err)
		}
		if !works.drop.Nodes.All || len(works.drop.Blobs) != 1 {
			t.Errorf("asked for %v", works.drop)
		}
	})
	refuses := &desk{err: status.Error(codes.PermissionDenied, "who are you?")}
	inOffice(t, map[string]*desk{"t1:1": refuses, "t2:1": works}, func(t *testing.T, c *tracker.Control) {
		if _, err := c.Drop(t.Context(), nil, tracker.Selection{}, nil); status.Code(err) != codes.PermissionDenied {
			t.Errorf("refused: %v", err) // no other tracker would allow it
		}
	})
	inOffice(t, map[string]*desk{"t1:1": away}, func(t *testing.T, c *tracker.Control) {
		if _, err := c.Drop(t.Context(), nil, tracker.Selection{}, nil); status.Code(err) != codes.Unavailable {
			t.Errorf("none left: %v", err)
		}
	})
}

func TestControlFindsTrackers(t *testing.T) {
	for _, trackers := range [][]string{nil, {"nonsense"}} {
		if _, err := tracker.Dial(trackers, nil); err == nil {
			t.Errorf("%v is accepted", trackers)
		}
	}
	net := trackertest.NewNet()
	var asked []string
	c, err := tracker.NewControl(tracker.ControlConfig{Trackers: []string{"dns+none:1", "dns+some:1"}, Dial: net.Dial,
		LookupHost: func(_ context.Context, host string) ([]string, error) {
			if asked = append(asked, host); host == "none" {
				return nil, errors.New("SERVFAIL")
			}
			return []string{"10.0.0.1"}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Nodes(t.Context()); err == nil || !strings.Contains(err.Error(), "tracker 10.0.0.1:1: ") {
		t.Errorf("the only one that is found refuses: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	fails := func(context.Context, string) ([]string, error) { return nil, errors.New("SERVFAIL") }
	none, err := tracker.NewControl(tracker.ControlConfig{Trackers: []string{"dns+none:1"}, LookupHost: fails})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		func() error { _, err := none.Nodes(t.Context()); return err }(),
		func() error { _, err := none.Members(t.Context(), blobID(1)); return err }(),
		func() error { _, err := none.Drop(t.Context(), nil, tracker.Selection{}, nil); return err }(),
	} {
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "no tracker is found: SERVFAIL") {
			t.Errorf("no name is known: %v", err)
		}
	}
}
