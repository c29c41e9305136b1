package state

import "github.com/capelin-io/capelin/control/trackerpb"

// availability is what can be said to wanting agents in general.
type availability struct {
	kind  trackerpb.Verdict_Kind
	all   bool // WAIT is for those as well that could not get the lease
	late  bool // SOURCES are but holders whose clocks ran out
	until int64
	have  int // how many have any of it: 0, 1, or 2 for more
}

// verdict tells w what it should expect, if that is news.
func (t *Tracker) verdict(s *swarm, w *want) {
	kind, retry := s.a.avail.kind, int64(0)
	others := s.have
	if t.flags(w.agent, s)&(fComplete|fPartial) != 0 {
		others--
	}
	switch {
	case s.a.granted(w.agent):
		kind = trackerpb.Verdict_KIND_LEASE
	case kind == trackerpb.Verdict_KIND_SOURCES && w.waiting && !s.a.avail.late && t.stranded(s, w):
		// It knows better than we do who delivers.
		if kind = s.a.rescue.kind; kind == trackerpb.Verdict_KIND_WAIT && !w.grant {
			kind = trackerpb.Verdict_KIND_NOBODY
		} else {
			retry = s.a.rescue.until
		}
	case kind == trackerpb.Verdict_KIND_SOURCES && (!s.a.avail.late || !w.waiting || w.grant):
		// A late holder is not worth waiting for where nobody else can be sent: the
		// tracker that grants knows better.
	case others > 0 && !w.waiting:
		// What is there of it is worth joining for, but not worth waiting for:
		// all of it may never come.
		kind = trackerpb.Verdict_KIND_SOURCES
	case kind == trackerpb.Verdict_KIND_WAIT && (s.a.avail.all || w.waiting && w.grant):
		retry = s.a.avail.until
	default:
		kind = trackerpb.Verdict_KIND_NOBODY
	}
	if w.kind == kind && w.retry == retry {
		return
	}
	w.kind, w.retry = kind, retry
	v := &trackerpb.Verdict{Blob: s.a.blob, Kind: kind, Seq: w.seq}
	switch kind {
	case trackerpb.Verdict_KIND_SOURCES:
		t.stats.VerdictsSources++
	case trackerpb.Verdict_KIND_LEASE:
		t.stats.VerdictsLease++
	case trackerpb.Verdict_KIND_NOBODY:
		t.stats.VerdictsNobody++
	case trackerpb.Verdict_KIND_WAIT:
		t.stats.VerdictsWait++
		v.RetryMs = uint32((retry-t.now)/1e6) + 1
	}
	m := t.send(w.agent)
	m.Verdicts = append(m.Verdicts, v)
}
