package state

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/capelin-io/capelin/control/trackerpb"
)

// peerFlags returns what is told of a as a peer in s, and whether it is one.
func (t *Tracker) peerFlags(s *swarm, a *agent) (uint8, bool) {
	if a.gone {
		return 0, false
	}
	pos, ok := a.entries[s.slot]
	if !ok {
		return 0, false
	}
	return a.toldAs(s.members[pos].flags), true
}

// toldAs returns what is told of a as a peer if f are its flags as a member.
func (a *agent) toldAs(f uint8) (p uint8) {
	if f&fComplete != 0 {
		p |= pComplete
	}
	if f&fLease != 0 || f&(fComplete|fPartial) != 0 && a.isOrigin() {
		p |= pSource
	}
	return p
}

// peer returns a as to is told of it.
func (a *agent) peer(flags uint8, to *agent) *trackerpb.Peer {
	addr, more, k := a.hello.Addr, a.hello.Addrs, 0
	if a.isNear(to) {
		addr, more, k = a.near[0], a.near[1:], 1
	}
	if a.pb[k][flags] == nil {
		a.pb[k][flags] = &trackerpb.Peer{
			Node: a.hello.Node, Addr: addr, Addrs: more, Zone: a.hello.Zone, Role: a.hello.Role,
			Complete: flags&pComplete != 0, Source: flags&pSource != 0,
		}
	}
	return a.pb[k][flags]
}

// isNear reports whether to is told what only a's own machine is.
func (a *agent) isNear(to *agent) bool { return len(a.near) > 0 && a.machine == to.machine }

// reachable reports whether to can be told where a is.
func (a *agent) reachable(to *agent) bool {
	return a.dialable && (a.hello.Addr != "" || a.isNear(to))
}

// fill brings what w was told up to date: peers that left are taken back, those
// that became sources or are among the first few complete ones are told again,
// sources are always told, and the rest of the sample is random.
func (t *Tracker) fill(s *swarm, w *want) {
	t.mark++
	w.agent.mark = t.mark
	var news trackerpb.Peers
	complete := 0
	keep := w.told[:0]
	for _, td := range w.told {
		f, ok := t.peerFlags(s, td.agent)
		if !ok {
			news.Gone = append(news.Gone, td.agent.hello.Node)
			continue
		}
		td.agent.mark = t.mark
		if f != td.flags {
			// That a peer became complete its neighbours hear from itself.
			if (f^td.flags)&pSource != 0 || f&pComplete == 0 || complete < t.cfg.MinComplete {
				td.flags = f
				news.Peers = append(news.Peers, td.agent.peer(f, w.agent))
			}
		}
		if td.flags&pComplete != 0 && w.reaches(td.agent) {
			complete++
		}
		keep = append(keep, td)
	}
	clear(w.told[len(keep):])
	w.told = keep

	tell := func(td told) {
		a := td.agent
		if a.mark == t.mark || !a.reachable(w.agent) {
			return
		}
		a.mark = t.mark
		if td.flags&pComplete != 0 && w.reaches(a) {
			complete++
		}
		w.told = append(w.told, td)
		news.Peers = append(news.Peers, a.peer(td.flags, w.agent))
	}
	tellMember := func(a *agent) {
		if f, ok := t.peerFlags(s, a); ok {
			tell(told{a, f})
		}
	}
	for i := range s.a.leases {
		tellMember(s.a.leases[i].agent)
	}
	for _, a := range s.origins[:min(len(s.origins), maxOrigins)] {
		tellMember(a)
	}
	if n := t.cfg.MinComplete - complete; n > 0 && s.complete > 0 {
		t.sample(s.members[:s.complete], n, w.agent.zone, tell)
	}
	if n := t.cfg.Sample - len(w.told); n > 0 && len(s.members) > len(w.told) {
		t.sample(s.members, n, w.agent.zone, tell)
	}

	if w.share != w.shareTold {
		w.shareTold, news.Share = w.share, proto.Uint32(uint32(w.share))
	}
	news.Upstream = s.upstreamNews(w)
	if len(news.Peers) > 0 || len(news.Gone) > 0 || news.Share != nil || news.Upstream != nil {
		m := t.send(w.agent)
		t.stats.PeersTold += uint64(len(news.Peers))
		m.Peers = append(m.Peers, &trackerpb.Peers{
			Blob: s.a.blob, Peers: news.Peers, Gone: news.Gone, Share: news.Share, Upstream: news.Upstream,
		})
	}
	if !w.hashTold {
		w.hashTold = true
		if s.hashed {
			m := t.send(w.agent)
			m.Sums = append(m.Sums, &trackerpb.SumsHash{Blob: s.a.blob, Hash: slices.Clone(s.hash[:])})
		} else if s.claims != nil && s.claims.hasBad {
			m := t.send(w.agent)
			m.Sums = append(m.Sums, &trackerpb.SumsHash{Blob: s.a.blob})
		}
	}
}

// zoneKey is a short name of a zone, so that thousands of agents are compared without
// a look at their Hello. Two zones of one key would be taken for the same.
func zoneKey(zone string) uint64 {
	sum := sha256.Sum256([]byte(zone))
	return binary.BigEndian.Uint64(sum[:])
}

var noZone = zoneKey("")

const (
	maxOrigins = 8   // of a swarm that each wanting agent is told of first
	maxProbes  = 512 // members looked at for one sample
)

// sample gives up to n random members to tell, preferring zone but leaving room
// for OutsideZone others. Those marked already, and those that cannot be
// dialled, are passed over.
func (t *Tracker) sample(members []member, n int, zone uint64, tell func(told)) {
	outside := min(t.cfg.OutsideZone, n/2)
	near, far := t.near[:0], t.far[:0]
	t.looks++
	look := func(m member) (done bool) {
		a := t.agents[m.agent]
		if a.mark == t.mark || a.looked == t.looks || !a.dialable {
			return false
		}
		a.looked = t.looks
		if a.zone == zone {
			if len(near) < n {
				near = append(near, told{a, a.toldAs(m.flags)})
			}
		} else if len(far) < n {
			far = append(far, told{a, a.toldAs(m.flags)})
		}
		return len(near) >= n && (zone == noZone || len(far) >= outside)
	}
	if len(members) <= maxProbes {
		// All of them, in random order.
		for _, i := range t.rng.Perm(len(members)) {
			if look(members[i]) {
				break
			}
		}
	} else {
		for range maxProbes {
			if look(members[t.rng.IntN(len(members))]) {
				break
			}
		}
	}
	t.near, t.far = near, far
	far = far[:min(len(far), max(outside, n-len(near)))]
	near = near[:min(len(near), n-len(far))]
	for _, td := range near {
		tell(td)
	}
	for _, td := range far {
		tell(td)
	}
	clear(t.near)
	clear(t.far)
}
