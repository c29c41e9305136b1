package record

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
)

var (
	blob = digest.FromString("x")
	s3   = Place{"s3", "blobs/sha256/" + blob.Encoded()[:2] + "/" + blob.Encoded()}
	file = Place{"file", "a/b"}
	kept = Place{Backend: "origin"}
)

func pushed(at Place, ns string, s Stamp) *Record { return Pushed(blob, 5, at, ns, "origin-1", s) }
func removed(ns string, s Stamp) *Record          { return Removed(blob, ns, s) }

func mergeAll(rs ...*Record) (m *Record) {
	for _, r := range rs {
		m = Merge(m, r)
	}
	return m
}

// What a record means, after everything in it has happened in any order.
func TestMeaning(t *testing.T) {
	written := func(at Place, s Stamp) *Record { return pushed(at, "never", 1).WithWritten(at, s) }
	for _, tt := range []struct {
		name  string
		parts []*Record
		want  string // of live, pending, pinned, durable
		erase []Place
	}{
		{"nothing", []*Record{removed("a", 5)}, "", nil},
		{"pushed", []*Record{pushed(s3, "a", 5)}, "live pending pinned", nil},
		{"kept", []*Record{pushed(kept, "a", 5)}, "live pinned durable", nil},
		{"written", []*Record{pushed(s3, "a", 5), written(s3, 6), removed("never", 9)}, "live durable", nil},
		{"seen before the push", []*Record{pushed(s3, "a", 5), written(s3, 4)}, "live pending pinned", nil},
		{"seen at the very time of the push", []*Record{pushed(s3, "a", 5), written(s3, 5)}, "live pending pinned", nil},
		{"pushed again, elsewhere", []*Record{pushed(s3, "a", 5), written(s3, 6), pushed(s3, "b", 7)}, "live pending pinned", nil},
		{"removed", []*Record{pushed(s3, "a", 5), removed("a", 6)}, "", []Place{s3}},
		{"removed at the time of the push", []*Record{pushed(s3, "a", 5), removed("a", 5)}, "", []Place{s3}},
		{"removed from another namespace", []*Record{pushed(s3, "a", 5), removed("b", 6)}, "live pending pinned", nil},
		{"removed from all", []*Record{pushed(s3, "a", 5), pushed(file, "b", 6), removed("", 6)}, "", []Place{file, s3}},
		{"removed by somebody who does not know all homes",
			[]*Record{mergeAll(pushed(s3, "a", 5), removed("a", 7)), pushed(file, "a", 6)}, "", []Place{file, s3}},
		{"pushed again after the removal",
			[]*Record{pushed(s3, "a", 5), written(s3, 6), removed("", 7), pushed(s3, "a", 8)}, "live pending pinned", nil},
		{"pushed again to another place",
			[]*Record{pushed(s3, "a", 5), removed("a", 7), pushed(file, "a", 8)}, "live pending pinned", []Place{s3}},
		{"one of two namespaces left",
			[]*Record{pushed(s3, "a", 5), pushed(s3, "b", 5), written(s3, 6), removed("a", 7), removed("never", 7)}, "live durable", nil},
		{"removed from where the ring keeps it", []*Record{pushed(kept, "a", 5), removed("a", 7)}, "", nil},
	} {
		for seed := range uint64(6) {
			parts := slices.Clone(tt.parts)
			rand.New(rand.NewPCG(seed, 0)).Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
			r := mergeAll(parts...)
			got := ""
			for _, q := range []struct {
				name string
				yes  bool
			}{{" live", r.Live()}, {" pending", r.Pending()}, {" pinned", r.Pinned()}, {" durable", r.Durable()}} {
				if q.yes {
					got += q.name
				}
			}
			if want := tt.want; got != "" && got[1:] != want || got == "" && want != "" || r.Gone() == r.Live() {
				t.Errorf("%s: got%s, want %s: %+v", tt.name, got, want, r)
			}
			if got := r.Erasable(); !slices.Equal(got, tt.erase) {
				t.Errorf("%s: %v are to be erased, want %v", tt.name, got, tt.erase)
			}
		}
	}
}

// Whether a push or a removal survived a merge.
func TestSurvival(t *testing.T) {
	r := mergeAll(pushed(s3, "a", 5), pushed(s3, "b", 7), removed("a", 6))
	for _, tt := range []struct {
		what string
		got  bool
		want bool
	}{
		{"a removed push", r.Holds(s3, "a", 5), false},
		{"a push", r.Holds(s3, "b", 7), true},
		{"an earlier push", r.Holds(s3, "b", 6), true},
		{"a later push", r.Holds(s3, "b", 8), false},
		{"a push elsewhere", r.Holds(file, "b", 7), false},
		{"a push to what is not named", r.Holds(s3, "c", 1), false},
		{"a removal", r.Outlives("a", 6) == 0, true},
		{"a removal before a push", r.Outlives("b", 6) == 0, false},
		{"a removal from all before a push", r.Outlives("", 6) == 7, true},
		{"a removal from all", r.Outlives("", 7) == 0, true},
		{"what covers itself", r.Covers(r), true},
		{"a part", r.Covers(removed("a", 5)), true},
		{"more", r.Covers(removed("a", 7)), false},
		{"nothing", r.Covers(nil) && !(*Record)(nil).Covers(r), true},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %t", tt.what, tt.got)
		}
	}
	if r.Latest() != 7 {
		t.Errorf("the latest stamp is %d", r.Latest())
	}
}

