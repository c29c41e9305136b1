package origind

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	lru "github.com/hashicorp/golang-lru/v2/simplelru"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/swarm/piece"
)

// place is where a blob that is not here can be read.
type place struct {
	id        piece.ID
	name      string // of the backend
	backend   fetcher.Backend
	key       string
	namespace string // that it was asked for as; may be empty
}

// source names where it is, for messages.
func (p place) source() string {
	if p.name == "" { // it is at members, not in a backend
		return p.backend.Name()
	}
	return "backend " + p.name
}

func (p place) at() record.Place { return record.Place{Backend: p.name, Key: p.key} }

// finder finds blobs that are not here: by their record, or by asking backends.
// All who ask for one at once share one look-up; whoever does not wait for its
// end leaves what it finds to the next.
type finder struct {
	cfg      LookupConfig
	backends Backends
	ledger   entryReader
	alive    aliveness
	tasks    *tasks // look-ups, which others may wait for than those who began them

	mu      sync.Mutex
	gen     uint64 // counts calls of forget
	flights map[origin.Ref]*flight
	known   *lru.LRU[digest.Digest, []answer]
	bad     *lru.LRU[digest.Digest, []badObject]
}

// entryReader says what is kept here of blobs.
type entryReader interface {
	get(d digest.Digest) (*record.Entry, error)
}

// aliveness says whether an object at a place where the blob was removed is there since a later push, of which nothing is
// known here: objects.
type aliveness interface {
	alive(ctx context.Context, rec *record.Record, at record.Place) (bool, error)
}

// flight is a look-up under way.
type flight struct {
	began  time.Time
	done   chan struct{}
	answer answer
}

// answer is what a look-up found. "Not found" is the only error that is
// remembered.
type answer struct {
	namespace string
	place     place
	err       error
	began     time.Time // when backends were asked
	until     time.Time
}

// badObject is what was found to be other bytes than its name says.
type badObject struct {
	name, key string
	err       error
	until     time.Time
}

const (
	maxKnown     = 65536            // blobs of which answers are remembered
	maxAnswers   = 8                // for different namespaces, of one blob
	maxBad       = 1024             // blobs of which bad objects are remembered
	positiveFor  = 5 * time.Second  // so that a GET that follows a HEAD asks nobody
	badFor       = 10 * time.Minute // or until it is pushed
	lookupLimit  = 30 * time.Second // of a look-up for which nobody may wait any more
	maxPerLookup = 16               // backends asked at once
)

func newFinder(cfg LookupConfig, backends Backends, ledger entryReader, alive aliveness, tasks *tasks) *finder {
	known, err := lru.NewLRU[digest.Digest, []answer](maxKnown, nil)
	bad, err2 := lru.NewLRU[digest.Digest, []badObject](maxBad, nil)
	if err != nil || err2 != nil {
		panic("origind: a cache of no size")
	}
	return &finder{
		cfg: cfg, backends: backends, ledger: ledger, alive: alive, tasks: tasks,
		flights: map[origin.Ref]*flight{}, known: known, bad: bad,
	}
}

// pushed ends what is remembered of where a blob is, or is not.
func (f *finder) pushed(d digest.Digest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gen++
	f.known.Remove(d)
}

// forget ends all that is remembered of a blob: it was written, or deleted.
func (f *finder) forget(d digest.Digest) {
	f.pushed(d)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bad.Remove(d)
}

// condemn remembers that an object is not the blob that its name says.
func (f *finder) condemn(p place, err error) {
	d := digest.Digest(p.id.Digest())
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known.Remove(d)
	old, _ := f.bad.Get(d)
	old = slices.DeleteFunc(slices.Clone(old), func(b badObject) bool { return b.name == p.name && b.key == p.key })
	f.bad.Add(d, append(old, badObject{p.name, p.key, err, time.Now().Add(badFor)}))
}

// condemned returns what is wrong with an object, as far as is remembered.
func (f *finder) condemned(d digest.Digest, name, key string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	bad, _ := f.bad.Get(d)
	for _, b := range bad {
		if b.name == name && b.key == key && time.Now().Before(b.until) {
			return b.err
		}
	}
	return nil
}

// vanished forgets where a blob was: it is not there any more.
func (f *finder) vanished(d digest.Digest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known.Remove(d)
}

// find returns where a blob is. errdefs.ErrNotFound only if everybody who could
// have it says that it is not there.
func (f *finder) find(ctx context.Context, ref origin.Ref) (place, error) {
	return f.findSince(ctx, ref, time.Time{})
}

// findSince is find for whom «not found» is only true if backends were asked after a time: a blob may have been pushed at another
// member meanwhile, of which nothing is known here.
func (f *finder) findSince(ctx context.Context, ref origin.Ref, since time.Time) (place, error) {
	budget := f.cfg.Budget.D()
	if ref.Namespace != "" {
		budget = f.cfg.Repository.D()
	}
	f.mu.Lock()
	if answers, ok := f.known.Get(ref.Digest); ok {
		for _, a := range answers {
			if a.namespace == ref.Namespace && time.Now().Before(a.until) && (a.err == nil || !a.began.Before(since)) {
				f.mu.Unlock()
				return a.place, a.err
			}
		}
	}
	fl := f.flights[ref]
	if fl == nil || fl.began.Before(since) {
		fl = &flight{began: time.Now(), done: make(chan struct{})}
		f.flights[ref] = fl
		gen := f.gen
		f.tasks.run(func(ctx context.Context) { f.fly(ctx, ref, fl, gen) })
	}
	f.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	select {
	case <-fl.done:
		return fl.answer.place, fl.answer.err
	case <-ctx.Done():
		return place{}, fmt.Errorf("looking for %s: no answer within %v: %w", ref, budget, errdefs.ErrUnavailable)
	}
}

