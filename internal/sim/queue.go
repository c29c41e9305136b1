package sim

import "github.com/capelin-io/capelin/swarm"

type kind uint8

const (
	kTick kind = iota
	kEvent
	kFree    // the uplink can begin with the next block; conn's has left the host, if given
	kSent    // conn's block has left the host and the zone
	kControl // the run's own
)

type event struct {
	at   int64
	seq  uint64
	h    *host
	ev   swarm.Event
	conn *conn
	fn   func()
	n    int32
	kind kind
}

// Events wait in slots of time, unsorted, each of slotLen; those of the present
// slot in a heap, by time and then by order of scheduling; those beyond the
// horizon in another.
const (
	slotLen = 1 << 14 // ns
	slots   = 1 << 15 // half a second in all
)

type queue struct {
	near, far heap
	slots     [slots][]event
	at        int64 // the slot that near is for
	n         int   // events in slots
	seq       uint64
}

func (q *queue) push(e event) {
	q.seq++
	e.seq = q.seq
	switch slot := e.at / slotLen; {
	case slot <= q.at:
		q.near.push(e)
	case slot < q.at+slots:
		k := slot % slots
		q.slots[k] = append(q.slots[k], e)
		q.n++
	default:
		q.far.push(e)
	}
}

// pop returns the next event; ok is false if there is none.
func (q *queue) pop() (e event, ok bool) {
	for len(q.near) == 0 {
		switch {
		case q.n > 0:
			q.at++
		case len(q.far) > 0:
			q.at = q.far[0].at / slotLen
		default:
			return event{}, false
		}
		k := q.at % slots
		for _, e := range q.slots[k] {
			q.near.push(e)
		}
		q.n -= len(q.slots[k])
		clear(q.slots[k])
		q.slots[k] = q.slots[k][:0]
		for len(q.far) > 0 && q.far[0].at/slotLen <= q.at {
			q.near.push(q.far.pop())
		}
	}
	return q.near.pop(), true
}

type heap []event

func (e *event) less(o *event) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

func (h *heap) push(e event) {
	*h = append(*h, e)
	q := *h
	k := len(q) - 1
	for k > 0 {
		up := (k - 1) / 4
		if !q[k].less(&q[up]) {
			break
		}
		q[k], q[up] = q[up], q[k]
		k = up
	}
}

func (h *heap) pop() event {
	q := *h
	e := q[0]
	last := len(q) - 1
	q[0] = q[last]
	q[last] = event{}
	q = q[:last]
	*h = q
	k := 0
	for {
		best := k
		for c := 4*k + 1; c <= 4*k+4 && c < last; c++ {
			if q[c].less(&q[best]) {
				best = c
			}
		}
		if best == k {
			return e
		}
		q[k], q[best] = q[best], q[k]
		k = best
	}
}
