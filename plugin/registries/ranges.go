package registries

import "time"

// How long a registry is not asked to continue at an offset.
const (
	// suspected: after a download that was to continue somewhere brought nothing. Most
	// likely the next one, from the beginning, shows what was wrong.
	suspected = 2 * time.Minute
	// convicted: after the same blob then came from the beginning; twice as long each time, and
	// at most longest.
	convicted = time.Hour
	longest   = 24 * time.Hour
)

// sure is how often in a row a registry that was seen to continue must seem not to before
// that is believed. It may just have been down when it was asked to.
const sure = 3

// ranges is whether a registry can continue a blob at an offset.
//
//	can, or not known ── Broke ──► suspected ── Refused, or time ──► not known
//	                                   │
//	                                Restored ──► convicted ── time ──► not known
//
// A registry that was seen to continue is convicted only by several Restored in a row.
// It is not asked to continue while it is suspected or convicted.
type ranges struct {
	proven int       // Restored that it can have before it is believed
	until  time.Time // not asked to continue before
	term   time.Duration
	guilty bool // convicted, not only suspected
}

// Continues reports whether a registry may be asked to continue a blob at an offset.
func (m *Memory) Continues(name string, now time.Time) bool {
	h := m.known(name)
	return h == nil || !now.Before(h.ranges.until)
}

// Continued takes in that a download that was to continue at an offset brought something.
func (m *Memory) Continued(name string) {
	if name == "" { // one of them can, which says nothing about the others
		return
	}
	m.host(name).ranges = ranges{proven: sure}
}

// Broke takes in that a download that was to continue at an offset brought nothing. The
// registry may not be able to, may have refused the blob, or may have been away.
func (m *Memory) Broke(name string, now time.Time) {
	r := &m.host(name).ranges
	if until := now.Add(suspected); r.proven == 0 && until.After(r.until) {
		r.until, r.guilty = until, false
	}
}

// Refused takes in that the blob of a Broke did not come from the beginning either: it was
// about the blob, not about offsets.
func (m *Memory) Refused(name string) {
	if r := &m.host(name).ranges; !r.guilty {
		r.until = time.Time{}
	}
}

// Restored takes in that the blob of a Broke came from the beginning on.
func (m *Memory) Restored(name string, now time.Time) {
	r := &m.host(name).ranges
	if r.proven > 1 {
		r.proven--
		return
	}
	if r.guilty && now.Before(r.until) {
		return
	}
	r.proven, r.guilty = 0, true
	r.term = min(max(2*r.term, convicted), longest)
	r.until = now.Add(r.term)
}
