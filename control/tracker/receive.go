package tracker

import (
	"slices"
	"time"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// receive takes a message from a tracker in, its parts in the order that
// control/PROTOCOL.md gives.
func (m *Machine) receive(l *link, msg *trackerpb.ToAgent) {
	for _, s := range msg.Sums {
		m.toldSums(s)
	}
	for _, p := range msg.Peers {
		m.toldPeers(l, p)
	}
	for _, v := range msg.Verdicts {
		m.toldVerdict(l, v)
	}
	for _, e := range msg.Enough {
		m.toldEnough(l, e)
	}
	for _, a := range msg.Accepts {
		l.out.answered(a, m.now, func(id piece.ID) facts { return m.facts(l, id) })
	}
	for _, b := range msg.Lookups {
		m.toldLookup(l, b)
	}
	for _, c := range msg.Commands {
		m.toldCommand(l, c)
	}
}

func (m *Machine) toldSums(s *trackerpb.SumsHash) {
	id, err := s.GetBlob().ID()
	if err != nil || m.blobs[id] == nil || len(s.Hash) != 32 { // an empty one: none is known now
		return
	}
	m.calls.add(ActSumsHash{ID: id, SumsHash: [32]byte(s.Hash)}, 0)
}

func (m *Machine) toldPeers(l *link, p *trackerpb.Peers) {
	id, err := p.GetBlob().ID()
	if err != nil {
		return
	}
	a := m.wanted(id)
	if a == nil {
		return
	}
	i, w := a.blob.position(l), a.want
	if i < 0 {
		return
	}
	var gone []string
	for _, node := range p.Gone {
		if w.peers.forget(i, node) {
			gone = append(gone, node)
		}
	}
	if len(gone) > 0 {
		m.calls.add(ActPeersGone{ID: id, Nodes: gone}, 0)
	}
	named := make([]Peer, 0, len(p.Peers))
	for _, q := range p.Peers {
		if q.Node == m.node {
			continue
		}
		if known, ok := w.peers.tell(i, q.Node, q.Complete, q.Source); ok {
			named = append(named, Peer{
				Node: q.Node, Addr: q.Addr, Addrs: q.Addrs[:min(len(q.Addrs), trackerpb.MaxAddrs)], Zone: q.Zone, Role: wire.Role(q.Role),
				Complete: known.complete != 0, Source: known.source != 0,
			})
		}
	}
	if len(named) > 0 {
		m.calls.add(ActPeers{ID: id, Peers: named}, 0)
	}
	if p.Upstream != nil || p.Share != nil {
		w.forgetAway(a.blob)
	}
	if u := p.Upstream; u != nil {
		w.registries[i] = u.Registries[:min(len(u.Registries), maxRegistries)]
		m.calls.add(ActUpstream{ID: id, Upstream: Upstream{Registries: slices.Concat(w.registries[:]...), Mismatch: u.Mismatch}}, 0)
	}
	if p.Share != nil {
		w.shares[i] = uint16(*p.Share)
		m.calls.add(ActShare{ID: id, Share: w.shares[0] | w.shares[1]}, 0)
	}
}

// maxRegistries is how many of those that a tracker names count: it names two at most.
const maxRegistries = 2

// verdictKinds are the protocol's; what is not here is ignored.
var verdictKinds = map[trackerpb.Verdict_Kind]VerdictKind{
	trackerpb.Verdict_KIND_SOURCES: Sources,
	trackerpb.Verdict_KIND_LEASE:   Lease,
	trackerpb.Verdict_KIND_NOBODY:  Nobody,
	trackerpb.Verdict_KIND_WAIT:    Wait,
}

func (m *Machine) toldVerdict(l *link, v *trackerpb.Verdict) {
	id, err := v.GetBlob().ID()
	kind := verdictKinds[v.Kind]
	if err != nil || kind == 0 {
		return
	}
	a := m.wanted(id)
	if a == nil {
		if kind == Lease { // the blob may be wanted again before the Handler takes this
			m.calls.add(ActVerdict{ID: id, Verdict: Verdict{Kind: Lease}}, 0)
		}
		return
	}
	i := a.blob.position(l)
	if i < 0 {
		return
	}
	if old := a.want.answers[i]; old.state == unasked || old.seq != v.Seq {
		return // it answers an earlier Want
	}
	a.want.answers[i] = answer{state: given, seq: v.Seq, kind: kind}
	if kind == Wait {
		a.want.answers[i].until = m.now.Add(time.Duration(v.RetryMs) * time.Millisecond)
	}
	m.settle(a)
}

func (m *Machine) toldEnough(l *link, e *trackerpb.Enough) {
	if e.GetBlobs().Check() != nil {
		return
	}
	until := m.now.Add(time.Duration(e.AgainMs) * time.Millisecond)
	for i := range e.Blobs.Len() {
		if id := e.Blobs.ID(i); m.blobs[id] != nil {
			l.out.refused(id, until)
		}
	}
}

func (m *Machine) toldLookup(l *link, name *trackerpb.Blob) {
	id, err := name.ID()
	if err != nil {
		return
	}
	if b := m.blobs[id]; b != nil && b.state != StateGone {
		l.out.asked(id) // it was refused once, or is still waiting to be told
		return
	}
	m.calls.add(ActLookup{ID: id}, 0)
}

func (m *Machine) toldCommand(l *link, c *trackerpb.Command) {
	if !m.commands.add(c.Id, l) {
		l.out.results = append(l.out.results, &trackerpb.CommandResult{
			Id: c.Id, Supported: true, Error: "too many commands are under way",
		})
		return
	}
	m.calls.add(ActCommand{Command: c}, 0)
}
