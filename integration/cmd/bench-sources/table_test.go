package main

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
)

func TestGoals(t *testing.T) {
	stocks := value{Wall: 2, Registry: 40e6, Count: 10}
	for _, tt := range []struct {
		goal
		v    value
		want bool
	}{
		{over(.5), value{Wall: 2.5}, true},
		{over(.5), value{Wall: 2.51}, false},
		{over(.5), value{Wall: 1, Capped: true}, false}, // it was given up
		{times(1.5, 1), value{Wall: 4}, true},
		{times(1.5, 1), value{Wall: 4.01}, false},
		{timesCount(1.5), value{Wall: 99, Count: 15}, true},
		{timesCount(1.5), value{Count: 15.1}, false},
		{fromRegistry(0), value{Wall: 99}, true},
		{fromRegistry(0), value{Registry: 1}, false},
		{count(1, "attempts"), value{Wall: 99, Count: 1}, true},
		{count(1, "attempts"), value{Count: 2}, false},
	} {
		if got := tt.met(tt.v, stocks); got != tt.want {
			t.Errorf("%q is met by %+v: %v, stock is %+v", tt.Text, tt.v, got, stocks)
		}
	}
}

// The table's last column, with everything that can be in a row.
func TestTable(t *testing.T) {
	ms := []*measured{
		{row: row{goal: over(1)}, Row: "met", Values: map[string][]value{stock: {{Wall: 1}}, tree: {{Wall: 1.5}, {Wall: 9}, {Wall: 2}}}},
		{row: row{goal: over(1)}, Row: "missed", Values: map[string][]value{stock: {{Wall: 1}}, tree: {{Wall: 2.5}}}},
		{row: row{goal: over(1)}, Row: "given up", Values: map[string][]value{stock: {{Wall: 1}}, tree: {{Wall: 60, Capped: true}}}},
		{row: row{goal: over(1)}, Row: "failed", Values: map[string][]value{stock: {{Wall: 1}}}, Failed: map[string]string{tree: "no"}},
		{row: row{Unit: "lies"}, Row: "no goal", Values: map[string][]value{stock: {{Count: 3}}, tree: {{Count: 4}}}},
	}
	for _, m := range ms {
		m.judge()
	}
	var b bytes.Buffer
	table(&b, []string{stock, base, tree}, ms)
	for i, want := range []string{
		`met +1.00 s +0.0 MB +– +2.00 s +0.0 MB +≤ stock \+ 1 s +met`,
		`missed +1.00 s +0.0 MB +– +2.50 s +0.0 MB +≤ stock \+ 1 s +MISSED`,
		`given up +1.00 s +0.0 MB +– +> 60 s +0.0 MB +≤ stock \+ 1 s +MISSED`,
		`failed +1.00 s +0.0 MB +– +failed +≤ stock \+ 1 s +not measured`,
		`no goal +0.00 s +3 lies +– +0.00 s +4 lies *$`,
	} {
		line := strings.TrimRight(strings.Split(b.String(), "\n")[i+1], " ")
		if !regexp.MustCompile(want).MatchString(line) {
			t.Errorf("line %d is %q, not like %s", i+1, line, want)
		}
	}
	if f := figures([]string{stock, tree}, ms); f.Get("rows") != 5 || f.Get("missed") != 3 {
		t.Errorf("%v", f)
	}
}

func TestRight(t *testing.T) {
	want := bytes.Repeat([]byte("right"), 4<<10)
	got := bytes.Clone(want[:15000])
	got[5000]++
	if n := right(got, want); n != 15000-4<<10 {
		t.Errorf("%d bytes are right, not all but one block of 15000", n)
	}
	if n := right(append(bytes.Clone(want), 'x'), want); n != len(want)/(4<<10)*(4<<10) {
		t.Errorf("%d bytes are right, although the last block is longer than the blob", n)
	}
}
