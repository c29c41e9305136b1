package origind

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/origind/ringstate"
)

// fakeRing is a member that notes what it is asked.
type fakeRing struct {
	mu     sync.Mutex
	calls  []string
	ask    ringstate.Ask
	answer ringstate.Answer
	err    error
}

// origin2 is a member that asks.
var origin2 = origin.Asker{Name: "origin-2", Incarnation: 12, Address: "o2:1"}

func (f *fakeRing) did(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	return f.err
}

func (f *fakeRing) take() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := strings.Join(f.calls, "; ")
	f.calls = nil
	return s
}

func (f *fakeRing) asked(ctx context.Context, from origin.Asker, ask ringstate.Ask) (ringstate.Answer, error) {
	err := f.did("%s/%d at %s asks %T", from.Name, from.Incarnation, from.Address, ask)
	f.ask = ask
	if f.answer == nil && err == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return f.answer, err
}

func (f *fakeRing) incarnation() uint64 { return 1 << 63 }

func (f *fakeRing) status(context.Context) (*origin.RingStatus, error) {
	return &origin.RingStatus{Name: "origin-1", Members: []origin.RingMember{{Name: "origin-1", State: origin.RingUp}}}, f.did("status")
}

func (f *fakeRing) drain(_ context.Context, on bool) error { return f.did("drain %t", on) }

func (f *fakeRing) operate(_ context.Context, name string, do ringstate.MemberDo) error {
	return f.did("operate %s %d", name, do)
}

// serveRing runs the API of the ring of origin-1, whose certificate may be somebody else's. member returns a client
// with a certificate of a name and roles, or without any.
func serveRing(t *testing.T, ca *identity.CA, certified string, m ringMember) (
	base string, member func(name string, roles ...identity.Role) *origin.Member,
) {
	t.Helper()
	s := &server{metrics: newMetrics(prometheus.NewRegistry())}
	if ca != nil {
		s.identity = load(t, issue(t, ca, certified, identity.RoleOrigin))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &api{s: s}
	srv := &http.Server{Handler: a.ringHandler("origin-1", m), ErrorLog: log.New(io.Discard, "", 0)}
	base = "http://" + l.Addr().String()
	if ca != nil {
		base = "https://" + l.Addr().String()
		l = tls.NewListener(l, s.identity.ServerTLS(readers...))
	}
	done := make(chan error)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return base, func(name string, roles ...identity.Role) *origin.Member {
		var c *tls.Config
		if ca != nil {
			c = load(t, issue(t, ca, name, roles...)).ClientTLS(identity.RoleOrigin)
		}
		m, err := origin.NewMember(origin.Config{Origins: []string{base}, TLS: c})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.Close)
		return m
	}
}

// An ask comes over, and so does its answer, with who says them.
func TestRingAsks(t *testing.T) {
	f := &fakeRing{}
	_, member := serveRing(t, authority(t), "origin-1", f)
	m := member("origin-2", identity.RoleOrigin)
	d := digest.FromString("x")
	for _, tt := range []struct {
		q ringstate.Ask
		a ringstate.Answer
	}{
		{ringstate.Have{Digest: d}, ringstate.Has{Yes: true}},
		{&ringstate.Consult{Digest: d}, &ringstate.Consulted{Erasing: true}},
		{ringstate.Probe{}, &ringstate.Status{Name: "origin-1", Replicas: 3, MinReplicas: 2}},
		{ringstate.ReadLog{After: 7}, &ringstate.LogPage{First: 1, Next: 7}},
	} {
		k := ringstate.KindOf(tt.q)
		b, err := ringstate.EncodeAsk(tt.q)
		if err != nil {
			t.Fatal(err)
		}
		f.answer = tt.a
		inc, name, got, err := m.Ring(t.Context(), origin2, string(k), b, ringstate.MaxAnswer)
		if err != nil || inc != 1<<63 || name != "origin-1" {
			t.Fatalf("%s: %d %s %s, %v", k, inc, name, got, err)
		}
		if a, err := ringstate.DecodeAnswer(k, got); err != nil || reflect.TypeOf(a) != reflect.TypeOf(tt.a) || !reflect.DeepEqual(f.ask, tt.q) {
			t.Errorf("%s: asked %+v, answered %s, %v", k, f.ask, got, err)
		}
		if did := f.take(); did != fmt.Sprintf("origin-2/12 at o2:1 asks %T", tt.q) {
			t.Error(did)
		}
	}
	if _, _, got, err := m.Ring(t.Context(), origin2, "log", []byte("{}"), 5); !errdefs.IsUnavailable(err) || len(got) > 0 {
		t.Errorf("an answer that is too large: %s, %v", got, err)
	}
	// Nobody waits for ever, and who answers is known also if there is no answer.
	f.answer = nil
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, _, err := m.Ring(ctx, origin2, "log", []byte("{}"), 5); !errdefs.IsUnavailable(err) {
		t.Error(err)
	}
	f.err = fmt.Errorf("it stops: %w", errdefs.ErrUnavailable)
	if inc, name, _, err := m.Ring(t.Context(), origin2, "log", []byte("{}"), 5); !errdefs.IsUnavailable(err) || inc != 1<<63 ||
		name != "origin-1" || !strings.Contains(err.Error(), "it stops") {
		t.Errorf("%d %s, %v", inc, name, err)
	}
}

