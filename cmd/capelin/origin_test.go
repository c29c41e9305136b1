package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/daemon/identity"
)

// fakeRing is an origin that says one status after the other, the last one for ever.
type fakeRing struct {
	mu     sync.Mutex
	says   []*origin.RingStatus
	err    error // of what operators say
	heard  []string
	nobody bool
}

func (f *fakeRing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.nobody {
		http.Error(w, "a proxy", http.StatusBadGateway)
		return
	}
	if r.Method == "GET" && r.URL.Path == origin.PathRing {
		_ = json.NewEncoder(w).Encode(f.says[0])
		if len(f.says) > 1 {
			f.says = f.says[1:]
		}
		return
	}
	f.heard = append(f.heard, r.Method+" "+r.URL.Path)
	if f.err != nil {
		class, status := origin.Class(f.err)
		w.Header().Set(origin.HeaderError, class)
		w.Header().Set(origin.HeaderReason, origin.Reason(f.err))
		w.WriteHeader(status)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (f *fakeRing) start(t *testing.T) string {
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func num(n int) *int { return &n }

// ringStatus is a ring of three of which one is away; change makes another of it.
func ringStatus(now time.Time, change func(*origin.RingStatus)) *origin.RingStatus {
	since := now.Add(-200 * time.Second)
	st := &origin.RingStatus{
		Name: "origin-1", View: "00", Replicas: 3, MinReplicas: 2, Blobs: 1234, Under: 120,
		Why: []string{"120 blobs at origin-1 are not known to be where they should be", "origin-3 does not answer"},
		Members: []origin.RingMember{
			{Name: "origin-1", Address: "10.0.0.1:7480", Zone: "rack-1", State: origin.RingUp, Under: num(120)},
			{Name: "origin-2", Address: "10.0.0.2:7480", Zone: "rack-2", State: origin.RingUp, Full: true, Under: num(0)},
			{Name: "origin-3", Address: "10.0.0.3:7480", State: origin.RingDown, Since: &since},
			{Name: "origin-4", State: origin.RingRemoved},
		},
		Lost:   []origin.RingLost{{Name: "origin-4", Incarnation: 7, Drained: true}, {Name: "origin-3", Incarnation: 8}},
		Repair: origin.RingRepair{Blobs: 120, Bytes: 3650722201, Rate: 102760448},
	}
	if change != nil {
		change(st)
	}
	return st
}

func whole(st *origin.RingStatus) {
	st.Whole, st.Why, st.Lost, st.Repair = true, nil, nil, origin.RingRepair{}
	st.Members[0].Under = num(0)
	st.Members[2] = origin.RingMember{Name: "origin-3", Address: "10.0.0.3:7480", State: origin.RingUp, Under: num(0)}
}

func missed(st *origin.RingStatus) {
	st.Missed = []string{"origin-3", "origin-5"}
	st.Lost = append(st.Lost, origin.RingLost{Name: "origin-5", Incarnation: 9})
}

func storageAway(now time.Time) func(*origin.RingStatus) {
	return func(st *origin.RingStatus) {
		whole(st)
		st.Backends = []origin.RingBackend{
			{Name: "main", Since: now.Add(-5 * time.Minute), Error: "no such bucket"}, {Name: "hub", Up: true, Since: now},
			{Name: "team", Up: true, Since: now, Storage: "x", Differs: []string{"origin-2", "origin-3"}},
		}
	}
}

func diskFailed(now time.Time) func(*origin.RingStatus) {
	return func(st *origin.RingStatus) {
		whole(st)
		since := now.Add(-2 * time.Minute)
		st.Disks = []origin.RingDisk{
			{Path: "/disk1", Up: true, Blobs: 7}, {Path: "/disk2", Since: &since, Error: "input/output error"}, {Path: "/disk3", Error: "x"},
		}
	}
}

// one is missed, and others have what it had.
func one(st *origin.RingStatus) { st.Missed = []string{"origin-3"} }

func TestPrintRing(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for _, tt := range []struct {
		name   string
		change func(*origin.RingStatus)
		want   string
	}{
		{"repairs", nil, `
MEMBER    STATE           ZONE    ADDRESS        SHORT
origin-1  up              rack-1  10.0.0.1:7480  120
origin-2  up, full        rack-2  10.0.0.2:7480  0
origin-3  down for 3m20s  -       10.0.0.3:7480  -
origin-4  removed         -       -              -

origin-1 has 1234 blobs that no backend has; each is to have 3 copies, and a push waits for 2
origin-1 repairs 120 blobs (3.40 GiB) at 98.0 MiB/s, 35s more
a disk of origin-3 is lost
the ring is not whole:
  120 blobs at origin-1 are not known to be where they should be
  origin-3 does not answer
`},
		{"a failed disk", diskFailed(now), `
MEMBER    STATE     ZONE    ADDRESS        SHORT
origin-1  up        rack-1  10.0.0.1:7480  0
origin-2  up, full  rack-2  10.0.0.2:7480  0
origin-3  up        -       10.0.0.3:7480  0
origin-4  removed   -       -              -

origin-1 has 1234 blobs that no backend has; each is to have 3 copies, and a push waits for 2
disk /disk2 of origin-1 is not used for 2m0s: input/output error
disk /disk3 of origin-1 is not used: x
the ring is whole
`},
		{"whole, but for its clocks", func(st *origin.RingStatus) {
			whole(st)
			st.Members[1].Skew, st.Members[2].Skew = 3_723_400, -6_000
		}, `
MEMBER    STATE     ZONE    ADDRESS        SHORT
origin-1  up        rack-1  10.0.0.1:7480  0
origin-2  up, full  rack-2  10.0.0.2:7480  0
origin-3  up        -       10.0.0.3:7480  0
origin-4  removed   -       -              -

origin-1 has 1234 blobs that no backend has; each is to have 3 copies, and a push waits for 2
the clock of origin-2 is 1h2m3s ahead of that of origin-1
the clock of origin-3 is 6s behind that of origin-1
the ring is whole
`},
		{"whole", whole, `
MEMBER    STATE     ZONE    ADDRESS        SHORT
origin-1  up        rack-1  10.0.0.1:7480  0
origin-2  up, full  rack-2  10.0.0.2:7480  0
origin-3  up        -       10.0.0.3:7480  0
origin-4  removed   -       -              -

origin-1 has 1234 blobs that no backend has; each is to have 3 copies, and a push waits for 2
the ring is whole
`},
		{"a backend is away", storageAway(now), `
MEMBER    STATE     ZONE    ADDRESS        SHORT
origin-1  up        rack-1  10.0.0.1:7480  0
origin-2  up, full  rack-2  10.0.0.2:7480  0
origin-3  up        -       10.0.0.3:7480  0
origin-4  removed   -       -              -

origin-1 has 1234 blobs that no backend has; each is to have 3 copies, and a push waits for 2
backend main cannot be used from origin-1 for 5m0s: no such bucket
backend team of origin-2, origin-3 is another storage than that of origin-1: give all of them the same one
the ring is whole
`},
	} {
		var out strings.Builder
		printRing(&out, ringStatus(now, tt.change), now)
		if got := "\n" + out.String(); got != tt.want {
			t.Errorf("%s:%s\nwant:%s", tt.name, got, tt.want)
		}
	}
	line := "120 blobs are short; origin-3 is down for 3m20s; origin-1 repairs 120 blobs (3.40 GiB) at 98.0 MiB/s, 35s more"
	if got := progress(ringStatus(now, nil), now); got != line {
		t.Errorf("%s\nwant %s", got, line)
	}
	for _, tt := range []struct {
		change func(*origin.RingStatus)
		want   string
	}{
		{nil, "the ring is not whole: origin-3 is down for 3m20s, origin-1 has 120 blobs that may be short"},
		{missed, "the ring is not whole: what origin-3, origin-5 had may have been nowhere else. Bring that back, or give it up: " +
			"capelin origin ring forget origin-3; capelin origin ring forget origin-5"},
		{func(st *origin.RingStatus) {
			whole(st)
			st.Whole, st.Why = false, []string{"origin-2 has not compared"}
		},
			"the ring is not whole: origin-2 has not compared"},
	} {
		if got := notWhole(ringStatus(now, tt.change), now); got != tt.want {
			t.Errorf("%s\nwant %s", got, tt.want)
		}
	}
}

// What commands print, say to origins, and end with.
func TestOriginCommands(t *testing.T) {
	now := time.Now()
	draining := func(st *origin.RingStatus) { st.Members[0].State = origin.RingDraining }
	drained := func(st *origin.RingStatus) { st.Members[0].State, st.Repair = origin.RingDrained, origin.RingRepair{} }
	for _, tt := range []struct {
		args  string
		says  []func(*origin.RingStatus)
		err   error // the origin's
		out   string
		heard string
		fails string // "": it does not
	}{
		{"ring", []func(*origin.RingStatus){whole}, nil, "the ring is whole\n", "", ""},
		{"ring", []func(*origin.RingStatus){nil}, nil, "  origin-3 does not answer\n", "",
			"the ring is not whole: origin-3 is down for 3m20s, origin-1 has 120 blobs that may be short (--wait waits until it is)"},
		{"ring --json", []func(*origin.RingStatus){nil}, nil, `"min_replicas": 2`, "", "the ring is not whole"},
		{"ring --wait", []func(*origin.RingStatus){one, whole}, nil, "the ring is whole\n", "", ""},
		{"ring --wait", []func(*origin.RingStatus){missed}, nil, "not whole", "", "capelin origin ring forget origin-3"},
		{"ring --wait --timeout 1ms", []func(*origin.RingStatus){nil}, nil, "not whole", "",
			"longer than --timeout: the ring is not whole: origin-3 is"},
		{"ring rm origin-3", []func(*origin.RingStatus){nil}, nil, "origin-3 is no member any more\nthe ring is not whole:\n",
			"PUT /v1/ring/members/origin-3/removed", ""},
		{"ring rm origin-1", []func(*origin.RingStatus){draining, drained, whole}, nil, "origin-1 is no member any more\nthe ring is whole\n",
			"PUT /v1/ring/members/origin-1/removed", ""},
		{"ring forget origin-3", []func(*origin.RingStatus){nil, whole}, nil,
			"nobody waits any more for what only lost disks of origin-3 had\nthe ring is whole\n", "PUT /v1/ring/members/origin-3/forgotten", ""},
		{"ring readmit origin-4", []func(*origin.RingStatus){nil}, nil, "may be a member again", "PUT /v1/ring/members/origin-4/readmitted", ""},
		{"ring rm origin-9", []func(*origin.RingStatus){nil}, nil, "", "",
			`the ring has no member "origin-9"; it has origin-1, origin-2, origin-3, origin-4`},
		{"ring rm origin-2", []func(*origin.RingStatus){nil}, fmt.Errorf("1 owner would remain: %w", errdefs.ErrConflict), "",
			"PUT /v1/ring/members/origin-2/removed", "1 owner would remain: conflict; have more origins be up, and try again"},
		{"ring rm origin-2", []func(*origin.RingStatus){nil}, errdefs.ErrPermissionDenied, "", "PUT /v1/ring/members/origin-2/removed",
			`"capelin ca issue --role admin" makes a certificate for --cert and --key`},
		{"drain", []func(*origin.RingStatus){draining}, nil, "origin-1 leaves: 120 blobs are still to be given", "PUT /v1/ring/drain", ""},
		{"drain --wait", []func(*origin.RingStatus){draining, drained}, nil, "origin-1 is drained: stop it.", "PUT /v1/ring/drain", ""},
		{"drain --wait", []func(*origin.RingStatus){draining, nil}, nil, "", "PUT /v1/ring/drain", "origin-1 is up again: somebody has it stay"},
		{"drain --cancel", []func(*origin.RingStatus){nil}, nil, "origin-1 stays\n", "DELETE /v1/ring/drain", ""},
		{"drain --cancel --wait", nil, nil, "", "", "if any flags in the group [wait cancel] are set"},
		{"drain", []func(*origin.RingStatus){nil}, errdefs.ErrNotImplemented, "", "PUT /v1/ring/drain", "an origin of before has no ring"},
		{"drain --origin other:1", nil, nil, "", "", "--origin is given more than once"},
	} {
		f := &fakeRing{err: tt.err}
		for _, change := range tt.says {
			f.says = append(f.says, ringStatus(now, change))
		}
		out, _, err := execute(t, append(append([]string{"origin"}, strings.Fields(tt.args)...), "--origin", f.start(t))...)
		if tt.fails == "" && err != nil || tt.fails != "" && (err == nil || !strings.Contains(err.Error(), tt.fails)) {
			t.Errorf("%s: %v, want %q", tt.args, err, tt.fails)
		}
		if !strings.Contains(out, tt.out) || strings.Join(f.heard, "; ") != tt.heard {
			t.Errorf("%s: the origin heard %q, and it printed\n%s\nwant %q and\n%s", tt.args, f.heard, out, tt.heard, tt.out)
		}
	}
}

// Without an origin that answers, it says what may be wrong; if one does not, another one is asked.
func TestOriginNotThere(t *testing.T) {
	if _, _, err := execute(t, "origin", "ring"); err == nil || !strings.Contains(err.Error(), "--origin says which origin to ask") {
		t.Error(err)
	}
	if _, _, err := execute(t, "origin", "ring", "--origin", "x"); err == nil || !strings.Contains(err.Error(), "is not host:port") {
		t.Error(err)
	}
	proxy := &fakeRing{nobody: true}
	away := proxy.start(t)
	_, _, err := execute(t, "origin", "ring", "--origin", away)
	if err == nil || !strings.Contains(err.Error(), "is the origin running, and does it ask for a certificate") {
		t.Error(err)
	}
	f := &fakeRing{says: []*origin.RingStatus{ringStatus(time.Now(), whole)}}
	if _, _, err := execute(t, "origin", "ring", "--origin", away, "--origin", f.start(t)); err != nil {
		t.Error(err)
	}
}

// Who waits is told how far it is, and that nobody answers; not each second, and not the same again.
func TestRingWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var errs strings.Builder
		cmd := &cobra.Command{}
		cmd.SetErr(&errs)
		cmd.SetContext(t.Context())
		began := time.Now()
		ask := func(context.Context) (*origin.RingStatus, error) {
			left := 60 - int(time.Since(began)/time.Second)
			switch {
			case left > 40 && left < 50:
				return nil, fmt.Errorf("origin o: %w\nis it running?", errdefs.ErrUnavailable)
			case left <= 0:
				return ringStatus(time.Now(), whole), nil
			}
			return ringStatus(time.Now(), func(st *origin.RingStatus) {
				whole(st)
				st.Whole, st.Members[0].Under = false, num(max(left, 20))
			}), nil
		}
		w := &waiting{wait: true}
		st, err := w.until(cmd, ask, func(st *origin.RingStatus) (bool, error) { return st.Whole, nil }, progress)
		if err != nil || !st.Whole || time.Since(began) != time.Minute {
			t.Errorf("%+v, %v after %v", st, err, time.Since(began))
		}
		clock := func(s int) string { return began.Add(time.Duration(s) * time.Second).Format(time.TimeOnly) }
		var want strings.Builder
		for _, s := range []int{0, 5, 10} {
			fmt.Fprintf(&want, "%s %d blobs are short\n", clock(s), 60-s)
		}
		fmt.Fprintf(&want, "%s no answer: origin o: unavailable\n", clock(15))
		for _, s := range []int{20, 25, 30, 35, 40} {
			fmt.Fprintf(&want, "%s %d blobs are short\n", clock(s), 60-s)
		}
		if errs.String() != want.String() {
			t.Errorf("said\n%swant\n%s", errs.String(), want.String())
		}
		refuses := func(context.Context) (*origin.RingStatus, error) { return nil, errdefs.ErrPermissionDenied }
		if st, err := w.until(cmd, refuses, nil, nil); st != nil || !errors.Is(err, errdefs.ErrPermissionDenied) {
			t.Errorf("%+v, %v", st, err)
		}
	})
}

