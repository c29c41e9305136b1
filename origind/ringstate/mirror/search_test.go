package mirror

import (
	"testing"
	"time"
)

// Who asks for an unknown upload is sent to whoever has most of it, after all have answered or
// time is over; and "unknown" is said only if that is certain.
func TestSearch(t *testing.T) {
	type said struct {
		member string
		Stands
		failed bool
	}
	at := func(member string, off int64) said { return said{member, Stands{Known: true, Offset: off}, false} }
	no := func(member string) said { return said{member: member} }
	for _, tt := range []struct {
		name string
		down bool // d
		said []said
		late bool
		at   string
		code Code
	}{
		{"nobody answered yet", false, nil, false, "", Later},
		{"one is missing", false, []said{at("a", 1), at("b", 2)}, false, "", Later},
		{"one is missing, late", false, []said{at("a", 1), at("b", 2)}, true, "b", Done},
		{"the longest", false, []said{at("a", 1), at("b", 3), at("c", 2), no("d")}, false, "b", Done},
		{"the first of two", false, []said{at("c", 3), at("b", 3), no("a"), no("d")}, false, "b", Done},
		{"the first of two, in another order", false, []said{at("b", 3), at("c", 3), no("a"), no("d")}, false, "b", Done},
		{"the later leader", false, []said{
			at("b", 3), {"c", Stands{Known: true, Offset: 3, Term: 2}, false}, at("d", 3), no("a"),
		}, false, "c", Done},
		{"who has the blob", false, []said{
			at("a", 9), {"b", Stands{Known: true, Offset: 5, Committed: "D"}, false}, at("c", 9), no("d"),
		}, false, "b", Done},
		{"nobody", false, []said{no("a"), no("b"), no("c"), no("d")}, false, "", Unknown},
		{"nobody who is up", true, []said{no("a"), no("b"), no("c")}, false, "", Unavailable},
		{"one fails", false, []said{no("a"), no("b"), no("c"), {member: "d", failed: true}}, false, "", Unavailable},
		{"one is silent", false, []said{no("a"), no("b"), no("c")}, true, "", Unavailable},
		{"a stranger", true, []said{no("a"), no("b"), no("c"), at("d", 5), at("x", 5)}, false, "", Unavailable},
		{"it answers twice", true, []said{at("a", 1), at("a", 5), at("b", 3), no("c")}, false, "b", Done},
	} {
		t.Run(tt.name, func(t *testing.T) {
			now := time.Unix(1e9, 0)
			s := NewSearch([]Member{member("a/x"), member("b/x"), member("c/x"), {member("d/x").Member, !tt.down}}, now)
			for _, a := range tt.said {
				s.Answer(a.member, a.Stands, !a.failed)
			}
			if tt.late {
				now = now.Add(stall)
			}
			if to, code := s.Result(now); to != tt.at || code != tt.code {
				t.Errorf("got %q, %s, want %q, %s", to, codes[code], tt.at, codes[tt.code])
			}
		})
	}
}
