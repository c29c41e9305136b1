package sim

import (
	"time"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/wire"
	"github.com/capelin-io/capelin/trackerd/state"
)

// tracker is that of a run: the state machine that trackerd runs, and a stream to
// it from each host, with what the host's agent would say there about its blobs.
// It grants no leases: who has a blob is configured.
type tracker struct {
	r       *run
	t       *state.Tracker // nil while it is away
	streams map[state.Stream]*host
	opened  state.Stream // the last one
	tick    int64        // when the next is due; 0: none
}

func (k *tracker) start() {
	k.t = state.New(state.Config{Cluster: "sim"}, k.r.cfg.Seed, k.r.at(k.r.now))
	k.streams = make(map[state.Stream]*host)
}

// stop loses everything that the tracker knows, and every stream.
func (k *tracker) stop() {
	k.t = nil
	for _, h := range k.r.hosts {
		h.stream = 0
	}
}

func (k *tracker) step(ev state.Event) {
	for _, a := range k.t.Step(k.r.at(k.r.now), ev) {
		if a, ok := a.(state.ActSend); ok {
			if h := k.streams[a.Stream]; h != nil {
				h.told(a.Message)
			}
		}
	}
	d := k.t.Deadline()
	if d.IsZero() {
		return
	}
	at := max(int64(d.Sub(base)), k.r.now)
	if k.tick != 0 && k.tick <= at {
		return
	}
	k.tick = at
	t := k.t
	k.r.control(at, func() {
		if k.t == t && k.tick == at {
			k.tick = 0
			k.step(state.EvTick{})
		}
	})
}

// report makes h's stream, if there is none, and tells the tracker of all its
// blobs; or of what has changed since.
func (k *tracker) report(h *host, changed *blobState) {
	if k.t == nil || !h.up {
		return // all is told when it is back
	}
	if h.stream == 0 {
		changed = nil
		k.opened++
		h.stream = k.opened
		k.streams[h.stream] = h
		k.step(state.EvOpen{Stream: h.stream, Hello: &trackerpb.Hello{
			Version: trackerpb.Version, Cluster: "sim", Node: h.Name, Zone: h.Zone, Addr: h.Name + ":1", Role: trackerpb.Role(h.Role),
		}})
	}
	m := &trackerpb.FromAgent{}
	for _, b := range k.r.blobs {
		if changed != nil && b != changed {
			continue
		}
		name := trackerpb.FromID(b.id)
		switch {
		case h.have[b.id] == nil: // takes no part
		case h.done[b.id], h.Seed && h.have[b.id].Full():
			a := &trackerpb.Announce{Blob: name, State: trackerpb.State_STATE_COMPLETE}
			if hash := b.sums.Hash(); b.Hash || b.SourceRate > 0 || h.done[b.id] {
				a.SumsHash = hash[:]
			}
			m.Announces = append(m.Announces, a)
			if !h.Seed && changed != nil {
				m.Unwants = append(m.Unwants, name)
			}
		case h.Seed:
			m.Announces = append(m.Announces, &trackerpb.Announce{Blob: name, State: trackerpb.State_STATE_PARTIAL})
		default:
			m.Wants = append(m.Wants, &trackerpb.Want{Blob: name, Waiting: true, Grant: true, Seq: 1})
		}
	}
	k.step(state.EvBatch{Stream: h.stream, Batch: m})
}

// left ends h's stream.
func (k *tracker) left(h *host) {
	if k.t != nil && h.stream != 0 {
		delete(k.streams, h.stream)
		k.step(state.EvClosed{Stream: h.stream})
	}
	h.stream = 0
}

// told hands to h what the tracker says.
func (h *host) told(m *trackerpb.ToAgent) {
	r := h.r
	for _, s := range m.Sums {
		if id, err := s.Blob.ID(); err == nil && len(s.Hash) == 32 {
			h.later(r.cfg.Latency, swarm.EvSumsHash{ID: id, Hash: [32]byte(s.Hash)})
		}
	}
	for _, ps := range m.Peers {
		id, err := ps.Blob.ID()
		if err != nil {
			continue
		}
		if len(ps.Gone) > 0 {
			h.later(r.cfg.Latency, swarm.EvPeersGone{ID: id, Nodes: ps.Gone})
		}
		infos := make([]swarm.PeerInfo, len(ps.Peers))
		for i, p := range ps.Peers {
			infos[i] = swarm.PeerInfo{Node: p.Node, Addr: p.Addr, Zone: p.Zone, Role: wire.Role(p.Role), Complete: p.Complete, Source: p.Source}
		}
		if ps.Share != nil {
			h.later(r.cfg.Latency, swarm.EvShare{ID: id, Share: uint16(*ps.Share)})
		}
		if len(infos) > 0 {
			h.later(r.cfg.Latency, swarm.EvPeers{ID: id, Peers: infos})
		}
	}
}

// toTracker has the tracker hear of h's blobs, or of one that changed, when a
// message would have arrived.
func (h *host) toTracker(changed *blobState) {
	h.r.control(h.r.now+int64(h.r.cfg.Latency), func() { h.r.tracker.report(h, changed) })
}

// restart has the tracker be away for a while, and every host find it again
// within a second.
func (k *tracker) restart(at, away time.Duration) {
	k.r.control(int64(at), k.stop)
	k.r.control(int64(at+away), func() {
		k.start()
		for _, h := range k.r.hosts {
			if h.up {
				k.r.control(k.r.now+k.r.rng.Int64N(1e9), func() { k.report(h, nil) })
			}
		}
	})
}
