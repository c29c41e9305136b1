package wire

import "github.com/capelin-io/capelin/swarm/piece"

// Message is one of the messages below. PROTOCOL.md specifies each field's
// encoding and bounds; the codec enforces them in both directions.
type Message interface{ Type() Type }

// Type is a message's number on the wire.
type Type uint8

// The messages, in the order in which a connection first needs them.
const (
	TypeHello       Type = 1
	TypeOpen        Type = 2
	TypeClose       Type = 3
	TypeHave        Type = 4
	TypeSumsRequest Type = 5
	TypeSums        Type = 6
	TypeRequest     Type = 7
	TypeBlock       Type = 8
	TypeBusy        Type = 9
	TypeLost        Type = 10
	TypeCancel      Type = 11
	TypeBad         Type = 12
	TypePing        Type = 13
	TypeError       Type = 14
)

// Handle is the number that the *sender* of a message gave a blob in its Open
// on this connection. Every message about a blob carries its sender's handle,
// so each side opens a blob before it says anything else about it. A handle may
// be reused after its Close.
type Handle uint32

// AnyPiece in a Request asks for the first block of a piece of the seeder's
// choosing, among those that the requester has not announced.
const AnyPiece = ^uint32(0)

// Role says what a node is to others.
type Role uint8

const (
	RoleAgent  Role = 1
	RoleOrigin Role = 2
)

// Hello is the first message in each direction, and only that.
type Hello struct {
	Version  uint16 // of the protocol; see Version
	Features uint64 // bit set; unknown bits are ignored
	Role     Role
	Cluster  string // both ends must name the same cluster
	Node     string // unique in the cluster; bound to the certificate with TLS
	Zone     string // may be empty
	Addr     string // host:port where the sender accepts connections; empty: nowhere
	Software string // name/version, for people
}

// Open announces that the sender takes part in a blob's swarm on this
// connection, and what it has. It gives the blob its handle.
type Open struct {
	Blob     Handle
	ID       piece.ID
	Want     bool   // the sender is downloading, and wants Haves
	Complete bool   // the sender has every piece; Bits is empty then
	Bits     []byte // piece.Bits in binary; empty: none yet, or all if Complete
}

// Close says that the sender no longer takes part in the blob's swarm. It also
// withdraws its requests; blocks already under way may still come.
type Close struct{ Blob Handle }

// Have announces pieces that the sender now has, batched.
type Have struct {
	Blob   Handle
	Pieces []uint32
}

// SumsRequest asks for the chaining states From..From+Count-1.
type SumsRequest struct {
	Blob  Handle
	From  uint32
	Count uint32
}

// Sums answers a SumsRequest, possibly with fewer states than were asked for
// (none, while the sender knows none from there on), and may come unasked when
// a list grows.
type Sums struct {
	Blob   Handle
	From   uint32
	Proven bool // the sender has verified every link of its list
	States []byte
}

// Request asks for one block: at most piece.MaxBlock bytes of a piece.
type Request struct {
	Blob   Handle
	Piece  uint32 // or AnyPiece, with Offset 0 and Length piece.MaxBlock
	Offset uint32 // within the piece
	Length uint32
}

// Block answers a Request.
type Block struct {
	Blob   Handle
	Piece  uint32
	Offset uint32 // within the piece
	Queue  uint16 // blocks waiting at the sender for any peer, after this one
	Data   []byte // 1..piece.MaxBlock bytes
}

// Busy refuses a Request for now.
type Busy struct {
	Blob   Handle
	Piece  uint32 // as requested, AnyPiece included
	Offset uint32
	Queue  uint16 // as in Block
	Retry  uint16 // milliseconds; ask again after that, not before
}

// Lost refuses a Request for good: the sender does not have the piece. It takes
// back an announced one. With AnyPiece: the sender has nothing the requester
// lacks.
type Lost struct {
	Blob  Handle
	Piece uint32
}

// Cancel withdraws every request for a piece; blocks already under way may
// still come.
type Cancel struct {
	Blob  Handle
	Piece uint32
}

// Bad tells a sender that the piece it sent did not verify. The receiver
// re-reads and re-verifies its own copy.
type Bad struct {
	Blob  Handle
	Piece uint32
}

// Ping keeps a quiet connection alive; it has no answer.
type Ping struct{}

// Error is the last message on a connection: why its sender closes it.
type Error struct {
	Code Code
	Text string
}

func (*Hello) Type() Type       { return TypeHello }
func (*Open) Type() Type        { return TypeOpen }
func (*Close) Type() Type       { return TypeClose }
func (*Have) Type() Type        { return TypeHave }
func (*SumsRequest) Type() Type { return TypeSumsRequest }
func (*Sums) Type() Type        { return TypeSums }
func (*Request) Type() Type     { return TypeRequest }
func (*Block) Type() Type       { return TypeBlock }
func (*Busy) Type() Type        { return TypeBusy }
func (*Lost) Type() Type        { return TypeLost }
func (*Cancel) Type() Type      { return TypeCancel }
func (*Bad) Type() Type         { return TypeBad }
func (*Ping) Type() Type        { return TypePing }
func (*Error) Type() Type       { return TypeError }

// Code says why a connection ends.
type Code uint16

const (
	CodeShutdown   Code = 1  // the sender stops; not a fault
	CodeSurplus    Code = 2  // more connections than wanted; not a fault
	CodeDuplicate  Code = 3  // the pair is already connected; not a fault
	CodeIdle       Code = 4  // nothing shared any more; not a fault
	CodeVersion    Code = 10 // the Hello's version is not spoken here
	CodeCluster    Code = 11 // the Hello names another cluster
	CodeIdentity   Code = 12 // the Hello's node is not the certificate's
	CodeMalformed  Code = 20 // a message that PROTOCOL.md does not allow
	CodeUnexpected Code = 21 // an allowed message at the wrong time
	CodeLimit      Code = 22 // a stated limit was exceeded
	CodeTimeout    Code = 23 // no Hello, or nothing at all, for too long
	CodeConvicted  Code = 24 // wrong bytes or sums were proven against the receiver
)
