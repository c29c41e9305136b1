package tracker

import (
	"slices"
	"testing"
	"time"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

// box is an outbox whose blobs are facts of a table.
type box struct {
	t *testing.T
	outbox
	now   time.Time
	blobs map[piece.ID]facts
}

func newBox(t *testing.T, offers bool, bulk ...piece.ID) *box {
	return &box{t: t, outbox: newOutbox(offers, bulk), now: time.Unix(1000, 0), blobs: map[piece.ID]facts{}}
}

// is sets what the node has of a blob.
func (b *box) is(id piece.ID, s State) { b.blobs[id] = facts{state: s, downloaded: -1} }

func (b *box) of(id piece.ID) facts {
	if f, ok := b.blobs[id]; ok {
		return f
	}
	return facts{downloaded: -1}
}

// take returns the next message, which must be one that the protocol allows.
func (b *box) take() *trackerpb.FromAgent {
	b.t.Helper()
	m := b.message(b.now, b.of)
	if m != nil {
		if err := trackerpb.CheckBatch(m); err != nil {
			b.t.Fatal(err)
		}
	}
	return m
}

// rest takes all messages, and returns what they say in all: blobs announced as
// complete, in another state, and offered.
func (b *box) rest() (complete, other, offered int) {
	b.t.Helper()
	for m := b.take(); m != nil; m = b.take() {
		for _, v := range m.Inventory {
			complete += v.Blobs.Len()
		}
		other += len(m.Announces)
		for _, o := range m.Offers {
			offered += len(o.Blobs)
		}
	}
	return complete, other, offered
}

func numbered(n int) (ids []piece.ID) {
	for i := range n {
		ids = append(ids, benchID(i))
	}
	return ids
}

// What was there when the stream began waits for what is urgent, and is announced in
// batches of 500 to a tracker that does not answer offers.
func TestOutboxWithoutOffers(t *testing.T) {
	ids := numbered(1202)
	b := newBox(t, false, ids[:1200]...)
	for _, id := range ids[:1200] {
		b.is(id, StateComplete)
	}
	b.is(ids[5], StateGone)
	b.is(ids[6], StatePartial)
	b.is(ids[1201], StatePartial)
	b.mark(ids[1201], newsHave)
	if m := b.take(); len(m.Announces) != 1 || len(m.Inventory) != 0 {
		t.Errorf("first: %v, want the one that is urgent", m)
	}
	if m := b.take(); len(m.Inventory) != 1 || m.Inventory[0].Blobs.Len() < 450 || m.Inventory[0].Blobs.Len() > 500 {
		t.Errorf("then %d blobs", m.Inventory[0].Blobs.Len())
	}
	b.mark(ids[3], newsHave) // is urgent again
	if m := b.take(); m.Inventory[0].Blobs.Len() != 1 {
		t.Errorf("what is urgent waits for what is not: %v", m)
	}
	if complete, other, offered := b.rest(); complete < 600 || other != 0 || offered != 0 {
		t.Errorf("the rest: %d, %d, %d offered", complete, other, offered)
	}
}

// What is offered is announced as far as it is accepted; the rest is offered again when
// its time has come, and not announced meanwhile if it is told anew.
func TestOutboxOffers(t *testing.T) {
	ids := numbered(1501)
	b := newBox(t, true, ids...)
	for _, id := range ids {
		b.is(id, StateComplete)
	}
	b.is(ids[1500], StatePartial)
	if complete, other, offered := b.rest(); complete != 0 || other != 1 || offered != 1500 {
		t.Fatalf("before an answer: %d announced, %d in part, %d offered; want 0, 1 and 1500", complete, other, offered)
	}
	if len(b.offered) != 2 {
		t.Fatalf("%d offers, want 2", len(b.offered))
	}
	first, second := b.offered[0], b.offered[1]
	b.is(first[3], StateGone)
	b.mark(first[3], newsHave)
	accept := &trackerpb.Accept{AgainMs: 60_000}
	for i := range 10 {
		accept.Set(i)
	}
	accept.Set(len(first) + 7) // which was not offered
	b.answered(accept, b.now, b.of)
	if complete, other, offered := b.rest(); complete != 9 || other != 1 || offered != 0 {
		t.Errorf("10 accepted, one of which is gone: %d announced, %d others, %d offered", complete, other, offered)
	}
	b.answered(&trackerpb.Accept{AgainMs: 120_000}, b.now, b.of)
	b.answered(&trackerpb.Accept{}, b.now, b.of) // to nothing
	b.mark(second[0], newsHave)
	if m := b.take(); m != nil {
		t.Errorf("announced or offered although it is enough: %v", m)
	}
	b.asked(second[1]) // by a look-up
	if complete, _, offered := b.rest(); complete != 1 || offered != 0 {
		t.Errorf("asked for: %d announced, %d offered, want 1", complete, offered)
	}
	if want := b.now.Add(time.Minute); !b.next.Equal(want) {
		t.Errorf("due at %v, want %v", b.next, want)
	}
	b.now = b.now.Add(time.Minute - 1)
	b.expire(b.now)
	if m := b.take(); m != nil {
		t.Errorf("too early: %v", m)
	}
	b.now = b.now.Add(1)
	b.expire(b.now)
	if complete, _, offered := b.rest(); complete != 0 || offered != len(first)-10 {
		t.Errorf("after a minute: %d announced, %d offered; want %d", complete, offered, len(first)-10)
	}
	if !b.next.Equal(b.now.Add(time.Minute)) {
		t.Errorf("the second offer is due at %v", b.next)
	}
}

// What is over is told before anything that was said after it, and no message has more
// elements than the protocol allows.
func TestOutboxIsBounded(t *testing.T) {
	ids := numbered(400)
	lost := slices.Repeat([]string{"n"}, trackerpb.MaxLost)
	b := newBox(t, true)
	for i, id := range ids {
		pb := trackerpb.FromID(id)
		if i%2 > 0 {
			id.Alg = piece.SHA512 // each needs an Inventory of its own
		}
		b.blobs[id] = facts{state: StateComplete, downloaded: 1, want: &trackerpb.Want{Blob: pb, Lost: lost[:i%(trackerpb.MaxLost+1)]}}
		b.mark(id, newsHave|newsWant|newsDownload)
		b.done = append(b.done, &trackerpb.LeaseDone{Blob: pb, Outcome: trackerpb.Outcome_OUTCOME_FAILED})
		b.notHere = append(b.notHere, pb)
		b.disproved = append(b.disproved, &trackerpb.Disproved{Blob: pb, SumsHash: make([]byte, 32)})
	}
	large := &trackerpb.CommandResult{Blobs: make([]*trackerpb.Announce, trackerpb.MaxBatch/2)}
	for i := range large.Blobs {
		large.Blobs[i] = &trackerpb.Announce{Blob: trackerpb.FromID(ids[0]), State: trackerpb.State_STATE_COMPLETE}
	}
	b.results = []*trackerpb.CommandResult{large, large}
	counted := map[string]int{}
	var order []string
	for m := b.take(); m != nil; m = b.take() {
		for what, n := range map[string]int{
			"done": len(m.Done), "disproved": len(m.Disproved), "not here": len(m.NotHere), "results": len(m.Results),
			"wants": len(m.Wants), "progress": len(m.Progress), "announced": m.Announced(),
		} {
			if n > 0 && counted[what] == 0 {
				order = append(order, what)
			}
			counted[what] += n
		}
		if len(m.Wants) > 0 && (counted["done"] < 400 || counted["disproved"] < 400 || counted["not here"] < 400) {
			t.Errorf("wants after %v", counted)
		}
	}
	for what, want := range map[string]int{
		"done": 400, "disproved": 400, "not here": 400, "results": 2, "wants": 400, "progress": 400, "announced": 400,
	} {
		if counted[what] != want {
			t.Errorf("%s: %d, want %d", what, counted[what], want)
		}
	}
	if slices.Index(order, "done") != 0 {
		t.Errorf("the order is %v, want done first", order)
	}
}
