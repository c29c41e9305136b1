package replicate

import "time"

// leaseState is what a worker knows of its rule's lease.
type leaseState struct {
	busy    bool // it is being read or written
	lease   Lease
	version string
	seen    time.Time // since when it is known in this version
	look    time.Time // when it is to be read or renewed
	writing *Lease    // what was written last, if it is not known to be there

	mine  bool
	term  uint64
	since time.Time // when this term began
	from  time.Time // when the write began that is known to have succeeded
	began time.Time // when the present write began
}

func (w *Worker) runLease(now time.Time) {
	l := &w.lease
	if l.mine && !now.Before(l.from.Add(leaseUse)) {
		w.lost()
	}
	if l.busy || now.Before(l.look) {
		return
	}
	if l.mine {
		w.write(now, Lease{w.me, l.term, l.lease.Renewal + 1})
		return
	}
	l.busy = true
	w.out = append(w.out, ReadLease{})
}

func (w *Worker) write(now time.Time, to Lease) {
	l := &w.lease
	l.busy, l.writing, l.began = true, &to, now
	w.out = append(w.out, WriteLease{to, l.version})
}

func (w *Worker) leaseRead(now time.Time, e LeaseRead) {
	l := &w.lease
	if w.stopped {
		return
	}
	l.busy = false
	l.look = now.Add(leaseLook)
	if e.Failed {
		return
	}
	if l.mine && (e.Lease.Holder != w.me || e.Lease.Term != l.term) {
		w.lost()
	}
	if e.Version != l.version || l.seen.IsZero() {
		l.lease, l.version, l.seen = e.Lease, e.Version, now
	}
	if l.writing != nil && e.Lease == *l.writing { // it was written all the same
		w.held(now)
		return
	}
	if l.mine {
		l.look = now.Add(time.Second) // it was not written
		return
	}
	if e.Lease.Holder == "" || now.Sub(l.seen) >= LeaseFor {
		w.write(now, Lease{w.me, e.Lease.Term + 1, e.Lease.Renewal + 1})
	}
}

func (w *Worker) leaseWritten(now time.Time, e LeaseWritten) {
	l := &w.lease
	if w.stopped {
		return
	}
	l.busy = false
	if e.Failed {
		l.busy = true // what is there? Until that is known, or the lease has run out, it is what it was
		w.out = append(w.out, ReadLease{})
		return
	}
	l.lease, l.version, l.seen = *l.writing, e.Version, now
	w.held(now)
}

// held: the lease that was written is what is there.
func (w *Worker) held(now time.Time) {
	l := &w.lease
	wrote := *l.writing
	l.writing = nil
	l.look, l.from = l.began.Add(leaseRenew), l.began
	if l.mine && l.term == wrote.Term {
		return
	}
	l.mine, l.term, l.since = true, wrote.Term, now
	w.list = listing{busy: w.list.busy, next: now}
	w.unpark.next = now.Add(unparkEach)
	w.walk.load(now)
}

// lost: somebody else may have the lease, or has it.
func (w *Worker) lost() {
	w.lease.mine = false
	w.tasks, w.queue, w.running = map[Key]*task{}, nil, 0
	w.failures = 0
	w.out = append(w.out, Cancel{})
}

func (w *Worker) stop() {
	if w.lease.mine {
		w.lost()
		w.out = append(w.out, WriteLease{Lease{"", w.lease.term, w.lease.lease.Renewal + 1}, w.lease.version})
	}
	w.stopped = true
}
