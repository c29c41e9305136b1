package fetch

import (
	"cmp"
	"testing"
	"time"

	"github.com/capelin-io/capelin/control/tracker"
)

func TestDecide(t *testing.T) {
	const mib = 1 << 20
	t0 := time.Unix(1000, 0)
	at := func(d time.Duration) time.Time { return t0.Add(d) }
	const ms, s = time.Millisecond, time.Second
	wait := func(d time.Duration) decision { return decision{wait: d} }
	answer := func(off int64, why Outcome) decision { return decision{answer: true, offset: off, why: why} }

	// slow is one whose sources are slow, and the registry is not.
	slow := func(st situation) situation {
		st.verdict, st.peers = cmp.Or(st.verdict, tracker.Sources), true
		st.upstream, st.sharing, st.find = cmp.Or(st.upstream, 4e6), cmp.Or(st.sharing, 1), cmp.Or(st.find, 200*ms)
		st.rate, st.mean, st.lately = cmp.Or(st.rate, 1e6), cmp.Or(st.mean, 2e6), cmp.Or(st.lately, 2e6)
		if st.began.IsZero() {
			st.began = t0
		}
		return st
	}
	// nothing is one to which nothing has come.
	nothing := func(st situation) situation {
		st = slow(st)
		st.began, st.rate, st.mean, st.lately = time.Time{}, 0, 0, 0
		return st
	}
	silent := func(st situation) situation {
		st.verdict = tracker.Unknown
		return st
	}

	for _, tt := range []struct {
		name string
		s    situation
		want decision
	}{
		{"complete", situation{complete: true}, answer(10*mib, OutcomeComplete)},
		{"complete, authorized blob by blob", situation{complete: true, authorizeBlob: true}, answer(10*mib-Tail, OutcomeComplete)},
		{"complete, authorized, but no ranges", situation{complete: true, authorizeBlob: true, noRange: true}, answer(0, OutcomeComplete)},
		{"complete, no ranges needed", situation{complete: true, noRange: true}, answer(10*mib, OutcomeComplete)},
		{"complete while stopping", situation{complete: true, draining: true}, answer(10*mib, OutcomeComplete)},
		{"small and authorized", situation{size: Tail, complete: true, authorizeBlob: true}, answer(0, OutcomeSmall)},
		{"stopping", situation{draining: true, prefix: 5, peers: true}, answer(5, OutcomeStopping)},

		{"just asked", situation{}, wait(200 * ms)},
		{"asked again", situation{now: at(s), asked: at(900 * ms)}, wait(100 * ms)},
		{"no verdict in time", situation{now: at(200 * ms)}, answer(0, OutcomeAlone)},
		{"no verdict, but peers", situation{now: at(200 * ms), peers: true}, wait(4800 * ms)},
		{"nobody", situation{verdict: tracker.Nobody, prefix: 7}, answer(7, OutcomeNobody)},
		{"nobody, and the swarm has not said", situation{verdict: tracker.Nobody, looking: true}, wait(5 * s)},
		{"lease, and the swarm has not said", situation{lease: true, verdict: tracker.Lease, looking: true, now: at(9 * s), progress: at(9 * s)},
			wait(5 * s)},
		{"nobody, but a peer", situation{verdict: tracker.Nobody, peers: true}, wait(5 * s)},
		{"nobody, but another session writes", situation{verdict: tracker.Nobody, writing: true}, wait(5 * s)},
		{"unreachable", situation{verdict: tracker.Unreachable}, answer(0, OutcomeAlone)},
		{"unreachable, but peers", situation{verdict: tracker.Unreachable, peers: true}, wait(5 * s)},
		{"sources", situation{verdict: tracker.Sources}, wait(5 * s)},
		{"a young tracker", situation{verdict: tracker.Wait, now: at(s)}, wait(4 * s)},
		{"a young tracker for too long", situation{verdict: tracker.Wait, now: at(5 * s)}, answer(0, OutcomeStalled)},
		{"progress", situation{verdict: tracker.Sources, now: at(9 * s), progress: at(8 * s)}, wait(4 * s)},
		{"stalled", situation{verdict: tracker.Sources, peers: true, now: at(13 * s), progress: at(8 * s), prefix: mib},
			answer(mib, OutcomeStalled)},
		{"progress before it waited", situation{verdict: tracker.Sources, now: at(s), progress: at(-s)}, wait(4 * s)},
		{"stalled writer", situation{writing: true, now: at(5 * s), prefix: 3}, answer(3, OutcomeStalled)},
		{"lease", situation{lease: true, verdict: tracker.Lease, prefix: 3}, decision{answer: true, offset: 3, lease: true, why: OutcomeLease}},
		{"lease, when all is verified but not durable",
			situation{lease: true, verdict: tracker.Lease, prefix: 10 * mib, now: at(9 * s), progress: at(8 * s)}, wait(4 * s)},
		{"lease, and the disk is never done",
			situation{lease: true, verdict: tracker.Lease, prefix: 10 * mib, now: at(13 * s), progress: at(8 * s)},
			answer(10*mib-1, OutcomeStalled)},
		{"lease, but the swarm gets on",
			situation{lease: true, verdict: tracker.Lease, peers: true, spread: true, now: at(9 * s), progress: at(9 * s)},
			wait(5 * s)},
		{"lease, and the swarm has stopped",
			situation{lease: true, verdict: tracker.Lease, peers: true, spread: true, now: at(9 * s), progress: at(8 * s)},
			decision{answer: true, lease: true, why: OutcomeLease}},
		{"lease, and pieces are missing", situation{lease: true, verdict: tracker.Lease, peers: true, now: at(9 * s), progress: at(9 * s)},
			decision{answer: true, lease: true, why: OutcomeLease}},
		// With 4 MB/s the blob takes 2.6 s, and may take 5.1: 0.5 s more than that, and 1.5, from the beginning on.
		{"slow, but not for how long", slow(situation{now: at(2*s - ms), used: 499 * ms}), wait(26288 * time.Microsecond)},
		{"slow", slow(situation{now: at(2100 * ms), used: 600 * ms}), answer(0, OutcomeSlow)},
		{"slow, and the registry is not known", slow(situation{now: at(2100 * ms), used: 600 * ms, upstream: -1}), wait(2900 * ms)},
		{"slow, with a prefix that is worth 1 s", slow(situation{now: at(2100 * ms), used: 600 * ms, prefix: 4e6}), wait(250 * ms)},
		{"slow, with a prefix, after that", slow(situation{now: at(3100 * ms), used: 1600 * ms, prefix: 4e6}), answer(4e6, OutcomeSlow)},
		{"slow, with a prefix that is of no use", slow(situation{now: at(2100 * ms), used: 600 * ms, prefix: 4e6, noRange: true}),
			answer(0, OutcomeSlow)},
		{"slow, but others share the registry", slow(situation{now: at(2100 * ms), used: 300 * ms, sharing: 2}), wait(250 * ms)},
		{"fast enough", slow(situation{now: at(2100 * ms), used: 600 * ms, rate: 4e6}), wait(250 * ms)},
		{"slow, but it waits for its turn, and the others get as much",
			slow(situation{now: at(2100 * ms), used: 600 * ms, sharing: 2, turn: at(s), inAll: 4e6}), wait(250 * ms)},
		{"slow, its turn does not come", slow(situation{now: at(4100 * ms), used: 600 * ms, sharing: 2, turn: at(s), inAll: 4e6}),
			answer(0, OutcomeSlow)},
		{"slow, it waits for its turn, and the others get little",
			slow(situation{now: at(2100 * ms), used: 600 * ms, sharing: 2, turn: at(s), inAll: 2e6}), answer(0, OutcomeSlow)},
		{"hopeless", slow(situation{now: at(s), mean: 1e6, lately: 4e5}), answer(0, OutcomeSlow)},
		{"not hopeless", slow(situation{now: at(s), mean: 2e6, lately: 1e3}), wait(250 * ms)},
		{"hopeless, but it has just begun", slow(situation{now: at(s), began: at(600 * ms), mean: 4e5, lately: 4e5}), wait(250 * ms)},
		{"hopeless, but it was slow to begin", slow(situation{now: at(s), mean: 4e5, lately: 2e6}), wait(250 * ms)},
		// Of a holder whose registry gives less than 1 MiB in 1.5 s nothing is seen by then.
		{"nothing has come, and may yet", nothing(situation{now: at(1499 * ms)}), wait(250 * ms)},
		{"nothing has come", nothing(situation{now: at(1500 * ms)}), answer(0, OutcomeSlow)},
		{"nothing has come, and the registry is as slow", nothing(situation{now: at(1500 * ms), upstream: 1e6}), wait(250 * ms)},
		{"nothing has come, but others come first", nothing(situation{now: at(1500 * ms), turn: at(s), inAll: 4e6}), wait(250 * ms)},
		{"nothing has come, and the time to come back in has just begun", nothing(situation{now: at(2150 * ms), turn: at(50 * ms), inAll: 4e6}),
			wait(250 * ms)},
		{"slow, and trackers are silent", silent(slow(situation{now: at(2100 * ms), used: 600 * ms, find: 3 * s})),
			wait(250 * ms)},
		{"slow, and a tracker is young", slow(situation{now: at(2100 * ms), used: 600 * ms, verdict: tracker.Wait}), wait(250 * ms)},
		{"slow, and leases are given in turn", slow(situation{now: at(2100 * ms), used: 600 * ms, paced: true}),
			decision{wait: 250 * ms, slow: true}},
		{"the same, not answered yet", slow(situation{now: at(2100 * ms), used: 600 * ms, paced: true, ignored: at(2 * s)}),
			decision{wait: 200 * ms, slow: true}},
		{"the same, not answered", slow(situation{now: at(2300 * ms), used: 800 * ms, paced: true, ignored: at(2 * s)}),
			answer(0, OutcomeSlow)},
		{"the same, and a session of this node is what is slow",
			slow(situation{now: at(2100 * ms), used: 600 * ms, paced: true, writing: true, wrote: at(-s)}), answer(0, OutcomeSlow)},
		{"one that has just begun", slow(situation{now: at(2100 * ms), used: 600 * ms, writing: true, wrote: at(s)}), wait(250 * ms)},
		{"slow, with the lease, though the swarm gets on",
			slow(situation{now: at(2100 * ms), used: 600 * ms, paced: true, lease: true, spread: true, progress: at(2 * s)}),
			decision{answer: true, lease: true, why: OutcomeLease}},
		{"lease without ranges", situation{lease: true, noRange: true, prefix: 3}, decision{answer: true, lease: true, why: OutcomeLease}},
		{"prefix without ranges", situation{verdict: tracker.Nobody, noRange: true, prefix: 3}, answer(0, OutcomeNobody)},
		{"prefix beyond the tail", situation{verdict: tracker.Nobody, authorizeBlob: true, prefix: 10*mib - 5},
			answer(10*mib-Tail, OutcomeNobody)},
		{"all verified but not durable", situation{verdict: tracker.Nobody, prefix: 10 * mib}, answer(10*mib-1, OutcomeNobody)},
	} {
		st := tt.s
		if st.size == 0 {
			st.size = 10 * mib
		}
		if st.now.IsZero() {
			st.now = t0
		}
		st.since, st.find, st.stall = t0, cmp.Or(st.find, 200*ms), 5*s
		if got := decide(st); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}
