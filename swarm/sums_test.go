package swarm

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// states returns a state per letter, so that "aab" is a list of three.
func states(letters string) (p []byte) {
	for _, c := range letters {
		p = append(p, bytes.Repeat([]byte{byte(c)}, 32)...)
	}
	return p
}

// listOf returns a list of a blob of nine pieces, which has eight states.
func listOf(t *testing.T, letters string) *piece.Sums {
	t.Helper()
	s := piece.NewSums(piece.ID{Alg: piece.SHA256, Size: 9 * piece.MinLength})
	if err := s.Append(states(letters)); err != nil {
		t.Fatal(err)
	}
	return s
}

func letters(s *piece.Sums) (l string) {
	if s == nil {
		return "none"
	}
	for i := range s.Len() {
		l += string(s.Range(i, 1)[:1])
	}
	return l
}

func TestSumsCompare(t *testing.T) {
	for _, tt := range []struct {
		ours    string
		from    int
		states  string
		invited bool
		want    relation
	}{
		{"", 0, "", false, relKnown},
		{"", 0, "abc", false, relLonger},
		{"", 1, "bc", true, relUnrelated},
		{"abcd", 3, "d", true, relKnown},
		{"abcd", 3, "de", false, relLonger},
		{"abcd", 3, "xe", true, relDiffers},
		{"abcd", 3, "x", true, relDiffers},
		{"abcd", 0, "abcdefgh", false, relLonger},
		{"abcd", 0, "abxdefgh", false, relDiffers},
		{"abcd", 0, "abc", true, relUnrelated}, // shorter: says nothing new
		{"abcd", 0, "xyz", true, relUnrelated},
		{"abcd", 4, "ef", false, relUnrelated}, // nothing says that it continues ours
		{"abcd", 4, "ef", true, relLonger},
		{"abcd", 4, "", true, relKnown},
		{"abcd", 5, "f", true, relUnrelated},
	} {
		s := sumList{list: listOf(t, tt.ours)}
		if got := s.compare(tt.from, states(tt.states), tt.invited); got != tt.want {
			t.Errorf("%q from %d to %q, invited %v: relation %d, want %d", tt.states, tt.from, tt.ours, tt.invited, got, tt.want)
		}
	}
}

func TestSumsContinued(t *testing.T) {
	s := sumList{list: listOf(t, "abcd")}
	if got := letters(s.continued(3, states("def"))); got != "abcdef" {
		t.Errorf("continued to %q", got)
	}
	if got := letters(s.list); got != "abcd" {
		t.Errorf("our own list became %q", got)
	}
	s.refused = []refusal{{5, piece.Sum(append(states("f"), make([]byte, 32)...))}}
	for _, tt := range []struct {
		from   int
		states string
		want   string
	}{
		{3, "de", "abcde"},
		{3, "def", "none"},
		{4, "ef", "none"},
		{4, "ff", "none"},
		{3, "dfx", "abcdfx"}, // the state is refused at its place only
		{4, "exg", "abcdexg"},
	} {
		if got := letters(s.continued(tt.from, states(tt.states))); got != tt.want {
			t.Errorf("%q from %d leads to %q, want %q", tt.states, tt.from, got, tt.want)
		}
	}
	if got := s.continued(3, states("defghijkl")); got != nil {
		t.Errorf("more states than there can be lead to %q", letters(got))
	}
}

// Our own states count more than anybody's, but need what is before them.
func TestSumsWithOwn(t *testing.T) {
	for _, tt := range []struct {
		ours   string
		from   int
		states string
		want   string
	}{
		{"", 0, "ab", "ab"},
		{"ab", 2, "cd", "abcd"},
		{"ab", 3, "d", "none"},
		{"abcd", 0, "ab", "abcd"},         // we had these
		{"abcd", 2, "xy", "abxy"},         // the rest was wrong
		{"abcd", 1, "x", "ax"},            // and what follows is not proven by anything
		{"abcd", 4, "", "none"},           // nothing to add
		{"ab", 2, "cdefghij", "abcdefgh"}, // the digest is no state of the list
	} {
		s := sumList{list: listOf(t, tt.ours)}
		if got := letters(s.withOwn(tt.from, states(tt.states))); got != tt.want {
			t.Errorf("%q from %d in %q: %q, want %q", tt.states, tt.from, tt.ours, got, tt.want)
		}
	}
}

