package swarm

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestJudgements tells who sends a piece wrong, in order: x1 is node x with bytes of hash 1
// (0: not known). Each story ends with a judgement, after nothing but judgeNobody.
func TestJudgements(t *testing.T) {
	const same8 = "a1 b1 c1 d1 e1 f1 g1 h1"
	for _, tt := range []struct {
		name    string
		vouched bool // for the list
		untried bool // somebody could contradict
		sends   string
		want    judgement
		agree   int
	}{
		{"the first", false, false, "x1", judgeNobody, 1},
		{"other bytes", false, false, "x1 y2", judgeNobody, 1},
		{"equal bytes disprove a list", false, true, "x1 y1", judgeSums, 2},
		{"a third has the first one's", false, true, "x1 y2 z1", judgeSums, 2},
		{"unknown bytes are not equal", false, false, "x0 y0", judgeNobody, 1},
		{"twice is a slip", false, false, "x1 x1", judgeNobody, 1},
		{"three times is not", false, true, "x1 x1 x1", judgeSender, 1},
		{"nor with other bytes each time", true, true, "x1 x2 x3", judgeSender, 1},
		{"two against a vouched list", true, false, "x1 y1", judgeNobody, 2},
		{"three, and nobody to contradict", true, false, "x1 y1 z1", judgeHopeless, 3},
		{"three, and somebody to contradict", true, true, "x1 y1 z1", judgeNobody, 3},
		{"as many as are remembered", true, true, same8, judgeHopeless, 8},
		{"one of seven", true, true, "a1 b1 c1 d1 e1 f1 g1", judgeNobody, 7},
		{"two insist", true, false, "x1 y1 x1 x1", judgeHopeless, 2},
		{"two insist, somebody could contradict", true, true, "x1 y1 x1 x1", judgeNobody, 2},
		{"but does not", true, true, "x1 y1 x1 x1 x1 x1 x1 x1 x1", judgeHopeless, 2},
		{"others are not remembered beyond a bound", true, true, "a0 b0 c0 d0 e0 f0 g0 h0 i1 i1 i1 i1", judgeNobody, 1},
	} {
		var m blame
		sends := strings.Fields(tt.sends)
		for k, s := range sends {
			j, agree, added := m.mismatch(7, s[:1], [32]byte{s[1] - '0'}, time.Duration(k), tt.vouched, func() bool { return tt.untried })
			first := strings.Index(tt.sends, s[:1]) == 3*k && k < maxSuspects
			if added != first {
				t.Errorf("%s: send %d makes %s a suspect: %v", tt.name, k, s[:1], added)
			}
			switch {
			case k < len(sends)-1 && j != judgeNobody:
				t.Fatalf("%s: judgement %d already after %d of %q", tt.name, j, k+1, tt.sends)
			case k == len(sends)-1 && (j != tt.want || agree != tt.agree):
				t.Errorf("%s: %q leads to judgement %d of %d sources, want %d of %d", tt.name, tt.sends, j, agree, tt.want, tt.agree)
			}
		}
		if n := len(m.suspects[7]); n > maxSuspects {
			t.Errorf("%s: %d suspects are remembered", tt.name, n)
		}
	}
}

// Whoever sent a piece wrong is not asked for it for a while, but remains accused.
func TestAvoided(t *testing.T) {
	var m blame
	if m.mismatch(3, "x", [32]byte{1}, time.Second, false, nil); m.none() {
		t.Error("x is no suspect")
	}
	for _, tt := range []struct {
		piece            int
		name             string
		at               time.Duration
		accused, avoided bool
	}{
		{3, "x", time.Second, true, true},
		{3, "x", time.Second + retrySame - 1, true, true},
		{3, "x", time.Second + retrySame, true, false},
		{3, "y", time.Second, false, false},
		{4, "x", time.Second, false, false},
	} {
		if a, v := m.accused(tt.piece, tt.name), m.avoided(tt.piece, tt.name, tt.at); a != tt.accused || v != tt.avoided {
			t.Errorf("piece %d, %s, at %v: accused %v, avoided %v", tt.piece, tt.name, tt.at, a, v)
		}
	}
	m.mismatch(3, "x", [32]byte{1}, 10*time.Second, false, nil)
	if !m.avoided(3, "x", 10*time.Second+retrySame-1) {
		t.Error("x is asked again right after its second slip")
	}
}

func TestCleared(t *testing.T) {
	var m blame
	for _, name := range []string{"x", "y"} {
		m.mismatch(3, name, [32]byte{}, 0, false, nil)
	}
	names := ""
	for _, s := range m.cleared(3) {
		names += fmt.Sprint(s.name)
	}
	if names != "xy" || !m.none() || len(m.cleared(3)) > 0 {
		t.Errorf("cleared %q, want x and y; none are left: %v", names, m.none())
	}
}
