package replicate

import (
	"cmp"
	"container/heap"
	"hash/fnv"
	"slices"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/internal/posheap"
)

// Times of a Worker.
const (
	// LeaseFor: others take a lease that has not changed for so long of their own clocks. The holder stops using it a
	// little earlier after it began to write it.
	LeaseFor   = 30 * time.Second
	leaseUse   = LeaseFor - 5*time.Second
	leaseRenew = 10 * time.Second
	leaseLook  = 5 * time.Second

	listEach   = time.Second
	nudgeEach  = 100 * time.Millisecond
	settleFor  = time.Minute // a new holder keeps intents for a foreign registry
	firstWait  = time.Second
	maxWait    = 5 * time.Minute
	unparkEach = time.Hour
	recordWait = 24 * time.Hour // for a manifest whose intent was written
	// rulesAge is how long an index may go on without a rule that others have set: what it remembers of rules, and an
	// operation that began before.
	rulesAge = 75 * time.Second

	outageAfter = 4 // failures without a success in between
)

// Key is what is delivered: a tag, or a manifest with a subject.
type Key struct {
	Repository string
	Tag        string        // "": a manifest
	Digest     digest.Digest // "": a tag
}

// Intent is one that was listed. A manifest's has revision 1.
type Intent struct {
	Key      Key
	Revision uint64
	Age      time.Duration // about; 0: not known
}

// Lease is what the storage has of a rule's lease. Each write of it is different from all others.
type Lease struct {
	Holder  string `json:"holder"` // "": nobody's
	Term    uint64 `json:"term"`   // grows by one with each holder
	Renewal uint64 `json:"renewal"`
}

// Outcome is how a delivery ended.
type Outcome int

const (
	// Done: the remote has the state that was read, or a later one.
	Done Outcome = iota
	// Later: somebody was not there, or had too much to do.
	Later
	// Refused: it will not go through until somebody does something about it.
	Refused
)

// Event is one of those below. All but Tick, Nudge, RuleIs and Stop are answers to an Action, each exactly once.
type Event interface{ event() }

type (
	// LeaseRead answers ReadLease. Version "": there is none.
	LeaseRead struct {
		Lease   Lease
		Version string
		Failed  bool
	}
	// LeaseWritten answers WriteLease. Failed: somebody else was faster, or nobody knows.
	LeaseWritten struct {
		Version string
		Failed  bool
	}
	// Listed answers List.
	Listed struct {
		Intents []Intent
		Next    string // where the next page begins; "": there is none
		Failed  bool
	}
	// Delivered answers Deliver.
	Delivered struct {
		Key      Key
		Term     uint64
		Revision uint64 // that was read; 0: none was, or the manifest is not recorded
		Foreign  bool   // the remote does not order what comes by its stamp
		Outcome  Outcome
		Reason   string // of Refused, a word for metrics
		Error    string
	}
	// Removed answers Remove, and Park.
	Removed struct {
		Key    Key
		Term   uint64
		Failed bool
	}
	// WalkIs answers LoadWalk: how far another one, or this one in another term, has come.
	WalkIs struct {
		Cursor string
		Rule   string // the version of the rule for which it was
		Failed bool
	}
	// Walked answers Walk.
	Walked struct {
		Pass   uint64
		Next   string // "": that was the last page
		Tags   int
		Failed bool
	}
	// Unparked answers Unpark.
	Unparked struct{ Failed bool }
	// Nudge: this index has written an intent.
	Nudge struct{}
	// RuleIs: the rule, in this version. What is under way ends as it began.
	RuleIs struct {
		Version  string
		Parallel int     // deliveries at once, at least 1
		Rate     float64 // tags per second of a walk
		Every    time.Duration
	}
	// Stop: the worker gives its lease back, and does nothing more.
	Stop struct{}
	// Tick: time has passed.
	Tick struct{}
)

func (LeaseRead) event()    {}
func (LeaseWritten) event() {}
func (Listed) event()       {}
func (Delivered) event()    {}
func (Removed) event()      {}
func (WalkIs) event()       {}
func (Walked) event()       {}
func (Unparked) event()     {}
func (Nudge) event()        {}
func (RuleIs) event()       {}
func (Stop) event()         {}
func (Tick) event()         {}