// TestSumsReplace replaces one list after the other.
func TestSumsReplace(t *testing.T) {
	s := sumList{list: listOf(t, "abc"), proven: true, suppliers: []supplier{{name: "x"}}}
	for _, tt := range []struct {
		list   string
		own    bool
		want   string
		proven bool
		known  int // suppliers
	}{
		{"abcd", false, "grown from 3, stale none, tell true", true, 1},
		{"abcde", true, "grown from 4, stale none, tell false", true, 1},
		{"abx", false, "other from 0, stale abcde, tell true", false, 1},
		{"", true, "other from 0, stale none, tell false", false, 0}, // what is stored waits for the next
		{"aby", false, "grown from 0, stale abx, tell true", false, 0},
		{"abyz", true, "grown from 3, stale none, tell false", false, 0},
		{"ab", true, "other from 0, stale abyz, tell true", false, 0},
	} {
		c := s.replace(listOf(t, tt.list), tt.own)
		how := "other"
		if c.grown {
			how = "grown"
		}
		got := fmt.Sprintf("%s from %d, stale %s, tell %v", how, c.from, letters(c.stale), c.tell)
		if got != tt.want || s.proven != tt.proven || len(s.suppliers) != tt.known {
			t.Errorf("%q, own %v: %s, proven %v, %d suppliers; want %s, %v, %d",
				tt.list, tt.own, got, s.proven, len(s.suppliers), tt.want, tt.proven, tt.known)
		}
	}
}

// Between two lists, pieces count against the last that had states, however often there is
// none in between.
func TestSumsReplaceTwice(t *testing.T) {
	s := sumList{list: listOf(t, "abc")}
	s.replace(listOf(t, ""), true)
	s.replace(listOf(t, ""), true)
	if c := s.replace(listOf(t, "xyz"), false); letters(c.stale) != "abc" {
		t.Errorf("stored pieces count against %q, want abc", letters(c.stale))
	}
}

func TestSumsRefuse(t *testing.T) {
	for _, tt := range []struct {
		ours string
		i    int
		want string
	}{
		{"abcdefgh", 3, "3d"},
		{"abcdefgh", 8, "7h"}, // the last piece has the digest behind it
		{"abcd", 4, "3d"},
		{"", 0, ""},
	} {
		s := sumList{list: listOf(t, tt.ours)}
		s.refuse(tt.i)
		got := ""
		for _, r := range s.refused {
			got += fmt.Sprintf("%d%c", r.i, r.state[0])
		}
		if got != tt.want {
			t.Errorf("a list %q that is wrong about piece %d: refused %q, want %q", tt.ours, tt.i, got, tt.want)
		}
	}
	s := sumList{list: listOf(t, "abc")}
	for range maxRefusals + 3 {
		s.refuse(1)
	}
	if len(s.refused) != maxRefusals {
		t.Errorf("%d refusals are remembered, want %d", len(s.refused), maxRefusals)
	}
}

func TestSumsAcceptable(t *testing.T) {
	whole, other := listOf(t, "abcdefgh"), listOf(t, "abcdefgx")
	hash := whole.Hash()
	s := sumList{list: whole, named: &hash}
	for _, tt := range []struct {
		name string
		list *piece.Sums
		want bool
	}{{"the named one", whole, true}, {"another", other, false}, {"one that may become it", listOf(t, "abx"), true}} {
		if got := s.acceptable(tt.list); got != tt.want {
			t.Errorf("%s is acceptable: %v", tt.name, got)
		}
	}
	if s.named = nil; !s.acceptable(other) {
		t.Error("none is named, and one is not acceptable")
	}
	for _, tt := range []struct {
		s    sumList
		want bool
	}{
		{sumList{list: whole}, false},
		{sumList{list: whole, proven: true}, true},
		{sumList{list: whole, named: &hash}, true},
		{sumList{list: listOf(t, "abx"), named: &hash}, false}, // it may yet be another
	} {
		if tt.s.vouched() != tt.want {
			t.Errorf("%+v is vouched for: %v", tt.s, !tt.want)
		}
	}
}

func TestSuppliers(t *testing.T) {
	s := sumList{suppliers: []supplier{{0, "x", 1}, {4, "y", 2}, {6, "z", 0}}}
	for i, want := range map[int]string{0: "x", 3: "x", 4: "y", 5: "y", 6: "z", 99: "z"} {
		if got := s.supplierOf(i).name; got != want {
			t.Errorf("piece %d is verified with states of %q, want %q", i, got, want)
		}
	}
	if got := s.trust(); got != 2 {
		t.Errorf("trust %d, want that of the best", got)
	}
	if s.suppliers = nil; s.trust() != 0 || s.supplierOf(1).name != "" {
		t.Error("our own states have a supplier")
	}
}

