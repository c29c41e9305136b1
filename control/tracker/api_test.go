package tracker

import (
	"context"
	"strings"
	"testing"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/containerd/log"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/wire"
)

func TestMain(m *testing.M) {
	_ = log.SetLevel("error") // of the trackers that tests run
	goleak.VerifyTestMain(m)
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"fine":                         "fine",
		"two\nlines\x00":               "two lines ",
		"bad \xff utf-8":               "bad ? utf-8",
		strings.Repeat("é", 200):       strings.Repeat("é", 128),
		strings.Repeat("x", 300):       strings.Repeat("x", 256),
		"x" + strings.Repeat("é", 200): "x" + strings.Repeat("é", 127),
	} {
		if got := printable(in, trackerpb.MaxError); got != want || !utf8.ValidString(got) {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestConfigCheck(t *testing.T) {
	good := Hello{Cluster: "c", Node: "n", Addr: "10.0.0.1:1", Role: wire.RoleAgent}
	for _, tt := range []struct {
		trackers []string
		change   func(*Hello)
		want     string // "" if it is right
	}{
		{[]string{"a:1", "dns+b.example:2", "[::1]:3"}, nil, ""},
		{nil, nil, ""},
		{[]string{"a"}, nil, `"a" is neither host:port nor dns+host:port`},
		{[]string{"dns+a"}, nil, `"dns+a" is neither`},
		{[]string{":7470"}, nil, `":7470" is neither`},
		{nil, func(h *Hello) { h.Node = "" }, "node of 0 bytes"},
		{nil, func(h *Hello) { h.Addr = "x" }, "addr"},
		{nil, func(h *Hello) { h.Role = 0 }, "role"},
	} {
		h := good
		if tt.change != nil {
			tt.change(&h)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err := New(Config{Trackers: tt.trackers, Hello: h}, nil).Run(ctx)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: got %v, want %s", tt.trackers, err, tt.want)
		}
	}
}

// A stream that was cancelled, because its tracker is no longer named, says nothing any
// more: the name may have come back with another stream.
func TestCancelledStreamIsSilent(t *testing.T) {
	c := New(Config{}, nil)
	c.setTrackers([]string{"t1:1"}, nil)
	c.open(t.Context(), "t1:1", &trackerpb.Welcome{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c.stepOf(ctx, EvDisconnected{Tracker: "t1:1"})
	if st := c.Status(); len(st) != 1 || !st[0].Connected {
		t.Errorf("the former stream's end is taken for that of the next: %+v", st)
	}
}
