package origind

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/internal/diskfull"
	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/origind/ringstate"
)

// batch is what the ring has decided in the turns that are taken together.
type batch struct {
	m     *member
	keep  changes
	was   map[digest.Digest]*record.Entry // what was kept before, of keep.entries
	pins  []digest.Digest
	later []func() // once keep is durable, in order
}

func (m *member) newBatch() *batch {
	return &batch{m: m, keep: changes{entries: map[digest.Digest]*record.Entry{}}, was: map[digest.Digest]*record.Entry{}}
}

// then has f done once all that was decided before is durable.
func (b *batch) then(f func()) { b.later = append(b.later, f) }

// entry returns what is kept of a blob, or nil.
func (b *batch) entry(d digest.Digest) (*record.Entry, error) {
	if e, ok := b.keep.entries[d]; ok {
		return e, nil
	}
	return b.m.ledger.get(d)
}

// put keeps an entry.
func (b *batch) put(e *record.Entry) {
	d := e.Record.Digest
	if _, ok := b.was[d]; !ok {
		b.was[d], _ = b.m.ledger.get(d) // a damaged one is replaced
	}
	b.keep.entries[d] = e
}

// local returns what is here of a blob. A record that cannot be read is none: what others know of the blob, and the next push, replace it.
func (b *batch) local(d digest.Digest) ringstate.Local {
	l := ringstate.Local{Have: b.m.bytes.PresenceOf(d) >= content.Cached}
	e, err := b.entry(d)
	if err != nil {
		log.G(b.m.tasks.ctx).WithError(err).Error("a record cannot be read")
	}
	if e != nil {
		l.Wrote = e.Wrote
		if len(e.Record.Homes)+len(e.Record.Removed) > 0 { // else it was only found
			l.Record = e.Record
		}
	}
	return l
}

func (b *batch) locals(all []digest.Digest) []ringstate.Local {
	ls := make([]ringstate.Local, len(all))
	for i, d := range all {
		ls[i] = b.local(d)
	}
	return ls
}

// localPinned is local for an event by which the blob may have to be pinned: what is here cannot be evicted before that.
func (b *batch) localPinned(d digest.Digest) ringstate.Local {
	l := b.local(d)
	if l.Have && b.m.bytes.PresenceOf(d) < content.Pinned {
		l.Have = b.m.bytes.Pin(d) == nil
		b.then(func() { b.m.release(d) })
	}
	return l
}

// step tells the ring of an event. It notes what is to be kept, and what is to be done after that.
func (b *batch) step(ev ringstate.Event) {
	for _, a := range b.m.ring.Step(b.m.now(), ev) {
		switch a := a.(type) {
		case ringstate.ActRing:
			b.keep.ring = a.Saved
		case ringstate.ActSave:
			b.save(a)
		case ringstate.ActUnpin:
			b.then(func() { b.m.release(a.Digest) })
		case ringstate.ActLog:
			b.keep.log = append(b.keep.log, a.Entry)
		case ringstate.ActTrim:
			b.keep.first = a.First
		case ringstate.ActBackend:
			b.backend(a)
		default:
			b.then(func() { b.m.perform(a) })
		}
	}
}

func (b *batch) save(a ringstate.ActSave) {
	e := record.Entry{Record: a.Record, Wrote: a.Wrote}
	if old, err := b.entry(a.Record.Digest); err == nil && old != nil {
		if len(a.Record.Removed) == 0 || a.Record.Live() {
			e.Found = old.Found
		}
		if a.Record.Size == 0 && old.Record.Size > 0 { // the ring was not told of what was only found
			r := *a.Record
			r.Size, e.Record = old.Record.Size, &r
		}
	}
	b.put(&e)
	if d := a.Record.Digest; a.Pinned {
		b.pins = append(b.pins, d)
	} else {
		b.then(func() { b.m.release(d) })
	}
}

// backend has something done at a backend; that it may be written is kept before.
func (b *batch) backend(a ringstate.ActBackend) {
	if e, err := b.entry(a.Digest); a.Do == ringstate.Write && err == nil && e != nil && !e.Wrote {
		c := *e
		c.Wrote = true
		b.put(&c)
	}
	b.then(func() { b.m.perform(a) })
}

