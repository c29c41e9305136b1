package ring

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// members reads "name=zone ...".
func members(s string) (all []Member) {
	for _, f := range strings.Fields(s) {
		name, zone, _ := strings.Cut(f, "=")
		all = append(all, Member{name, zone})
	}
	return all
}

func text(all []Member) string {
	var names []string
	for _, m := range all {
		names = append(names, m.Name)
	}
	return strings.Join(names, " ")
}

// Everybody has to choose the same ones, whatever its version, so these never change.
func TestPlaceVectors(t *testing.T) {
	b, err := os.ReadFile("../testdata/place.txt")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Split(line, " | ")
		if len(f) != 4 {
			t.Fatalf("%q is no vector", line)
		}
		r, err := strconv.Atoi(f[1])
		if err != nil {
			t.Fatal(err)
		}
		if got := text(Place(members(f[0]), f[2], r)); got != f[3] {
			t.Errorf("%s | %d | %s: got %s, want %s", f[0], r, f[2], got, f[3])
		}
		n++
	}
	if n < 8 {
		t.Errorf("%d vectors", n)
	}
}

func TestPlace(t *testing.T) {
	for _, tt := range []struct {
		members string
		n, want int
	}{{"", 2, 0}, {"a", 2, 1}, {"a b=z", 2, 2}, {"a b c d", 3, 3}, {"a b", 0, 0}} {
		if got := Place(members(tt.members), key(1), tt.n); len(got) != tt.want {
			t.Errorf("%d of %s: got %v", tt.n, tt.members, got)
		}
	}
	const r = 3
	all := members("a1=a a2=a a3=a a4=a b=b c=c")
	for i := range 2000 {
		got := Place(all, key(i), r)
		if got[0].Name != Top(strings.Fields("a1 a2 a3 a4 b c"), key(i), 1)[0] {
			t.Errorf("key %d: %v is not the best", i, got[0])
		}
		zones := map[string]bool{}
		for _, m := range got {
			zones[m.Zone] = true
		}
		if len(zones) != r {
			t.Errorf("key %d: the owners %v have %d zones", i, got, len(zones))
		}
		shuffled := slices.Clone(all)
		rand.New(rand.NewPCG(uint64(i), 0)).Shuffle(len(shuffled), func(a, b int) { shuffled[a], shuffled[b] = shuffled[b], shuffled[a] })
		if again := Place(shuffled, key(i), r); !slices.Equal(got, again) {
			t.Errorf("key %d: the order of names matters: %v, %v", i, got, again)
		}
	}
	// Without zones it is the order of the scores.
	names := names(7)
	var plain []Member
	for _, n := range names {
		plain = append(plain, Member{Name: n})
	}
	if got, want := text(Place(plain, key(1), 4)), strings.Join(Top(names, key(1), 4), " "); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Whoever comes or goes, no key loses two owners that stay.
func TestPlaceMovesOne(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 20_000 {
		var all []Member
		for m := range 2 + rng.IntN(8) {
			all = append(all, Member{fmt.Sprintf("m%d-%d", i, m), fmt.Sprint(rng.IntN(4))})
		}
		before, after := Place(all, key(i), 3), Place(all[1:], key(i), 3)
		lost := 0
		for _, m := range before {
			if !slices.Contains(after, m) {
				lost++
			}
		}
		if lost > 1 || lost == 1 && !slices.Contains(before, all[0]) {
			t.Fatalf("without %v: %v became %v", all[0], before, after)
		}
	}
}
