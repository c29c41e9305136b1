package ringstate

import (
	"slices"
	"time"

	"github.com/capelin-io/capelin/control/ring"

	digest "github.com/opencontainers/go-digest"
)

// What the shell may ask between Steps. None of it changes anything.

// Serving reports whether what is here may be read: this member is one, and knows what was deleted,
// or could not find that out for long.
func (r *Ring) Serving() bool { return r.serving() && r.me.listed() }

// Pinned reports whether a blob must not be evicted here.
func (r *Ring) Pinned(d digest.Digest) bool { return r.blobs.get(d) != nil }

// Blobs returns how many are pinned here.
func (r *Ring) Blobs() int { return r.blobs.n }

// Reader returns the member that reads a blob from its backend for all: the first of its owners that is up. It is "" for
// this one.
func (r *Ring) Reader(d digest.Digest) string {
	owners := r.ownersOf(string(d))
	for _, m := range r.ordered(string(d)) {
		if owners&m.bit() != 0 && (m == r.me || r.hears(m)) {
			if m == r.me {
				return ""
			}
			return m.name
		}
	}
	return ""
}

// Backlog returns how many homes are to get a blob, as this member sees it, and for how long the eldest of those pushes waits.
func (r *Ring) Backlog() (n int, eldest time.Duration) {
	for _, w := range r.works {
		if !w.gone && !w.found {
			n++
			eldest = max(eldest, r.age(w.since))
		}
	}
	return n + r.busy, eldest
}

// Peer is a member as this one sees it.
type Peer struct {
	ring.Member
	Addr  string
	Self  bool
	Mode  Mode
	Owner bool // in the view
	// Alive: it gave a sign of life lately, to this member or one that it hears. Heard: to this one.
	Alive, Heard bool
	Silent       time.Duration // since when nobody heard of it
	Starting     bool
	Full         bool
	Gone         bool // silent for so long that others are owners in its place
	Removed      bool // by an operator (Out), or it has left
	Out          bool
	Takes        bool // it can be given a copy of a push
	Under        *int // Status.Under of it, as it last said; nil: it does not say
	// Skew is how far its clock is ahead of this one's, or behind (negative); 0: record.MaxSkew at most, or not known.
	Skew time.Duration
}

// Peers returns all members that were ever known, by name.
func (r *Ring) Peers() []Peer {
	all := make([]Peer, len(r.members))
	for i, m := range r.members {
		p := &all[i]
		*p = Peer{
			Member: ring.Member{Name: m.name, Zone: m.zone}, Addr: m.addr, Self: m == r.me, Mode: m.mode, Owner: m.owner(),
			Alive: r.alive&m.bit() != 0, Heard: m == r.me || r.hears(m), Silent: time.Duration(r.now - m.live),
			Full: m.full, Gone: m.gone, Removed: !m.listed(), Out: m.out(),
		}
		switch {
		case m == r.me:
			p.Starting = r.starting || r.stale != 0
		case m.status != nil:
			p.Starting = m.status.Starting
			if p.Heard {
				p.Under, p.Skew = &m.status.Under, m.skew
			}
		default:
			p.Starting = p.Heard
		}
		p.Takes = p.Heard && !p.Removed && !p.Gone && !p.Starting && !p.Full && m.mode < Draining
	}
	return all
}

// Storages returns what the members that are heard have said of the storages behind their backends, by their names.
func (r *Ring) Storages() map[string][]Storage {
	all := map[string][]Storage{}
	for m := range r.others() {
		if m.status != nil && len(m.status.Storages) > 0 && m.listed() && r.hears(m) {
			all[m.name] = m.status.Storages
		}
	}
	return all
}

// Shortage is what there is still to be copied.
type Shortage struct {
	Under  int // pinned blobs that are not known to be at all their owners, and only there
	Urgent int // those of them that have fewer than MinReplicas copies, as far as is known; at most those that are queued
	Giving int // blobs that are being given to others now
	Taking int // blobs that are being fetched from others now
}

// Short returns what there is still to be copied.
func (r *Ring) Short() Shortage {
	s := Shortage{Under: r.under(), Giving: len(r.give.active), Taking: len(r.takes)}
	if r.blobs.n == 0 && r.blobs.placed < len(r.blobs.buckets) {
		s.Under = 0
	}
	urgent := map[digest.Digest]bool{}
	for i := range r.give.queues {
		for class := range min(r.cfg.MinReplicas-1, classes) {
			for _, d := range r.give.queues[i][class] {
				if b := r.blobs.get(d); b != nil && r.urgent(b) {
					urgent[d] = true
				}
			}
		}
	}
	for _, g := range r.give.active {
		if b := r.blobs.get(g.digest); b != nil && r.urgent(b) {
			urgent[g.digest] = true
		}
	}
	s.Urgent = len(urgent)
	return s
}

// Lost returns the disks that are missed: what was only there is not known to be anywhere else.
func (r *Ring) Lost() (names []string) {
	for _, l := range r.lost {
		if r.isLost(l) && !slices.Contains(names, l.Name) {
			names = append(names, l.Name)
		}
	}
	return names
}