// end keeps what a batch has decided, and then does the rest.
func (m *member) end(ctx context.Context, b *batch) error {
	if err := m.flush(ctx, b); err != nil {
		return err
	}
	for d, e := range b.keep.entries {
		m.watch.recorded(d, b.was[d], e)
		if e == nil || !e.Record.Pending() {
			m.tell(d, nil)
		}
	}
	for _, f := range b.later {
		f()
	}
	m.lapse(time.Now())
	if err := m.replaced(time.Now()); err != nil {
		return err
	}
	m.publish()
	return nil
}

// flush makes a batch durable. What may pass is waited for a while: a full disk (pushes are refused before it is as full as that), and a
// machine that is short of files or memory.
func (m *member) flush(ctx context.Context, b *batch) error {
	since := time.Now()
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := m.keep(b)
		if err == nil {
			return nil
		}
		err = fmt.Errorf("keeping what was decided: %w", err)
		full := errdefs.IsResourceExhausted(err)
		if !full && !record.Passing(err) || time.Since(since) > flushWithin {
			return err
		}
		log.G(ctx).WithError(err).Error("this origin answers nothing before there is room again")
		if full {
			m.bytes.MakeRoom(ctx, 1<<20)
		}
		select {
		case <-time.After(pause):
		case <-m.stop:
			return err
		}
	}
}

func (m *member) keep(b *batch) error {
	var errs []error
	for _, d := range b.pins {
		if m.ring.Pinned(d) {
			errs = append(errs, m.pin(d))
		}
	}
	return errors.Join(append(errs, m.ledger.commit(&b.keep))...)
}

// pin pins a blob that is to be kept. If that fails because of its own file, which was removed or cannot be moved, it is a copy that is
// wrong: the ring does not count it, and has it healed. An error is one of the disk.
func (m *member) pin(d digest.Digest) error {
	err := diskfull.Classed(m.bytes.Pin(d))
	switch {
	case err == nil:
		return nil
	case errdefs.IsNotFound(err):
	case m.bytes.PresenceOf(d) == content.Pinned, // and that was not synced
		errdefs.IsResourceExhausted(err), record.Passing(err), errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("pinning %s: %w", d, err)
	}
	log.G(m.tasks.ctx).WithError(err).WithField("digest", d).Error("a blob that is to be kept is not here, or cannot be kept here")
	m.do(func(b *batch) {
		if rec := m.record(d); rec != nil {
			b.step(ringstate.EvBad{Digest: d, Pieces: m.copies.wrong(d, rec.Size)})
		}
	})
	return nil
}

// came notes that the push of bytes that came lately has come to the ring, which says from now on whether they stay.
func (b *batch) came(d digest.Digest) {
	b.m.fresh.drop(d)
	b.then(func() { b.m.release(d) })
}

// release lets a blob go in a while, unless the ring needs it then. Bytes of a push under way stay.
func (m *member) release(d digest.Digest) {
	if m.ring.Pinned(d) || m.fresh.has[d] > 0 || m.bytes.PresenceOf(d) < content.Cached {
		return
	}
	if len(m.peers()) <= 1 { // nobody has been told that it is here
		m.letGo(d)
		return
	}
	m.let.add(d, unpinAfter)
}

// lapse lets go what has waited for that.
func (m *member) lapse(now time.Time) {
	for _, q := range []*delays{&m.let, &m.fresh} {
		for d, ok := q.next(now); ok; d, ok = q.next(now) {
			m.letGo(d)
		}
	}
}

// letGo has a blob be evictable; what was removed goes.
func (m *member) letGo(d digest.Digest) {
	if m.ring.Pinned(d) {
		return
	}
	e, err := m.ledger.get(d)
	if err == nil && !visible(e) {
		err = drop(m.tasks.ctx, m.bytes, d)
	} else {
		err = errors.Join(err, m.bytes.Unpin(m.tasks.ctx, d))
	}
	logged(m.tasks.ctx, err, d, "cannot let a blob go")
}

