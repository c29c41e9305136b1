package record

import (
	"cmp"
	"maps"
	"slices"
)

// MaxNamespaces is how many namespaces a record names, in what was removed and in all homes together, but for "". Of
// more, the first in the order of their bytes are named. Of the others is known when one was last pushed to
// ([Home.More]), and no removal: only one from all namespaces removes them. If what is named depended on what
// was removed, so would what a merge makes of three records on their order.
const MaxNamespaces = 1000

// Merge returns what both records know: of each entry the later one. A nil record knows nothing. Both must be of one
// digest. In which order records are merged, and how often, makes no difference. Of two sizes it takes
// the larger one; who is given a record by another member compares them before.
func Merge(a, b *Record) *Record { return merge(a, b, MaxNamespaces) }

func merge(a, b *Record, most int) *Record {
	if a == nil || b == nil {
		return cmp.Or(a, b)
	}
	m := &Record{Digest: a.Digest, Size: max(a.Size, b.Size), Removed: a.Removed.later(b.Removed), Homes: slices.Clone(a.Homes)}
	for _, h := range b.Homes {
		i, found := slices.BinarySearchFunc(m.Homes, h.Place, func(o Home, at Place) int { return o.Compare(at) })
		if found {
			m.Homes[i] = mergeHomes(m.Homes[i], h)
		} else {
			m.Homes = slices.Insert(m.Homes, i, h)
		}
	}
	m.bound(most)
	return m
}

func mergeHomes(a, b Home) Home {
	if cmp.Or(cmp.Compare(b.Since, a.Since), cmp.Compare(b.By, a.By)) > 0 {
		a.Since, a.By = b.Since, b.By
	}
	a.Namespaces = a.Namespaces.later(b.Namespaces)
	a.More, a.Written = max(a.More, b.More), max(a.Written, b.Written)
	return a
}

// later returns the later ones of both. It may return one of the two, and changes none.
func (m Stamps) later(o Stamps) Stamps {
	if len(m) == 0 {
		return o
	}
	all, own := m, false
	for ns, s := range o {
		if s <= all[ns] {
			continue
		}
		if !own {
			all, own = maps.Clone(m), true
		}
		all[ns] = s
	}
	return all
}

// named returns the namespaces that r names, but "".
func (r *Record) named() map[string]struct{} {
	all := make(map[string]struct{})
	add := func(m Stamps) {
		for ns := range m {
			all[ns] = struct{}{}
		}
	}
	add(r.Removed)
	for _, h := range r.Homes {
		add(h.Namespaces)
	}
	delete(all, "")
	return all
}

// bound drops the names beyond the first most.
func (r *Record) bound(most int) {
	n := len(r.Removed)
	for _, h := range r.Homes {
		n += len(h.Namespaces)
	}
	if n <= most { // nearly always
		return
	}
	names := slices.Sorted(maps.Keys(r.named()))
	if len(names) <= most {
		return
	}
	last := names[most-1]
	tooMany := func(ns string, _ Stamp) bool { return ns > last }
	r.Removed = maps.Clone(r.Removed) // it may be somebody else's
	maps.DeleteFunc(r.Removed, tooMany)
	for i := range r.Homes {
		h := &r.Homes[i]
		h.Namespaces = maps.Clone(h.Namespaces)
		for ns, s := range h.Namespaces {
			if ns > last {
				h.More = max(h.More, s)
			}
		}
		maps.DeleteFunc(h.Namespaces, tooMany)
	}
}

// Covers reports whether r knows all that o knows. A nil o knows nothing.
func (r *Record) Covers(o *Record) bool { return o == nil || r != nil && Equal(Merge(r, o), r) }

// Equal reports whether two records, neither of which is nil, know the same.
func Equal(a, b *Record) bool {
	return a.Digest == b.Digest && a.Size == b.Size && maps.Equal(a.Removed, b.Removed) &&
		slices.EqualFunc(a.Homes, b.Homes, func(g, h Home) bool {
			return g.Place == h.Place && g.By == h.By && g.Since == h.Since && g.More == h.More && g.Written == h.Written &&
				maps.Equal(g.Namespaces, h.Namespaces)
		})
}