// Action is one of those below. Those that are answered may be performed at once, beside each other.
type Action interface{ action() }

type (
	// ReadLease reads the rule's lease.
	ReadLease struct{}
	// WriteLease writes it, if Version is what is there.
	WriteLease struct {
		Lease   Lease
		Version string
	}
	// List lists a page of pending intents.
	List struct{ From string }
	// Deliver reads a tag, or a manifest's record, and brings it to the remote. If its revision is Known nothing has to
	// be done.
	Deliver struct {
		Key   Key
		Term  uint64
		Known uint64
	}
	// Remove removes pending intents.
	Remove struct {
		Key       Key
		Term      uint64
		Revisions []uint64
	}
	// Park writes that a key is parked, and then removes its pending intents.
	Park struct {
		Remove
		Reason, Error string
	}
	// LoadWalk reads how far the walk has come.
	LoadWalk struct{}
	// Walk compares a page of tags with the remote, writes intents for those that differ, and then how far it has come.
	Walk struct {
		From string
		Rule string
		Pass uint64
	}
	// Unpark makes pending intents of all that are parked.
	Unpark struct{}
	// Cancel: the lease is lost; deliveries are to be broken off. Nothing that is under way is waited for.
	Cancel struct{}
)

func (ReadLease) action()  {}
func (WriteLease) action() {}
func (List) action()       {}
func (Deliver) action()    {}
func (Remove) action()     {}
func (Park) action()       {}
func (LoadWalk) action()   {}
func (Walk) action()       {}
func (Unpark) action()     {}
func (Cancel) action()     {}

// Worker decides what an index does for one rule. It is a value without clock and I/O: Step takes what has happened, and
// returns what is to be done. The zero value is of no use; see NewWorker. It is not safe for concurrent use.
//
// # Lossless by order
//
// An intent is written before the tag that it is for, and names the revision that the tag is to become. Intents are listed
// first, then the tag is read, then that state is delivered, and then intents of revisions up to the delivered one are
// removed. So an intent whose tag is written later than it was read stays: it is of a higher revision. The write that an
// intent of a lower one announced can no longer succeed.
//
// # The lease
//
// Whoever holds the lease works. It has run out when it has not changed for LeaseFor of the clock of whoever wants it; clocks
// are never compared. The holder counts from when it began to write. A holder that was stopped may still deliver
// afterwards, an old state at that: remotes that know stamps do not go back, and for others a new holder keeps intents for a minute and
// then delivers once more.
type Worker struct {
	me   string
	rule RuleIs

	lease   leaseState
	stopped bool

	tasks    map[Key]*task
	queue    posheap.Heap[*task]
	maxTasks int
	running  int
	seq      uint64
	failures int // deliveries that were put off since the last that was done
	list     listing
	walk     walkState
	unpark   struct {
		busy bool
		next time.Time
	}

	out []Action
}

// NewWorker returns a worker. me is unlike any other's, also of this process before it was restarted.
func NewWorker(me string, rule RuleIs, maxTasks int) *Worker {
	return &Worker{me: me, rule: rule, tasks: map[Key]*task{}, maxTasks: maxTasks}
}

type taskState int

const (
	queued   taskState = iota
	running            // Deliver
	removing           // Remove or Park
	finished           // remembered until a listing that began later has ended: one that began earlier may still name it
)

// task is a key with intents.
type task struct {
	key       Key
	revisions []uint64 // of intents, ascending
	since     time.Time
	state     taskState
	due       time.Time
	seq       uint64
	at        int // in the queue, while it is queued
	tries     int
	delivered uint64    // the highest revision, in this term
	settled   bool      // delivered after a new holder's minute
	removing  []uint64  // revisions
	ended     time.Time // finished
}

// listing is a pass through the pending intents.
type listing struct {
	busy  bool
	from  string
	start time.Time
	next  time.Time
	pages int
	again bool // nudged meanwhile
}

