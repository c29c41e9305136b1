package seeding

import (
	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/capelin-io/capelin/swarm/piece"
)

const (
	// MaxOpen is how many blobs are open at once.
	MaxOpen = 256
	// beforehand is among how many of the longest open ones an idle one is looked for.
	beforehand = 16
)

// set is the whole blobs that are open. Its methods but leaveIdle may be called by any
// goroutine.
type set struct {
	open  *lru.Cache[piece.ID, struct{}]
	takes func(piece.ID) bool
	leave func(piece.ID)
	idle  map[piece.ID]bool // at the last leaveIdle
}

// newSet returns an empty set. takes reports whether a peer takes something of a blob, or
// may yet; leave closes a blob that the set has forgotten. Both are called without a
// lock held, in the callers' goroutines.
func newSet(takes func(piece.ID) bool, leave func(piece.ID)) *set {
	open, err := lru.New[piece.ID, struct{}](2 * MaxOpen) // never full: Add makes room
	if err != nil {
		panic(err) // only for a size of 0
	}
	return &set{open: open, takes: takes, leave: leave}
}

// add counts a blob among those that are open, and leaves one of the longest open if
// they are too many: one that nobody takes anything of, if there is one.
func (s *set) add(id piece.ID) {
	s.open.Add(id, struct{}{})
	if s.open.Len() <= MaxOpen {
		return
	}
	oldest := s.open.Keys()[:beforehand]
	out := oldest[0]
	for _, old := range oldest {
		if !s.takes(old) {
			out = old
			break
		}
	}
	s.drop(out)
}

// remove forgets a blob, and reports whether it was open.
func (s *set) remove(id piece.ID) bool { return s.open.Remove(id) }

// all returns the blobs that are open, those first that have been for the longest.
func (s *set) all() []piece.ID { return s.open.Keys() }

func (s *set) len() int { return s.open.Len() }

// leaveIdle leaves those blobs that nobody took anything of when it was called the last
// time, nor does now. One goroutine calls it, every IdleAfter.
func (s *set) leaveIdle() {
	now := map[piece.ID]bool{}
	for _, id := range s.open.Keys() {
		switch {
		case s.takes(id):
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
