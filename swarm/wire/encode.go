package wire

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/capelin-io/capelin/swarm/piece"
)

var be = binary.BigEndian

// Append appends m as one frame. It refuses, with a *[Fault] and p unchanged,
// what a decoder would refuse; an error is a mistake of the caller.
func Append(p []byte, m Message) ([]byte, error) {
	start := len(p)
	q, f := appendBody(append(p, byte(m.Type()), 0, 0, 0), m)
	if f != nil {
		return p, f
	}
	putHeader(q[start:], m.Type(), len(q)-start-HeaderLen)
	return q, nil
}

// AppendBlockHeader appends the first [BlockHeaderLen] bytes of a Block's frame,
// to be followed by n bytes of data from elsewhere. b.Data is ignored.
func AppendBlockHeader(p []byte, b *Block, n int) ([]byte, error) {
	if f := b.check(n); f != nil {
		return p, f
	}
	p = be.AppendUint32(p, uint32(TypeBlock)<<24|uint32(blockFixed+n))
	return b.appendFixed(p), nil
}

func putHeader(p []byte, t Type, body int) { be.PutUint32(p, uint32(t)<<24|uint32(body)) }

func (b *Block) appendFixed(p []byte) []byte {
	p = be.AppendUint32(p, uint32(b.Blob))
	p = be.AppendUint32(p, b.Piece)
	p = be.AppendUint32(p, b.Offset)
	return be.AppendUint16(p, b.Queue)
}

func appendBody(p []byte, m Message) ([]byte, *Fault) {
	f := checkMessage(m)
	if f != nil {
		return p, f
	}
	switch m := m.(type) {
	case *Hello:
		p = append(p, magic...)
		p = be.AppendUint16(p, m.Version)
		p = be.AppendUint64(p, m.Features)
		p = append(p, byte(m.Role))
		for _, s := range [...]string{m.Cluster, m.Node, m.Zone, m.Addr, m.Software} {
			p = appendString(p, s)
		}
	case *Open:
		p = be.AppendUint32(p, uint32(m.Blob))
		p = append(p, setBit(m.Want, flagWant)|setBit(m.Complete, flagComplete), byte(m.ID.Alg))
		p = be.AppendUint64(p, uint64(m.ID.Size))
		p = append(p, m.ID.Sum[:m.ID.Alg.Size()]...)
		p = append(p, m.Bits...)
	case *Close:
		p = be.AppendUint32(p, uint32(m.Blob))
	case *Have:
		p = be.AppendUint32(p, uint32(m.Blob))
		for _, i := range m.Pieces {
			p = be.AppendUint32(p, i)
		}
	case *SumsRequest:
		p = be.AppendUint32(p, uint32(m.Blob))
		p = be.AppendUint32(p, m.From)
		p = be.AppendUint32(p, m.Count)
	case *Sums:
		p = be.AppendUint32(p, uint32(m.Blob))
		p = be.AppendUint32(p, m.From)
		p = append(p, setBit(m.Proven, flagProven))
		p = append(p, m.States...)
	case *Request:
		p = be.AppendUint32(p, uint32(m.Blob))
		p = be.AppendUint32(p, m.Piece)
		p = be.AppendUint32(p, m.Offset)
		p = be.AppendUint32(p, m.Length)
	case *Block:
		p = append(m.appendFixed(p), m.Data...)
	case *Busy:
		p = be.AppendUint32(p, uint32(m.Blob))
		p = be.AppendUint32(p, m.Piece)
		p = be.AppendUint32(p, m.Offset)
		p = be.AppendUint16(p, m.Queue)
		p = be.AppendUint16(p, m.Retry)
	case *Lost:
		p = appendPiece(p, m.Blob, m.Piece)
	case *Cancel:
		p = appendPiece(p, m.Blob, m.Piece)
	case *Bad:
		p = appendPiece(p, m.Blob, m.Piece)
	case *Ping:
	case *Error:
		p = be.AppendUint16(p, uint16(m.Code))
		p = appendString(p, m.Text)
	}
	return p, nil
}

func appendPiece(p []byte, h Handle, i uint32) []byte {
	return be.AppendUint32(be.AppendUint32(p, uint32(h)), i)
}

func appendString(p []byte, s string) []byte { return append(append(p, byte(len(s))), s...) }

// Flag bits of Open and Sums.
const (
	flagWant     = 1
	flagComplete = 2
	flagProven   = 1
)

func setBit(on bool, bit byte) byte {
	if on {
		return bit
	}
	return 0
}