// What is beyond the bound is not forgotten to live, until it is removed from all.
func TestBound(t *testing.T) {
	all, gone := pushed(s3, "team/0000", 1), removed("team/0000", 5000)
	for i := range MaxNamespaces {
		ns := fmt.Sprintf("team/%04d", i)
		all.Homes[0].Namespaces[ns], gone.Removed[ns] = Stamp(i+1), 5000
	}
	all.Homes[0].Since = MaxNamespaces
	parts := []*Record{all}
	for i := range 20 {
		parts = append(parts, pushed(s3, fmt.Sprintf("team/%04d", i+MaxNamespaces), Stamp(i+1+MaxNamespaces)))
	}
	r := mergeAll(parts...)
	if got := r.named(); len(got) != MaxNamespaces || r.Homes[0].More != MaxNamespaces+20 {
		t.Fatalf("%d namespaces are named, more: %d", len(got), r.Homes[0].More)
	}
	if !r.Holds(s3, "team/1019", 1020) || r.Holds(s3, "team/0999", 1001) {
		t.Error("a push beyond the bound is not held, or another is")
	}
	r = mergeAll(r, gone, removed("team/1019", 5000))
	if !r.Live() || r.Outlives("", 1019) != 1020 {
		t.Error("the named ones were removed, and the others with them")
	}
	if r = Merge(r, removed("", 5000)); r.Live() {
		t.Error("it was removed from all, and lives")
	}
	if r = Merge(r, pushed(s3, "team/2000", 5001)); !r.Live() {
		t.Error("a push after that does not live")
	}
}

// random returns a record of few names and stamps, so that everything meets everything.
func random(rng *rand.Rand) *Record {
	stamp := func() Stamp { return Stamp(rng.IntN(6) + 1) }
	r := &Record{Digest: blob, Removed: Stamps{}}
	names := []string{"", "a", "b", "c", "d", "e"}
	for range rng.IntN(3) {
		r.Removed[names[rng.IntN(len(names))]] = stamp()
	}
	for _, at := range []Place{file, kept, s3} {
		if rng.IntN(2) == 0 {
			continue
		}
		h := Home{Place: at, By: fmt.Sprint("origin-", rng.IntN(3)), Namespaces: Stamps{}}
		for range rng.IntN(3) + 1 {
			h.Namespaces[names[rng.IntN(len(names))]] = stamp()
		}
		if rng.IntN(4) == 0 {
			h.More = stamp()
		}
		if rng.IntN(2) == 0 {
			h.Written = stamp()
		}
		h.Since = max(h.Namespaces.latest(), h.More)
		r.Homes, r.Size = append(r.Homes, h), 5
	}
	return r
}

// checkMerge checks the laws, with a bound on names, and that nothing that is merged is changed.
func checkMerge(t *testing.T, a, b, c *Record, most int) {
	t.Helper()
	packed := func() (all []byte) {
		for _, r := range []*Record{a, b, c} {
			all = r.AppendPacked(all)
		}
		return all
	}
	before := packed()
	m := func(a, b *Record) *Record { return merge(a, b, most) }
	ab, bc := m(a, b), m(b, c)
	for _, tt := range []struct {
		law       string
		got, want *Record
	}{
		{"commutative", m(b, a), ab},
		{"associative", m(ab, c), m(a, bc)},
		{"idempotent", m(ab, ab), ab},
		{"absorbing", m(m(ab, b), a), ab},
	} {
		if !Equal(tt.got, tt.want) || tt.got.Hash() != tt.want.Hash() {
			t.Errorf("not %s:\n%+v\n%+v\nof %+v\nand %+v\nand %+v", tt.law, tt.got, tt.want, a, b, c)
		}
	}
	if len(ab.named()) > most {
		t.Errorf("%d names", len(ab.named()))
	}
	if err := ab.check(); err != nil {
		t.Errorf("a merge is not valid: %v", err)
	}
	if string(before) != string(packed()) {
		t.Error("a merge changes what it merges")
	}
}

func TestMergeLaws(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		a, b, c := random(rng), random(rng), random(rng)
		a, b, c = merge(a, a, 3), merge(b, b, 3), merge(c, c, 3)
		checkMerge(t, a, b, c, 3)
		checkRetire(t, a, b, c, Stamp(rng.IntN(8)))
		for _, r := range []*Record{a, b} {
			// The blob is where its pushes say, whatever was forgotten of names.
			if r.Live() && !merge(r, b, 3).Live() && !slices.ContainsFunc(slices.Collect(maps.Values(b.Removed)), func(Stamp) bool { return true }) {
				t.Errorf("a merge without a removal removes: %+v and %+v", r, b)
			}
		}
	}
}

