package state

import (
	"time"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

// announce takes in that a has a blob; sumsHash is of 32 bytes, or empty.
func (t *Tracker) announce(a *agent, id piece.ID, st trackerpb.State, sumsHash []byte) {
	t.stats.Announces++
	if st == trackerpb.State_STATE_GONE {
		if s := t.find(id); s != nil {
			t.setFlags(a, s, 0, fComplete|fPartial)
		}
		return
	}
	s := t.find(id)
	// Enough is said only to those who are not members: what wanting agents were
	// told of must not vanish because it finished.
	if st == trackerpb.State_STATE_COMPLETE && s != nil && s.complete >= t.cfg.Enough &&
		t.flags(a, s) == 0 && !a.isOrigin() {
		if len(sumsHash) == 32 {
			t.claim(a, s, [32]byte(sumsHash))
		}
		t.enough(a, id)
		return
	}
	if s = t.admitTo(a, id, s); s == nil {
		t.enough(a, id)
		return
	}
	t.found(s, a)
	if st == trackerpb.State_STATE_PARTIAL {
		t.setFlags(a, s, fPartial, fComplete)
		return
	}
	t.setFlags(a, s, fComplete, fPartial)
	if s.a != nil {
		if i := s.a.leaseOf(a); i >= 0 {
			t.leaseDone(s, i)
		}
	}
	if len(sumsHash) == 32 {
		t.claim(a, s, [32]byte(sumsHash))
	}
}

func (t *Tracker) enough(a *agent, id piece.ID) {
	t.stats.EnoughSent++
	m := t.send(a)
	if n := len(m.Enough); n > 0 && m.Enough[n-1].Blobs.Add(id) {
		return
	}
	e := &trackerpb.Enough{Blobs: &trackerpb.Blobs{}, AgainMs: t.againMs()}
	e.Blobs.Add(id)
	m.Enough = append(m.Enough, e)
}

// againMs returns after how many milliseconds what is not kept may be announced
// again: up to half of EnoughAgain later than that, so that a cluster does not come back
// at once.
func (t *Tracker) againMs() uint32 {
	again := t.cfg.EnoughAgain + time.Duration(t.rng.Int64N(int64(t.cfg.EnoughAgain)/2+1))
	return uint32(again.Milliseconds())
}

// offer accepts what is to be kept, or could tell something new of sums.
func (t *Tracker) offer(a *agent, o *trackerpb.Offer) {
	answer := &trackerpb.Accept{AgainMs: t.againMs()}
	for i, key := range o.Blobs {
		if s := t.keys[key].s; s == nil || !t.enoughOf(a, s, o.Sums[i]) {
			answer.Set(i)
			continue
		}
		t.stats.Announces++
		t.stats.EnoughSent++
	}
	m := t.send(a)
	m.Accepts = append(m.Accepts, answer)
}

// enoughOf reports whether an announcement that a is complete, with such a SumsKey,
// would be answered by Enough only.
func (t *Tracker) enoughOf(a *agent, s *swarm, sums uint64) bool {
	return s.complete >= t.cfg.Enough && !a.isOrigin() &&
		(sums == 0 || s.hashed && sums == trackerpb.SumsKey(&s.hash)) && t.flags(a, s) == 0
}
