package ringstate

import (
	"slices"

	"github.com/capelin-io/capelin/control/ring"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/origind/record"
)

// Why a push is refused.
const (
	WhyDeleted = "it was deleted meanwhile"
	WhyTooMuch = "it has too many homes, or is in too many namespaces: delete it from some"
	// WhyRemoved: nobody confirms anything to such a member. The push, or the deletion, is for another one.
	WhyRemoved = "this member was taken out of the ring"
)

// put is a client's PUT that is not acknowledged yet.
type put struct {
	id        uint64
	digest    digest.Digest
	place     record.Place
	namespace string
	stamp     record.Stamp // of the push
	since     int64
	have      uint64 // slots of those who confirmed it
	asked     uint64 // who is being asked
	late      uint64 // who of these has not answered for so long that others are asked, too
	fetching  uint64 // who said that it fetches
	refused   uint64 // who cannot
	times     int    // how often it was overtaken by a removal
	mirrors   uint64 // who should have the bytes
}

// put stamps a push, and has MinReplicas members confirm it: for this PUT, whatever is known.
func (r *Ring) put(ev *EvPut) {
	if !r.me.listed() {
		r.do(ActDone{ID: ev.ID, Why: WhyRemoved})
		return
	}
	p := &put{id: ev.ID, digest: ev.Digest, place: ev.Place, namespace: ev.Namespace, since: r.now}
	for _, name := range ev.Mirrors {
		if m := r.find(name); m != nil && m != r.me {
			p.mirrors |= m.bit()
		}
	}
	r.puts = append(r.puts, p)
	r.push(p, ev.Size, ev.Local)
}

// push stamps p, and asks for copies with that stamp.
func (r *Ring) push(p *put, size int64, l Local) {
	l = r.local(p.digest, l)
	p.stamp, p.have, p.asked, p.late, p.fetching = r.stamp(l.Record), 0, 0, 0, 0
	// Who has not joined yet may be no member to others, and who drains is about to leave with its disk.
	if r.me.mode == Up || r.me.mode == Joining && !r.starting {
		p.have = r.me.bit()
	}
	l.Have = true
	rec, ok := merged(l.Record, record.Pushed(p.digest, size, p.place, p.namespace, r.cfg.Name, p.stamp))
	if !ok {
		r.endPut(p, ActDone{ID: p.id, Why: WhyTooMuch})
		return
	}
	delete(r.stated, p.digest)
	r.keep(rec, l)
	r.askCopies(p)
}

// pushAgain stamps pushes anew that a removal has overtaken, by a clock that is ahead: they are
// after that. If it is a removal of meanwhile they may as well be before, which is what a push
// becomes when it happens too often.
func (r *Ring) pushAgain(rec *record.Record, l Local) {
	for _, p := range slices.Clone(r.puts) {
		if p.digest == rec.Digest && p.times < 3 && !rec.Holds(p.place, p.namespace, p.stamp) {
			p.times++
			r.push(p, rec.Size, l)
		}
	}
}

// Mirrors returns up to n members that are up to whom a push is mirrored, best first: the
// owners of key (the digest, if it is known, else the upload's id), those of other zones first.
// Those of not are left out.
func (r *Ring) Mirrors(key string, n int, not []string) (names []string) {
	for _, m := range r.candidates(key) {
		if len(names) < n && !slices.Contains(not, m.name) {
			names = append(names, m.name)
		}
	}
	return names
}

// candidates are the others who can take a copy: owners first, then of other zones first.
func (r *Ring) candidates(key string) (all []*member) {
	for _, m := range r.ordered(key) {
		if m != r.me && r.hears(m) && m.status != nil && !m.status.Starting && !m.full && m.mode < Draining {
			all = append(all, m)
		}
	}
	owners := r.ownersOf(key)
	slices.SortStableFunc(all, func(a, b *member) int {
		rank := func(m *member) int {
			n := 0
			if owners&m.bit() == 0 {
				n += 2
			}
			if m.zone == r.cfg.Zone {
				n++
			}
			return n
		}
		return rank(a) - rank(b)
	})
	return all
}

