package state

import (
	"slices"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

// member is one agent in one swarm.
type member struct {
	agent uint32
	flags uint8
}

// find returns the swarm of a blob, or nil.
func (t *Tracker) find(id piece.ID) *swarm { return t.index[id] }

// keyed is what a key of Offers stands for.
type keyed struct {
	s      *swarm // nil if there are, or were at once, several
	swarms int
}

// enter puts a swarm into the index. Blobs of one key, which whoever announces them
// can make as many of as he likes, are only counted.
func (t *Tracker) enter(s *swarm) {
	t.index[s.id] = s
	key := trackerpb.BlobKey(s.id)
	k := t.keys[key]
	if k.swarms++; k.swarms == 1 {
		k.s = s
	} else {
		k.s = nil
	}
	t.keys[key] = k
}

// remove takes a swarm out of the index.
func (t *Tracker) remove(s *swarm) {
	delete(t.index, s.id)
	key := trackerpb.BlobKey(s.id)
	k := t.keys[key]
	if k.swarms--; k.swarms == 0 {
		delete(t.keys, key)
	} else {
		t.keys[key] = k
	}
}

// admit returns the swarm of a blob that a is or will be a member of, or nil if
// a limit forbids that.
func (t *Tracker) admit(a *agent, id piece.ID) *swarm {
	return t.admitTo(a, id, t.find(id))
}

// admitTo is admit if the blob's swarm, or that there is none, is known.
func (t *Tracker) admitTo(a *agent, id piece.ID, s *swarm) *swarm {
	if s != nil {
		if _, ok := a.entries[s.slot]; ok {
			return s
		}
	}
	limit := ""
	switch {
	case len(a.entries) >= t.cfg.MaxBlobs && (s == nil || !s.asked(a)):
		limit = "blobs of one agent"
	case t.stats.Entries >= t.cfg.MaxEntries:
		limit = "announcements in all"
	case s == nil && len(t.index) >= t.cfg.MaxSwarms:
		limit = "blobs in all"
	}
	if limit != "" {
		t.stats.FullRefused++
		if t.full != limit {
			t.full = limit
			t.report(ReportFull, a.hello.Node, id, limit)
		}
		return nil
	}
	if s == nil {
		s = &swarm{id: id}
		if n := len(t.freeSwarm); n > 0 {
			s.slot = t.freeSwarm[n-1]
			t.freeSwarm = t.freeSwarm[:n-1]
			t.swarms[s.slot] = s
		} else {
			s.slot = uint32(len(t.swarms))
			t.swarms = append(t.swarms, s)
		}
		t.enter(s)
	}
	return s
}

// flags returns a's flags in s; 0 if it is no member.
func (t *Tracker) flags(a *agent, s *swarm) uint8 {
	if pos, ok := a.entries[s.slot]; ok {
		return s.members[pos].flags
	}
	return 0
}

// setFlags changes a's flags in s, which makes it a member or ends that.
func (t *Tracker) setFlags(a *agent, s *swarm, set, clr uint8) {
	pos, ok := a.entries[s.slot]
	var old uint8
	if ok {
		old = s.members[pos].flags
	}
	flags := old&^clr | set
	if flags == old {
		return
	}
	if !ok {
		pos = uint32(len(s.members))
		s.members = append(s.members, member{agent: a.slot})
		a.entries[s.slot] = pos
		t.stats.Entries++
	}
	s.members[pos].flags = flags
	has, had := flags&(fComplete|fPartial) != 0, old&(fComplete|fPartial) != 0
	if has != had {
		if has {
			s.have++
		} else {
			s.have--
		}
		if a.isOrigin() {
			if has {
				s.origins = append(s.origins, a)
			} else {
				i := slices.Index(s.origins, a)
				s.origins = slices.Delete(s.origins, i, i+1)
			}
		}
	}
	switch {
	case flags&^old&fComplete != 0:
		t.swap(s, int(pos), s.complete)
		s.complete++
	case old&^flags&fComplete != 0:
		s.complete--
		t.swap(s, int(pos), s.complete)
	}
	if flags == 0 {
		pos = a.entries[s.slot]
		t.swap(s, int(pos), len(s.members)-1)
		s.members = s.members[:len(s.members)-1]
		if n := cap(s.members); n > 64 && len(s.members) < n/4 {
			s.members = slices.Clip(slices.Clone(s.members))
		}
		delete(a.entries, s.slot)
		t.stats.Entries--
		if t.full != "" && t.stats.Entries < t.cfg.MaxEntries/10*9 {
			t.full = ""
		}
	}
	if s.a != nil {
		visible := fComplete | fLease
		if a.isOrigin() {
			visible |= fPartial
		}
		switch {
		case !ok:
			s.a.joined = true
			s.a.changed = s.a.changed || has && a.isOrigin()
		case flags == 0 || (flags^old)&visible != 0:
			s.a.changed = true
		}
	}
	t.touch(s)
}

func (t *Tracker) swap(s *swarm, i, j int) {
	if i == j {
		return
	}
	s.members[i], s.members[j] = s.members[j], s.members[i]
	t.agents[s.members[i].agent].entries[s.slot] = uint32(i)
	t.agents[s.members[j].agent].entries[s.slot] = uint32(j)
}
