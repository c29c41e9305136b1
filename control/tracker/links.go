package tracker

import (
	"maps"
	"slices"
	"time"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

// setUnresolved remembers and tells which names have no address.
func (m *Machine) setUnresolved(names map[string]error) {
	for _, name := range slices.Sorted(maps.Keys(m.unresolved)) {
		if names[name] == nil {
			delete(m.unresolved, name)
			m.calls.add(ActStatus{Status: TrackerStatus{Addr: name, Since: m.now}}, 0)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		was, known := m.unresolved[name]
		is := TrackerStatus{Addr: name, Since: was.Since, Err: names[name]}
		if !known {
			is.Since = m.now
			m.calls.add(ActStatus{Status: is}, 0)
		}
		m.unresolved[name] = is
	}
}

// setTrackers changes the ring, and moves what belongs to other trackers now.
func (m *Machine) setTrackers(names []string) {
	names = slices.Sorted(slices.Values(names))
	if slices.Equal(names, m.names) {
		return
	}
	for name, l := range m.links {
		if !slices.Contains(names, name) {
			delete(m.links, name)
			m.commands.gone(l)
			l.up, l.ready = false, false
		}
	}
	for _, name := range names {
		if m.links[name] == nil {
			m.links[name] = &link{name: name, status: TrackerStatus{Addr: name, Since: m.now}}
		}
	}
	m.names = names
	var moved []piece.ID
	for id, b := range m.blobs {
		if m.ring(id) != b.owners {
			moved = append(moved, id)
		}
	}
	slices.SortFunc(moved, compare)
	for _, id := range moved {
		m.move(id, m.blobs[id])
	}
}

// move tells a blob's trackers of it that are new to it, and takes it back from those
// that are no longer its.
func (m *Machine) move(id piece.ID, b *blob) {
	before := b.owners
	b.owners = m.ring(id)
	a := b.act
	for _, l := range before {
		if l == nil || !l.up || b.position(l) >= 0 {
			continue
		}
		if b.state != StateGone {
			l.mark(id, newsHave)
		}
		if a != nil && a.want != nil {
			l.mark(id, newsWant)
		}
		if a != nil && (a.download != nil || a.want != nil && a.want.lease) {
			l.out.done = append(l.out.done, &trackerpb.LeaseDone{Blob: trackerpb.FromID(id), Outcome: trackerpb.Outcome_OUTCOME_CANCELLED})
		}
	}
	var from [2]int
	for i, l := range b.owners {
		from[i] = -1
		if l == nil {
			continue
		}
		if from[i] = slices.Index(before[:], l); from[i] >= 0 {
			continue
		}
		if b.state != StateGone {
			l.mark(id, newsHave)
		}
		l.mark(id, newsDownload)
	}
	if a == nil {
		return
	}
	if a.want != nil {
		a.want.move(from)
		for i := range b.owners {
			m.ask(a, i, answerTimeout)
		}
	}
	m.settle(a)
}

// connected announces everything to a tracker that is there (again).
func (m *Machine) connected(l *link, w *trackerpb.Welcome) {
	if l == nil {
		return // no longer one of ours
	}
	l.up, l.ready, l.paces = true, false, w.GetFeatures()&trackerpb.FeatureSlow != 0
	l.heard, l.busy, l.silent = m.now, 0, false
	l.status = TrackerStatus{
		Addr: l.name, Connected: true, Since: m.now,
		Age: time.Duration(w.GetAgeMs()) * time.Millisecond, Software: w.GetSoftware(),
		Namesake: Namesake(printable(w.GetNamesake(), trackerpb.MaxAddr)),
	}
	var bulk []piece.ID
	for id, b := range m.blobs {
		if b.act == nil && b.position(l) >= 0 {
			bulk = append(bulk, id)
		}
	}
	slices.SortFunc(bulk, compare)
	l.out = newOutbox(w.GetFeatures()&trackerpb.FeatureOffers != 0, bulk)
	for _, id := range sorted(m.active) {
		a := m.active[id]
		i := a.blob.position(l)
		if i < 0 {
			continue
		}
		l.mark(id, newsDownload)
		if a.blob.state != StateGone {
			l.mark(id, newsHave)
		}
		if a.want == nil {
			continue
		}
		m.ask(a, i, answerTimeout)
		if i == 0 {
			a.blob.owners[1].mark(id, newsWant) // it may no longer grant
		}
		m.settle(a)
	}
	m.calls.add(ActStatus{Status: l.status}, 0)
}

// forget forgets a namesake that has not shown itself for long.
func (l *link) forget(now time.Time) {
	if now.Sub(l.status.Since) > namesakeFor {
		l.status.Namesake = ""
	}
}

// disconnected forgets what a tracker said of the node itself, if it was connected.
func (m *Machine) disconnected(l *link, err error) {
	if l == nil {
		return
	}
	was := l.up
	l.forget(m.now)
	l.up, l.ready = false, false
	l.status.Err = err
	if was {
		l.status.Connected, l.status.Since = false, m.now
		l.out = outbox{}
		m.commands.gone(l)
		for _, id := range sorted(m.active) {
			a := m.active[id]
			i := a.blob.position(l)
			if i < 0 || a.want == nil {
				continue
			}
			a.want.answers[i] = answer{}
			a.want.peers.forgetAll(i)
			if i == 0 && a.blob.owners[1] != nil {
				m.ask(a, 1, answerTimeout) // it may grant now
			}
			m.settle(a)
		}
	}
	m.calls.add(ActStatus{Status: l.status}, 0)
}
