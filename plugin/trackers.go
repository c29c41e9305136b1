package plugin

import (
	"cmp"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

// trackers is a client of the trackers as the seeder uses it, and hands on what it is told.
type trackers struct {
	a      *agent
	node   *swarm.Node
	client *tracker.Client
	// commands must be run.
	commands *commands
	hashes   *lru.Cache[piece.ID, [32]byte] // of sums, as trackers told them
}

func newTrackers(a *agent, node *swarm.Node, cfg tracker.Config) *trackers {
	hashes, err := lru.New[piece.ID, [32]byte](4096)
	if err != nil {
		panic(err) // only for a size of 0
	}
	t := &trackers{a: a, node: node, hashes: hashes}
	t.client = tracker.New(cfg, t)
	t.commands = newCommands(a.fetches, a.disk, t.client.Result)
	return t
}

// Gone announces that nothing is left of a blob.
func (t *trackers) Gone(id piece.ID) { t.client.Announce(id, tracker.StateGone) }

// Complete announces a whole blob. There is one list of sums that can be proven:
// if the trackers told of another, it is disproved.
func (t *trackers) Complete(id piece.ID, h *[32]byte) {
	if told, ok := t.hashes.Get(id); ok && h != nil && told != *h {
		t.hashes.Remove(id)
		t.client.Disproved(id, told)
	}
	t.client.AnnounceComplete(id, h)
}

// Peers implements tracker.Handler, like the methods after it.
func (t *trackers) Peers(id piece.ID, peers []tracker.Peer) {
	t.a.fetches.PeersFound(id, peers)
}

func (t *trackers) PeersGone(id piece.ID, nodes []string) { t.node.RemovePeers(id, nodes) }

func (t *trackers) Share(id piece.ID, share uint16) { t.a.fetches.ShareTold(id, share) }

func (t *trackers) Upstream(id piece.ID, u tracker.Upstream) { t.a.fetches.UpstreamTold(id, u) }

func (t *trackers) Verdict(id piece.ID, v tracker.Verdict) {
	t.a.fetches.Verdict(id, v)
}

func (t *trackers) SumsHash(id piece.ID, hash [32]byte) {
	t.hashes.Add(id, hash)
	t.node.SumsHash(id, hash)
}

// Lookup asks origins only; this is none.
func (t *trackers) Lookup(id piece.ID) { t.client.NotHere(id) }

// Command does what a tracker asks for.
func (t *trackers) Command(cmd *trackerpb.Command) { t.commands.add(cmd) }

// trackerStatus returns what is known of each tracker, and what one of them says of a machine
// with this node's name.
func (a *agent) trackerStatus() (out []TrackerStatus, namesake tracker.Namesake) {
	out = []TrackerStatus{}
	n := a.network.Load()
	switch {
	case n == nil:
		for _, t := range a.cfg.Trackers {
			out = append(out, TrackerStatus{Address: t, Error: "not asked, because this node takes no part in the swarm"})
		}
		return out, ""
	case n.trackers == nil:
		return out, ""
	}
	for _, st := range n.trackers.client.Status() {
		s := TrackerStatus{Address: st.Addr, Connected: st.Connected}
		if st.Err != nil {
			s.Error = st.Err.Error()
		}
		out = append(out, s)
		namesake = cmp.Or(namesake, st.Namesake)
	}
	return out, namesake
}