// Step takes an event. Times are of a clock that never goes back.
func (w *Worker) Step(now time.Time, e Event) []Action {
	w.out = nil
	switch e := e.(type) {
	case LeaseRead:
		w.leaseRead(now, e)
	case LeaseWritten:
		w.leaseWritten(now, e)
	case Listed:
		w.listed(now, e)
	case Delivered:
		w.delivered(now, e)
	case Removed:
		w.removed(now, e)
	case WalkIs:
		w.walkIs(now, e)
	case Walked:
		w.walked(now, e)
	case Unparked:
		w.unpark.busy = false
		w.unpark.next = now.Add(unparkEach)
		if e.Failed {
			w.unpark.next = now.Add(maxWait)
		}
	case Nudge:
		w.list.again = true
	case RuleIs:
		if e.Version != w.rule.Version {
			w.walk.anew(now)
		}
		w.rule = e
	case Stop:
		w.stop()
	}
	w.run(now)
	return w.out
}

// run begins whatever is due.
func (w *Worker) run(now time.Time) {
	if w.stopped {
		return
	}
	w.runLease(now)
	if !w.lease.mine {
		return
	}
	for w.running < max(w.rule.Parallel, 1) && len(w.queue) > 0 && !w.queue[0].due.After(now) {
		t := heap.Pop(&w.queue).(*task)
		t.state = running
		w.running++
		known := uint64(0)
		if t.settled { // what is left is of later revisions
			known = t.delivered
		}
		w.out = append(w.out, Deliver{t.key, w.lease.term, known})
	}
	w.runList(now)
	w.runWalk(now)
	if !w.unpark.busy && !now.Before(w.unpark.next) {
		w.unpark.busy = true
		w.out = append(w.out, Unpark{})
	}
}

// Next returns when Step wants a Tick, if nothing happens before.
func (w *Worker) Next(now time.Time) time.Time {
	next := now.Add(time.Hour)
	at := func(t time.Time, busy bool) {
		if !busy && t.Before(next) {
			next = t
		}
	}
	if w.stopped {
		return next
	}
	if !w.lease.mine {
		at(w.lease.look, w.lease.busy)
		return next
	}
	at(w.lease.from.Add(leaseUse), false)
	at(w.lease.look, w.lease.busy)
	if len(w.queue) > 0 {
		at(w.queue[0].due, w.running >= max(w.rule.Parallel, 1))
	}
	at(w.list.due(), w.list.busy)
	at(w.walk.next, w.walk.busy)
	at(w.unpark.next, w.unpark.busy)
	return next
}

// enqueue has a task be done at a time.
func (w *Worker) enqueue(t *task, due time.Time) {
	w.seq++
	t.state, t.due, t.seq = queued, due, w.seq
	heap.Push(&w.queue, t)
}

// putOff enqueues a task for later: the later, the oftener it failed.
func (w *Worker) putOff(t *task, now time.Time) {
	t.tries++
	w.enqueue(t, now.Add(wait(t.key, t.tries)))
}

// wait doubles up to maxWait, and differs by a quarter from key to key.
func wait(k Key, tries int) time.Duration {
	d := maxWait
	if tries < 16 {
		d = min(firstWait<<(tries-1), maxWait)
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(k.Repository + ":" + k.Tag + string(k.Digest) + string(rune(tries))))
	return d - d/4*time.Duration(h.Sum32()%1000)/1000
}

func (w *Worker) delivered(now time.Time, e Delivered) {
	t := w.tasks[e.Key]
	if t == nil || t.state != running || e.Term != w.lease.term {
		return // of an earlier term
	}
	w.running--
	if e.Outcome == Later {
		w.failures++
		w.putOff(t, now)
		return
	}
	if e.Outcome == Done {
		w.recovered(now)
	}
	revision := e.Revision
	if e.Key.Digest != "" && revision == 0 && now.Sub(t.since) > recordWait {
		revision = 1
	}
	var covered []uint64
	for _, r := range t.revisions {
		if r <= revision {
			covered = append(covered, r)
		}
	}
	if e.Outcome == Done && e.Foreign && now.Before(w.lease.since.Add(settleFor)) {
		w.enqueue(t, w.lease.since.Add(settleFor))
		return
	}
	if e.Outcome == Done {
		t.delivered, t.settled = max(t.delivered, revision), true
	}
	if len(covered) == 0 { // the tag is to be written yet, or never will be
		w.putOff(t, now)
		return
	}
	t.state, t.removing = removing, covered
	remove := Remove{t.key, w.lease.term, covered}
	if e.Outcome == Refused {
		w.out = append(w.out, Park{remove, e.Reason, e.Error})
		return
	}
	w.out = append(w.out, remove)
}