// Who may ask what, and as whom.
func TestRingRoles(t *testing.T) {
	f := &fakeRing{answer: ringstate.Has{Yes: true}}
	_, member := serveRing(t, authority(t), "origin-1", f)
	have := []byte(`{"digest":"` + string(digest.FromString("x")) + `"}`)
	for _, tt := range []struct {
		role                 identity.Role
		ask, status, operate string
	}{
		{identity.RoleOrigin, "ok", "ok", "permission_denied"},
		{identity.RoleAdmin, "permission_denied", "ok", "ok"},
		{identity.RoleGateway, "permission_denied", "ok", "permission_denied"},
		{identity.RoleIndex, "permission_denied", "ok", "permission_denied"},
		{identity.RoleNode, "permission_denied", "ok", "permission_denied"},
		{identity.RoleTracker, "unavailable", "unavailable", "unavailable"},
	} {
		m := member("origin-2", tt.role)
		_, _, _, ask := m.Ring(t.Context(), origin2, "have", have, 100)
		_, status := m.RingStatus(t.Context())
		for what, tt := range map[string]struct {
			err  error
			want string
		}{
			"ask": {ask, tt.ask}, "status": {status, tt.status}, "drain": {m.Drain(t.Context(), true), tt.operate},
			"stay": {m.Drain(t.Context(), false), tt.operate}, "forget": {m.Operate(t.Context(), "b", origin.RingForget), tt.operate},
		} {
			if class(tt.err) != tt.want {
				t.Errorf("%s: %v, want %s", what, tt.err, tt.want)
			}
		}
	}
	f.take()
	m := member("origin-2", identity.RoleOrigin, identity.RoleAdmin)
	for _, name := range []string{"origin-3", "origin-1", ""} {
		if _, _, _, err := m.Ring(t.Context(), origin.Asker{Name: name, Incarnation: 12}, "have", have, 100); err == nil {
			t.Errorf("origin-2 may ask as %q", name)
		}
	}
	if did := f.take(); did != "" {
		t.Errorf("it heard: %s", did)
	}
	// An origin that says that it is another one is not believed.
	_, member = serveRing(t, authority(t), "origin-9", f)
	_, _, b, err := member("origin-2", identity.RoleOrigin).Ring(t.Context(), origin2, "have", have, 100)
	if !errdefs.IsUnavailable(err) || len(b) > 0 || !strings.Contains(err.Error(), "it says that it is origin-1") {
		t.Errorf("%s, %v", b, err)
	}
}