// ordered returns the listed members by their order for a key, all of them.
func (r *Ring) ordered(key string) (all []*member) {
	var place []ring.Member
	for _, m := range r.members {
		if m.listed() && !m.gone {
			place = append(place, ring.Member{Name: m.name, Zone: m.zone})
		}
	}
	for _, p := range ring.Place(place, key, len(place)) {
		all = append(all, r.find(p.Name))
	}
	return all
}

// askCopies asks mirrors, and others beside them when these do not confirm for 2 s.
func (r *Ring) askCopies(p *put) {
	want := r.cfg.MinReplicas - count(p.have)
	var first, rest []*member
	for _, m := range r.candidates(string(p.digest)) {
		if p.mirrors&m.bit() != 0 {
			first = append(first, m)
		} else {
			rest = append(rest, m)
		}
	}
	for _, m := range append(first, rest...) {
		switch {
		case p.have&m.bit() != 0 || p.refused&m.bit() != 0:
		case p.asked&m.bit() != 0 && p.late&m.bit() != 0:
		case p.asked&m.bit() != 0:
			want--
		case want > 0:
			want--
			r.askCopy(p, m)
		}
	}
	r.settlePut(p)
}

func (r *Ring) askCopy(p *put, m *member) {
	p.asked |= m.bit()
	stamp, epoch := p.stamp, r.epoch
	r.ask(m, &Replica{Digest: p.digest, View: r.view, Sources: []string{r.cfg.Name}, Put: true}, func(a Answer, local []Local) {
		if p.stamp != stamp || !slices.Contains(r.puts, p) {
			return
		}
		p.asked &^= m.bit()
		p.late &^= m.bit()
		p.fetching &^= m.bit()
		c, ok := a.(*Replied)
		if !ok || c.Code == CodeFull {
			p.refused |= m.bit()
			return
		}
		if c.Record != nil {
			r.merge(local[0], c.Record)
			if p.stamp != stamp {
				return
			}
		}
		switch {
		case c.Code == CodePinned && c.Record.Holds(p.place, p.namespace, p.stamp):
			p.have |= m.bit()
			r.confirm(p.digest, m, c, epoch, local[0])
		case c.Code == CodeTaking:
			p.fetching |= m.bit()
		}
		r.settlePut(p)
	})
}

func (r *Ring) settlePut(p *put) {
	if n := count(p.have); n >= r.cfg.MinReplicas {
		r.endPut(p, ActDone{ID: p.id, OK: true, Copies: n})
	}
}

func (r *Ring) endPut(p *put, a ActDone) {
	i := slices.Index(r.puts, p)
	if i < 0 {
		return
	}
	r.puts = slices.Delete(r.puts, i, i+1)
	r.do(a)
	r.release(p.digest)
}

// pushOn asks again who fetches, and more members if some do not answer.
func (r *Ring) pushOn() {
	for _, p := range slices.Clone(r.puts) {
		if !r.me.listed() {
			r.endPut(p, ActDone{ID: p.id, Why: WhyRemoved})
			continue
		}
		if r.now-p.since >= int64(r.cfg.Push) {
			a := ActDone{ID: p.id, Copies: count(p.have)}
			for _, m := range r.ordered(string(p.digest)) {
				if p.have&m.bit() == 0 {
					a.Missing = append(a.Missing, m.name)
				}
			}
			r.endPut(p, a)
			continue
		}
		if r.blobs.get(p.digest) == nil { // it was removed meanwhile
			r.endPut(p, ActDone{ID: p.id, Why: WhyDeleted})
			continue
		}
		if r.now-p.since >= 2e9 {
			p.late |= p.asked &^ p.fetching
		}
		r.askCopies(p)
	}
}
