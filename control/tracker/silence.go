package tracker

import (
	"fmt"
	"time"

	"github.com/capelin-io/capelin/control/trackerpb"
)

// A tracker that hangs takes connections, and nothing comes from it. One that has thousands of
// nodes to answer at once looks the same for a while, so each tracker tells how long
// that may be. It is silent if an answer is due and nothing came from it for so long, or for
// silentAfter if that is longer; until something comes from it nobody waits for it, unless all
// peers are silent, too.

// patience is how long nothing may come from a tracker that owes an answer. One that does not say
// how long it may be busy is an older one.
func (l *link) patience() time.Duration {
	if l.busy == 0 {
		return busyTimeout
	}
	return min(max(l.busy, silentAfter), busyTimeout)
}

// silence finds out which of the trackers that owe an answer about a are silent, and returns
// when to look again, or the zero time.
//
// It takes two looks: what has come may still have to be read, by a process that did not
// run for a while.
func (m *Machine) silence(a *active) (next time.Time) {
	for i, l := range a.blob.owners {
		w := a.want.answers[i]
		if l == nil || !l.up || l.silent || w.state != pending && w.state != abandoned {
			continue
		}
		since := w.asked
		if l.heard.After(since) {
			since = l.heard
		}
		patience := l.patience()
		if a.want.cutOff() {
			patience = busyTimeout
		}
		due := since.Add(patience - silentAgain)
		if due.After(m.now) {
			next = earlier(next, due)
			continue
		}
		if l.suspected.Before(due) {
			l.suspected = m.now
		}
		if again := l.suspected.Add(silentAgain); again.After(m.now) {
			next = earlier(next, again)
			continue
		}
		m.silenced(l, m.now.Sub(since))
	}
	return next
}

// cutOff reports whether it may be this node that hears nobody: the peers that had the blob bring nothing, either. The registry
// would not, then, and a link that is back after some seconds ends no pull: the tracker is waited for as long as an older one.
func (w *want) cutOff() bool { return len(w.Lost) > 0 }

// silenced has nobody wait for a tracker any more.
func (m *Machine) silenced(l *link, after time.Duration) {
	l.silent = true
	l.status.Err = fmt.Errorf("tracker %s: connected, and no answer for %v", l.name, after.Round(100*time.Millisecond))
	for _, id := range sorted(m.active) {
		a := m.active[id]
		i := a.blob.position(l)
		if i < 0 || a.want == nil || a.want.answers[i].state != pending || a.want.cutOff() {
			continue
		}
		a.want.answers[i].mute = true
		m.due.set(a, m.now)
	}
	m.calls.add(ActStatus{Status: l.status}, 0)
}

// heard notes that something came from a tracker.
func (m *Machine) heard(l *link, msg *trackerpb.ToAgent) {
	l.heard = m.now
	if ms := msg.GetBusyMs(); ms > 0 {
		l.busy = time.Duration(ms) * time.Millisecond
	}
	if l.silent {
		l.silent, l.status.Err = false, nil
		m.calls.add(ActStatus{Status: l.status}, 0)
	}
}
