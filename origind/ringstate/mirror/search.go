package mirror

import (
	"cmp"
	"time"
)

// Search is for an upload that a member is asked for and does not know: all others are
// asked, once, and do not ask any further.
type Search struct {
	waiting map[string]bool // for their answers
	failed  bool            // one could not be asked
	until   time.Time
	at      string
	best    Stands
}

// NewSearch begins one among others, of which those that are not up are not asked.
func NewSearch(others []Member, now time.Time) *Search {
	s := &Search{waiting: map[string]bool{}, until: now.Add(stall)}
	for _, m := range others {
		if m.Up {
			s.waiting[m.Name] = true
		} else {
			s.failed = true
		}
	}
	return s
}

// Asks returns the members that have not answered yet.
func (s *Search) Asks() map[string]bool { return s.waiting }

// Until returns when the search ends at the latest.
func (s *Search) Until() time.Time { return s.until }

// Answer takes in what a member says; ok: it says something.
func (s *Search) Answer(member string, st Stands, ok bool) {
	if !s.waiting[member] {
		return
	}
	delete(s.waiting, member)
	s.failed = s.failed || !ok
	if ok && st.Known && (s.at == "" || s.better(member, st)) {
		s.at, s.best = member, st
	}
}

// better reports whether a member is to be preferred to the best so far: who has the blob,
// then who has most of it, so that the client sends least again.
func (s *Search) better(member string, st Stands) bool {
	if (st.Committed != "") != (s.best.Committed != "") {
		return st.Committed != ""
	}
	return cmp.Or(cmp.Compare(st.Offset, s.best.Offset), cmp.Compare(st.Term, s.best.Term), cmp.Compare(s.at, member)) > 0
}

// Result returns the member that the client is sent to, once all have answered or the time is
// over. Code is Done; Unknown if certainly no member has the upload; Unavailable if one that
// could not be asked may have it; Later before the end.
func (s *Search) Result(now time.Time) (at string, code Code) {
	switch {
	case len(s.waiting) > 0 && now.Before(s.until):
		return "", Later
	case s.at != "":
		return s.at, Done
	case s.failed || len(s.waiting) > 0:
		return "", Unavailable
	}
	return "", Unknown
}
