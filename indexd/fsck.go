package indexd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/walk"
)

const (
	// maxSuspects is how many objects with something wrong are kept before they are looked at again.
	maxSuspects = 1000
	// looksAgain is how often a suspect is looked at again while it settles: an object that others write all the time may be
	// between two states at one look, and at another one.
	looksAgain = 16
	// maxUnknown is how many objects may not be looked at before it is given up: the storage or the origins are away.
	maxUnknown = 100
	// fsckKnown is how many blobs and links are remembered to be there, so that layers that many images have are asked for once.
	fsckKnown = 1 << 16
	// fsckProgress is how often it is said how far it is.
	fsckProgress = 2 * time.Second
)

// fsck is one look through the storage.
//
// Each object is looked at by itself. What is wrong may be a moment's of somebody who writes, so that the object is a suspect first; it
// is looked at again, some times, until all who were writing then have ended, and only what was wrong in the same way each time is a
// finding.
type fsck struct {
	x    *Index // whose storage and origins are asked no faster than the rate
	opts index.FsckOptions
	say  func(index.FsckEvent) error

	blobs *lru.Cache[string, int64] // sizes of blobs that the origins have
	gone  *lru.Cache[string, bool]  // that they do not have, so that each counts once in lacks; they are asked again
	links *lru.Cache[string, bool]  // keys of objects that are there

	// What the origins had of what they were asked for, and what not. If they lack most of it, nothing is removed because of them.
	has, lacks atomic.Int64

	mu       sync.Mutex
	suspects []place
	reached  *reached // of the repository that is looked at
	result   index.FsckResult
	said     time.Time // when progress was said last
	repo     string
	failed   error // of say, or too much is unknown
}

// Fsck looks through the whole storage for what is not as it should be (FORMAT.md, "Damage"), and mends it if that is asked for. It tells
// say, never at the same time, and ends when that fails. An error means that it has not come to its end.
func (x *Index) Fsck(ctx context.Context, opts index.FsckOptions, say func(index.FsckEvent) error) error {
	f, err := x.newFsck(opts, say)
	if err != nil {
		return err
	}
	if err := f.walk(ctx); err != nil {
		return err
	}
	if err := f.again(ctx); err != nil {
		return err
	}
	return f.tell(index.FsckEvent{Done: &f.result})
}

func (x *Index) newFsck(opts index.FsckOptions, say func(index.FsckEvent) error) (*fsck, error) {
	blobs, err := lru.New[string, int64](fsckKnown)
	if err != nil {
		return nil, err
	}
	links, err := lru.New[string, bool](fsckKnown)
	if err != nil {
		return nil, err
	}
	gone, err := lru.New[string, bool](fsckKnown)
	if err != nil {
		return nil, err
	}
	limit := rate.NewLimiter(rate.Limit(opts.Rate), max(1, opts.Rate/10))
	return &fsck{opts: opts, say: say, blobs: blobs, gone: gone, links: links, said: time.Now(), x: &Index{
		backend: &pacedBackend{x.backend, limit}, origins: &pacedOrigins{x.origins, limit},
		cluster: x.cluster, now: x.now, newID: x.newID, tags: x.tags, locks: x.locks, memory: x.memory, outbox: x.outbox,
	}, reached: newReached()}, nil
}

// walk looks at each object. Those of a repository come together: "/_" sorts so that nothing of another one is between them.
func (f *fsck) walk(ctx context.Context) error {
	g := new(errgroup.Group)
	g.SetLimit(parallel)
	for info, err := range walk.All(ctx, f.x.backend, "index/", "") {
		if err != nil {
			_ = g.Wait()
			return fmt.Errorf("listing: %w", err)
		}
		p := placeOf(info.Key)
		if p.repo != f.repo || f.full() {
			_ = g.Wait()
			if err := f.next(ctx, p.repo); err != nil {
				return err
			}
		}
		if p.kind == aManifest {
			f.reached.is(p.digest)
		}
		g.Go(func() error { f.look(ctx, p); return nil })
		if err := f.progress(0, 0); err != nil {
			break
		}
	}
	_ = g.Wait()
	return f.next(ctx, "")
}

// next ends a repository, and begins another one, or goes on with the same when there are too many suspects.
func (f *fsck) next(ctx context.Context, repo string) error {
	if f.repo != repo {
		if err := f.orphans(ctx); err != nil {
			return err
		}
		f.repo, f.reached = repo, newReached()
		if repo != "" {
			f.result.Repositories++
			f.look(ctx, place{kind: aRepository, repo: repo, key: catalogPrefix + catalogPath(repo)})
		}
	}
	if f.full() {
		if err := f.again(ctx); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(f.failed, ctx.Err())
}

func (f *fsck) full() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.suspects) >= maxSuspects
}

// look looks at an object for the first time.
func (f *fsck) look(ctx context.Context, p place) {
	faults, err := f.looks(ctx, p)
	f.mu.Lock()
	defer f.mu.Unlock()
	if p.kind != aRepository {
		f.result.Objects++
	}
	if err != nil {
		f.unknown(ctx, p, err)
	} else if len(faults) > 0 {
		f.suspects = append(f.suspects, p)
	}
}

// unknown says that an object could not be looked at. f.mu is held.
func (f *fsck) unknown(ctx context.Context, p place, err error) {
	if ctx.Err() != nil {
		return // that is why
	}
	f.result.Unknown++
	f.send(index.FsckEvent{Unknown: fmt.Sprintf("%s: %v", p.key, err)})
	if f.result.Unknown >= maxUnknown && f.failed == nil {
		//nolint:errorlint // its class must not show
		f.failed = fmt.Errorf("%d objects could not be looked at, the last because: %v: %w", maxUnknown, err, errdefs.ErrUnavailable)
	}
}

