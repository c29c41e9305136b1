package record

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"
)

// Record says where a blob lives, and what was removed. A push and a removal of one namespace are told apart by
// their stamps; at equal stamps it is removed. The zero stamp is never in a map.
type Record struct {
	Digest digest.Digest
	// Size is in bytes. Zero: it is not known here, which a record may say of a blob that lives nowhere.
	Size int64
	// Removed is when the blob was last removed from a namespace; from "": from all. It is the record's and not
	// a home's, because whoever removes may not know all homes.
	Removed Stamps
	// Homes are ordered by place, each once.
	Homes []Home
}

// Stamps is when something happened to namespaces.
type Stamps map[string]Stamp

// Home is one place where the blob lives, or lived.
type Home struct {
	Place
	By    string // the member that took the last push; of two at one time, the later name; "" at V1: nobody knows of a push
	Since Stamp  // when that was
	// Namespaces is when the blob was last pushed to each, also to those that it was removed from later. "" is no namespace at
	// all: a record of format 1 may say so.
	Namespaces Stamps
	// More is when it was last pushed to a namespace that is not named any more (see MaxNamespaces). Zero: all are named.
	More Stamp
	// Written is when somebody last saw that the backend has it. Nobody's word but one's own is enough to unpin.
	Written Stamp
}

// Place is a backend, by its name in the configuration, and what the blob is called there.
type Place struct {
	Backend string `json:"backend"`
	Key     string `json:"key,omitempty"` // empty: the ring itself keeps the blob
}

// Kept reports whether the ring itself keeps the blob for good.
func (p Place) Kept() bool { return p.Key == "" }

// Compare orders places.
func (p Place) Compare(o Place) int {
	return cmp.Or(strings.Compare(p.Backend, o.Backend), strings.Compare(p.Key, o.Key))
}

// Pushed returns the record of one push.
func Pushed(d digest.Digest, size int64, at Place, namespace, by string, s Stamp) *Record {
	return &Record{Digest: d, Size: size, Homes: []Home{{
		Place: at, By: by, Since: s, Namespaces: Stamps{namespace: s},
	}}}
}

// Removed returns the record of one removal, from all namespaces if that is empty.
func Removed(d digest.Digest, namespace string, s Stamp) *Record {
	return &Record{Digest: d, Removed: Stamps{namespace: s}}
}

// Home returns the home at a place, or nil. A nil record has none.
func (r *Record) Home(at Place) *Home {
	if r == nil {
		return nil
	}
	i := slices.IndexFunc(r.Homes, func(h Home) bool { return h.Place == at })
	if i < 0 {
		return nil
	}
	return &r.Homes[i]
}

// WithWritten returns r with its home at a place seen to have the blob at a time.
func (r *Record) WithWritten(at Place, s Stamp) *Record {
	if h := r.Home(at); h == nil || h.Written >= s {
		return r
	}
	c := *r
	c.Homes = slices.Clone(r.Homes)
	c.Home(at).Written = s
	return &c
}

// removal returns the time up to which pushes to a namespace were removed.
func (r *Record) removal(namespace string) Stamp { return max(r.Removed[namespace], r.Removed[""]) }

// PushedTo returns when h, a home of r, was last pushed to, of what was not removed since. Zero: the blob lives there no more.
func (r *Record) PushedTo(h *Home) (s Stamp) {
	if h.More > r.Removed[""] {
		s = h.More
	}
	for ns, t := range h.Namespaces {
		if t > r.removal(ns) {
			s = max(s, t)
		}
	}
	return s
}

// Lives reports whether the blob lives at h, a home of r.
func (r *Record) Lives(h *Home) bool { return r.PushedTo(h) > 0 }

// PendingAt reports whether the backend of h, a home of r, is still to get the blob: it lives there, and nobody saw it there
// after the last push.
func (r *Record) PendingAt(h *Home) bool { return !h.Kept() && h.Written <= h.Since && r.Lives(h) }

