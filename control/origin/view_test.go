package origin

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capelin-io/capelin/control/ring/ringtest"
	"github.com/capelin-io/capelin/internal/httpclient"
)

// status reads "me: name[=zone][@address] state, …". A member's address is its name and port 1, unless
// said otherwise.
func status(s string) *RingStatus {
	me, rest, _ := strings.Cut(s, ":")
	st := &RingStatus{Name: strings.TrimSpace(me), Replicas: 3}
	for part := range strings.SplitSeq(rest, ",") {
		f := strings.Fields(part)
		if len(f) != 2 {
			continue
		}
		name, addr, ok := strings.Cut(f[0], "@")
		name, zone, _ := strings.Cut(name, "=")
		if !ok {
			addr = name + ":1"
		}
		st.Members = append(st.Members, RingMember{Name: name, Address: addr, Zone: zone, State: RingState(f[1])})
	}
	return st
}

// TestViews: who is asked in which order, given what servers have said of themselves and of others.
// Who says it is an address; "old" does not know the question, and "was x" has said so, but not lately.
func TestViews(t *testing.T) {
	const abc = "a up, b up, c up"
	for _, tt := range []struct {
		what       string
		configured string
		said       []string // "address = what"
		classes    string   // names, ordered, with addresses if these are not those of the names; "|" between classes
		last       string   // addresses
		rings      string   // addresses of who answers for all of a ring, "|" between rings
	}{
		{"nobody has said anything", "a:1 b:1", nil, "http://a:1 http://b:1", "", ""},
		{"nobody knows the question", "a:1 b:1", []string{"a:1 = old", "b:1 = old"}, "http://a:1 http://b:1", "", ""},
		{"one tells of a ring", "a:1", []string{"a:1 = a: " + abc}, "a b c", "", "a:1 b:1 c:1"},
		{"one does, the others do not answer", "a:1 b:1 x:1", []string{"a:1 = a: " + abc}, "a b c", "x:1", "a:1 b:1 c:1"},
		{"origins that are alone", "a:1 b:1", []string{"a:1 = a: a up", "b:1 = b: b up"}, "a b", "", ""},
		{"alone, and told no address", "x:1", []string{"x:1 = a: a@0.0.0.0:7480 up"}, "a@x:1", "", ""},
		{"one alone, one old, one away", "a:1 b:1 c:1", []string{"a:1 = a: a up", "b:1 = old"}, "a http://b:1", "c:1", ""},
		{"alone, of one name", "a:1 b:1", []string{"a:1 = a: a up", "b:1 = a: a up"}, "a", "b:1", ""},
		{
			"states", "a:1",
			[]string{"a:1 = a: a up, b down, c draining, d gone, e removed, f joining, g starting, h drained, i whatever"},
			"a | c f g | b | d h i", "", "a:1 b:1 c:1 d:1 f:1 g:1 h:1 i:1",
		},
		{"a broken link", "a:1 b:1", []string{"a:1 = a: a up, b up, c down", "b:1 = b: a up, b up, c up"}, "a b c", "", "a:1 b:1 c:1"},
		{"and the other way round", "b:1 a:1", []string{"a:1 = a: a up, b up, c up", "b:1 = b: a up, b up, c down"}, "a b c", "", "a:1 b:1 c:1"},
		{"of itself one knows best", "a:1 b:1", []string{"a:1 = a: a up, b up", "b:1 = b: a up, b draining"}, "a | b", "", "a:1 b:1"},
		{"whoever else says something", "a:1 b:1", []string{"a:1 = a: a draining, b up", "b:1 = b: a up, b up"}, "b | a", "", "a:1 b:1"},
		{"and better, too", "a:1 b:1", []string{"a:1 = a: a up, b down", "b:1 = b: a down, b up"}, "a b", "", "a:1 b:1"},
		{"configured at another address", "far:9 b:1", []string{"far:9 = a: " + abc}, "a@far:9 b c", "", "far:9 b:1 c:1"},
		{"at two addresses", "far:9 a:1", []string{"far:9 = a: " + abc, "a:1 = a: " + abc}, "a@far:9 b c", "a:1", "far:9 b:1 c:1 a:1"},
		{"several at one address", "lb:1", []string{"lb:1 = was a: " + abc, "lb:1 = b: " + abc}, "a b c", "lb:1", "a:1 b:1 c:1 lb:1"},
		{"alone, and with a new name", "x:1", []string{"x:1 = was a: a up", "x:1 = b: b up"}, "b@x:1", "", ""},
		{"two rings", "a:1 x:1", []string{"a:1 = a: a up, b up", "x:1 = x: x up, y up"}, "a b x y", "", "a:1 b:1 | x:1 y:1"},
		{
			"three that are one", "a:1 c:1 z:1",
			[]string{"a:1 = a: a up, x up", "c:1 = c: c up, y up", "z:1 = z: a up, c up, z up"}, "a c x y z", "", "a:1 c:1 x:1 y:1 z:1",
		},
		{"one thinks that it is alone", "a:1 b:1", []string{"a:1 = a: a up, b up, c up", "b:1 = b: b up"}, "a b c", "", "a:1 c:1"},
		{"one left", "a:1 b:1", []string{"a:1 = a: a up, b removed"}, "a", "", ""},
		{"and there is somebody old", "a:1 b:1", []string{"a:1 = a: a up, b removed", "b:1 = old"}, "a http://b:1", "", ""},
		{"and says so", "a:1 b:1", []string{"a:1 = a: a up, b removed", "b:1 = b: a up, b removed"}, "a", "", ""},
		{
			"two addresses of it", "a:1 b:1 far:9",
			[]string{"a:1 = a: a up, b removed", "b:1 = b: a up, b removed", "far:9 = b: a up, b removed"}, "a", "", "",
		},
		{"two at one address", "a:1", []string{"a:1 = a: a up, b@x:1 up, c@x:1 up"}, "a b@x:1", "", "a:1 x:1"},
		{"all left", "a:1 b:1", []string{"a:1 = a: a removed", "b:1 = b: b removed"}, "http://a:1 http://b:1", "", ""},
		{
			"no way to them", "1.2.3.4:1",
			[]string{"1.2.3.4:1 = a: a up, b@127.0.0.1:1 up, c@[::]:1 up, d@nonsense up, e@https://e:1 up, f up, g@localhost:1 up"},
			"a@1.2.3.4:1 f", "", "1.2.3.4:1 f:1",
		},
		{
			"all on this machine", "127.0.0.1:1", []string{"127.0.0.1:1 = a: a up, b@127.0.0.1:2 up"},
			"a@127.0.0.1:1 b@127.0.0.1:2", "", "127.0.0.1:1 127.0.0.1:2",
		},
		{
			"by TLS", "https://a:1", []string{"https://a:1 = a: a up, b up, c@http://c:1 up"},
			"a@https://a:1 b@https://b:1", "", "https://a:1 https://b:1",
		},
		{"another one has its address now", "a:1 b:1", []string{"a:1 = a: a up, c@b:1 up", "b:1 = b: b up"}, "a b", "", "a:1"},
		{"what was long ago", "a:1 b:1", []string{"b:1 = was b: b up, old up", "a:1 = a: a up, b up"}, "a b", "", "a:1 b:1"},
		{
			"one answers no more", "a:1 b:1",
			[]string{"b:1 = silent b: a up, b up, c up", "a:1 = a: a up, b down, c up"}, "a c | b", "", "a:1 b:1 c:1",
		},
		{"nobody does", "a:1 b:1", []string{"a:1 = silent a: a up, b up", "b:1 = silent b: a up, b up"}, "a b", "", "a:1 b:1"},
		{"one that is alone does not", "a:1 b:1", []string{"a:1 = silent a: a up", "b:1 = b: b up"}, "b", "a:1", ""},
		{"what was long ago, and nobody says anything else", "b:1", []string{"b:1 = was b: b up, c up"}, "b c", "", "b:1 c:1"},
	} {
		h, err := httpclient.New(httpclient.Options{What: "origin", Servers: strings.Fields(tt.configured)})
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		told := map[*httpclient.Server]*said{}
		for _, line := range tt.said {
			addr, what, _ := strings.Cut(line, " = ")
			s, err := h.Server(addr)
			if err != nil {
				t.Fatal(err)
			}
			if told[s] == nil {
				told[s] = &said{}
			}
			if what == "old" {
				told[s].hear(nil, now)
				continue
			}
			what, was := strings.CutPrefix(what, "was ")
			at := now
			if was {
				at = now.Add(-learnValid)
			}
			what, silent := strings.CutPrefix(what, "silent ")
			told[s].hear(status(what), at)
			told[s].silent = silent
		}
		v := newView(h, told)
		base := func(s *httpclient.Server) string { return strings.TrimPrefix(s.Base, "http://") }
		var classes, last []string
		groups := map[*group][]string{}
		for _, class := range v.classes {
			var names []string
			for _, m := range class {
				at := base(v.at[m.Name])
				if at == m.Name+":1" || "http://"+at == m.Name {
					names = append(names, m.Name)
				} else {
					names = append(names, m.Name+"@"+at)
				}
			}
			slices.Sort(names)
			classes = append(classes, strings.Join(names, " "))
		}
		for _, s := range v.last {
			last = append(last, base(s))
		}
		for _, s := range v.order("key") {
			if g := v.rings[s]; g != nil {
				groups[g] = append(groups[g], base(s))
			}
			if v.tags[tagOf(s)] != s {
				t.Errorf("%s: uploads at %s are not found", tt.what, s.Base)
			}
		}
		got := fmt.Sprintf("%s; last %s", strings.Join(classes, " | "), strings.Join(last, " "))
		if want := fmt.Sprintf("%s; last %s", tt.classes, tt.last); got != want {
			t.Errorf("%s: got %s, want %s", tt.what, got, want)
		}
		want := map[string]bool{}
		for g := range strings.SplitSeq(tt.rings, " | ") {
			all := strings.Fields(g)
			slices.Sort(all)
			if len(all) > 0 {
				want[strings.Join(all, " ")] = true
			}
		}
		for _, all := range groups {
			slices.Sort(all)
			if g := strings.Join(all, " "); !want[g] || len(want) != len(groups) {
				t.Errorf("%s: rings are %v, want %v", tt.what, groups, want)
			}
		}
		if len(groups) != len(want) {
			t.Errorf("%s: rings are %v, want %v", tt.what, groups, want)
		}
	}
}

// Clients, trackers and the members themselves agree on whom a blob belongs to.
func TestOrderIsThatOfOwners(t *testing.T) {
	for _, v := range ringtest.Vectors(t, "../testdata/place.txt") {
		h, err := httpclient.New(httpclient.Options{What: "origin", Servers: []string{"somewhere:1"}})
		if err != nil {
			t.Fatal(err)
		}
		st := &RingStatus{Name: v.Members[0].Name}
		var names []string
		for _, m := range v.Members {
			st.Members = append(st.Members, RingMember{Name: m.Name, Zone: m.Zone, Address: m.Name + ":1", State: "up"})
		}
		slices.Reverse(st.Members)
		d := &said{}
		d.hear(st, time.Now())
		for _, s := range newView(h, map[*httpclient.Server]*said{h.Servers()[0]: d}).order(v.Digest) {
			name := strings.TrimSuffix(strings.TrimPrefix(s.Base, "http://"), ":1")
			if name == "somewhere" {
				name = st.Name
			}
			names = append(names, name)
		}
		if len(names) != len(v.Members) || !slices.Equal(names[:len(v.Owners)], v.Owners) {
			t.Errorf("%v for %s: asked are %s, want first %s", v.Members, v.Digest, names, v.Owners)
		}
	}
}
