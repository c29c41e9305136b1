package replicate

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/capelin-io/capelin/control/index"
)

const (
	maxTasks  = 16384 // keys with intents that a worker has in memory, about 8 MiB
	listPage  = 1000
	walkEvery = 10 * time.Minute // between two walks
	sweepEach = 10 * time.Minute
	remoteFor = time.Minute // files that a rule names are read again
	stopFor   = 5 * time.Second
)

// Config is what a Service works with.
type Config struct {
	Outbox  *Outbox
	Index   Index
	Origin  Origin
	Cluster string
	Metrics prometheus.Registerer
}

// Service brings what one index has to where the rules say. Others over the same storage have theirs: for each rule one works at a time.
type Service struct {
	Config
	m *metrics
}

// New returns a service. It does nothing before Run.
func New(cfg Config) *Service { return &Service{Config: cfg, m: newMetrics(cfg.Metrics)} }

// Run works until ctx is done, and gives its leases back then. It returns when all that it has begun has ended.
func (s *Service) Run(ctx context.Context) error {
	type started struct {
		r    *runner
		stop context.CancelFunc
	}
	var all sync.WaitGroup
	defer all.Wait()
	runs := map[string]started{}
	changed := make(chan struct{}, 1)
	defer s.Outbox.onWritten(func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	})()
	var swept time.Time
	var failed bool
	for {
		rules, err := s.Outbox.Rules(ctx)
		if err != nil && ctx.Err() == nil && !failed {
			log.G(ctx).WithError(err).Warn("cannot read the rules of replication")
		}
		failed = err != nil
		is := map[string]bool{}
		for i := range rules {
			r := &rules[i]
			is[r.Name] = true
			switch run, ok := runs[r.Name]; {
			case r.Broken != nil:
				is[r.Name] = false
			case ok:
				run.r.setRule(r)
			default:
				rctx, stop := context.WithCancel(ctx)
				run := started{newRunner(s, r), stop}
				runs[r.Name] = run
				all.Go(func() { run.r.run(rctx) })
			}
		}
		for name, run := range runs {
			if err == nil && !is[name] {
				run.stop()
				delete(runs, name)
			}
		}
		if err == nil && time.Since(swept) > sweepEach {
			swept = time.Now()
			if err := s.Outbox.Sweep(ctx); err != nil && ctx.Err() == nil {
				log.G(ctx).WithError(err).Warn("cannot remove what is left of rules that are gone")
			}
		}
		select {
		case <-ctx.Done():
			for _, run := range runs {
				run.stop()
			}
			return nil
		case <-changed:
		case <-time.After(rulesFor):
		}
	}
}

// runner is a rule's worker with its hands.
type runner struct {
	s      *Service
	name   string
	rule   atomic.Pointer[Rule]
	events chan Event
	ended  chan struct{}
	sent   atomic.Int64

	mu     sync.Mutex
	remote *remote
	of     string    // the rule's version
	since  time.Time // when it was made
	term   context.Context
	cancel context.CancelFunc
}

func newRunner(s *Service, r *Rule) *runner {
	n := &runner{s: s, name: r.Name, events: make(chan Event, 64), ended: make(chan struct{})}
	n.rule.Store(r)
	return n
}

func (r *Rule) is() RuleIs {
	return RuleIs{Version: r.Version, Parallel: r.Parallel, Rate: float64(r.Reconcile), Every: walkEvery}
}

// setRule tells a change.
func (n *runner) setRule(r *Rule) {
	if n.rule.Swap(r).Version != r.Version {
		n.post(r.is())
	}
}

// post tells the worker, unless it has ended.
func (n *runner) post(e Event) {
	select {
	case n.events <- e:
	case <-n.ended:
	}
}