func (r *Record) some(is func(h *Home) bool) bool {
	return r != nil && slices.ContainsFunc(r.Homes, func(h Home) bool { return is(&h) })
}

// Live reports whether the blob lives anywhere. A nil record lives nowhere.
func (r *Record) Live() bool { return r.some(r.Lives) }

// Gone reports whether the blob was removed from everywhere that r knows of.
func (r *Record) Gone() bool { return r != nil && !r.Live() }

// Pending reports whether a backend is still to get the blob.
func (r *Record) Pending() bool { return r.some(r.PendingAt) }

// Pinned reports whether the blob must not be evicted, by what everybody knows. A member that has not itself looked at
// a backend after the last push keeps it pinned, whatever Written says.
func (r *Record) Pinned() bool {
	return r.some(func(h *Home) bool { return r.PendingAt(h) || h.Kept() && r.Lives(h) })
}

// Durable reports whether the ring keeps the blob for good, or a backend has it.
func (r *Record) Durable() bool {
	return r.some(func(h *Home) bool { return r.Lives(h) && !r.PendingAt(h) })
}

// Erasable returns the places in backends where the blob lived, and does no more.
func (r *Record) Erasable() (at []Place) {
	for i := range r.Homes {
		if h := &r.Homes[i]; !h.Kept() && !r.Lives(h) {
			at = append(at, h.Place)
		}
	}
	return at
}

// Holds reports whether a push to a namespace at a place at that time, or a later one, is in r and was not removed:
// whether it survived what it was merged with. A nil record holds none.
func (r *Record) Holds(at Place, namespace string, s Stamp) bool {
	h := r.Home(at)
	if h == nil {
		return false
	}
	t, named := h.Namespaces[namespace]
	return t >= s && t > r.removal(namespace) || !named && h.More >= s && h.More > r.Removed[""]
}

// Outlives returns the latest push that a removal from a namespace (empty: from all) at a time does not remove. Zero: there
// is none, the removal survived what it was merged with.
func (r *Record) Outlives(namespace string, s Stamp) (latest Stamp) {
	if r == nil {
		return 0
	}
	for _, h := range r.Homes {
		if namespace == "" {
			latest = max(latest, h.More)
		}
		for ns, t := range h.Namespaces {
			if namespace == "" || ns == namespace {
				latest = max(latest, t)
			}
		}
	}
	if latest <= s {
		return 0
	}
	return latest
}

// Latest returns the latest stamp in r; zero of a nil one.
func (r *Record) Latest() (s Stamp) {
	if r == nil {
		return 0
	}
	s = r.Removed.latest()
	for _, h := range r.Homes {
		s = max(s, h.Since, h.Written, h.More, h.Namespaces.latest())
	}
	return s
}

func (m Stamps) latest() (s Stamp) {
	for _, t := range m {
		s = max(s, t)
	}
	return s
}

// Retire returns r without removals before a time, and what they removed; nil if nothing is left. That is for when nobody can
// bring back any more what was removed: every member has read the removals. Homes that still have to be erased stay if keep
// reports so.
func (r *Record) Retire(before Stamp, keep func(at Place) bool) *Record {
	old := func(_ string, s Stamp) bool { return s < before }
	c := &Record{Digest: r.Digest, Size: r.Size, Removed: maps.Clone(r.Removed)}
	maps.DeleteFunc(c.Removed, old)
	for _, h := range r.Homes {
		dead := func(ns string, s Stamp) bool {
			return slices.ContainsFunc([]Stamp{r.Removed[""], r.Removed[ns]}, func(at Stamp) bool { return s <= at && at < before })
		}
		h.Namespaces = maps.Clone(h.Namespaces)
		maps.DeleteFunc(h.Namespaces, dead)
		if dead("", h.More) {
			h.More = 0
		}
		if h.More > 0 || len(h.Namespaces) > 0 || keep(h.Place) {
			c.Homes = append(c.Homes, h)
		}
	}
	if len(c.Homes) == 0 && len(c.Removed) == 0 {
		return nil
	}
	return c
}
