package fetchtest

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/plugin/fetch"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Peers notes what it is told, and says what a test lets it say.
type Peers struct {
	mu     sync.Mutex
	joined map[piece.ID]swarm.JoinOptions
	done   map[piece.ID]chan error
	status map[piece.ID]swarm.BlobStatus
	named  map[piece.ID][]swarm.PeerInfo
	shares map[piece.ID]uint16
	proven map[piece.ID]bool
	onJoin func(id piece.ID) error // see OnJoin
}

// NewPeers returns a swarm that nobody has joined.
func NewPeers() *Peers {
	return &Peers{
		joined: map[piece.ID]swarm.JoinOptions{}, done: map[piece.ID]chan error{}, status: map[piece.ID]swarm.BlobStatus{},
		named: map[piece.ID][]swarm.PeerInfo{}, shares: map[piece.ID]uint16{}, proven: map[piece.ID]bool{},
	}
}

// Join implements fetch.Peers, like the methods after it.
func (p *Peers) Join(_ context.Context, id piece.ID, as swarm.JoinOptions) error {
	p.mu.Lock()
	f := p.onJoin
	p.mu.Unlock()
	if f != nil {
		if err := f(id); err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.joined[id] = as
	return nil
}

func (p *Peers) Done(id piece.ID) <-chan error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done[id] = make(chan error, 1)
	return p.done[id]
}

func (p *Peers) LeaveNow(_ context.Context, id piece.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.joined, id)
}

func (p *Peers) AddPeers(id piece.ID, infos []swarm.PeerInfo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.named[id] = append(p.named[id], infos...)
}

func (p *Peers) Share(id piece.ID, share uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shares[id] = share
}

func (p *Peers) Proven(id piece.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.proven[id] = true
}

func (p *Peers) Status(id piece.ID) (swarm.BlobStatus, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.joined[id]
	return p.status[id], ok
}

// OnJoin has f called at each Join, before the blob is joined, unless that fails.
func (p *Peers) OnJoin(f func(id piece.ID) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onJoin = f
}

// As returns how a blob is joined, if it is.
func (p *Peers) As(id piece.ID) (swarm.JoinOptions, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	as, ok := p.joined[id]
	return as, ok
}

// Joined returns what is joined.
func (p *Peers) Joined() (ids []piece.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id := range p.joined {
		ids = append(ids, id)
	}
	return ids
}

// Told returns what was said of a joined blob: its peers, this node's share, and whether it is
// whole.
func (p *Peers) Told(id piece.ID) (named []swarm.PeerInfo, share uint16, proven bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.named[id], p.shares[id], p.proven[id]
}

// Say lets Status say something of a blob.
func (p *Peers) Say(id piece.ID, st swarm.BlobStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status[id] = st
}

// Fail ends a blob's part in the swarm.
func (p *Peers) Fail(id piece.ID, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.joined, id)
	p.done[id] <- err
}

// Finder notes what it is asked, and answers as a test lets it.
type Finder struct {
	fs *fetch.Fetches

	mu      sync.Mutex
	answers map[piece.ID]tracker.VerdictKind
	tags    map[piece.ID]uint64 // the last Want's
	log     []string
}

// NewFinder returns trackers that answer to fs.
func NewFinder(fs *fetch.Fetches) *Finder {
	return &Finder{fs: fs, answers: map[piece.ID]tracker.VerdictKind{}, tags: map[piece.ID]uint64{}}
}

func (f *Finder) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, fmt.Sprintf(format, args...))
}

// Events returns what was asked, without repetitions in a row, and forgets it.
func (f *Finder) Events() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	log := slices.Compact(f.log)
	f.log = nil
	return log
}

// Answer lets each Want that waits for a blob have this answer; others get none.
func (f *Finder) Answer(id piece.ID, v tracker.VerdictKind) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[id] = v
}

// Tag returns the last Want's.
func (f *Finder) Tag(id piece.ID) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tags[id]
}

// Tell answers the last Want once more.
func (f *Finder) Tell(id piece.ID, v tracker.VerdictKind) {
	f.fs.Verdict(id, tracker.Verdict{Kind: v, Tag: f.Tag(id)})
}

// Want implements fetch.Finder, like the methods after it.
func (f *Finder) Want(id piece.ID, w tracker.Want) {
	f.note("want %t", w.Waiting)
	f.mu.Lock()
	v, ok := f.answers[id]
	f.tags[id] = w.Tag
	f.mu.Unlock()
	if ok && w.Waiting {
		f.fs.Verdict(id, tracker.Verdict{Kind: v, Tag: w.Tag})
	}
}

func (f *Finder) Unwant(piece.ID) { f.note("unwant") }

func (f *Finder) Announce(_ piece.ID, s tracker.State) {
	f.note("%s", map[tracker.State]string{tracker.StateGone: "gone", tracker.StatePartial: "partial", tracker.StateComplete: "complete"}[s])
}

func (f *Finder) LeaseProgress(piece.ID, int64, string) { f.note("progress") }

func (f *Finder) LeaseDone(_ piece.ID, err error) { f.note("done %t", err == nil) }
