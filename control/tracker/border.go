package tracker

import (
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

// This file is the border between the state machine (Machine, which decides) and
// whoever drives it: Client with streams, timers and a Handler, tests and simulators
// in virtual time. Events go in through Step, actions come out. Nothing here does I/O.

// Event is one of the Ev types.
type Event interface{ event() }

type (
	// EvTick: the deadline that the last Step left has passed. It may come at any
	// time.
	EvTick struct{}

	// EvTrackers: the trackers are these from now on; names are distinct. Streams to
	// others have ended before, without an event, and nothing of theirs follows.
	EvTrackers struct {
		Names []string
		// Unresolved are names (dns+host:port) of which no address is known, and why.
		Unresolved map[string]error
	}
	// EvConnected: a stream to a tracker began; its first message has this Welcome.
	EvConnected struct {
		Tracker string
		Welcome *trackerpb.Welcome
	}
	// EvDisconnected: a stream ended, was refused, or nobody answered at all.
	EvDisconnected struct {
		Tracker string
		Err     error
	}
	// EvMessage: a tracker sent a message on a stream that is up.
	EvMessage struct {
		Tracker string
		Message *trackerpb.ToAgent
	}
	// EvReady: the stream to a tracker can take another message: it is new, or the
	// last ActSend was performed. Messages are made then and not earlier, so that what
	// has come together meanwhile is one of them.
	EvReady struct{ Tracker string }
	// EvHandlerReady: the Handler can be called: Run began, or its last call returned.
	EvHandlerReady struct{}

	// The rest are calls of a Client's methods, which say what they mean.

	EvAnnounce struct {
		ID       piece.ID
		State    State
		SumsHash *[32]byte // with StateComplete, if it is known
	}
	EvWant struct {
		ID   piece.ID
		Want Want
	}
	EvUnwant        struct{ ID piece.ID }
	EvLeaseProgress struct {
		ID       piece.ID
		Bytes    int64
		Registry string
	}
	EvLeaseDone struct {
		ID  piece.ID
		Err error
	}
	EvDisproved struct {
		ID       piece.ID
		SumsHash [32]byte
	}
	EvNotHere struct{ ID piece.ID }
	EvResult  struct{ Result *trackerpb.CommandResult }
)

// Action is one of the Act types. The driver performs them in order.
type Action interface{ action() }

type (
	// ActSend: send a message to a tracker; EvReady follows when it is sent. There is
	// never more than one on its way.
	ActSend struct {
		Tracker string
		Message *trackerpb.FromAgent
	}

	// The rest are calls of the Handler's methods, and ActStatus of Config.OnStatus.
	// EvHandlerReady follows each; there is never more than one under way.

	ActPeers struct {
		ID    piece.ID
		Peers []Peer
	}
	ActPeersGone struct {
		ID    piece.ID
		Nodes []string
	}
	ActShare struct {
		ID    piece.ID
		Share uint16
	}
	ActUpstream struct {
		ID       piece.ID
		Upstream Upstream
	}
	ActSumsHash struct {
		ID       piece.ID
		SumsHash [32]byte
	}
	ActVerdict struct {
		ID      piece.ID
		Verdict Verdict
	}
	ActCommand struct{ Command *trackerpb.Command }
	ActLookup  struct{ ID piece.ID }
	ActStatus  struct{ Status TrackerStatus }
)

func (EvTick) event()          {}
func (EvTrackers) event()      {}
func (EvConnected) event()     {}
func (EvDisconnected) event()  {}
func (EvMessage) event()       {}
func (EvReady) event()         {}
func (EvHandlerReady) event()  {}
func (EvAnnounce) event()      {}
func (EvWant) event()          {}
func (EvUnwant) event()        {}
func (EvLeaseProgress) event() {}
func (EvLeaseDone) event()     {}
func (EvDisproved) event()     {}
func (EvNotHere) event()       {}
func (EvResult) event()        {}

func (ActSend) action()      {}
func (ActPeers) action()     {}
func (ActPeersGone) action() {}
func (ActShare) action()     {}
func (ActUpstream) action()  {}
func (ActSumsHash) action()  {}
func (ActVerdict) action()   {}
func (ActCommand) action()   {}
func (ActLookup) action()    {}
func (ActStatus) action()    {}
