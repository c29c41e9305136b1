package origind

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Bounds of errands.
const (
	maxAsked   = 1024 // blobs that trackers have asked for, and that are looked for
	maxPreheat = 8    // blobs that are fetched at once because a tracker said so
)

// errands are what trackers and peers ask an origin for: to say whether it can deliver a
// blob, and to begin to read it from a backend. It is a tracker.Handler; its methods do
// not block.
type errands struct {
	*locator
	offers   announced
	trackers trackerAnswers
	tasks    *tasks
	preheat  chan struct{} // holds a token per blob

	mu    sync.Mutex
	asked map[piece.ID]bool // by trackers, being looked for
}

// announced is a seeder, for errands.
type announced interface {
	announce(ctx context.Context, id piece.ID) // a whole blob
	partial(id piece.ID)                       // one that is being read
}

// trackerAnswers is a client of the trackers, for errands.
type trackerAnswers interface {
	NotHere(id piece.ID)
	Result(r *trackerpb.CommandResult)
}

func newErrands(l *locator, offers announced, tasks *tasks) *errands {
	return &errands{
		locator: l, offers: offers, trackers: offline{}, tasks: tasks,
		preheat: make(chan struct{}, maxPreheat), asked: map[piece.ID]bool{},
	}
}

// wanted reports whether a blob that a peer wants is here; if not, it begins to get it.
func (e *errands) wanted(ctx context.Context, id piece.ID) (bool, error) {
	is, _, ok, err := e.blobs.local(digest.Digest(id.Digest()))
	if err == nil && (!ok || !e.ring.serving()) {
		err = e.begin(ctx, id)
	}
	if err != nil && !errdefs.IsNotFound(err) && ctx.Err() == nil {
		log.G(ctx).WithError(err).WithField("digest", id.Digest()).Debug("cannot get a blob that a peer wants")
	}
	return err == nil && ok && is == id, nil
}

// Lookup implements tracker.Handler: a tracker asks whether the blob can be had
// here.
func (e *errands) Lookup(id piece.ID) {
	ok := e.ask(id, func(ctx context.Context) {
		if err := e.begin(ctx, id); err != nil {
			e.trackers.NotHere(id)
		}
	})
	if !ok {
		e.trackers.NotHere(id)
	}
}

// ask runs f for a blob, unless that is under way, or too much is.
func (e *errands) ask(id piece.ID, f func(ctx context.Context)) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.asked[id] {
		return true
	}
	if len(e.asked) >= maxAsked {
		return false
	}
	e.asked[id] = true
	e.tasks.run(func(ctx context.Context) {
		f(ctx)
		e.mu.Lock()
		delete(e.asked, id)
		e.mu.Unlock()
	})
	return true
}

// begin says that the origin will deliver a blob, whole or from a backend from now
// on, or returns an error. Who reads it for all members does that; another one says no.
func (e *errands) begin(ctx context.Context, id piece.ID) error {
	d := digest.Digest(id.Digest())
	is, _, ok, err := e.blobs.local(d)
	switch {
	case err != nil:
		return err
	case !e.ring.serving():
		return fmt.Errorf("%s: this origin has just started: %w", id, errdefs.ErrUnavailable)
	case ok && is != id:
		return fmt.Errorf("%s has %d bytes: %w", id, is.Size, errdefs.ErrNotFound)
	case ok:
		e.offers.announce(ctx, id)
		return nil
	case e.cold.wanted(id, swarmInterest):
		e.partial(id)
		return nil
	}
	reader, err := e.ring.reader(ctx, d)
	if err == nil && reader != "" {
		err = fmt.Errorf("%s is for member %s to read: %w", id, reader, errdefs.ErrNotFound)
	}
	if err != nil {
		return err
	}
	at, err := e.finder.find(ctx, origin.Ref{Digest: d})
	if err != nil {
		return err
	}
	if at.id != id {
		return fmt.Errorf("%s has %d bytes in backend %s: %w", id, at.id.Size, at.name, errdefs.ErrNotFound)
	}
	if err := e.cold.want(at, swarmInterest); err != nil {
		return err
	}
	e.partial(id)
	return nil
}

// partial answers a tracker at once; the blob itself is opened meanwhile.
func (e *errands) partial(id piece.ID) {
	e.cold.promise(id, func() { e.offers.partial(id) })
}

// Peers, PeersGone, Share, SumsHash and Verdict implement tracker.Handler. An origin wants
// nothing from the swarm, so it is told none of it.
func (e *errands) Peers(piece.ID, []tracker.Peer)      {}
func (e *errands) PeersGone(piece.ID, []string)        {}
func (e *errands) Share(piece.ID, uint16)              {}
func (e *errands) Upstream(piece.ID, tracker.Upstream) {}
func (e *errands) SumsHash(piece.ID, [32]byte)         {}
func (e *errands) Verdict(piece.ID, tracker.Verdict)   {}

// Command does what a tracker asks for: Preheat reads blobs from their backends,
// Report tells what is here. Drop is for nodes: an origin's cache empties itself.
func (e *errands) Command(cmd *trackerpb.Command) {
	r := &trackerpb.CommandResult{Id: cmd.GetId()}
	switch k := cmd.GetKind().(type) {
	case *trackerpb.Command_Preheat:
		r.Supported = true
		e.tasks.run(func(ctx context.Context) {
			e.warm(ctx, k.Preheat.GetBlobs(), r)
			e.trackers.Result(r)
		})
		return
	case *trackerpb.Command_Report:
		r.Supported = true
		for _, b := range k.Report.GetBlobs() {
			id, err := b.ID()
			if err != nil {
				continue
			}
			st := trackerpb.State_STATE_GONE
			switch p := e.blobs.store.Presence(id); {
			case p >= content.Cached:
				st = trackerpb.State_STATE_COMPLETE
			case p == content.Partial:
				st = trackerpb.State_STATE_PARTIAL
			}
			r.Blobs = append(r.Blobs, &trackerpb.Announce{Blob: b, State: st})
		}
	}
	e.trackers.Result(r)
}

// warm has blobs here before anybody wants them.
func (e *errands) warm(ctx context.Context, blobs []*trackerpb.Blob, r *trackerpb.CommandResult) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, b := range blobs {
		id, err := b.ID()
		if err != nil {
			continue
		}
		select {
		case e.preheat <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			err := e.bring(ctx, id)
			<-e.preheat
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				r.Bytes += id.Size
				return
			}
			r.Error = err.Error()
			if len(r.Blobs) < trackerpb.MaxBatch/2 {
				r.Blobs = append(r.Blobs, &trackerpb.Announce{Blob: b, State: trackerpb.State_STATE_GONE})
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		r.Error = err.Error()
	}
}

// bring reads a blob from its backend, unless it is here.
func (e *errands) bring(ctx context.Context, id piece.ID) error {
	at, err := e.locate(ctx, origin.Ref{Digest: digest.Digest(id.Digest())}, false)
	if err != nil {
		return err
	}
	if at.member != "" {
		return fmt.Errorf("%s is at member %s: %w", id, at.member, errdefs.ErrNotFound)
	}
	if at.id != id {
		return fmt.Errorf("%s has %d bytes: %w", id, at.id.Size, errdefs.ErrNotFound)
	}
	if at.place == nil {
		return nil
	}
	c, release, err := e.cold.join(ctx, *at.place)
	if err != nil {
		return err
	}
	defer release()
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}
