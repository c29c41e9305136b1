package ring

import (
	"cmp"
	"slices"
)

// Member is one of those among whom [Place] chooses.
type Member struct {
	Name string
	Zone string // where it fails together with others; "" is a zone, too
}

// Place returns the n members that own key, fewer if there are fewer: the one with the
// highest score, then the highest of zones that are not used yet, and when all zones
// are, by score. Equal scores are ordered by name. When one member comes or goes, at most
// one of a key's owners changes. Names must be distinct; their order does not matter.
// It is part of the protocol (control/PROTOCOL.md, "Which origins").
func Place(members []Member, key string, n int) []Member {
	type scored struct {
		score uint64
		i     int // in members; -1: it is an owner
	}
	var few [16]scored
	all := few[:0]
	for i, m := range members {
		all = append(all, scored{Score(m.Name, key), i})
	}
	slices.SortFunc(all, func(a, b scored) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(members[a.i].Name, members[b.i].Name))
	})
	n = min(n, len(all))
	owners := make([]Member, 0, n)
	for i := 0; i < len(all) && len(owners) < n; i++ { // zones are few: looking through them is cheaper than a map
		m := members[all[i].i]
		if !slices.ContainsFunc(owners, func(o Member) bool { return o.Zone == m.Zone }) {
			owners = append(owners, m)
			all[i].i = -1
		}
	}
	for i := 0; i < len(all) && len(owners) < n; i++ {
		if all[i].i >= 0 {
			owners = append(owners, members[all[i].i])
		}
	}
	return owners
}
