package tracker

import (
	"slices"
	"time"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

// outbox has what a tracker has not heard yet on the stream that is up. Of blobs it
// keeps only which have news: what these are is looked up when a message is made, so
// that a message says how things are then, and once.
//
// Messages are bounded by trackerpb.MaxBatch elements. What is over (done) goes first,
// then urgent blobs. What was there already when the stream began waits in bulk for
// all of these, and is offered first if the tracker answers offers (PROTOCOL.md,
// "Offers").
type outbox struct {
	offers bool // the tracker answers offers

	done      []*trackerpb.LeaseDone
	disproved []*trackerpb.Disproved
	notHere   []*trackerpb.Blob
	results   []*trackerpb.CommandResult

	news   map[piece.ID]news // of urgent ones
	urgent []piece.ID        // in the order of being marked

	bulk     []piece.ID   // what is offered before it is announced
	offered  [][]piece.ID // of each offer without an answer, oldest first
	accepted []piece.ID   // what was offered and is wanted

	enough map[piece.ID]time.Time // not to be announced as complete before
	next   time.Time              // no entry of enough is earlier; zero: there is none
}

// news is what a tracker has not heard of a blob.
type news uint8

const (
	newsHave news = 1 << iota
	newsWant
	newsDownload
)

// facts are what a tracker is to know of a blob.
type facts struct {
	state      State
	hash       *[32]byte
	downloaded int64           // bytes from upstream; -1: it is not fetched, or not reported yet
	registry   string          // of the download; empty: not known
	want       *trackerpb.Want // nil: it is not wanted
}

// newOutbox returns one for a new stream, with what is to be offered or announced in
// time.
func newOutbox(offers bool, bulk []piece.ID) outbox {
	return outbox{offers: offers, bulk: bulk, news: map[piece.ID]news{}, enough: map[piece.ID]time.Time{}}
}

// mark notes that there is news of a blob, which does not wait for what is in bulk.
func (o *outbox) mark(id piece.ID, what news) {
	old := o.news[id]
	if old == 0 {
		o.urgent = append(o.urgent, id)
	}
	o.news[id] = old | what
}

// refused notes until when the tracker does not want to hear that the node has a blob.
func (o *outbox) refused(id piece.ID, until time.Time) {
	o.enough[id] = until
	o.next = earlier(o.next, until)
}

// asked makes the tracker hear that the node has a blob, though it was refused once or
// is in bulk.
func (o *outbox) asked(id piece.ID) {
	delete(o.enough, id)
	o.mark(id, newsHave)
}

// expire puts into bulk what may be announced again.
func (o *outbox) expire(now time.Time) {
	if o.next.IsZero() || o.next.After(now) {
		return
	}
	o.next = time.Time{}
	var again []piece.ID
	for id, until := range o.enough {
		if until.After(now) {
			o.next = earlier(o.next, until)
			continue
		}
		delete(o.enough, id)
		again = append(again, id)
	}
	slices.SortFunc(again, compare)
	o.bulk = append(o.bulk, again...)
}

// answered takes in what the tracker says to its oldest offer.
func (o *outbox) answered(a *trackerpb.Accept, now time.Time, of func(piece.ID) facts) {
	if len(o.offered) == 0 {
		return
	}
	ids := o.offered[0]
	o.offered = o.offered[1:]
	for i, id := range ids {
		switch {
		case a.Has(i):
			o.accepted = append(o.accepted, id)
		case of(id).state == StateComplete:
			o.refused(id, now.Add(time.Duration(a.AgainMs)*time.Millisecond))
		}
	}
}

func (o *outbox) empty() bool {
	return len(o.urgent)+len(o.bulk)+len(o.accepted)+len(o.done)+len(o.disproved)+len(o.notHere)+len(o.results) == 0
}

// message makes the next message, or returns nil. of tells what is to be said of a
// blob.
func (o *outbox) message(now time.Time, of func(piece.ID) facts) *trackerpb.FromAgent {
	for !o.empty() {
		b := &batch{o: o, now: now, of: of}
		if b.fill(); b.n > 0 {
			return &b.m
		}
	}
	return nil
}

// batch is a message that is being made.
type batch struct {
	o   *outbox
	now time.Time
	of  func(piece.ID) facts
	m   trackerpb.FromAgent
	n   int // elements in m
}

func (b *batch) fill() {
	o := b.o
	take(b, &o.done, &b.m.Done)
	take(b, &o.disproved, &b.m.Disproved)
	take(b, &o.notHere, &b.m.NotHere)
	if len(o.done)+len(o.disproved)+len(o.notHere) > 0 { // before what was announced after them
		return
	}
	if len(o.results) > 0 { // one at a time: it may have many blobs
		b.m.Results, o.results = o.results[:1:1], o.results[1:]
		b.n++
		return
	}
	for len(o.urgent) > 0 && b.n+perBlob+trackerpb.MaxLost <= trackerpb.MaxBatch {
		id := o.urgent[0]
		o.urgent = o.urgent[1:]
		b.blob(id, o.news[id])
		delete(o.news, id)
	}
	if b.n > 0 {
		return
	}
	// By itself, and what is announced in not too large batches, so that neither the
	// tracker nor what is urgent meanwhile has to wait for it long.
	switch {
	case len(o.accepted) > 0:
		b.announce(&o.accepted)
	case o.offers:
		b.offer()
	default:
		b.announce(&o.bulk)
	}
}

// take moves as many elements into the message as have room in a quarter of it.
func take[E any](b *batch, from, to *[]E) {
	n := min(len(*from), max(trackerpb.MaxBatch/4-b.n, 0))
	*to, *from = (*from)[:n:n], (*from)[n:]
	b.n += n
}

// perBlob is how many elements one blob may be at most: what is had of it (which may
// need an Inventory of its own), a Want and a LeaseProgress; but for who is lost to a Want.
const perBlob = 4

// blob puts into the message what is news of a blob.
func (b *batch) blob(id piece.ID, what news) {
	f := b.of(id)
	if what&newsHave != 0 {
		b.have(id, f)
	}
	if what&newsDownload != 0 && f.downloaded >= 0 {
		b.m.Progress = append(b.m.Progress, &trackerpb.LeaseProgress{Blob: trackerpb.FromID(id), Bytes: f.downloaded, Registry: f.registry})
		b.n++
	}
	if what&newsWant != 0 {
		if f.want != nil {
			b.m.Wants = append(b.m.Wants, f.want)
			b.n += len(f.want.Lost)
		} else {
			b.m.Unwants = append(b.m.Unwants, trackerpb.FromID(id))
		}
		b.n++
	}
}

// have says what the node has of a blob, unless the tracker has enough of them.
func (b *batch) have(id piece.ID, f facts) {
	if f.state == StateComplete && !b.now.After(b.o.enough[id]) {
		return
	}
	delete(b.o.enough, id)
	b.n++
	if f.state != StateComplete {
		b.m.Announces = append(b.m.Announces, &trackerpb.Announce{Blob: trackerpb.FromID(id), State: trackerpb.State(f.state)})
		return
	}
	if v := b.m.Inventory; len(v) == 0 || !v[len(v)-1].Add(id, f.hash) { // of another algorithm
		one := &trackerpb.Inventory{}
		one.Add(id, f.hash)
		b.m.Inventory = append(v, one)
		b.n++
	}
}

// announce takes from what is not urgent. Of what is gone meanwhile there was news.
func (b *batch) announce(from *[]piece.ID) {
	for ; len(*from) > 0 && b.n+perBlob <= trackerpb.MaxBatch/2; *from = (*from)[1:] {
		id := (*from)[0]
		if f := b.of(id); f.state != StateGone {
			b.have(id, f)
		}
	}
}

// offer puts into the message the next of what is to be offered. What is not complete
// is announced without being asked for.
func (b *batch) offer() {
	o := b.o
	offer := &trackerpb.Offer{}
	var ids []piece.ID
	for ; len(o.bulk) > 0 && b.n+perBlob <= trackerpb.MaxBatch; o.bulk = o.bulk[1:] {
		id := o.bulk[0]
		switch f := b.of(id); {
		case f.state == StatePartial:
			b.have(id, f)
		case f.state == StateComplete && b.now.After(o.enough[id]):
			delete(o.enough, id)
			offer.Add(id, f.hash)
			ids = append(ids, id)
			b.n++
		}
	}
	if len(ids) > 0 {
		b.m.Offers = append(b.m.Offers, offer)
		o.offered = append(o.offered, ids)
	}
}
