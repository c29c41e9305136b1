package mirror

import (
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/ring"
)

// Member is one of those who may have a copy.
type Member struct {
	ring.Member
	Up bool // answers, as far as this member knows
}

// Term counts the members that have led an upload, one after the other. 0 is none.
type Term uint64

// Event is one of the Ev types.
type Event interface{ event() }

type (
	// EvTick: Deadline has passed. It may come at any time.
	EvTick struct{}
	// EvMembers: the members that may own blobs, with this one, as they are now. It is the
	// first event, and comes again when they change.
	EvMembers struct{ Members []Member }
	// EvRequest: somebody asks for something. There is one ActReply to each.
	EvRequest struct{ Request }
	// EvWrote: the append under way has brought the file to Size bytes.
	EvWrote struct{ Size int64 }
	// EvAppended: the append under way has ended, because its body did, or broke off
	// (Broken), or by ActStop. Nobody writes to the file any more.
	EvAppended struct {
		Size   int64
		Broken bool
	}
	// EvVerified answers ActVerify: Done, WrongDigest, Unknown (it became a blob, which was
	// removed since) or Unavailable.
	EvVerified struct{ Result }
	// EvCommitted answers ActCommit: Done, Unavailable, or Unknown: the file is lost, as one
	// is that could not be synced.
	EvCommitted struct{ Result }
	// EvMoved: the mirror took some bytes of what is sent to it just now.
	EvMoved struct{ Feeder uint64 }
	// EvAnswer: the mirror answered ActStart, ActFeed or ActConfirm, or could not be
	// reached (Unavailable).
	EvAnswer struct {
		Feeder uint64
		Answer
	}
	// EvMakeRoom: others need the room that the upload takes. It goes if it is idle (Upload.Idle), at its mirrors, too.
	EvMakeRoom struct{}
	// EvStands answers ActAsk. Without an answer it does not come.
	EvStands struct {
		Member string
		Stands
	}
)

// Kind says what a request is for.
type Kind uint8

// The kinds of requests.
const (
	Start  Kind = iota + 1 // POST: where does the upload stand
	Append                 // PATCH: bytes at Off
	Put                    // PUT: make the upload the blob Digest
	Delete                 // DELETE: forget it
)

// Request is what a client, or a member that leads, asks for.
type Request struct {
	ID     uint64 // the driver's
	Kind   Kind
	From   string        // the member that leads; "": a client
	Term   Term          // with From
	Off    int64         // Append: where the bytes go; Put: where the upload should end, negative if that is not said
	Digest digest.Digest // Put
}

// Code is the kind of an answer.
type Code uint8

// The codes, with the status that each has in control/ORIGIN.md.
const (
	Done        Code = iota + 1 // 200, 201, 204
	Later                       // 202: it is under way, ask again
	WrongDigest                 // 400: the bytes have another digest
	Unknown                     // 404: no such upload
	Conflict                    // 409: another request, or another leader, has it
	OutOfRange                  // 416: it stands elsewhere
	Unavailable                 // 503, and whatever else says that it failed
)

// Answer is an answer to a request.
type Answer struct {
	Code   Code
	Offset int64 // where the upload stands
	Term   Term  // that the answering member obeys, or leads by
	Err    error // what failed, for people; may be nil
	// Mirrors have confirmed a client's Put that is Done, beside this member.
	Mirrors []string
}

// Result is how something ended that was asked of the own disk.
type Result struct {
	Digest digest.Digest
	Code   Code
	Err    error // what failed
}

// Stands is how an upload stands at a member.
type Stands struct {
	Known     bool
	Offset    int64
	Term      Term
	Leads     bool
	Feeds     bool          // it leads, and feeds whoever asked
	Committed digest.Digest // of the blob that it became; "": none yet
}

// Action is one of the Act types. The driver performs them in order.
type Action interface{ action() }

type (
	// ActReply: answer a request.
	ActReply struct {
		ID uint64
		Answer
	}
	// ActAccept: write the request's body at the end of the file. EvWrote and EvAppended follow.
	ActAccept struct{ ID uint64 }
	// ActStop: end the append under way. EvAppended follows.
	ActStop struct{ ID uint64 }
	// ActVerify: has the file this digest? EvVerified follows. A blob that the upload became
	// already is still there, pinned.
	ActVerify struct{ Digest digest.Digest }
	// ActCommit: make the file a blob, synced and recorded. EvCommitted follows. It may have
	// been done before.
	ActCommit struct{ Digest digest.Digest }
	// ActStart: begin the upload at a mirror, if it does not have it; where does it stand?
	ActStart struct{ Call }
	// ActFeed: append the file's bytes from Off up to To (the blob's, when it is one).
	ActFeed struct {
		Call
		Off, To int64
	}
	// ActConfirm: commit the upload of Size bytes there.
	ActConfirm struct {
		Call
		Digest digest.Digest
		Size   int64
	}
	// ActDrop: end what is asked of a mirror just now; no answer is wanted any more.
	ActDrop struct{ Feeder uint64 }
	// ActErase: delete the upload at a member, without an answer and without waiting.
	ActErase struct {
		Member string
		Term   Term
	}
	// ActAsk: how does the upload stand at a member?
	ActAsk struct{ Member string }
	// ActForget: remove what is left of the file, and this value. Nothing follows; what still
	// comes for it is of no consequence. Why says why it is no upload any more.
	ActForget struct{ Why error }
)

// Call is what requests to a mirror have in common. A feeder has one at a time.
type Call struct {
	Feeder uint64
	Member string
	Term   Term
}

func (EvTick) event()      {}
func (EvMembers) event()   {}
func (EvRequest) event()   {}
func (EvWrote) event()     {}
func (EvAppended) event()  {}
func (EvVerified) event()  {}
func (EvCommitted) event() {}
func (EvMoved) event()     {}
func (EvAnswer) event()    {}
func (EvMakeRoom) event()  {}
func (EvStands) event()    {}

func (ActReply) action()   {}
func (ActAccept) action()  {}
func (ActStop) action()    {}
func (ActVerify) action()  {}
func (ActCommit) action()  {}
func (ActStart) action()   {}
func (ActFeed) action()    {}
func (ActConfirm) action() {}
func (ActDrop) action()    {}
func (ActErase) action()   {}
func (ActAsk) action()     {}
func (ActForget) action()  {}