// delays are blobs that may go after a while, the first first.
type delays struct {
	all     []delayed
	has     map[digest.Digest]int // how often each is in all, but for those that were dropped
	dropped map[digest.Digest]int // how many of each in all, the first ones, are not waited for
}

type delayed struct {
	d  digest.Digest
	at time.Time
}

func (q *delays) add(d digest.Digest, after time.Duration) {
	if q.has == nil {
		q.has, q.dropped = map[digest.Digest]int{}, map[digest.Digest]int{}
	}
	q.has[d]++
	q.all = append(q.all, delayed{d, time.Now().Add(after)})
}

// drop takes a blob out once, if it is there.
func (q *delays) drop(d digest.Digest) {
	if q.has[d] > 0 {
		less(q.has, d)
		q.dropped[d]++
	}
}

// next takes the first out if its time has come. One that is there again waits for that.
func (q *delays) next(now time.Time) (d digest.Digest, ok bool) {
	for len(q.all) > 0 && !now.Before(q.all[0].at) {
		d = q.all[0].d
		q.all = q.all[1:]
		if q.dropped[d] > 0 {
			less(q.dropped, d)
		} else if less(q.has, d) {
			return d, true
		}
	}
	return "", false
}

// less counts one down, and reports whether none is left.
func less(n map[digest.Digest]int, d digest.Digest) (none bool) {
	if n[d]--; n[d] > 0 {
		return false
	}
	delete(n, d)
	return true
}

// perform does what the ring says once all that it has decided is durable.
func (m *member) perform(a ringstate.Action) {
	switch a := a.(type) {
	case ringstate.ActReply:
		m.answer(a.ID, a)
	case ringstate.ActDone:
		m.answer(a.ID, a)
	case ringstate.ActFound:
		m.answer(a.ID, a)
	case ringstate.ActReplyLog:
		p, err := m.ledger.page(a.After)
		if err != nil {
			log.G(m.tasks.ctx).WithError(err).Error("cannot read the deletion log")
			m.answer(a.ID, ringstate.ActReply{}) // it is asked for again
			return
		}
		m.answer(a.ID, ringstate.ActReply{To: a.To, ID: a.ID, Answer: p})
	case ringstate.ActAsk:
		m.ask(a)
	case ringstate.ActTake:
		m.take(a)
	case ringstate.ActBackend:
		m.backend(a)
	case ringstate.ActHeal:
		m.heal(a)
	}
}

// ask asks another member. The record goes along as it is now.
func (m *member) ask(a ringstate.ActAsk) {
	switch q := a.Ask.(type) {
	case *ringstate.Replica:
		c := *q
		c.Record = m.record(q.Digest)
		a.Ask = &c
	case *ringstate.Consult:
		a.Ask = &ringstate.Consult{Digest: q.Digest, Record: m.record(q.Digest)}
	}
	m.tasks.run(func(ctx context.Context) {
		inc, answer, err := m.askSoon(ctx, a)
		if err != nil {
			log.G(ctx).WithError(err).WithField("member", a.To).Debug("a member does not answer")
			answer = nil
		}
		m.do(func(b *batch) {
			ev := &ringstate.EvAnswered{ID: a.ID, Incarnation: inc, Answer: answer}
			if answer != nil {
				ev.Local = b.locals(answer.Digests())
			}
			b.step(ev)
		})
	})
}

// askSoon asks when it is this ask's turn, if that is before its answer is waited for no more. How members are is asked at once.
func (m *member) askSoon(ctx context.Context, a ringstate.ActAsk) (incarnation uint64, answer ringstate.Answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if _, ok := a.Ask.(ringstate.Probe); !ok {
		select {
		case m.asking <- struct{}{}:
			defer func() { <-m.asking }()
		case <-ctx.Done():
			return 0, nil, fmt.Errorf("%d members are being asked: %w", asksAtOnce, ctx.Err())
		}
	}
	return m.asks.ask(ctx, a.To, a.Ask)
}