// checkMessage reports what PROTOCOL.md §4 refuses in m. Decoder and encoder
// share it; the decoder has already bounded every length.
func checkMessage(m Message) *Fault {
	switch m := m.(type) {
	case *Hello:
		if m.Version != Version {
			return &Fault{CodeVersion, TypeHello, fmt.Sprintf("version %d; spoken here: %d", m.Version, Version)}
		}
		if m.Role == 0 {
			return malformed(TypeHello, "role 0")
		}
		if m.Cluster == "" || m.Node == "" {
			return malformed(TypeHello, "empty cluster or node")
		}
		for _, s := range [...]string{m.Cluster, m.Node, m.Zone, m.Addr, m.Software} {
			if f := checkString(TypeHello, s); f != nil {
				return f
			}
		}
	case *Open:
		if err := m.ID.Validate(); err != nil {
			return malformed(TypeOpen, err.Error())
		}
		if len(m.Bits) > 0 {
			n := m.ID.Pieces()
			if m.Complete || len(m.Bits) != (n+7)/8 {
				return malformed(TypeOpen, "bitfield of another length than the blob's")
			}
			if spare := -n & 7; m.Bits[len(m.Bits)-1]&(1<<spare-1) != 0 {
				return malformed(TypeOpen, "bitfield has pieces beyond the last")
			}
		}
	case *Have:
		if len(m.Pieces) == 0 {
			return malformed(TypeHave, "no piece")
		}
		if len(m.Pieces) > MaxHave {
			return limit(TypeHave, "too many pieces")
		}
		for _, i := range m.Pieces {
			if i >= MaxPieces {
				return malformed(TypeHave, "no such piece")
			}
		}
	case *SumsRequest:
		if m.From >= MaxPieces || m.Count == 0 || m.Count > MaxPieces {
			return malformed(TypeSumsRequest, "range out of bounds")
		}
	case *Sums:
		if len(m.States) > maxStates {
			return limit(TypeSums, "too many states")
		}
		if m.From >= MaxPieces || len(m.States)%32 != 0 {
			return malformed(TypeSums, "range out of bounds, or part of a state")
		}
	case *Request:
		if m.Piece == AnyPiece {
			if m.Offset != 0 || m.Length != piece.MaxBlock {
				return malformed(TypeRequest, "any piece, but not its beginning")
			}
			return nil
		}
		if m.Piece >= MaxPieces || m.Length == 0 || m.Length > piece.MaxBlock || m.Offset > piece.MaxLength-m.Length {
			return malformed(TypeRequest, "piece or range out of bounds")
		}
	case *Block:
		return m.check(len(m.Data))
	case *Busy:
		if m.Piece == AnyPiece && m.Offset != 0 || m.Piece != AnyPiece && m.Piece >= MaxPieces || m.Offset >= piece.MaxLength {
			return malformed(TypeBusy, "piece or offset out of bounds")
		}
	case *Lost:
		if m.Piece != AnyPiece && m.Piece >= MaxPieces {
			return malformed(TypeLost, "no such piece")
		}
	case *Cancel:
		if m.Piece != AnyPiece && m.Piece >= MaxPieces {
			return malformed(TypeCancel, "no such piece")
		}
	case *Bad:
		if m.Piece >= MaxPieces {
			return malformed(TypeBad, "no such piece")
		}
	case *Error:
		return checkString(TypeError, m.Text)
	}
	return nil
}

// check reports what is refused in a Block of n bytes.
func (b *Block) check(n int) *Fault {
	if n > piece.MaxBlock {
		return limit(TypeBlock, "too much data")
	}
	if b.Piece >= MaxPieces || n < 1 || b.Offset > uint32(piece.MaxLength-n) {
		return malformed(TypeBlock, "piece or range out of bounds")
	}
	return nil
}

func checkString(t Type, s string) *Fault {
	if len(s) > MaxString {
		return limit(t, "string too long")
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, control) {
		return malformed(t, "string with control characters or invalid UTF-8")
	}
	return nil
}

func control(r rune) bool { return r < 0x20 || r == 0x7f }

// Text returns s as a string that may be sent: cut to [MaxString] bytes, with
// what is not allowed replaced.
func Text(s string) string {
	s = strings.Map(func(r rune) rune {
		if control(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > MaxString {
		s = strings.ToValidUTF8(s[:MaxString], "")
	}
	return s
}

func malformed(t Type, reason string) *Fault { return &Fault{CodeMalformed, t, reason} }
func limit(t Type, reason string) *Fault     { return &Fault{CodeLimit, t, reason} }

// AppendUnspoken appends a Hello of version 0, which nobody speaks: every peer answers it with
// an Error of CodeVersion (PROTOCOL.md §7).
func AppendUnspoken(p []byte) []byte {
	p = append(p, byte(TypeHello), 0, 0, byte(len(magic)+2))
	return append(append(p, magic...), 0, 0)
}
