package wire

import (
	"fmt"

	"github.com/capelin-io/capelin/swarm/piece"
)

// Version is the protocol version spoken here (PROTOCOL.md §7).
const Version = 1

// Limits of PROTOCOL.md §6. The decoder checks them before it allocates, the
// encoder refuses to exceed them.
const (
	HeaderLen      = 4                               // of a frame: type and body length
	BlockHeaderLen = HeaderLen + blockFixed          // of a Block's frame, up to its data
	MaxPieces      = piece.MaxSize / piece.MaxLength // in a blob
	MaxBits        = MaxPieces / 8                   // bytes of Open.Bits
	MaxHave        = 4096                            // pieces in a Have
	MaxSums        = 2048                            // states in a Sums
	MaxString      = 255                             // bytes
	MaxBody        = blockFixed + piece.MaxBlock     // bytes of any frame after its header
	MaxFrame       = HeaderLen + MaxBody             // bytes
	optional       = Type(0x80)                      // unknown types from here on are skipped
	magic          = "CAPELIN\x00"                   // begins a Hello
	maxHello       = 4096                            // bytes of a Hello's body in any version
	maxStates      = MaxSums * 64                    // bytes of Sums.States
)

// Bytes of each message's fields of fixed size.
const (
	helloFixed       = 8 + 2 + 8 + 1     // magic, version, features, role; five strings follow
	openFixed        = 4 + 1 + 1 + 8     // handle, flags, algorithm, size; digest and bits follow
	closeFixed       = 4                 // handle
	haveFixed        = 4                 // handle; pieces follow
	sumsRequestFixed = 4 + 4 + 4         // handle, from, count
	sumsFixed        = 4 + 4 + 1         // handle, from, flags; states follow
	requestFixed     = 4 + 4 + 4 + 4     // handle, piece, offset, length
	blockFixed       = 4 + 4 + 4 + 2     // handle, piece, offset, queue; data follows
	busyFixed        = 4 + 4 + 4 + 2 + 2 // handle, piece, offset, queue, retry
	pieceFixed       = 4 + 4             // handle, piece: Lost, Cancel, Bad
	errorFixed       = 2                 // code; text follows
)

// bounds are the shortest and longest body of each known type.
var bounds = [...]struct{ min, max int }{
	TypeHello:       {len(magic) + 2, maxHello}, // in any version
	TypeOpen:        {openFixed + 32, openFixed + 64 + MaxBits},
	TypeClose:       {closeFixed, closeFixed},
	TypeHave:        {haveFixed + 4, haveFixed + 4*MaxHave},
	TypeSumsRequest: {sumsRequestFixed, sumsRequestFixed},
	TypeSums:        {sumsFixed, sumsFixed + maxStates},
	TypeRequest:     {requestFixed, requestFixed},
	TypeBlock:       {blockFixed + 1, blockFixed + piece.MaxBlock},
	TypeBusy:        {busyFixed, busyFixed},
	TypeLost:        {pieceFixed, pieceFixed},
	TypeCancel:      {pieceFixed, pieceFixed},
	TypeBad:         {pieceFixed, pieceFixed},
	TypePing:        {0, 0},
	TypeError:       {errorFixed + 1, errorFixed + 1 + MaxString},
}

var typeNames = [...]string{
	TypeHello: "Hello", TypeOpen: "Open", TypeClose: "Close", TypeHave: "Have",
	TypeSumsRequest: "SumsRequest", TypeSums: "Sums", TypeRequest: "Request",
	TypeBlock: "Block", TypeBusy: "Busy", TypeLost: "Lost", TypeCancel: "Cancel",
	TypeBad: "Bad", TypePing: "Ping", TypeError: "Error",
}

func (t Type) known() bool { return t > 0 && int(t) < len(typeNames) }

// String returns the message's name in PROTOCOL.md.
func (t Type) String() string {
	if t.known() {
		return typeNames[t]
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// codeNames is the table of PROTOCOL.md §5.
var codeNames = map[Code]string{
	CodeShutdown: "shutdown", CodeSurplus: "surplus", CodeDuplicate: "duplicate", CodeIdle: "idle",
	CodeVersion: "version", CodeCluster: "cluster", CodeIdentity: "identity",
	CodeMalformed: "malformed", CodeUnexpected: "unexpected", CodeLimit: "limit",
	CodeTimeout: "timeout", CodeConvicted: "convicted",
}

// String returns the code's name in PROTOCOL.md.
func (c Code) String() string {
	if s, ok := codeNames[c]; ok {
		return s
	}
	return fmt.Sprintf("code %d", uint16(c))
}

// String returns the role's name.
func (r Role) String() string {
	switch r {
	case RoleAgent:
		return "agent"
	case RoleOrigin:
		return "origin"
	}
	return fmt.Sprintf("role %d", uint8(r))
}

// Fault is a peer's violation of PROTOCOL.md, or, from the encoder, our own. It
// carries the code that the connection is closed with. Errors of the
// underlying reader are never Faults.
type Fault struct {
	Code   Code
	Type   Type // of the message at fault; 0: not known
	Reason string
}

func (f *Fault) Error() string {
	if f.Type == 0 {
		return fmt.Sprintf("%s (%v)", f.Reason, f.Code)
	}
	return fmt.Sprintf("%v message: %s (%v)", f.Type, f.Reason, f.Code)
}