// fly looks a blob up and remembers what it found, unless that may be old.
func (f *finder) fly(ctx context.Context, ref origin.Ref, fl *flight, gen uint64) {
	ctx, cancel := context.WithTimeout(ctx, lookupLimit)
	defer cancel()
	p, err := f.lookup(ctx, ref)
	a := answer{namespace: ref.Namespace, place: p, err: err, began: fl.began}
	fl.answer = a
	switch {
	case err == nil:
		a.until = time.Now().Add(positiveFor)
	case errdefs.IsNotFound(err):
		a.until = time.Now().Add(f.cfg.Negative.D())
	}
	f.mu.Lock()
	if f.flights[ref] == fl {
		delete(f.flights, ref)
	}
	if gen == f.gen && !a.until.IsZero() {
		old, _ := f.known.Get(ref.Digest)
		old = slices.DeleteFunc(slices.Clone(old), func(o answer) bool { return o.namespace == ref.Namespace })
		f.known.Add(ref.Digest, append(old[max(0, len(old)+1-maxAnswers):], a))
	}
	f.mu.Unlock()
	close(fl.done)
}

// lookup asks all who could have the blob, at once; the first who has it wins.
func (f *finder) lookup(ctx context.Context, ref origin.Ref) (place, error) {
	candidates, rec, err := f.candidates(ref)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		p   place
		err error
	}
	results := make(chan result, len(candidates))
	limit := make(chan struct{}, maxPerLookup)
	for _, p := range candidates {
		go func() { // ends with ctx, and is waited for below
			limit <- struct{}{}
			p, err := f.ask(ctx, ref, p, rec)
			<-limit
			results <- result{p, err}
		}()
	}
	var found *place
	var errs []error
	if err != nil {
		errs = append(errs, err)
	}
	for range candidates {
		r := <-results
		switch {
		case r.err == nil && found == nil:
			found = &r.p
			cancel()
		case r.err != nil && !errdefs.IsNotFound(r.err):
			errs = append(errs, r.err)
		}
	}
	switch {
	case found != nil:
		return *found, nil
	case len(errs) > 0:
		return place{}, fmt.Errorf("looking for %s: %w", ref, errors.Join(errs...))
	}
	return place{}, fmt.Errorf("%s is neither here nor in any backend: %w", ref, errdefs.ErrNotFound)
}

// candidates returns where a blob could be, and what is known of it here, or nil.
func (f *finder) candidates(ref origin.Ref) (all []place, rec *record.Record, err error) {
	stores := f.backends.All()
	add := func(name, key string) {
		b := stores[name]
		if b == nil || slices.ContainsFunc(all, func(p place) bool { return p.name == name && p.key == key }) {
			return
		}
		all = append(all, place{name: name, backend: b, key: key, namespace: ref.Namespace})
	}
	e, err := f.ledger.get(ref.Digest)
	if e != nil {
		rec = e.Record
		for _, h := range rec.Homes {
			if !h.Kept() {
				add(h.Backend, h.Key)
			}
		}
		for _, at := range e.Found {
			add(at.Backend, at.Key)
		}
	}
	if ref.Namespace != "" {
		if name, b, ok := f.backends.Match(ref.Namespace); ok && b != nil {
			if key, err := fetcher.Locate(b, ref.Namespace, ref.Digest); err == nil {
				add(name, key)
			}
		}
	}
	for name, b := range stores {
		if b.Capabilities().NeedsRepository {
			continue
		}
		if key, err := fetcher.Locate(b, "", ref.Digest); err == nil {
			add(name, key)
		}
	}
	return all, rec, err
}

// ask asks one backend. Whatever is neither there nor certainly not there is
// errdefs.ErrUnavailable, or errdefs.ErrDataLoss.
func (f *finder) ask(ctx context.Context, ref origin.Ref, p place, rec *record.Record) (place, error) {
	if err := f.condemned(ref.Digest, p.name, p.key); err != nil {
		return p, err
	}
	info, err := p.backend.Stat(ctx, p.key)
	if errdefs.IsNotFound(err) {
		return p, err
	}
	if err == nil && rec != nil && len(rec.Removed) > 0 {
		if h := rec.Home(p.at()); h == nil || !rec.Lives(h) {
			if alive, aerr := f.alive.alive(ctx, rec, p.at()); aerr != nil {
				err = aerr
			} else if !alive {
				return p, fmt.Errorf("%s was deleted: %w", ref, errdefs.ErrNotFound)
			}
		}
	}
	if err != nil {
		return p, fmt.Errorf("backend %s: %w: %w", p.name, err, errdefs.ErrUnavailable)
	}
	size := int64(-1)
	if rec != nil && rec.Size > 0 {
		size = rec.Size
	}
	if info.Size < 0 {
		info.Size = size
	}
	if info.Size < 0 {
		return p, fmt.Errorf("backend %s does not say the size of %s: %w", p.name, p.key, errdefs.ErrUnavailable)
	}
	if size >= 0 && info.Size != size {
		return p, fmt.Errorf("%s in backend %s has %d bytes, not %d: %w", p.key, p.name, info.Size, size, errdefs.ErrDataLoss)
	}
	if p.id, err = piece.ParseID(string(ref.Digest), info.Size); err != nil {
		return p, fmt.Errorf("%s in backend %s: %w: %w", p.key, p.name, err, errdefs.ErrDataLoss)
	}
	return p, nil
}