func (n *runner) run(ctx context.Context) {
	ctx = log.WithLogger(ctx, log.G(ctx).WithField("rule", n.name))
	defer n.release()
	var hands sync.WaitGroup
	defer hands.Wait()
	defer close(n.ended)
	n.term, n.cancel = context.WithCancel(ctx)
	defer func() { n.cancel() }()
	defer n.s.m.forget(n.name)
	nudge := make(chan struct{}, 1)
	defer n.s.Outbox.onWritten(func() {
		select {
		case nudge <- struct{}{}:
		default:
		}
	})()
	w := NewWorker(rand.Text(), n.rule.Load().is(), maxTasks)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var e Event = Tick{}
		select {
		case <-ctx.Done():
			n.stop(ctx, w)
			return
		case e = <-n.events:
		case <-nudge:
			e = Nudge{}
		case <-timer.C:
		}
		for _, a := range w.Step(time.Now(), e) {
			if _, ok := a.(Cancel); ok {
				n.cancel()
				n.term, n.cancel = context.WithCancel(ctx) //nolint:fatcontext // ctx stays
				continue
			}
			term := n.term
			hands.Go(func() { n.post(n.perform(ctx, term, a)) })
		}
		now := time.Now()
		n.s.m.state(n.name, w.Status(now))
		timer.Reset(max(w.Next(now).Sub(now), 0))
	}
}

// stop gives the lease back.
func (n *runner) stop(ctx context.Context, w *Worker) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopFor)
	defer cancel()
	for _, a := range w.Step(time.Now(), Stop{}) {
		if l, ok := a.(WriteLease); ok {
			n.writeLease(ctx, l)
		}
	}
}

// perform does what a worker wants. What is of a term ends with it.
func (n *runner) perform(ctx, term context.Context, a Action) Event {
	o := n.s.Outbox
	switch a := a.(type) {
	case ReadLease:
		var l leaseObject
		info, err := o.get(ctx, leasesPrefix+n.name, &l)
		if errdefs.IsNotFound(err) {
			return LeaseRead{}
		}
		return LeaseRead{Lease: l.Lease, Version: info.Version, Failed: n.note(ctx, err)}
	case WriteLease:
		return n.writeLease(ctx, a)
	case List:
		return n.list(ctx, a.From)
	case Deliver:
		return n.deliver(term, a)
	case Remove:
		return Removed{Key: a.Key, Term: a.Term, Failed: n.note(ctx, n.remove(ctx, a))}
	case Park:
		return n.park(ctx, a)
	case LoadWalk:
		var obj walkObject
		_, err := o.get(ctx, walksPrefix+n.name, &obj)
		if errdefs.IsNotFound(err) {
			err = nil
		}
		return WalkIs{Cursor: obj.Cursor, Rule: obj.Rule, Failed: n.note(ctx, err)}
	case Walk:
		return n.walk(term, a)
	case Unpark:
		_, err := o.Retry(ctx, n.name, index.RetryOptions{})
		return Unparked{Failed: n.note(ctx, err)}
	}
	panic(fmt.Sprintf("replicate: no way to do %T", a))
}

// note logs an error that ends nothing, and reports whether there is one.
func (n *runner) note(ctx context.Context, err error) bool {
	if err != nil && ctx.Err() == nil {
		log.G(ctx).WithError(err).Warn("replication: it is tried again")
	}
	return err != nil
}

func (n *runner) writeLease(ctx context.Context, a WriteLease) Event {
	o := n.s.Outbox
	data, err := encode(&leaseObject{formatVersion, a.Lease})
	if err != nil {
		return LeaseWritten{Failed: n.note(ctx, err)}
	}
	info, err := o.backend.WriteIf(ctx, leasesPrefix+n.name, data, a.Version)
	if errdefs.IsConflict(err) {
		return LeaseWritten{Failed: true}
	}
	return LeaseWritten{Version: info.Version, Failed: n.note(ctx, err)}
}

func (n *runner) list(ctx context.Context, from string) Event {
	o, prefix := n.s.Outbox, OutboxPrefix+n.name+"/"
	page, more, err := o.backend.List(ctx, prefix, from, listPage)
	if err != nil {
		return Listed{Failed: n.note(ctx, o.failed("listing", prefix, err))}
	}
	var l Listed
	for _, info := range page {
		i, err := parseIntent(n.name, info.Key)
		if err != nil {
			n.note(ctx, err)
			continue
		}
		if !info.Modified.IsZero() {
			i.Age = max(time.Since(info.Modified), 0)
		}
		l.Intents = append(l.Intents, i)
	}
	if more && len(page) > 0 {
		l.Next = page[len(page)-1].Key
	}
	return l
}