func TestLinkTrust(t *testing.T) {
	for _, tt := range []struct {
		role           wire.Role
		source, proven bool
		want           int
	}{
		{wire.RoleAgent, false, false, 0}, {wire.RoleAgent, false, true, 1}, {wire.RoleAgent, true, false, 2},
		{wire.RoleOrigin, false, false, 3}, {wire.RoleOrigin, false, true, 3}, {wire.RoleOrigin, true, false, 3},
	} {
		l := &link{c: &conn{node: &node{role: tt.role}}, source: tt.source}
		if got := l.trust(tt.proven); got != tt.want {
			t.Errorf("%v, source %v, proven %v: trust %d, want %d", tt.role, tt.source, tt.proven, got, tt.want)
		}
	}
}

// A peer is asked once, again when the answer does not come or after a pause, and never
// when its list is another.
func TestSumsQuery(t *testing.T) {
	var q sumsQuery
	expect := func(what string, now time.Duration, ready, pending bool) {
		t.Helper()
		before := q
		if got := q.pending(now); got != pending {
			t.Errorf("%s: an answer is pending: %v", what, got)
		}
		if got := q.ready(now); got != ready {
			t.Errorf("%s: ready to be asked: %v, %+v", what, got, before)
		}
	}
	expect("at first", 0, true, false)
	if from := q.ask(5, time.Second); from != 4 {
		t.Errorf("asked from %d, want the last that we have", from)
	}
	expect("asked", time.Second+sumsTimeout, false, true)
	expect("no answer", time.Second+sumsTimeout+1, true, false)
	if from := q.ask(0, 10*time.Second); from != 0 {
		t.Errorf("asked from %d of nothing", from)
	}
	if !q.answered(11 * time.Second) {
		t.Error("the answer was not asked for")
	}
	if q.answered(11 * time.Second) {
		t.Error("a second answer was asked for")
	}
	expect("answered", 11*time.Second+sumsPause-1, false, false)
	expect("after a pause", 11*time.Second+sumsPause, true, false)
	q.hasMore(11 * time.Second)
	expect("it has more", 11*time.Second, true, false)
	q.hasMore(20 * time.Second)
	expect("it had more already", 11*time.Second, true, false)
	q.fresh = listOf(t, "abc")
	if from := q.ask(7, 12*time.Second); from != 3 {
		t.Errorf("asked from %d, want what its own list continues with", from)
	}
	for _, tt := range []struct {
		from   int
		states string
		want   bool
	}{{2, "c", false}, {4, "e", false}, {3, "", false}, {3, "de", true}, {5, "fghi", false}, {5, "fgh", true}} {
		if got := q.collect(tt.from, states(tt.states)); got != tt.want {
			t.Errorf("%q from %d continues %q: %v", tt.states, tt.from, letters(q.fresh), got)
		}
	}
	q.reject()
	if expect("rejected", time.Hour, false, false); q.fresh != nil {
		t.Error("a rejected list is kept")
	}
}

func TestSumsFeed(t *testing.T) {
	var f sumsFeed
	for _, tt := range []struct{ from, n, want int }{{2, 3, 0}, {0, 2, 2}, {1, 1, 2}, {1, 4, 5}, {6, 9, 5}, {5, 1, 6}} {
		if f.served(tt.from, tt.n); f.sent != tt.want {
			t.Errorf("after %d from %d it has %d without a gap, want %d", tt.n, tt.from, f.sent, tt.want)
		}
	}
}

func TestSumsAllowance(t *testing.T) {
	a := sumsAllowance{sumsBurst, 0}
	for _, tt := range []struct {
		n    int
		at   time.Duration
		want bool
	}{
		{sumsBurst, 0, true}, {1, 0, false}, {0, 0, true},
		{sumsRate, time.Second, true}, {1, time.Second, false}, {sumsRate, 1900 * time.Millisecond, false}, {sumsRate, 2 * time.Second, true},
		{sumsBurst + 1, time.Hour, false}, {sumsBurst, time.Hour, true},
	} {
		if got := a.take(tt.n, tt.at); got != tt.want {
			t.Errorf("%d bytes at %v may be sent: %v", tt.n, tt.at, got)
		}
	}
}
