package ringstate

import (
	"slices"

	"github.com/capelin-io/capelin/origind/record"
)

// probe asks a member for its status.
func (r *Ring) probe(m *member) {
	if m.probing {
		return
	}
	m.probing = true
	sent, wall := r.now, r.wall
	r.ask(m, Probe{}, func(a Answer, _ []Local) {
		m.probing = false
		if s, ok := a.(*Status); ok && s.Name == m.name {
			m.skew = 0
			if s.Time != 0 {
				m.skew = record.Skew(wall, r.wall, s.Time)
			}
			r.probed(m, s, sent)
		}
	})
}

// probed takes in what a member says. Of who was removed that is only what operators said there: it may be one again.
func (r *Ring) probed(m *member, s *Status, sent int64) {
	r.order = max(r.order, s.Order)
	for _, v := range s.Removals {
		r.removal(v)
	}
	if !m.listed() {
		return
	}
	r.clock.See(r.wall, s.Clock)
	m.status, m.statusAt, m.full = s, sent, s.Full
	if m.addr != s.Addr || m.zone != s.Zone || m.mode != s.Mode || m.modeAt != s.ModeAt {
		m.addr, m.zone, m.mode, m.modeAt = s.Addr, s.Zone, s.Mode, s.ModeAt
		r.dirty = true
	}
	if s.Whole.At > r.whole.At {
		r.setWhole(s.Whole)
	}
	for _, l := range s.Lost {
		r.addLost(l)
	}
	m.hears = 0
	for _, v := range s.Members {
		r.viewed(v)
		if o := r.find(v.Name); o != nil && v.Heard {
			m.hears |= o.bit()
		}
		if v.Name == r.cfg.Name && v.Incarnation == r.cfg.Incarnation {
			m.reads = max(m.reads, v.Read)
		}
	}
	r.confirmDeletes(m, s)
	m.head, m.headSent = s.LogHead, sent
	r.readLog(m)
}

// viewed takes in what is said of a third member, or of this one.
func (r *Ring) viewed(v MemberView) {
	m := r.learn(v.Name)
	if m == nil {
		return
	}
	if m == r.me {
		if v.ModeAt > m.modeAt || v.ModeAt == m.modeAt && v.Mode != m.mode {
			r.order = max(r.order, v.ModeAt) // of an earlier disk
			r.setMode(m.mode)
		}
		return
	}
	if v.ModeAt > m.modeAt && !r.hears(m) {
		r.incarnation(m, v.Incarnation)
		m.addr, m.zone, m.mode, m.modeAt = v.Addr, v.Zone, v.Mode, v.ModeAt
		r.dirty = true
	}
	if v.Gone && m.heard == 0 && !m.gone && r.alive&m.bit() == 0 {
		m.gone, r.dirty = true, true // this one has just started: others know better
	}
}

// Status is what this member says of itself and the others.
func (r *Ring) Status() *Status {
	s := &Status{
		Name: r.cfg.Name, Addr: r.cfg.Addr, Zone: r.cfg.Zone, Clock: max(r.clock.Last(), record.At(r.wall)), Order: r.order,
		Time:     record.At(r.wall),
		Replicas: r.cfg.Replicas, MinReplicas: r.cfg.MinReplicas,
		Mode: r.me.mode, ModeAt: r.me.modeAt, Starting: r.starting || r.stale != 0, View: r.view, LogHead: r.log.head(),
		Lost: slices.Clone(r.lost), Whole: r.whole, Under: r.under(), Exchanged: r.exchanged(), Full: r.me.full,
		Storages: slices.Clone(r.storages),
		Members:  make([]MemberView, 0, len(r.members)),
	}
	for _, m := range r.members {
		if m.removal != (Removal{Name: m.name}) {
			s.Removals = append(s.Removals, m.removal)
		}
		s.Members = append(s.Members, MemberView{
			Name: m.name, Addr: m.addr, Zone: m.zone, Incarnation: m.inc, Mode: m.mode, ModeAt: m.modeAt,
			Heard: m != r.me && r.hears(m), Gone: m.gone, Read: m.read, ReadBy: m.reads,
		})
	}
	return s
}

func (r *Ring) save() *Saved {
	s := &Saved{
		Incarnation: r.cfg.Incarnation, Clock: r.clock.Last(), Order: r.order,
		Lost: slices.Clone(r.lost), Whole: r.whole, Lowest: r.lowest,
	}
	for _, m := range r.members {
		s.Members = append(s.Members, SavedMember{m.name, m.addr, m.zone, m.inc, m.mode, m.modeAt, m.gone, m.read})
		if m.removal != (Removal{Name: m.name}) {
			s.Removals = append(s.Removals, m.removal)
		}
	}
	return s
}

func (r *Ring) load(s *Saved) {
	r.me = r.learn(r.cfg.Name)
	r.lowest = r.cfg.MinReplicas
	if s != nil && s.Incarnation == r.cfg.Incarnation {
		r.clock.See(r.wall, s.Clock)
		r.order = s.Order
		r.lost, r.whole, r.lowest = s.Lost, s.Whole, min(s.Lowest, r.cfg.MinReplicas)
		for _, v := range s.Members {
			if m := r.learn(v.Name); m != nil {
				m.addr, m.zone, m.inc, m.mode, m.modeAt, m.gone, m.read = v.Addr, v.Zone, v.Incarnation, v.Mode, v.ModeAt, v.Gone, v.Read
			}
		}
		for _, v := range s.Removals {
			r.removal(v)
		}
	}
	r.me.addr, r.me.zone, r.me.inc, r.me.live = r.cfg.Addr, r.cfg.Zone, r.cfg.Incarnation, r.now
	if r.me.modeAt == 0 {
		r.setMode(Joining)
	}
}
