package tracker

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/capelin-io/capelin/control/ring"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestMerge: what two trackers say becomes one verdict (PROTOCOL.md, "Wanting").
func TestMerge(t *testing.T) {
	now := time.Unix(1000, 0)
	pending := answer{until: now.Add(time.Millisecond)}
	late, silent := answer{until: now}, answer{until: now.Add(answerTimeout - busyTimeout)}
	wait := answer{kind: Wait, until: now.Add(time.Second)}
	waited := answer{kind: Wait, until: now.Add(-busyTimeout)}
	down, first := answer{kind: 99}, answer{kind: 98} // first: it is being connected with for the first time
	sources, lease, nobody := answer{kind: Sources}, answer{kind: Lease}, answer{kind: Nobody}
	for _, tt := range []struct {
		name          string
		first, second answer
		want          VerdictKind // 0: nothing is told yet
	}{
		{"both down", down, down, Unreachable},
		{"both silent", silent, silent, Unreachable},
		{"both late", late, late, 0},
		{"one down, one connecting", down, first, 0},
		{"connecting and nobody", first, nobody, 0},
		{"connecting and sources", first, sources, Sources},
		{"one down, one silent", down, silent, Unreachable},
		{"one down, one late", down, late, 0},
		{"one silent, one late", silent, late, 0},
		{"late and pending", late, pending, 0},
		{"late and wait", late, wait, Wait},
		{"both pending", pending, pending, 0},
		{"one down, one pending", down, pending, 0},
		{"nobody and pending", nobody, pending, 0},
		{"pending and nobody", pending, nobody, 0},
		{"wait and pending", wait, pending, 0},
		{"sources and pending", sources, pending, Sources},
		{"pending and lease", pending, lease, Lease},
		{"sources and lease", sources, lease, Lease},
		{"nobody and sources", nobody, sources, Sources},
		{"both nobody", nobody, nobody, Nobody},
		{"nobody and down", nobody, down, Nobody},
		{"late and nobody", late, nobody, Nobody},
		{"wait and nobody", wait, nobody, Wait},
		{"nobody and wait", nobody, wait, Wait},
		{"wait and sources", wait, sources, Sources},
		{"wait that was not kept", waited, down, Nobody},
		{"wait that was not kept, and late", waited, late, Nobody},
		{"wait that was not kept, and pending", waited, pending, 0},
	} {
		c := New(Config{}, nil)
		c.names = []string{"t1:1", "t2:1"}
		for _, name := range c.names {
			c.links[name] = newLink(name)
		}
		id := piece.ID{Alg: piece.SHA256, Size: 1}
		b := &blob{id: id, want: &want{answers: map[*link]*answer{}, at: pending.until.Add(-answerTimeout)}}
		for i, l := range c.owners(id) {
			a := []answer{tt.first, tt.second}[i]
			switch l.up = a != down && a != first; {
			case l.up:
				b.want.answers[l] = &a
			case a == down:
				l.status.Err = errors.New("refused")
			}
		}
		next := c.merge(b, now)
		if b.want.verdict.Kind != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, b.want.verdict.Kind, tt.want)
		}
		due := pending.until
		if tt.first != pending && tt.second != pending && tt.first != first && tt.second != first {
			due = late.until.Add(busyTimeout - answerTimeout)
		}
		if tt.want == 0 && !next.Equal(due) {
			t.Errorf("%s: to be looked at again at %v", tt.name, next)
		}
	}
}

func TestOwners(t *testing.T) {
	c := New(Config{}, nil)
	c.setNames([]string{"a:1", "b:1", "c:1"})
	id := piece.ID{Alg: piece.SHA256, Size: 1}
	var got []string
	for _, l := range c.owners(id) {
		got = append(got, l.name)
	}
	if want := ring.Top(c.names, id.Digest(), 2); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("got %v, want %v", got, want)
	}
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