// With identity, the certificate of an admin is shown; one who has none is told that.
func TestOriginIdentity(t *testing.T) {
	ca, err := identity.InitCA(t.TempDir(), "default")
	if err != nil {
		t.Fatal(err)
	}
	issue := func(name string, role identity.Role) (c identity.Config) {
		dir := t.TempDir()
		if err := ca.Issue(dir, identity.ID{Name: name, Roles: []identity.Role{role}}, nil, time.Hour); err != nil {
			t.Fatal(err)
		}
		return identity.Config{
			CA: filepath.Join(dir, identity.CACert), Cert: filepath.Join(dir, identity.Cert), Key: filepath.Join(dir, identity.Key),
		}
	}
	src, err := identity.Load(issue("origin-1", identity.RoleOrigin), "default")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeRing{says: []*origin.RingStatus{ringStatus(time.Now(), whole)}}
	srv := &http.Server{Handler: f, ErrorLog: log.New(io.Discard, "", 0)}
	done := make(chan error)
	go func() { done <- srv.Serve(tls.NewListener(l, src.ServerTLS(identity.RoleAdmin))) }()
	defer func() { srv.Close(); <-done }()
	admin := issue("me", identity.RoleAdmin)
	at := []string{"origin", "ring", "--origin", l.Addr().String()}
	if out, _, err := execute(t, append(at, "--ca", admin.CA, "--cert", admin.Cert, "--key", admin.Key)...); err != nil {
		t.Errorf("%s, %v", out, err)
	}
	if _, _, err := execute(t, at...); err == nil || !strings.Contains(err.Error(), "does it ask for a certificate (--ca, --cert, --key)?") {
		t.Error(err)
	}
	if _, _, err := execute(t, append(at, "--ca", admin.CA, "--cert", "/none", "--key", admin.Key)...); err == nil ||
		!strings.HasPrefix(err.Error(), "--cert: ") {
		t.Error(err)
	}
}