func (n *runner) remove(ctx context.Context, a Remove) error {
	for _, r := range a.Revisions {
		if err := n.s.Outbox.remove(ctx, intentKey(n.name, a.Key, r)); err != nil {
			return err
		}
	}
	return nil
}

func parkedKey(rule string, k Key) string { return ParkedPrefix + rule + "/" + keyPath(k) }

func (n *runner) park(ctx context.Context, a Park) Event {
	log.G(ctx).WithFields(log.Fields{"repository": a.Key.Repository, "tag": a.Key.Tag, "digest": a.Key.Digest, "reason": a.Reason}).
		Warn("replication: refused, tried again in an hour, or by \"capelin index replicate retry\": " + a.Error)
	o, failed := n.s.Outbox, Removed{Key: a.Key, Term: a.Term, Failed: true}
	key := parkedKey(n.name, a.Key)
	since := time.Now().UTC().Round(0)
	var was parkedObject
	if _, err := o.get(ctx, key, &was); err == nil {
		since = was.Since
	}
	text := a.Error
	if len(text) > 4<<10 {
		text = text[:4<<10]
	}
	last := a.Revisions[len(a.Revisions)-1]
	if n.note(ctx, o.put(ctx, key, &parkedObject{formatVersion, last, a.Reason, text, since})) || n.note(ctx, n.remove(ctx, a.Remove)) {
		return failed
	}
	return Removed{Key: a.Key, Term: a.Term}
}

// to returns the remote of the present rule.
func (n *runner) to() (*remote, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.rule.Load()
	if n.remote != nil && n.of == r.Version && time.Since(n.since) < remoteFor {
		return n.remote, nil
	}
	o, err := newRemote(r, &n.sent)
	if err != nil {
		return nil, err
	}
	if n.remote != nil {
		n.remote.close()
	}
	n.remote, n.of, n.since = o, r.Version, time.Now()
	return o, nil
}

// release closes connections.
func (n *runner) release() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.remote != nil {
		n.remote.close()
		n.remote = nil
	}
}

func (n *runner) begin(ctx context.Context, repo string) (*delivery, error) {
	o, err := n.to()
	if err != nil {
		return nil, err
	}
	return newDelivery(ctx, n.s.Index, n.s.Origin, n.s.Cluster, o, repo)
}

func (n *runner) deliver(ctx context.Context, a Deliver) Event {
	start := time.Now()
	e := Delivered{Key: a.Key, Term: a.Term}
	d, err := n.begin(ctx, a.Key.Repository)
	if err == nil {
		e.Foreign = d.foreign
		if a.Key.Tag != "" {
			e.Revision, err = d.tag(ctx, a.Key.Tag, a.Known)
		} else {
			var recorded bool
			if recorded, err = d.referrer(ctx, a.Key.Digest); recorded || err != nil {
				e.Revision = 1
			}
		}
	} else if a.Key.Tag == "" {
		e.Revision = 1
	} else if t, terr := n.s.Index.TagState(ctx, a.Key.Repository, a.Key.Tag); terr == nil {
		e.Revision = t.Revision // that could not be delivered
	}
	e.Outcome, e.Reason = classify(err)
	n.s.m.delivered(n.name, e.Outcome, n.sent.Swap(0))
	if err != nil {
		e.Error = err.Error()
	}
	l := log.G(ctx).WithFields(log.Fields{"repository": a.Key.Repository, "tag": a.Key.Tag, "digest": a.Key.Digest, "revision": e.Revision,
		"took": time.Since(start).Round(time.Millisecond)})
	switch {
	case e.Outcome == Done && e.Revision != a.Known:
		l.Debug("replication: delivered")
	case e.Outcome == Later && ctx.Err() == nil && !errors.Is(err, context.Canceled):
		l.WithError(err).Debug("replication: tried again later")
	}
	return e
}
