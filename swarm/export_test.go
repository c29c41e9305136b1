package swarm

import (
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
)

// Script is a Peer whose decisions a test makes. Its functions run on the
// Node's loop.
type Script struct {
	OnStep func(Event) []Action
	Due    time.Time // its Deadline
}

func (s *Script) Step(_ time.Time, ev Event) []Action {
	if s.OnStep == nil {
		return nil
	}
	return s.OnStep(ev)
}
func (s *Script) Deadline() time.Time                { return s.Due }
func (s *Script) Status(piece.ID) (BlobStatus, bool) { return BlobStatus{}, false }

func (s *Script) Unreachable() []Unreachable { return nil }

// NewScriptedNode returns a Node that a Script drives.
func NewScriptedNode(cfg NodeConfig, s *Script) (*Node, error) { return newNode(cfg, s) }

// What tests need to know of the limits.
const (
	HelloTimeout = helloTimeout
	DeadAfter    = deadAfter
	PingAfter    = pingAfter
	SendTimeout  = sendTimeout
	MaxQueued    = maxQueued
)
