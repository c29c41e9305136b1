package tracker

import (
	"testing"
	"time"
)

// TestMerge: what two trackers say becomes one verdict (PROTOCOL.md, "Wanting").
func TestMerge(t *testing.T) {
	now := time.Unix(1000, 0)
	due := now.Add(time.Millisecond)
	wanting := answer{state: pending, until: due}
	late := answer{state: pending, until: now}
	silent := answer{state: pending, until: now.Add(answerTimeout - busyTimeout)}
	sources, lease, nobody := answer{state: given, kind: Sources}, answer{state: given, kind: Lease}, answer{state: given, kind: Nobody}
	wait := answer{state: given, kind: Wait, until: now.Add(time.Second)}
	waited := answer{state: given, kind: Wait, until: now.Add(-busyTimeout)}
	left := answer{state: abandoned, until: now}
	down, connecting := answer{}, answer{seq: 1} // connecting: for the first time
	for _, tt := range []struct {
		name          string
		first, second answer
		want          VerdictKind // 0: nothing is told yet
		next          time.Time   // when to look again
	}{
		{"both down", down, down, Unreachable, time.Time{}},
		{"both silent", silent, silent, Unreachable, time.Time{}},
		{"both late", late, late, 0, now.Add(busyTimeout - answerTimeout)},
		{"one down, one connecting", down, connecting, 0, due},
		{"connecting and nobody", connecting, nobody, 0, due},
		{"connecting and sources", connecting, sources, Sources, due},
		{"one down, one silent", down, silent, Unreachable, time.Time{}},
		{"one down, one late", down, late, 0, now.Add(busyTimeout - answerTimeout)},
		{"one silent, one late", silent, late, 0, now.Add(busyTimeout - answerTimeout)},
		{"late and pending", late, wanting, 0, due},
		{"late and wait", late, wait, Wait, wait.until.Add(busyTimeout)},
		{"both pending", wanting, wanting, 0, due},
		{"one down, one pending", down, wanting, 0, due},
		{"nobody and pending", nobody, wanting, 0, due},
		{"pending and nobody", wanting, nobody, 0, due},
		{"wait and pending", wait, wanting, 0, due},
		{"sources and pending", sources, wanting, Sources, due},
		{"pending and lease", wanting, lease, Lease, due},
		{"sources and lease", sources, lease, Lease, time.Time{}},
		{"nobody and sources", nobody, sources, Sources, time.Time{}},
		{"both nobody", nobody, nobody, Nobody, time.Time{}},
		{"nobody and down", nobody, down, Nobody, time.Time{}},
		{"late and nobody", late, nobody, Nobody, time.Time{}},
		{"wait and nobody", wait, nobody, Wait, wait.until.Add(busyTimeout)},
		{"nobody and wait", nobody, wait, Wait, wait.until.Add(busyTimeout)},
		{"wait and sources", wait, sources, Sources, wait.until.Add(busyTimeout)},
		{"wait that was not kept", waited, down, Nobody, time.Time{}},
		{"wait that was not kept, and late", waited, late, Nobody, time.Time{}},
		{"wait that was not kept, and pending", waited, wanting, 0, due},
		{"abandoned and pending", left, wanting, 0, due},
		{"abandoned and late", left, late, 0, now.Add(busyTimeout - answerTimeout)},
		{"abandoned and silent", left, silent, Unreachable, time.Time{}},
		{"abandoned and nobody", left, nobody, Nobody, time.Time{}},
	} {
		w := &want{Want: Want{Waiting: true, Tag: 7}, since: due.Add(-answerTimeout), answers: [2]answer{tt.first, tt.second}}
		v, next := w.merge(now, tt.first == connecting || tt.second == connecting)
		if v.Kind != tt.want || v.Kind != 0 && (!v.Waiting || v.Tag != 7) {
			t.Errorf("%s: got %+v, want %v", tt.name, v, tt.want)
		}
		if !next.Equal(tt.next) {
			t.Errorf("%s: to be looked at again at %v, want %v", tt.name, next.Sub(now), tt.next.Sub(now))
		}
	}
}

// TestGrants: which of the two trackers may grant a lease, and when the second is asked
// for one.
func TestGrants(t *testing.T) {
	now := time.Unix(1000, 0)
	waits, late := answer{state: pending, until: now.Add(1)}, answer{state: pending, until: now}
	nobody, sources := answer{state: given, kind: Nobody}, answer{state: given, kind: Sources}
	for _, tt := range []struct {
		name          string
		first, second answer
		grants, needs bool // the second may, and must be asked anew
	}{
		{"first away", answer{}, nobody, true, false}, // it was asked when the first went
		{"first to answer yet", waits, nobody, false, false},
		{"first late", late, nobody, true, true},
		{"first late, second too", late, late, true, false},
		{"first late, second knows of some", late, sources, true, false},
		{"first abandoned", answer{state: abandoned}, nobody, true, false},
		{"first answered", nobody, nobody, false, false},
	} {
		w := &want{Want: Want{Waiting: true}, answers: [2]answer{tt.first, tt.second}}
		if !w.grants(0, now) {
			t.Errorf("%s: the first may not grant", tt.name)
		}
		if got := w.grants(1, now); got != tt.grants {
			t.Errorf("%s: the second may grant: %v, want %v", tt.name, got, tt.grants)
		}
		if got := w.needsSecond(now); got != tt.needs {
			t.Errorf("%s: the second is asked anew: %v, want %v", tt.name, got, tt.needs)
		}
		w.lease = true
		if w.needsSecond(now) {
			t.Errorf("%s: the second is asked anew, although there is a lease", tt.name)
		}
	}
}
