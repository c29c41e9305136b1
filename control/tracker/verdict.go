package tracker

import (
	"context"
	"time"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

// ask sends a Want to a tracker and waits so long for its answer. Whatever it
// said before, or is saying, to another Want no longer counts.
func (c *Client) ask(b *blob, l *link, timeout time.Duration) {
	if !l.up {
		return
	}
	c.seq++
	b.want.answers[l] = &answer{seq: c.seq, until: time.Now().Add(timeout)}
	l.markDirty(b.id, dirtyWant)
}

// grants reports whether l is the tracker that may grant a lease: the first of
// the two, or the second while the first does not answer.
func (c *Client) grants(b *blob, l *link, owners []*link, now time.Time) bool {
	return len(owners) > 0 && (owners[0] == l || c.silent(b, owners[0], now))
}

// silent reports whether l does not answer about b.
func (c *Client) silent(b *blob, l *link, now time.Time) bool {
	a := b.want.answers[l]
	return !l.up || a == nil || a.kind == 0 && !a.until.After(now)
}

// merge makes one verdict of what the two trackers say, and tells it if it is
// news. It returns when to look again, if nothing else happens; zero: never.
func (c *Client) merge(b *blob, now time.Time) (next time.Time) {
	w := b.want
	var sources, lease, nobody, pending bool
	var wait, busy time.Time // busy: when to give up one that is late
	for _, l := range c.owners(b.id) {
		a := w.answers[l]
		if !l.up && l.status.Err == nil && w.at.Add(answerTimeout).After(now) {
			// It is being connected with for the first time. All of a cluster's nodes
			// may have just been started: they are not to rush to upstream.
			pending = true
			next = earlier(next, w.at.Add(answerTimeout))
		}
		if !l.up || a == nil {
			continue
		}
		switch a.kind {
		case 0:
			if a.until.After(now) {
				pending = true
				next = earlier(next, a.until)
			} else if due := a.until.Add(busyTimeout - answerTimeout); due.After(now) {
				// All of a cluster's nodes may have asked at once. One after the other
				// is told, and they are not to rush to upstream meanwhile.
				busy = earlier(busy, due)
			}
		case Lease:
			lease = true
		case Sources:
			sources = true
		case Nobody:
			nobody = true
		case Wait:
			if due := a.until.Add(busyTimeout); due.After(now) {
				wait = earlier(wait, a.until)
				next = earlier(next, due)
			} else {
				nobody = true // it promised another answer and gave none
			}
		}
	}
	v := Verdict{Waiting: w.Waiting, Tag: w.Tag}
	switch {
	case lease || w.lease || b.lease != nil && w.verdict.Kind == Lease:
		v.Kind = Lease
		w.lease = true
	case sources:
		v.Kind = Sources
	case pending:
		return next
	case !wait.IsZero():
		v.Kind, v.Retry = Wait, max(wait.Sub(now), 0)
		if w.verdict.Kind == Wait {
			v.Retry = w.verdict.Retry // told already
		}
	case nobody:
		v.Kind = Nobody
	case !busy.IsZero():
		return earlier(next, busy)
	default:
		v.Kind = Unreachable
	}
	if v != w.verdict {
		w.verdict = v
		id, asked := b.id, w.asked
		c.emit(func() {
			c.mu.Lock()
			now := c.wanted[id]
			stale := now == nil || now.want.asked != asked
			if now == nil && v.Kind == Lease {
				c.giveBack(id)
			}
			c.mu.Unlock()
			if !stale {
				c.h.Verdict(id, v)
			}
		})
	}
	return next
}

// earlierSet is earlier, but either may be zero.
func earlierSet(a, b time.Time) time.Time {
	if b.IsZero() {
		return a
	}
	return earlier(a, b)
}

// giveBack ends a lease that came too late.
func (c *Client) giveBack(id piece.ID) {
	if c.leased[id] != nil {
		return // in use, after all
	}
	for _, l := range c.owners(id) {
		l.markDone(&trackerpb.LeaseDone{Blob: trackerpb.FromID(id), Outcome: trackerpb.Outcome_OUTCOME_CANCELLED})
	}
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// runTimer gives up trackers that do not answer, sends reports that are due, and
// offers again what trackers had enough of.
func (c *Client) runTimer(ctx context.Context) {
	for {
		var timer <-chan time.Time
		if next := c.tick(time.Now()); !next.IsZero() {
			timer = time.After(max(time.Until(next), 0))
		}
		select {
		case <-ctx.Done():
			return
		case <-c.timer:
		case <-timer:
		}
	}
}

func (c *Client) tick(now time.Time) (next time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.wanted {
		// The second tracker may grant once the first is given up.
		if o := c.owners(b.id); b.want.Waiting && !b.want.lease && len(o) == 2 && o[0].up && o[1].up && c.silent(b, o[0], now) {
			if a := b.want.answers[o[1]]; a != nil && a.kind == Nobody && !b.want.answers[o[0]].secondAsked() {
				b.want.answers[o[0]].until = time.Time{}
				c.ask(b, o[1], secondTimeout)
			}
		}
		if at := c.merge(b, now); !at.IsZero() {
			next = earlier(next, at)
		}
	}
	for _, b := range c.leased {
		if b.lease.bytes == b.lease.sent {
			continue
		}
		if at := b.lease.at.Add(progressInterval); at.After(now) {
			next = earlier(next, at)
		} else {
			c.sendProgress(b)
		}
	}
	for _, l := range c.links {
		if len(l.enough) == 0 || l.enoughNext.After(now) {
			next = earlierSet(next, l.enoughNext)
			continue
		}
		l.enoughNext = time.Time{}
		for id, at := range l.enough {
			if at.After(now) {
				l.enoughNext = earlier(l.enoughNext, at)
			} else {
				delete(l.enough, id)
				l.dirty[id] |= dirtyAnnounce
				l.bulk = append(l.bulk, id)
				l.signal()
			}
		}
		next = earlierSet(next, l.enoughNext)
	}
	return next
}

// secondAsked reports whether the second tracker was asked because this one did
// not answer.
func (a *answer) secondAsked() bool { return a == nil || a.until.IsZero() }