// What everybody retires makes no difference to what lives, now and after more was merged.
func checkRetire(t *testing.T, a, b, c *Record, before Stamp) {
	t.Helper()
	m := mergeAll(a, b)
	never := func(Place) bool { return false }
	r := m.Retire(before, never)
	if r == nil {
		r = &Record{Digest: blob}
	}
	for i := range m.Homes {
		h := &m.Homes[i]
		got := r.Home(h.Place)
		if m.Lives(h) && (got == nil || r.PushedTo(got) != m.PushedTo(h) || r.PendingAt(got) != m.PendingAt(h)) ||
			got != nil && r.Lives(got) != m.Lives(h) {
			t.Errorf("retiring before %d makes %+v of %+v", before, r, m)
		}
	}
	if err := r.check(); err != nil {
		t.Errorf("retired: %v", err)
	}
	for _, s := range r.Removed {
		if s < before {
			t.Errorf("a removal at %d is left", s)
		}
	}
	// What is pushed later.
	later := mergeAll(c, removed("", 99), pushed(s3, "a", 100))
	if g, w := Merge(r, later), Merge(m, later); g.Live() != w.Live() || g.PushedTo(g.Home(s3)) != w.PushedTo(w.Home(s3)) {
		t.Errorf("after retiring before %d, a push makes %+v, not %+v", before, g, w)
	}
	if m.Retire(0, never) == nil && len(m.Removed)+len(m.Homes) > 0 {
		t.Error("retiring nothing loses all")
	}
	if all := m.Retire(99, func(Place) bool { return true }); len(m.Homes) > 0 && len(all.Homes) != len(m.Homes) {
		t.Error("a home that is to stay has gone")
	}
}

func FuzzMerge(f *testing.F) {
	f.Add([]byte{}, []byte{}, []byte{})
	var seeds [][]byte
	rng := rand.New(rand.NewPCG(3, 4))
	for range 3 {
		b, err := random(rng).JSON()
		if err != nil {
			f.Fatal(err)
		}
		seeds = append(seeds, b)
	}
	f.Add(seeds[0], seeds[1], seeds[2])
	f.Fuzz(func(t *testing.T, x, y, z []byte) {
		var rs []*Record
		for _, b := range [][]byte{x, y, z} {
			r, err := Parse(b, blob)
			if err != nil {
				r = &Record{Digest: blob}
			}
			rs = append(rs, r)
		}
		n := 0
		for _, r := range rs {
			n += len(r.Homes)
		}
		if n > MaxHomes {
			return
		}
		checkMerge(t, rs[0], rs[1], rs[2], MaxNamespaces)
		for i := range rs {
			rs[i] = merge(rs[i], rs[i], 2)
		}
		checkMerge(t, rs[0], rs[1], rs[2], 2)
	})
}

func TestClock(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var c Clock
	first := c.Next(now)
	if first != At(now) || first.Time() != now.Local() {
		t.Errorf("the first stamp is %v", first)
	}
	if s := c.Next(now); s != first+1 {
		t.Errorf("a second in one millisecond is %v", s)
	}
	if s := c.Next(now.Add(-time.Hour)); s != first+2 {
		t.Errorf("after the clock went back: %v", s)
	}
	for range 1 << 17 {
		if s := c.Next(now); s <= first {
			t.Fatalf("%v after %v", s, first)
		} else {
			first = s
		}
	}
	if want := At(now.Add(2 * time.Millisecond)); first < want {
		t.Errorf("the counter ran over into %v", first)
	}
	// Another member's clock.
	c.See(now, At(now.Add(10*time.Second))+7)
	if s := c.Next(now); s != At(now.Add(10*time.Second))+8 {
		t.Errorf("after a clock that is 10 s ahead: %v", s)
	}
	for _, s := range []Stamp{At(now.AddDate(50, 0, 0)), MaxStamp, 1<<64 - 1} {
		c.See(now, s)
		if got := c.Next(now); got.Time().Sub(now) > MaxLead+time.Second {
			t.Errorf("after a clock that says %v: %v", s, got)
		}
	}
	// A record's stamps are followed, those of others are not carried along.
	far := At(now.AddDate(50, 0, 0))
	if s := c.Next(now, 3, far); s != far+1 {
		t.Errorf("a stamp above %v is %v", far, s)
	}
	if a, b := c.Next(now), c.Next(now); a >= b || b.Time().Sub(now) > MaxLead+time.Second {
		t.Errorf("%v, %v", a, b)
	}
	if At(time.Unix(-5, 0)) != 0 {
		t.Error("before 1970")
	}
}

func TestSkew(t *testing.T) {
	from := time.UnixMilli(1e12)
	to := from.Add(time.Minute)
	for ahead, want := range map[time.Duration]time.Duration{
		0: 0, time.Minute: 0, time.Minute + MaxSkew: 0, -MaxSkew: 0, -time.Hour: -time.Hour,
		time.Minute + MaxSkew + time.Millisecond: MaxSkew + time.Millisecond, -MaxSkew - time.Millisecond: -MaxSkew - time.Millisecond,
	} {
		if got := Skew(from, to, At(from.Add(ahead))); got != want {
			t.Errorf("%v ahead: %v", ahead, got)
		}
	}
}
