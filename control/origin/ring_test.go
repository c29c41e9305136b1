package origin

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func newMember(t *testing.T, h http.HandlerFunc) *Member {
	t.Helper()
	m, err := NewMember(Config{Origins: []string{newFake(t, h).URL}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

// An answer that does not say who gives it is nobody's.
func TestRingAnswers(t *testing.T) {
	for _, tt := range []struct{ name, inc, class string }{
		{"b", "7", "ok"}, {"", "7", "unavailable"}, {"b", "", "unavailable"}, {"b", "0", "unavailable"}, {"b", "x", "unavailable"},
	} {
		m := newMember(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(HeaderMember, tt.name)
			w.Header().Set(HeaderIncarnation, tt.inc)
			_, _ = w.Write([]byte(r.Method + r.URL.Path + r.Header.Get(HeaderMember) + r.Header.Get(HeaderIncarnation)))
		})
		inc, name, b, err := m.Ring(t.Context(), Asker{"a", 1 << 63, "a.example:1"}, "have", []byte("{}"), 100)
		if class, _ := Class(err); class != tt.class {
			t.Errorf("%+v: %v", tt, err)
		}
		if err == nil && (inc != 7 || name != "b" || string(b) != "POST/v1/ring/havea9223372036854775808") {
			t.Errorf("%d %s %s", inc, name, b)
		}
	}
	m := newMember(t, refuse(errdefs.ErrPermissionDenied))
	if _, _, _, err := m.Ring(t.Context(), Asker{Name: "a", Incarnation: 1}, "have", nil, 100); !errdefs.IsPermissionDenied(err) {
		t.Error(err)
	}
}

func TestRingStatus(t *testing.T) {
	since, under := time.Unix(1_800_000_000, 0).UTC(), 3
	want := &RingStatus{
		Name: "a", View: "00", Replicas: 3, MinReplicas: 2, Why: []string{"b does not answer"}, Missed: []string{"c"},
		Members: []RingMember{{Name: "a", Address: "h:1", Zone: "z", State: RingUp, Full: true, Under: &under},
			{Name: "b", State: RingDown, Since: &since}},
		Lost: []RingLost{{"c", 1<<64 - 1, true}}, Blobs: 1, Under: 2, Repair: RingRepair{3, 4, 5},
	}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	says := func(b string) *Member {
		return newMember(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(b)) })
	}
	if got, err := says(string(b)).RingStatus(t.Context()); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := says(`{"name":"a","later":{}}`).RingStatus(t.Context()); err != nil || got.Name != "a" {
		t.Errorf("of a later release: %+v, %v", got, err)
	}
	for _, bad := range []string{"", "<html>", `{"name":"` + strings.Repeat("a", maxRingStatus) + `"}`} {
		if got, err := says(bad).RingStatus(t.Context()); !errdefs.IsUnavailable(err) {
			t.Errorf("%.40q: %+v, %v", bad, got, err)
		}
	}
	now := since.Add(83 * time.Second)
	for _, tt := range []struct {
		m    RingMember
		want string
	}{
		{want.Members[0], "up, full"}, {want.Members[1], "down for 1m23s"}, {RingMember{State: RingGone}, "gone"},
		{RingMember{State: RingUp, Since: &since}, "up"},
	} {
		if got := tt.m.Text(now); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
	for _, tt := range []struct {
		st    RingStatus
		stuck bool
	}{
		{RingStatus{MinReplicas: 2, Missed: []string{"c"}, Lost: []RingLost{{"c", 1, false}}}, false},
		{RingStatus{MinReplicas: 2, Missed: []string{"c"}, Lost: []RingLost{{"c", 1, false}, {"c", 2, true}, {"d", 3, false}}}, false},
		{RingStatus{MinReplicas: 2, Missed: []string{"c"}, Lost: []RingLost{{"c", 1, false}, {"c", 2, false}}}, true},
		{RingStatus{MinReplicas: 1, Missed: []string{"c"}, Lost: []RingLost{{"c", 1, false}}}, true},
		{RingStatus{}, false},
	} {
		if tt.st.Stuck() != tt.stuck {
			t.Errorf("%+v", tt.st)
		}
	}
	if want.Member("b") != &want.Members[1] || want.Member("x") != nil {
		t.Error("the wrong member")
	}
}
