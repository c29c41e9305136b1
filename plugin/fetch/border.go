package fetch

import (
	"time"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

// This file is the border between the state machine (Machine, which decides) and
// whoever drives it (Fetches with disk, swarm and trackers, internal/sim in virtual
// time). Events go in through Step, actions come out. Nothing here does I/O.

// SessionID names a session for as long as it lives. The driver numbers them; numbers
// are never reused.
type SessionID uint64

// Opening names an ActOpen. The Machine numbers them; numbers are never reused.
type Opening uint64

// Progress is what there is of a blob on disk.
type Progress struct {
	Verified int64 // bytes
	Prefix   int64 // bytes from the beginning without a gap
	Full     bool  // every piece is there, as far as this opening of the blob goes
	Whole    bool  // all of the blob is there, proven and durable, by whatever way it came
}

// Event is one of the Ev types. Those about a blob that is not fetched (any more) are
// ignored, and so are those of an Opening that is over: events and actions can cross.
type Event interface{ blob() piece.ID }

type (
	// EvTick: the deadline that Deadline returned has passed. It may come at any time.
	EvTick struct{}

	// EvSessionOpened: a client has opened the blob. Authorized: it downloads for this
	// node what is missing, as somebody whom the registry has allowed to have the blob.
	// Registry is where it would download from; empty: not known. Asking: EvRegistry follows.
	EvSessionOpened struct {
		ID         piece.ID
		Session    SessionID
		Authorized bool
		Registry   string
		Asking     bool
	}
	// EvRegistry: what is known by now of where a session would download from.
	EvRegistry struct {
		ID       piece.ID
		Session  SessionID
		Registry string
	}
	// EvSessionWaits: an idle session asks where to continue. ActAnswer follows.
	EvSessionWaits struct {
		ID      piece.ID
		Session SessionID
	}
	// EvSessionWrites: an idle session writes from 0 on, without having asked.
	EvSessionWrites struct {
		ID      piece.ID
		Session SessionID
	}
	// EvSessionWrote: a session that writes has stored that many bytes more, the last of
	// which ends at Offset.
	EvSessionWrote struct {
		ID            piece.ID
		Session       SessionID
		Bytes, Offset int64
	}
	// EvSessionEnded: the session waits or writes no longer. Err is nil if it wrote the
	// blob to its end; a piece.ErrMismatch if what it brought is not the blob, or not
	// what was there before; and wraps context.Canceled if it was given up.
	EvSessionEnded struct {
		ID      piece.ID
		Session SessionID
		Err     error
	}
	// EvSessionClosed: the session is over, and its writing with it.
	EvSessionClosed struct {
		ID      piece.ID
		Session SessionID
	}
	// EvDiskFailed: a session found that the disk cannot take the blob.
	EvDiskFailed struct {
		ID  piece.ID
		Err error
	}

	// EvProgress: what there is of the blob has changed. The first one follows ActOpen.
	EvProgress struct {
		ID      piece.ID
		Opening Opening
		Progress
	}
	// EvOpenFailed: the blob cannot be opened.
	EvOpenFailed struct {
		ID      piece.ID
		Opening Opening
		Err     error
	}
	// EvCompleted: an ActComplete is over. If it succeeded, EvProgress said so before.
	EvCompleted struct {
		ID      piece.ID
		Opening Opening
		Err     error
	}

	// EvSwarmDone: the swarm ended its work on a blob that the ActJoin with this number
	// joined: all of it is proven (Err nil), somebody else left it (swarm.ErrLeft), or it
	// cannot be had that way.
	EvSwarmDone struct {
		ID   piece.ID
		Join uint64
		Err  error
	}
	// EvNoSource: the last source that the swarm knew of the blob has failed. ActSwarmStatus
	// may follow, to hear more.
	EvNoSource struct{ ID piece.ID }
	// EvDoubt: what the swarm has stored of the blob may be false, or is no longer in doubt.
	EvDoubt struct {
		ID piece.ID
		On bool
	}
	// EvEmptied: an ActEmpty is over. If it succeeded, EvProgress said so before.
	EvEmptied struct {
		ID      piece.ID
		Opening Opening
		Err     error
	}
	// EvSwarmStatus answers ActSwarmStatus. It is zero if the blob is not joined.
	EvSwarmStatus struct {
		ID      piece.ID
		Opening Opening
		Status  swarm.BlobStatus
	}

	// EvVerdict: what the trackers found out for the Want with this Ask.
	EvVerdict struct {
		ID      piece.ID
		Ask     uint64
		Verdict tracker.VerdictKind
		Paced   bool // who grants leases gives them to those whose sources are slow, in turn,
		Heard   bool // and has answered
	}
	// EvPeersFound: the trackers named peers of a blob (more, not instead).
	EvPeersFound struct {
		ID    piece.ID
		Peers []swarm.PeerInfo
	}
	// EvShareTold: a tracker said which pieces this node is to bring into its zone.
	EvShareTold struct {
		ID    piece.ID
		Share uint16
	}

	// EvUpstream: a tracker said where holders of leases have the blob from, or what became of that.
	EvUpstream struct {
		ID       piece.ID
		Upstream tracker.Upstream
	}

	// EvPrefetch: the blob is expected to be opened soon. It is fetched from the swarm
	// only, in the order of Priority (lower first), for as long as Rules.Prefetch, unless so many
	// are already.
	EvPrefetch struct {
		ID       piece.ID
		Priority int
	}
	// EvProlong: a prefetch, if there is one, is still expected to be opened.
	EvProlong struct{ ID piece.ID }
	// EvAbandon: it is not any more.
	EvAbandon struct{ ID piece.ID }

	// EvConnected: there is a swarm, and there are trackers, or are not; not known before.
	EvConnected struct{ Swarm, Trackers bool }
	// EvLimit: how much this node takes from the swarm, in bytes per second; 0: no limit.
	EvLimit struct{ Rate int64 }
	// EvDraining: every session that waits, now and from now on, is answered with what there is.
	EvDraining struct{}
	// EvStopping: everything ends. No event but EvTick counts afterwards.
	EvStopping struct{}
)

// Action is one of the Act types. The driver performs them in order: those about the
// same blob must not overtake each other, if they take time.
type Action interface{ action() }

type (
	// ActOpen: open the blob, after what was opened before of it is closed; EvProgress
	// or EvOpenFailed follows.
	ActOpen struct {
		ID      piece.ID
		Opening Opening
	}
	// ActComplete: every piece is there. Make it durable; EvCompleted follows.
	ActComplete struct{ ID piece.ID }
	// ActEmpty: what there is of the blob may be false. Forget it, after an ActLeave;
	// EvEmptied follows.
	ActEmpty struct{ ID piece.ID }
	// ActClose: the fetch is over. Close the blob, and if Drop, give back what there is of it in
	// part. Err says why it failed, if it did.
	ActClose struct {
		ID   piece.ID
		Drop bool
		Err  error
	}

	// ActJoin: take part in the blob's swarm, or change how. EvSwarmDone may follow, with
	// Join. One that crosses with the next ActJoin does not count: that joins anew.
	ActJoin struct {
		ID   piece.ID
		As   swarm.JoinOptions
		Join uint64
	}
	// ActLeave ends that; no EvSwarmDone counts. ActKeep: it is whole and joined, and this
	// fetch's part is over; somebody may go on seeding it, or leave.
	ActLeave struct{ ID piece.ID }
	ActKeep  struct{ ID piece.ID }
	// ActAddPeers, ActShare and ActProven hand on to the joined blob's swarm who has it,
	// what to bring into the zone, and that it was completed by containerd's writing.
	ActAddPeers struct {
		ID    piece.ID
		Peers []swarm.PeerInfo
	}
	ActShare struct {
		ID    piece.ID
		Share uint16
	}
	ActProven struct{ ID piece.ID }
	// ActSwarmStatus: ask the swarm what it can do for the blob; EvSwarmStatus follows.
	ActSwarmStatus struct{ ID piece.ID }

	// ActWant: ask the trackers. EvVerdict follows, with Ask, and may come again when
	// things change, until ActUnwant.
	ActWant struct {
		ID      piece.ID
		Waiting bool // a client waits, and would take a lease
		Ask     uint64
		Lost    []string // every source that the swarm knows, if all of them have failed
		Slow    bool     // what the sources bring is slow: see tracker.Want
	}
	ActUnwant struct{ ID piece.ID }
	// ActAnnounce: tell the trackers that there is something of the blob (StatePartial) or
	// nothing any more (StateGone).
	ActAnnounce struct {
		ID    piece.ID
		State tracker.State
	}
	// ActLeaseProgress: a session downloads the blob, with or without a lease, and has
	// come to that many bytes. ActLeaseDone ends a lease, or such a download: Err is nil
	// if the blob is whole, and a tracker.ErrMismatch if what the registry sent is not the blob.
	ActLeaseProgress struct {
		ID       piece.ID
		Bytes    int64
		Registry string // empty: not known
	}
	ActLeaseDone struct {
		ID  piece.ID
		Err error
	}

	// ActAnswer answers a session that waits, and says why so.
	ActAnswer struct {
		ID      piece.ID
		Session SessionID
		Answer  Answer
		Err     error // instead of an Answer
		Why     Outcome
		Waited  time.Duration
		Verdict tracker.VerdictKind
	}
)

// Answer is where a session's client is to continue: at the blob's size if everything is
// there, else it writes from Offset on. With Lease, it does so for the whole cluster.
type Answer struct {
	Offset int64
	Lease  bool
}

func (EvTick) blob() (none piece.ID)      { return }
func (e EvSessionOpened) blob() piece.ID  { return e.ID }
func (e EvRegistry) blob() piece.ID       { return e.ID }
func (e EvSessionWaits) blob() piece.ID   { return e.ID }
func (e EvSessionWrites) blob() piece.ID  { return e.ID }
func (e EvSessionWrote) blob() piece.ID   { return e.ID }
func (e EvSessionEnded) blob() piece.ID   { return e.ID }
func (e EvSessionClosed) blob() piece.ID  { return e.ID }
func (e EvDiskFailed) blob() piece.ID     { return e.ID }
func (e EvProgress) blob() piece.ID       { return e.ID }
func (e EvOpenFailed) blob() piece.ID     { return e.ID }
func (e EvCompleted) blob() piece.ID      { return e.ID }
func (e EvSwarmDone) blob() piece.ID      { return e.ID }
func (e EvNoSource) blob() piece.ID       { return e.ID }
func (e EvDoubt) blob() piece.ID          { return e.ID }
func (e EvEmptied) blob() piece.ID        { return e.ID }
func (e EvSwarmStatus) blob() piece.ID    { return e.ID }
func (e EvVerdict) blob() piece.ID        { return e.ID }
func (e EvPeersFound) blob() piece.ID     { return e.ID }
func (e EvShareTold) blob() piece.ID      { return e.ID }
func (e EvUpstream) blob() piece.ID       { return e.ID }
func (e EvPrefetch) blob() piece.ID       { return e.ID }
func (e EvProlong) blob() piece.ID        { return e.ID }
func (e EvAbandon) blob() piece.ID        { return e.ID }
func (EvConnected) blob() (none piece.ID) { return }
func (EvLimit) blob() (none piece.ID)     { return }
func (EvDraining) blob() (none piece.ID)  { return }
func (EvStopping) blob() (none piece.ID)  { return }

func (ActOpen) action()          {}
func (ActComplete) action()      {}
func (ActEmpty) action()         {}
func (ActClose) action()         {}
func (ActJoin) action()          {}
func (ActLeave) action()         {}
func (ActKeep) action()          {}
func (ActAddPeers) action()      {}
func (ActShare) action()         {}
func (ActProven) action()        {}
func (ActSwarmStatus) action()   {}
func (ActWant) action()          {}
func (ActUnwant) action()        {}
func (ActAnnounce) action()      {}
func (ActLeaseProgress) action() {}
func (ActLeaseDone) action()     {}
func (ActAnswer) action()        {}