// recovered has all that was put off while nothing went through be tried at once.
func (w *Worker) recovered(now time.Time) {
	if w.failures >= outageAfter {
		for _, t := range w.queue {
			if t.tries > 0 && !t.settled {
				t.due, t.tries = now, 0
			}
		}
		heap.Init(&w.queue)
	}
	w.failures = 0
}

func (w *Worker) removed(now time.Time, e Removed) {
	t := w.tasks[e.Key]
	if t == nil || t.state != removing || e.Term != w.lease.term {
		return
	}
	t.revisions = slices.DeleteFunc(t.revisions, func(r uint64) bool { return slices.Contains(t.removing, r) })
	t.tries = 0
	if len(t.revisions) > 0 {
		w.enqueue(t, now)
		return
	}
	t.state, t.ended = finished, now
}

func (l *listing) due() time.Time {
	if l.again && l.from == "" && l.start.Add(nudgeEach).Before(l.next) {
		return l.start.Add(nudgeEach)
	}
	return l.next
}

func (w *Worker) runList(now time.Time) {
	l := &w.list
	if l.busy || now.Before(l.due()) {
		return
	}
	if l.from == "" {
		l.start, l.pages, l.again = now, 0, false
	}
	l.busy = true
	w.out = append(w.out, List{l.from})
}

func (w *Worker) listed(now time.Time, e Listed) {
	l := &w.list
	l.busy = false
	if !w.lease.mine {
		return
	}
	if e.Failed {
		l.next = now.Add(leaseLook)
		return
	}
	for _, i := range e.Intents {
		w.intent(now, i)
	}
	l.from = e.Next
	l.pages++
	l.next = now
	if e.Next != "" {
		w.makeRoom(now)
		return
	}
	// Long passes are not made all the time.
	l.next = l.start.Add(listEach * time.Duration(l.pages))
	for k, t := range w.tasks {
		if t.state == finished && t.ended.Before(l.start) {
			delete(w.tasks, k)
		}
	}
}

// intent notes one that was listed.
func (w *Worker) intent(now time.Time, i Intent) {
	t := w.tasks[i.Key]
	if t == nil {
		t = &task{key: i.Key, since: now.Add(-max(i.Age, 0))}
		w.tasks[i.Key] = t
		w.enqueue(t, now)
	}
	if t.state == finished {
		if i.Revision <= t.delivered {
			return // it is removed by now; one that is not is seen in the next pass
		}
		t.since = now.Add(-max(i.Age, 0))
		w.enqueue(t, now)
	}
	at, has := slices.BinarySearch(t.revisions, i.Revision)
	if has {
		return
	}
	t.revisions = slices.Insert(t.revisions, at, i.Revision)
	if t.state == queued && t.due.After(now) && i.Revision > t.delivered && t.tries > 0 && t.settled {
		t.tries = 0 // it was waiting for this one
		t.due = now
		heap.Fix(&w.queue, t.at)
	}
}

// makeRoom forgets tasks that were put off, those that are due last first, if there are too many. They are listed again.
func (w *Worker) makeRoom(now time.Time) {
	over := len(w.tasks) - w.maxTasks
	if over <= 0 {
		return
	}
	var late []*task
	for _, t := range w.queue {
		if t.due.After(now) {
			late = append(late, t)
		}
	}
	slices.SortFunc(late, func(a, b *task) int { return cmp.Or(b.due.Compare(a.due), cmp.Compare(a.seq, b.seq)) })
	for _, t := range late[:min(over, len(late))] {
		heap.Remove(&w.queue, t.at)
		delete(w.tasks, t.key)
		over--
	}
	if over > 0 { // all are due: first things first
		w.list.next = now.Add(listEach)
	}
}

// Before is posheap.Item's: the earliest first.
func (t *task) Before(o *task) bool {
	return cmp.Or(t.due.Compare(o.due), cmp.Compare(t.seq, o.seq)) < 0
}

// Place is posheap.Item's.
func (t *task) Place() *int { return &t.at }