// record returns what is known of a blob, or nil.
func (m *member) record(d digest.Digest) *record.Record {
	e, err := m.ledger.get(d)
	if err != nil || e == nil {
		return nil
	}
	return e.Record
}

func (m *member) take(a ringstate.ActTake) {
	m.tasks.run(func(ctx context.Context) {
		release, err := m.copies.take(ctx, a.Digest, a.Size, a.Sources)
		logged(ctx, err, a.Digest, "cannot take a copy from other members")
		m.do(func(b *batch) {
			b.step(&ringstate.EvTaken{
				Digest: a.Digest, Local: b.localPinned(a.Digest), Failed: err != nil, Full: errdefs.IsResourceExhausted(err),
			})
			if release != nil {
				b.then(release)
			}
		})
	})
}

// heal has pieces replaced, of a blob of which none are being replaced already. If all of them stay wrong, nobody is
// asked for a while, which doubles: the first time, others may not have been heard of.
func (m *member) heal(a ringstate.ActHeal) {
	rec, h := m.record(a.Digest), m.healing[a.Digest]
	if rec == nil || h != nil && h.under {
		return
	}
	if h == nil {
		h = &healing{}
		m.healing[a.Digest] = h
	}
	h.under = true
	m.heals = append(m.heals, a)
	m.healNext()
}

// healNext begins what there is room for.
func (m *member) healNext() {
	for m.mending < healsAtOnce && len(m.heals) > 0 {
		a := m.heals[0]
		m.heals = m.heals[1:]
		rec := m.record(a.Digest)
		if rec == nil || !m.ring.Pinned(a.Digest) {
			delete(m.healing, a.Digest)
			continue
		}
		m.mending++
		m.tasks.run(func(ctx context.Context) {
			left := m.copies.heal(ctx, a.Digest, rec.Size, a.Pieces, a.From)
			m.do(func(b *batch) {
				m.mending--
				m.mended(b, a.Digest, rec.Size, len(left) < len(a.Pieces))
				b.then(m.healNext)
			})
		})
	}
}

// mended notes how far it is with a blob of which pieces were to be replaced. If none could, it is not tried again for a while.
func (m *member) mended(b *batch, d digest.Digest, size int64, some bool) {
	h := m.healing[d]
	look := func(b *batch) {
		wrong := m.copies.wrong(d, size)
		if h.under = false; len(wrong) == 0 || !m.ring.Pinned(d) {
			delete(m.healing, d)
		}
		b.step(ringstate.EvBad{Digest: d, Pieces: wrong})
		b.then(func() { m.release(d) }) // it may have been given up meanwhile
	}
	if h.pause = min(max(2*h.pause, healPauseMin), healPauseMax); some {
		h.pause = 0
		look(b)
		return
	}
	time.AfterFunc(h.pause, func() { m.do(look) }) // if that is after the end, nobody minds
}

func (m *member) backend(a ringstate.ActBackend) {
	rec := ringstate.Only(m.record(a.Digest), a.Place)
	if rec == nil {
		rec = &record.Record{Digest: a.Digest}
	}
	var places chan struct{} // nil: the ring says how many there are at once
	switch a.Do {
	case ringstate.Write:
		places = m.writers
	case ringstate.Erase:
		places = m.erasers
	}
	m.tasks.run(func(ctx context.Context) {
		if places != nil {
			select {
			case places <- struct{}{}:
				defer func() { <-places }()
			case <-ctx.Done():
				return
			}
		}
		found, beside, err := m.objects.do(ctx, a.Do, rec, a.Place)
		logged(ctx, err, a.Digest, "a backend does not do what it is to, trying again")
		m.do(func(b *batch) {
			b.step(&ringstate.EvBackend{ID: a.ID, Local: b.local(a.Digest), OK: err == nil, Found: found, Beside: beside})
			if err != nil {
				m.tell(a.Digest, fmt.Errorf("%s is kept here, but its backend does not have it yet: %w: %w", a.Digest, err, errdefs.ErrUnavailable))
			}
		})
	})
}
