package ringstate

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/capelin-io/capelin/origind/record"

	digest "github.com/opencontainers/go-digest"
)

func digestOf(i int) digest.Digest {
	r := rand.New(rand.NewPCG(uint64(i), 5))
	return digest.Digest(fmt.Sprintf("sha256:%016x%016x%016x%016x", r.Uint64(), r.Uint64(), r.Uint64(), r.Uint64()))
}

func short(d digest.Digest) string { return string(d[7:13]) }

// placeOf is where blob i lives: every third one the ring keeps.
func placeOf(i int) record.Place {
	if i%3 == 0 {
		return record.Place{Backend: "kept"}
	}
	return record.Place{Backend: "store", Key: string(digestOf(i))}
}

// push has a client push blob i at n; done hears how that went.
func (n *node) push(i int, namespace string, done func(ok bool)) {
	w, d := n.w, digestOf(i)
	op := w.oracle.begin(d, namespace, true)
	if !n.up() || n.disk.full {
		w.oracle.fail(op, true)
		done(false)
		return
	}
	w.nextID++
	id := w.nextID
	mirrors := n.ring.Mirrors(string(d), w.cfg.MinReplicas-1, nil)
	n.has(d)
	n.disk.bytes[d].pinned = true
	for _, m := range mirrors {
		if m := w.node(m); m.up() && w.reaches(n.name, m.name) && !m.disk.full && w.rng.IntN(8) > 0 && !w.bare {
			m.has(d)
		}
	}
	n.acknowledges(id, op, fmt.Sprintf("push of %s to %s", short(d), namespace), done)
	n.step(&EvPut{ID: id, Digest: d, Size: 1000, Place: placeOf(i), Namespace: namespace, Mirrors: mirrors, Local: n.local(d)})
	if n.ring != nil && !n.ring.Pinned(d) {
		n.unpin(d) // the ring does not want it
	}
}

// acknowledges has a client hear what comes of its call, in time, and in this life of n.
func (n *node) acknowledges(id uint64, op *op, what string, done func(ok bool)) {
	w, life, over := n.w, n.life, false
	end := func(ok bool) {
		if over {
			return
		}
		over = true
		w.logf("%s: %s: %v", n.name, what, ok)
		if ok {
			w.oracle.end(op)
		} else {
			w.oracle.fail(op, false)
		}
		done(ok)
	}
	w.after(w.cfg.Push+15*time.Second, func() { end(false) })
	n.calls[id] = func(a Action) {
		if n.life == life {
			end(a.(ActDone).OK)
		}
	}
}

// remove has a client delete blob i at n.
func (n *node) remove(i int, namespace string, done func(ok bool)) {
	w, d := n.w, digestOf(i)
	op := w.oracle.begin(d, namespace, false)
	if !n.up() {
		w.oracle.fail(op, true)
		done(false)
		return
	}
	w.nextID++
	id := w.nextID
	op.vain = w.wrong > record.MaxLead/2 && w.store.away // as far as two clocks are apart
	n.acknowledges(id, op, fmt.Sprintf("deletion of %s from %s", short(d), namespace), done)
	n.step(&EvDelete{ID: id, Digest: d, Namespace: namespace, Place: placeOf(i), Local: n.local(d)})
}

// answer is what a client that reads is told.
type answer int

const (
	noAnswer answer = iota
	ok200
	no404
	no503
)

// read has a client read blob i at n.
func (n *node) read(i int, done func(answer)) {
	w, d := n.w, digestOf(i)
	if !n.up() {
		done(noAnswer)
		return
	}
	w.nextID++
	id := w.nextID
	began := w.now
	n.calls[id] = func(a Action) {
		f := a.(ActFound)
		got := no503
		switch f.Where {
		case Here:
			got = ok200
			unread := f.Unread && n.ring.now-n.ring.stale >= int64(w.cfg.Starting)
			w.oracle.served(d, unread, began, n.name)
		case Elsewhere:
			got = ok200
			w.oracle.served(d, f.Unread, began, f.Member)
		case Backend:
			st := n.store
			if m := w.node(f.Member); m != nil {
				st = m.store
			}
			there := st.objects[string(d)]
			switch {
			case st.away:
			case there:
				got = ok200
			case len(f.Missing) == 0:
				got = no404
				w.oracle.absent(d, n.name, began)
			}
		}
		done(got)
	}
	n.step(&EvLookup{ID: id, Digest: d, Local: n.local(d)})
}
