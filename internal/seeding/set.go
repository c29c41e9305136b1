package seeding

import (
	"math"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/capelin-io/capelin/swarm/piece"
)

const (
	// MaxOpen is how many blobs are open at once, but for those that somebody else needs.
	MaxOpen = 256
	// beforehand is among how many of the longest open ones an idle one is looked for.
	beforehand = 16
)

// set is the whole blobs that are open. Its methods but leaveIdle may be called by any
// goroutine.
type set struct {
	open  *lru.Cache[piece.ID, struct{}]
	takes func(piece.ID) bool
	busy  func(piece.ID) bool
	leave func(piece.ID)
	idle  map[piece.ID]bool // at the last leaveIdle
}

// newSet returns an empty set. takes reports whether a peer takes something of a blob, or
// may yet; busy whether somebody else needs it open: such a one stays. leave closes a blob
// that the set has forgotten. They are called without a lock held, in the callers'
// goroutines.
func newSet(takes, busy func(piece.ID) bool, leave func(piece.ID)) *set {
	open, err := lru.New[piece.ID, struct{}](math.MaxInt) // add bounds it: what this evicted would never be left
	if err != nil {
		panic(err) // only for a size of 0
	}
	return &set{open: open, takes: takes, busy: busy, leave: leave}
}

// add counts a blob among those that are open, and leaves some of the longest open if
// they are too many: those that nobody takes anything of, if there are such.
func (s *set) add(id piece.ID) {
	s.open.Add(id, struct{}{})
	for s.open.Len() > MaxOpen {
		out, ok := s.surplus()
		if !ok {
			return
		}
		s.drop(out)
	}
}

// surplus returns which blob to leave if they are too many; ok is false if somebody needs
// each of them.
func (s *set) surplus() (out piece.ID, ok bool) {
	seen := 0
	for _, id := range s.open.Keys() {
		if s.busy(id) {
			continue
		}
		if !s.takes(id) {
			return id, true
		}
		if !ok {
			out, ok = id, true
		}
		if seen++; seen == beforehand {
			break
		}
	}
	return out, ok
}

// remove forgets a blob, and reports whether it was open.
func (s *set) remove(id piece.ID) bool { return s.open.Remove(id) }

func (s *set) len() int { return s.open.Len() }

// leaveIdle leaves those blobs that nobody took anything of when it was called the last
// time, nor does now. One goroutine calls it, every IdleAfter.
func (s *set) leaveIdle() {
	now := map[piece.ID]bool{}
	for _, id := range s.open.Keys() {
		switch {
		case s.takes(id), s.busy(id):
		case s.idle[id]:
			s.drop(id)
		default:
			now[id] = true
		}
	}
	s.idle = now
}

func (s *set) drop(id piece.ID) {
	if s.open.Remove(id) {
		s.leave(id)
	}
}
