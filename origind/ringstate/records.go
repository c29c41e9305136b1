package ringstate

import "github.com/capelin-io/capelin/origind/record"

// removal returns when something was last removed from a blob; zero: never.
func removal(r *record.Record) (s record.Stamp) {
	if r == nil {
		return 0
	}
	for _, t := range r.Removed {
		s = max(s, t)
	}
	return s
}

// lives reports whether a blob lives at a place.
func lives(r *record.Record, at record.Place) bool {
	h := r.Home(at)
	return h != nil && r.Lives(h)
}

// Only returns what r says of one place, and of removals: what lies beside the object there.
func Only(r *record.Record, at record.Place) *record.Record {
	if r == nil {
		return nil
	}
	o := &record.Record{Digest: r.Digest, Size: r.Size, Removed: r.Removed}
	if h := r.Home(at); h != nil {
		o.Homes = []record.Home{*h}
	}
	return o
}

// pushes returns what r says of the pushes to a place.
func pushes(r *record.Record, at record.Place) *record.Record {
	o := &record.Record{Digest: r.Digest, Size: r.Size}
	if h := r.Home(at); h != nil {
		c := *h
		c.Written = 0
		o.Homes = []record.Home{c}
	}
	return o
}

// merged returns what two records make. ok is false if that is no record: it says too much, or they are of blobs of different sizes.
func merged(a, b *record.Record) (rec *record.Record, ok bool) {
	rec = record.Merge(a, b)
	sizes := a == nil || b == nil || a.Size == 0 || b.Size == 0 || a.Size == b.Size
	return rec, sizes && rec.Fits()
}