// What operators say is done, and what is refused says why.
func TestRingOperators(t *testing.T) {
	f := &fakeRing{}
	_, member := serveRing(t, nil, "", f)
	m := member("")
	for want, do := range map[string]func() error{
		"drain true":       func() error { return m.Drain(t.Context(), true) },
		"drain false":      func() error { return m.Drain(t.Context(), false) },
		"operate b 0":      func() error { return m.Operate(t.Context(), "b", origin.RingRemove) },
		"operate b 1":      func() error { return m.Operate(t.Context(), "b", origin.RingForget) },
		"operate b/c d% 2": func() error { return m.Operate(t.Context(), "b/c d%", origin.RingReadmit) },
		"status":           func() error { _, err := m.RingStatus(t.Context()); return err },
	} {
		if err := do(); err != nil || f.take() != want {
			t.Errorf("%s: %v", want, err)
		}
		f.err = fmt.Errorf("two others are up: %w", errdefs.ErrConflict)
		if err := do(); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "two others are up") {
			t.Errorf("%s, refused: %v", want, err)
		}
		f.err = nil
		f.take()
	}
	for _, name := range []string{"", "..", ".", " a", "a\n", strings.Repeat("a", 256)} {
		if err := m.Operate(t.Context(), name, origin.RingForget); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := m.Operate(t.Context(), "b", "burned"); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	if did := f.take(); did != "" {
		t.Errorf("it heard: %s", did)
	}
}

// What is no ask is refused, with the class that members know.
func TestRingRefuses(t *testing.T) {
	f := &fakeRing{answer: ringstate.Has{Yes: true}}
	base, _ := serveRing(t, nil, "", f)
	have := `{"digest":"` + string(digest.FromString("x")) + `"}`
	for _, tt := range []struct {
		method, path, from, inc, body string
		status                        int
	}{
		{"POST", "/v1/ring/have", "b", "1", have, 200},
		{"POST", "/v1/ring/have", "", "1", have, 400},
		{"POST", "/v1/ring/have", "b", "", have, 400},
		{"POST", "/v1/ring/have", "b", "0", have, 400},
		{"POST", "/v1/ring/have", "b", "-1", have, 400},
		{"POST", "/v1/ring/have", "b", "18446744073709551616", have, 400},
		{"POST", "/v1/ring/have", "origin-1", "1", have, 403},
		{"POST", "/v1/ring/have", "b", "1", "", 400},
		{"POST", "/v1/ring/have?x=1", "b", "1", have, 400},
		{"POST", "/v1/ring/have", "b", "1", have + strings.Repeat(" ", ringstate.MaxAsk), 400},
		{"POST", "/v1/ring/later", "b", "1", "{}", 501},
		{"POST", "/v1/ring", "b", "1", "{}", 501},
		{"GET", "/v1/ring?x=1", "", "", "", 400},
		{"GET", "/v1/ring/have", "b", "1", "", 501},
		{"PUT", "/v1/ring/drain", "", "", "x", 400},
		{"PUT", "/v1/ring/members/b", "", "", "", 501},
	} {
		r, err := http.NewRequestWithContext(t.Context(), tt.method, base+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set(origin.HeaderMember, tt.from)
		r.Header.Set(origin.HeaderIncarnation, tt.inc)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tt.status || (origin.ClassOf(resp.Header.Get(origin.HeaderError)) == nil) != (tt.status == 200) {
			t.Errorf("%s %s as %q %q: %s %s", tt.method, tt.path, tt.from, tt.inc, resp.Status, text)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// More asks than it can take are refused, and those that are under way end.
func TestRingSlots(t *testing.T) {
	f := &fakeRing{answer: ringstate.Has{Yes: true}}
	a := &api{s: &server{metrics: newMetrics(prometheus.NewRegistry())}}
	g := &ringAPI{a, "origin-1", f, make(chan struct{}, 1)}
	entered, leave := make(chan struct{}), make(chan struct{})
	h := g.wrap(nil, func(w http.ResponseWriter, _ *http.Request) error {
		close(entered)
		<-leave
		return errors.Join(fmt.Errorf("no: %w", errdefs.ErrConflict))
	})
	serve := func() *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/", nil))
		return w
	}
	first := make(chan *httptest.ResponseRecorder)
	go func() { first <- serve() }()
	<-entered
	if w := serve(); w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("%+v", w)
	}
	close(leave)
	if w := <-first; w.Code != 409 {
		t.Errorf("%+v", w)
	}
}
