package swarm

import (
	"math/bits"
	"math/rand/v2"
	"testing"
)

// The picker keeps its order under any sequence of changes, and picks one of
// the rarest.
func TestPicker(t *testing.T) {
	const n, slots = 100, 9
	rng := rand.New(rand.NewPCG(1, 2))
	k := newPicker(n, rng)
	for step := range 20_000 {
		i, s := rng.IntN(n), rng.IntN(slots)
		switch rng.IntN(5) {
		case 0:
			k.add(i)
		case 1:
			k.remove(i)
		case 2, 3:
			k.gain(i, s)
		default:
			k.lose(i, s)
		}
		if bits.OnesCount64(k.at[i].mask) != int(k.at[i].avail) {
			t.Fatalf("step %d: piece %d has mask %b and %d holders", step, i, k.at[i].mask, k.at[i].avail)
		}
		if err := k.check(); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		best := 99
		for j := range n {
			if k.has(j) && k.at[j].mask&(1<<s) != 0 {
				best = min(best, int(k.at[j].avail))
			}
		}
		got := k.pick(s, false, nil)
		if (got < 0) != (best == 99) || got >= 0 && (int(k.at[got].avail) != best || k.at[got].mask&(1<<s) == 0) {
			t.Fatalf("step %d: picked %d for slot %d, the rarest has %d holders", step, got, s, best)
		}
	}
}

// Ties are random: each of the equally rare pieces comes first about as often.
func TestPickerTies(t *testing.T) {
	const n = 8
	first := make([]int, n)
	for seed := range uint64(4000) {
		k := newPicker(n, rand.New(rand.NewPCG(seed, 0)))
		for i := range n {
			k.add(i)
		}
		for i := range n {
			k.gain(i, 3)
		}
		first[k.pick(3, false, nil)]++
	}
	for i, c := range first {
		if c < 300 || c > 700 {
			t.Errorf("piece %d came first %d times of 4000, want about 500: %v", i, c, first)
		}
	}
}

func BenchmarkPicker(b *testing.B) {
	const n, slots = 12_800, 24
	rng := rand.New(rand.NewPCG(1, 2))
	k := newPicker(n, rng)
	for i := range n {
		k.add(i)
		for s := range slots {
			if rng.IntN(3) == 0 {
				k.gain(i, s)
			}
		}
	}
	for b.Loop() {
		s := rng.IntN(slots)
		i := k.pick(s, false, nil)
		k.remove(i)
		for s := range 8 {
			k.gain(rng.IntN(n), s)
			k.lose(rng.IntN(n), s)
		}
		k.add(i)
	}
}
