package state

import (
	"slices"

	"github.com/capelin-io/capelin/control/trackerpb"
)

// This file is about holders whose registry sends something else than the blob. What they bring is
// seeded before it is proven, so it may be false; and who may name a registry may have one that
// lies. Which one a holder has, its agent says, and who waits compares that with its own: it believes that as
// much as it would without the others, and no other. When a holder finds that it was lied to, all who
// wait forget what is not proven.
//
// What an agent says in this way of its own download costs others no more than what is not proven,
// at most once in Config.NobodyFor.

// upstream is which registries holders have: of many, two. Empty: none.
type upstream [2]string

// add notes a holder's registry, and reports whether that is news.
func (u *upstream) add(registry string) bool {
	if registry == "" || slices.Contains(u[:], registry) {
		return false
	}
	i := slices.Index(u[:], "")
	if i >= 0 {
		u[i] = registry
	}
	return i >= 0
}

// doubted returns where that comes from of the blob which is not proven: none, where a member has
// all of it and the hash of its sums is known.
func (s *swarm) doubted() upstream {
	if s.settled() {
		return upstream{}
	}
	return s.a.upstream
}

func (s *swarm) settled() bool { return s.hashed && s.complete > 0 }

// upstreamNews returns what is to be told to w of holders' registries, or nil.
func (s *swarm) upstreamNews(w *want) *trackerpb.Upstream {
	u := s.doubted()
	if u == w.upstream && !w.mismatch {
		return nil
	}
	m := &trackerpb.Upstream{Mismatch: w.mismatch}
	for _, registry := range u {
		if registry != "" {
			m.Registries = append(m.Registries, registry)
		}
	}
	w.upstream, w.mismatch = u, false
	return m
}

// distrust has a node whose upstream sent something else get no lease for a while, and all others forget
// what came of it.
func (t *Tracker) distrust(s *swarm, f *failed) {
	f.until = t.now + int64(t.cfg.NobodyFor)
	t.report(ReportMismatch, f.node, s.id, "")
	if s.settled() {
		return // only what agrees with the sums counts anyhow
	}
	for _, w := range s.a.wants {
		w.mismatch = w.mismatch || w.agent.hello.Node != f.node
	}
	s.a.changed, s.a.flushAt = true, t.now // before any of them is told to go on
}
