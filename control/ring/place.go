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
		Member
		score uint64
	}
	all := make([]scored, len(members))
	for i, m := range members {
		all[i] = scored{m, Score(m.Name, key)}
	}
	slices.SortFunc(all, func(a, b scored) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.Name, b.Name))
	})
	used := make(map[string]bool)
	var first, rest []Member // of a zone, and the others
	for _, m := range all {
		if used[m.Zone] {
			rest = append(rest, m.Member)
		} else {
			used[m.Zone] = true
			first = append(first, m.Member)
		}
	}
	owners := append(first, rest...)
	return owners[:min(n, len(owners))]
}
