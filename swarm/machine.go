package swarm

import (
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// This file is the border between the state machine (Peer, which decides) and
// whoever drives it (Node with sockets and a disk, internal/sim in virtual time).
// Events go in through Step, actions come out. Nothing here does I/O.

// ConnID names a connection for as long as it lives. The driver numbers them;
// numbers are never reused.
type ConnID uint64

// PeerInfo is what a tracker says of a peer.
type PeerInfo = wire.PeerInfo

// Event is one of the Ev types. Those about a blob that the Peer does not know
// (any more) are ignored, since events and Leave can cross.
type Event interface{ event() }

type (
	// EvTick: the deadline that the last Step returned has passed. It may come
	// at any time.
	EvTick struct{}

	// EvJoin: the driver wants a blob, or offers one for seeding, or changes
	// what it wanted. Have and Sums are snapshots that the Peer owns from here
	// on. Sums may be empty; Proven says that every link was verified here.
	EvJoin struct {
		ID       piece.ID
		Want     bool // download what is missing
		Priority int  // lower first; the position of a layer in its image
		Have     *piece.Bits
		Sums     *piece.Sums
		Proven   bool
	}
	// EvLeave: the driver no longer takes part in the blob. No action about it
	// follows, but for Close messages.
	EvLeave struct{ ID piece.ID }

	// EvLocal: pieces From..To-1 appeared on the disk by another way than the
	// swarm (containerd wrote them, in order), verified or hashed there; States
	// are the chaining states after each of them (without the digest).
	EvLocal struct {
		ID       piece.ID
		From, To int
		States   []byte
	}
	// EvStored: the driver has verified and written a piece (Err nil), or found
	// that it does not match the sums it was told to use (errors.Is
	// piece.ErrMismatch), or could not write it (any other error: the blob is
	// left, with ActFail).
	EvStored struct {
		ID    piece.ID
		Piece int
		Err   error
		// Hash is the SHA-256 of the piece's bytes if Err is ErrMismatch, so that
		// those of two sources can be compared; zero: not known.
		Hash [32]byte
	}
	// EvProven: the whole blob is on disk, every link verified.
	EvProven struct{ ID piece.ID }
	// EvLost: a piece that was there is not (it could not be read, or its
	// re-verification after ActRecheck failed). EvIntact: the re-verification
	// succeeded.
	EvLost struct {
		ID    piece.ID
		Piece int
	}
	EvIntact struct {
		ID    piece.ID
		Piece int
	}

	// EvPeers: the tracker named peers for a blob (more, not instead).
	EvPeers struct {
		ID    piece.ID
		Peers []PeerInfo
	}
	// EvPeersGone: the tracker says that these nodes left the blob's swarm.
	EvPeersGone struct {
		ID    piece.ID
		Nodes []string
	}
	// EvShare: the tracker says which pieces this node is to bring into its zone from
	// others: those of number i for which bit i modulo piece.Shares of Share is set.
	EvShare struct {
		ID    piece.ID
		Share uint16
	}
	// EvSumsHash: the tracker named the hash of the proven list (piece.Sums.Hash).
	EvSumsHash struct {
		ID   piece.ID
		Hash [32]byte
	}

	// EvConnected: a connection is up and both Hellos are exchanged and checked.
	EvConnected struct {
		Conn    ConnID
		Peer    wire.Hello
		Inbound bool
		RTT     time.Duration // round trip on an idle network; 0: not known
	}
	// EvDialFailed: ActDial did not lead to EvConnected. Reason and Err say why; none is
	// ReasonOther.
	EvDialFailed struct {
		Node, Addr string
		Reason     Reason
		Err        error
	}
	// EvDisconnected: the connection is gone; nothing sent on it can be relied on.
	EvDisconnected struct{ Conn ConnID }
	// EvMessage: a message arrived, decoded and within its limits. Never a
	// Hello. The Peer owns a Block's data until it hands that on; the Message
	// itself, and a Have's Pieces, are reused after Step.
	EvMessage struct {
		Conn    ConnID
		Message wire.Message
	}
	// EvBlockSent: a block of ActSendBlock has left this process (the socket
	// took it), so that there is room for the next. In the order of the
	// ActSendBlocks of the connection. What sockets buffer is a queue that the
	// Peer cannot see, so the driver keeps their buffers short.
	EvBlockSent struct {
		Conn ConnID
		N    int // bytes of the block
	}
	// EvHeard answers ActListen: so long ago the last bytes came.
	EvHeard struct {
		Conn ConnID
		Ago  time.Duration
	}
	// EvLimits: bandwidth limits changed. Bytes per second; 0: none.
	EvLimits struct{ Up, Down int64 }
)

// Action is one of the Act types. The driver performs them in order.
type Action interface{ action() }

type (
	// ActDial: connect to a peer, at Addr or by another way; EvConnected or EvDialFailed
	// follows.
	ActDial struct {
		Node, Addr string
		Others     []string
	}
	// ActClose: send an Error with this code and close. EvDisconnected follows.
	ActClose struct {
		Conn ConnID
		Code wire.Code
		Text string
	}
	// ActSend: send a message other than a Block.
	ActSend struct {
		Conn    ConnID
		Message wire.Message
	}
	// ActSendBlock: read a block from the disk and send it; EvBlockSent follows,
	// and if it cannot be read, EvLost and EvBlockSent. The Peer keeps few of
	// them under way at once.
	ActSendBlock struct {
		Conn   ConnID
		Handle wire.Handle
		ID     piece.ID
		Piece  int
		Offset int
		Length int
		Queue  uint16
	}
	// ActStore: verify a piece against Sums (which the driver must not change)
	// and write it; EvStored follows. Data is the piece in consecutive blocks,
	// which the driver owns from here on.
	ActStore struct {
		ID    piece.ID
		Piece int
		Sums  *piece.Sums
		Data  [][]byte
	}
	// ActRecheck: re-read and re-verify a stored piece; EvIntact or EvLost follows.
	ActRecheck struct {
		ID    piece.ID
		Piece int
	}
	// ActAdopt: the list against which pieces count from now on is Sums. Stored
	// pieces whose links differ in it are missing again: the Peer has already
	// removed them from its own set, the driver must do the same.
	ActAdopt struct {
		ID   piece.ID
		Sums *piece.Sums
	}
	// ActComputeSums: somebody asked for the sums of a blob that is here whole,
	// and that has none. The driver reads and hashes it once, and answers with
	// EvLocal for all pieces (States: all of them), then EvProven; or, if it
	// cannot, with EvLost, or by leaving.
	ActComputeSums struct{ ID piece.ID }
	// ActInvite: a peer wants a blob that is not joined here. A driver that has it
	// may join it, to seed; so it need not join everything it has in advance. At
	// most one for each time that a peer opens the blob.
	ActInvite struct{ ID piece.ID }
	// ActComplete: every piece is stored. The driver syncs, and answers EvProven.
	ActComplete struct{ ID piece.ID }
	// ActFail: the blob cannot be had through the swarm as things are (its disk
	// failed, or its sums were disproved). The driver leaves it, or joins anew.
	ActFail struct {
		ID  piece.ID
		Err error
	}
	// ActListen: find out when the last bytes came on a connection, a part of a message
	// included; EvHeard follows. A driver that cannot tell says that it is long ago.
	ActListen struct{ Conn ConnID }
	// ActNoSource: of a blob that is wanted, the last source that was known has failed:
	// BlobStatus.DeadEnd is true. It may not be any more when others are named.
	ActNoSource struct{ ID piece.ID }
	// ActDoubt: what is stored of a blob that is wanted may be false, since somebody has sent
	// a piece that does not verify, and nobody has sent it right yet, or the list that it was
	// verified against has fallen; or that is no longer so. Whoever goes on elsewhere cannot rely on it.
	ActDoubt struct {
		ID piece.ID
		On bool
	}
	// ActReport: something that an operator should see once.
	ActReport struct{ Report Report }
)

// Report is an event for logs and metrics.
type Report struct {
	Kind  ReportKind
	Node  string // the peer concerned, if any
	ID    piece.ID
	Piece int
	Err   error

	Reason   Reason // of ReportUnreachable
	Repeated bool   // the same was reported of Node within the hour
}

// ReportKind says what a Report is about.
type ReportKind uint8

const (
	ReportConvicted    ReportKind = iota + 1 // Node was proven to send wrong bytes or sums, and is cut off for a while
	ReportBadPiece                           // a piece from Node did not verify; nobody is blamed yet
	ReportStalled                            // requests were taken from Node, which was silent too long
	ReportSumsReplaced                       // the blob's sums were disproved and dropped
	ReportFault                              // the connection with Node was closed because it violated the protocol
	ReportRefused                            // somebody's connection was refused before it was established
	ReportDialFailed                         // Node could not be reached, or refused the connection
	ReportUnreachable                        // Node has failed as a source, because of Reason
)

// BlobStatus is what a driver can ask about a joined blob at any time.
type BlobStatus struct {
	Have      int // pieces stored
	Peers     int // connected peers that take part in the blob's swarm
	Useful    int // those among them that have a piece we lack, or are downloading and may get one
	Known     int // peers the tracker named that are not connected but may still be: none that has failed
	Missing   int // pieces still to be asked for that no connected peer has
	InFlight  int // blocks requested and not arrived
	BytesIn   int64
	BytesOut  int64
	Redundant int64     // bytes received twice
	Progress  time.Time // when the last piece was stored
	// Reach is how many bytes from the first on are here, or with connected peers, without a gap.
	Reach int64
	// Waits is when somebody who has something of it that we lack last gave us a block of
	// any blob, or said that he is busy; zero: nobody has. It may be its turn soon.
	Waits   time.Time
	DeadEnd bool     // every source that was named has failed, and nobody else has anything
	Lost    []string // then: their names, a few dozen at most
}

func (EvTick) event()         {}
func (EvJoin) event()         {}
func (EvLeave) event()        {}
func (EvLocal) event()        {}
func (EvStored) event()       {}
func (EvProven) event()       {}
func (EvLost) event()         {}
func (EvIntact) event()       {}
func (EvPeers) event()        {}
func (EvPeersGone) event()    {}
func (EvSumsHash) event()     {}
func (EvShare) event()        {}
func (EvConnected) event()    {}
func (EvDialFailed) event()   {}
func (EvDisconnected) event() {}
func (EvMessage) event()      {}
func (EvBlockSent) event()    {}
func (EvHeard) event()        {}
func (EvLimits) event()       {}

func (ActDial) action()        {}
func (ActClose) action()       {}
func (ActSend) action()        {}
func (ActSendBlock) action()   {}
func (ActStore) action()       {}
func (ActRecheck) action()     {}
func (ActAdopt) action()       {}
func (ActComputeSums) action() {}
func (ActInvite) action()      {}
func (ActComplete) action()    {}
func (ActFail) action()        {}
func (ActListen) action()      {}
func (ActNoSource) action()    {}
func (ActDoubt) action()       {}
func (ActReport) action()      {}
