package ring_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/capelin-io/capelin/control/ring"
	"github.com/capelin-io/capelin/control/ring/ringtest"
)

func key(i int) string { return fmt.Sprintf("sha256:%064x", i) }

// Everybody has to choose the same ones, whatever its version, so these never change.
func TestPlaceVectors(t *testing.T) {
	for _, v := range ringtest.Vectors(t, "../testdata/place.txt") {
		if got := ringtest.Names(ring.Place(v.Members, v.Digest, v.N)); !slices.Equal(got, v.Owners) {
			t.Errorf("%d of %v for %s: got %s, want %s", v.N, v.Members, v.Digest, got, v.Owners)
		}
	}
}

func TestPlace(t *testing.T) {
	for _, tt := range []struct {
		members string
		n, want int
	}{{"", 2, 0}, {"a", 2, 1}, {"a b=z", 2, 2}, {"a b c d", 3, 3}, {"a b", 0, 0}} {
		if got := ring.Place(ringtest.Members(tt.members), key(1), tt.n); len(got) != tt.want {
			t.Errorf("%d of %s: got %v", tt.n, tt.members, got)
		}
	}
	const r = 3
	all := ringtest.Members("a1=a a2=a a3=a a4=a b=b c=c")
	for i := range 2000 {
		got := ring.Place(all, key(i), r)
		if got[0].Name != ring.Top(strings.Fields("a1 a2 a3 a4 b c"), key(i), 1)[0] {
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
		if again := ring.Place(shuffled, key(i), r); !slices.Equal(got, again) {
			t.Errorf("key %d: the order of names matters: %v, %v", i, got, again)
		}
	}
	// Without zones it is the order of the scores.
	plain := ringtest.Members("a b c d e f g")
	if got, want := ringtest.Names(ring.Place(plain, key(1), 4)), ring.Top(ringtest.Names(plain), key(1), 4); !slices.Equal(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Whoever comes or goes, no key loses two owners that stay.
func TestPlaceMovesOne(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 20_000 {
		var all []ring.Member
		for m := range 2 + rng.IntN(8) {
			all = append(all, ring.Member{fmt.Sprintf("m%d-%d", i, m), fmt.Sprint(rng.IntN(4))})
		}
		before, after := ring.Place(all, key(i), 3), ring.Place(all[1:], key(i), 3)
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

func BenchmarkPlace(b *testing.B) {
	for _, all := range []string{"a b c", "a=1 b=1 c=2", "a=1 b=1 c=2 d=2 e=3 f=3 g=3"} {
		members := ringtest.Members(all)
		b.Run(fmt.Sprint(len(members), members[0].Zone), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				ring.Place(members, key(1), len(members))
			}
		})
	}
}