// again looks at the suspects once more, when that may be done, and says and mends what is wrong.
func (f *fsck) again(ctx context.Context) error {
	f.mu.Lock()
	suspects := f.suspects
	f.suspects = nil
	f.mu.Unlock()
	if len(suspects) == 0 {
		return nil
	}
	reached := f.reached // they may be of other repositories
	f.reached = newReached()
	defer func() { f.reached = reached }()
	slices.SortFunc(suspects, func(a, b place) int { return strings.Compare(a.key, b.key) })
	// What is the same at every look, to tell it from what is wrong for a moment now and was for another one then.
	var left []suspect
	for _, p := range suspects {
		left = append(left, suspect{place: p})
	}
	for n := range looksAgain + 1 {
		if n > 0 && f.opts.Settle == 0 {
			break
		}
		if n > 0 {
			if err := f.wait(ctx, len(left), f.opts.Settle/looksAgain); err != nil {
				return err
			}
		}
		for i := range left {
			if err := f.lookAgain(ctx, &left[i]); err != nil {
				return err
			}
		}
		left = slices.DeleteFunc(left, func(s suspect) bool { return len(s.faults) == 0 })
		if len(left) == 0 {
			return nil
		}
	}
	for _, s := range left {
		for _, x := range s.faults {
			if err := f.found(ctx, x); err != nil {
				return err
			}
		}
	}
	return nil
}

// suspect is a place with what was wrong at each look.
type suspect struct {
	place  place
	looked bool
	faults []fault
}

func (f *fsck) lookAgain(ctx context.Context, s *suspect) error {
	faults, err := f.looks(ctx, s.place)
	if err != nil {
		f.mu.Lock()
		f.unknown(ctx, s.place, err)
		f.mu.Unlock()
		faults = nil
	}
	s.faults = slices.DeleteFunc(faults, func(x fault) bool {
		return s.looked && !slices.ContainsFunc(s.faults, func(before fault) bool { return before.id() == x.id() })
	})
	s.looked = true
	if err := f.progress(1, 0); err != nil {
		return err
	}
	return ctx.Err()
}

func (f *fsck) wait(ctx context.Context, suspects int, d time.Duration) error {
	if err := f.progress(suspects, d); err != nil {
		return err
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// found says a finding, and mends it before, if that is asked for and can be done.
func (f *fsck) found(ctx context.Context, x fault) error {
	if f.opts.Repair && x.mend != nil {
		if err := x.mend(ctx); err != nil {
			x.Error = err.Error()
		} else {
			x.Mended = true
		}
	}
	f.mu.Lock()
	f.result.Findings++
	if x.Mended {
		f.result.Mended++
	}
	f.mu.Unlock()
	return f.tell(index.FsckEvent{Finding: &x.Finding})
}

func (f *fsck) tell(e index.FsckEvent) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.send(e)
	return f.failed
}

// send is tell for who has f.mu.
func (f *fsck) send(e index.FsckEvent) {
	if f.failed == nil {
		f.failed = f.say(e)
	}
}

func (f *fsck) progress(again int, wait time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.said) >= fsckProgress {
		f.said = time.Now()
		f.send(index.FsckEvent{Progress: &index.FsckProgress{FsckResult: f.result, Repository: f.repo, Again: again, Wait: wait}})
	}
	return f.failed
}

// orphans says which manifests of the repository nothing reaches.
func (f *fsck) orphans(ctx context.Context) error {
	if f.repo == "" || !f.reached.any() {
		return nil
	}
	prefix := manifestsPrefix(f.repo)
	for info, err := range walk.All(ctx, f.x.backend, prefix, "") {
		if err != nil {
			return fmt.Errorf("listing: %w", err)
		}
		d, err := digestOf(prefix, info.Key)
		if err != nil || !f.reached.orphan(d) {
			continue
		}
		f.mu.Lock()
		f.result.Orphans++
		f.mu.Unlock()
		if err := f.tell(index.FsckEvent{Orphan: &index.Orphan{Repository: f.repo, Digest: d}}); err != nil {
			return err
		}
	}
	return nil
}

// pacedBackend asks a storage no more often than so many times per second.
type pacedBackend struct {
	fetcher.Backend
	limit *rate.Limiter
}

func (p *pacedBackend) Stat(ctx context.Context, key string) (fetcher.Info, error) {
	if err := p.limit.Wait(ctx); err != nil {
		return fetcher.Info{}, err
	}
	return p.Backend.Stat(ctx, key)
}

func (p *pacedBackend) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	if err := p.limit.Wait(ctx); err != nil {
		return nil, fetcher.Info{}, err
	}
	return p.Backend.Open(ctx, key, off, n)
}

func (p *pacedBackend) List(ctx context.Context, prefix, after string, limit int) ([]fetcher.Info, bool, error) {
	if err := p.limit.Wait(ctx); err != nil {
		return nil, false, err
	}
	return p.Backend.List(ctx, prefix, after, limit)
}

// pacedOrigins is the same of the origins.
type pacedOrigins struct {
	Origin
	limit *rate.Limiter
}

func (p *pacedOrigins) Stat(ctx context.Context, ref origin.Ref) (origin.Info, error) {
	if err := p.limit.Wait(ctx); err != nil {
		return origin.Info{}, err
	}
	return p.Origin.Stat(ctx, ref)
}
