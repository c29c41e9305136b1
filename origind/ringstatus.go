package origind

import (
	"context"
	"encoding/hex"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/origind/ringstate"
)

func (m *member) incarnation() uint64 { return m.ledger.incarnation() }

// status returns what this member says of the ring.
func (m *member) status(ctx context.Context) (*origin.RingStatus, error) {
	var st *origin.RingStatus
	err := m.look(ctx, func(r *ringstate.Ring) { st = statusOf(r, time.Now()) })
	return st, err
}

func statusOf(r *ringstate.Ring, now time.Time) *origin.RingStatus {
	s, short := r.Status(), r.Short()
	st := &origin.RingStatus{
		Name: s.Name, View: hex.EncodeToString(s.View[:]), Replicas: s.Replicas, MinReplicas: s.MinReplicas, Missed: r.Lost(),
		Blobs: r.Blobs(), Under: short.Under, Repair: origin.RingRepair{Blobs: short.Under + short.Taking},
	}
	st.Whole, st.Why = r.Proof()
	for _, l := range s.Lost {
		st.Lost = append(st.Lost, origin.RingLost{Name: l.Name, Incarnation: l.Incarnation, Drained: l.Drained})
	}
	for _, p := range r.Peers() {
		m := origin.RingMember{Name: p.Name, Address: p.Addr, Zone: p.Zone, State: stateOf(&p), Full: p.Full, Under: p.Under}
		m.Skew = p.Skew.Milliseconds()
		if !p.Alive {
			since := now.Add(-p.Silent)
			m.Since = &since
		}
		if p.Self {
			m.Under = &short.Under
		}
		st.Members = append(st.Members, m)
	}
	return st
}

// stateOf says how a member is.
func stateOf(p *ringstate.Peer) origin.RingState {
	switch {
	case p.Out:
		return origin.RingRemoved
	case p.Mode == ringstate.Drained:
		return origin.RingDrained
	case p.Gone:
		return origin.RingGone
	case !p.Alive:
		return origin.RingDown
	case p.Mode == ringstate.Draining:
		return origin.RingDraining
	case p.Mode == ringstate.Joining:
		return origin.RingJoining
	case p.Starting:
		return origin.RingStarting
	}
	return origin.RingUp
}

// storages returns what others have said of the storages behind their backends, by their names.
func (m *member) storages() map[string][]ringstate.Storage { return m.sight.Load().storages }

// tellStorages has others know which storages are behind this member's backends.
func (m *member) tellStorages(all []ringstate.Storage) {
	m.do(func(b *batch) { b.step(ringstate.EvStorages{Storages: all}) })
}

// lookWithin is how long metrics wait for a look at the ring.
const lookWithin = time.Second

// collect gives the metrics of the ring.
func (m *member) collect(gauge func(d *prometheus.Desc, v float64, labels ...string)) {
	ctx, cancel := context.WithTimeout(context.Background(), lookWithin)
	defer cancel()
	var (
		short  ringstate.Shortage
		lost   int
		whole  bool
		length int
		age    time.Duration
		states = map[origin.RingState]int{}
	)
	err := m.look(ctx, func(r *ringstate.Ring) {
		short, lost = r.Short(), len(r.Lost())
		whole, _ = r.Proof()
		length, age = r.Backlog()
		for _, p := range r.Peers() {
			states[stateOf(&p)]++
		}
	})
	if err != nil {
		return
	}
	gauge(descQueue, float64(length))
	gauge(descAge, age.Seconds())
	for state, n := range states {
		gauge(descMembers, float64(n), string(state))
	}
	gauge(descUnder, float64(short.Under), "misplaced")
	gauge(descUnder, float64(short.Urgent), "urgent")
	gauge(descLost, float64(lost))
	gauge(descMoving, float64(short.Giving), "to")
	gauge(descMoving, float64(short.Taking), "from")
	n := 0.0
	if whole {
		n = 1
	}
	gauge(descWhole, n)
}
