package wire

import (
	"bufio"
	"io"
	"sync"

	"github.com/capelin-io/capelin/swarm/piece"
)

// readBuffer is the size of a Reader's own buffer: enough for most control
// messages at once, small because what it holds of a Block's data is copied.
const readBuffer = 4 << 10

// Reader decodes the messages of one direction of a connection. It allocates at
// most [MaxFrame] bytes before they have arrived. It is not safe for concurrent
// use.
type Reader struct {
	br     *bufio.Reader
	full   FullReader // nil: br's reader is none
	buffer func(n int) []byte
}

// FullReader is a reader that knows a better way to read len(p) bytes than to
// try again and again. ReadFull's error is io.ErrUnexpectedEOF at the end of the
// stream.
type FullReader interface{ ReadFull(p []byte) error }

// NewReader returns a Reader of r. buffer returns memory of length n for a
// Block's data, n in 1..piece.MaxBlock, into which the data is read directly,
// with r's ReadFull if it is a [FullReader]; nil: it is allocated. A buffer is
// lost if reading into it fails.
func NewReader(r io.Reader, buffer func(n int) []byte) *Reader {
	if buffer == nil {
		buffer = func(n int) []byte { return make([]byte, n) }
	}
	full, _ := r.(FullReader)
	return &Reader{bufio.NewReaderSize(r, readBuffer), full, buffer}
}

// Next returns the next message; the caller owns it and all it refers to. It
// skips unknown optional messages. The error is a *[Fault] if the bytes violate
// PROTOCOL.md, io.EOF if the stream ended between messages,
// io.ErrUnexpectedEOF if it ended within one, and the underlying reader's error
// otherwise. After an error the Reader cannot be used.
func (r *Reader) Next() (Message, error) {
	for {
		h, err := r.br.Peek(HeaderLen)
		if err != nil {
			if len(h) > 0 && err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		t, n, f := parseHeader([HeaderLen]byte(h))
		if f != nil {
			return nil, f
		}
		m, err := r.body(t, n)
		if m != nil || err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return m, err
		}
	}
}

// body reads the frame whose header has been checked but not consumed.
func (r *Reader) body(t Type, n int) (Message, error) {
	switch {
	case !t.known():
		_, err := r.br.Discard(HeaderLen + n)
		return nil, err
	case t == TypeBlock:
		return r.block(n - blockFixed)
	case HeaderLen+n <= r.br.Size():
		p, err := r.br.Peek(HeaderLen + n)
		if err != nil {
			return nil, err
		}
		m, f := decodeBody(t, p[HeaderLen:], false)
		if f != nil {
			return nil, f
		}
		_, err = r.br.Discard(HeaderLen + n)
		return m, err
	}
	if _, err := r.br.Discard(HeaderLen); err != nil {
		return nil, err
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(r.br, p); err != nil {
		return nil, err
	}
	m, f := decodeBody(t, p, true)
	if f != nil {
		return nil, f
	}
	return m, nil
}

func (r *Reader) block(n int) (Message, error) {
	p, err := r.br.Peek(BlockHeaderLen)
	if err != nil {
		return nil, err
	}
	b := blocks.Get().(*Block)
	b.decodeFixed(p[HeaderLen:])
	if f := b.check(n); f != nil {
		return nil, f
	}
	if _, err := r.br.Discard(BlockHeaderLen); err != nil {
		return nil, err
	}
	b.Data = r.buffer(n)
	rest := b.Data
	if r.full == nil {
		_, err = io.ReadFull(r.br, rest)
	} else {
		if k := min(n, r.br.Buffered()); k > 0 {
			_, _ = r.br.Read(rest[:k]) // what is buffered is there
			rest = rest[k:]
		}
		err = r.full.ReadFull(rest)
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// parseHeader returns the type and the body's length, checked against the
// type's bounds.
func parseHeader(h [HeaderLen]byte) (Type, int, *Fault) {
	v := be.Uint32(h[:])
	t, n := Type(v>>24), int(v&(1<<24-1))
	switch {
	case t.known():
		if n > bounds[t].max {
			return t, n, limit(t, "body too long")
		}
		if n < bounds[t].min {
			return t, n, malformed(t, "body too short")
		}
	case t < optional:
		return t, n, malformed(t, "unknown")
	case n > MaxBody:
		return t, n, limit(t, "body too long")
	}
	return t, n, nil
}

// decodeBody decodes the body p, whose length is within the type's bounds. If
// own, the message may refer to p.
func decodeBody(t Type, p []byte, own bool) (Message, *Fault) {
	var m Message
	rest := func(p []byte) []byte {
		switch {
		case len(p) == 0:
			return nil
		case own:
			return p
		}
		return append([]byte(nil), p...)
	}
	switch t {
	case TypeHello:
		return decodeHello(p)
	case TypeOpen:
		o := &Open{Blob: handle(p), Want: p[4]&flagWant != 0, Complete: p[4]&flagComplete != 0}
		if p[4]&^(flagWant|flagComplete) != 0 {
			return nil, malformed(t, "unknown flag")
		}
		o.ID.Alg = piece.Algorithm(p[5])
		size := be.Uint64(p[6:])
		n := o.ID.Alg.Size()
		if n == 0 || size > piece.MaxSize {
			return nil, malformed(t, "unknown algorithm, or size out of bounds")
		}
		o.ID.Size = int64(size)
		p = p[openFixed:]
		if len(p) < n {
			return nil, malformed(t, "digest cut short")
		}
		copy(o.ID.Sum[:], p[:n])
		o.Bits = p[n:]
		if f := checkMessage(o); f != nil { // before the bits are copied
			return nil, f
		}
		o.Bits = rest(o.Bits)
		return o, nil
	case TypeClose:
		m = &Close{handle(p)}
	case TypeHave:
		h := haves.Get().(*Have)
		h.Blob, p = handle(p), p[haveFixed:]
		if len(p)%4 != 0 {
			return nil, malformed(t, "part of a piece number")
		}
		h.Pieces = h.Pieces[:0]
		for ; len(p) > 0; p = p[4:] {
			h.Pieces = append(h.Pieces, be.Uint32(p))
		}
		m = h
	case TypeSumsRequest:
		m = &SumsRequest{handle(p), be.Uint32(p[4:]), be.Uint32(p[8:])}
	case TypeSums:
		if p[8]&^flagProven != 0 {
			return nil, malformed(t, "unknown flag")
		}
		m = &Sums{handle(p), be.Uint32(p[4:]), p[8]&flagProven != 0, rest(p[sumsFixed:])}
	case TypeRequest:
		r := requests.Get().(*Request)
		*r = Request{handle(p), be.Uint32(p[4:]), be.Uint32(p[8:]), be.Uint32(p[12:])}
		m = r
	case TypeBlock:
		b := blocks.Get().(*Block)
		b.decodeFixed(p)
		b.Data = rest(p[blockFixed:])
		m = b
	case TypeBusy:
		m = &Busy{handle(p), be.Uint32(p[4:]), be.Uint32(p[8:]), be.Uint16(p[12:]), be.Uint16(p[14:])}
	case TypeLost:
		m = &Lost{handle(p), be.Uint32(p[4:])}
	case TypeCancel:
		m = &Cancel{handle(p), be.Uint32(p[4:])}
	case TypeBad:
		m = &Bad{handle(p), be.Uint32(p[4:])}
	case TypePing:
		m = &Ping{}
	case TypeError:
		e := &Error{Code: Code(be.Uint16(p))}
		var ok bool
		if e.Text, p, ok = cutString(p[errorFixed:]); !ok || len(p) > 0 {
			return nil, malformed(t, "text of another length than the body's")
		}
		m = e
	}
	if f := checkMessage(m); f != nil {
		return nil, f
	}
	return m, nil
}

func decodeHello(p []byte) (Message, *Fault) {
	if string(p[:len(magic)]) != magic {
		return nil, malformed(TypeHello, "not Capelin's magic")
	}
	p = p[len(magic):]
	h := &Hello{Version: be.Uint16(p)}
	if h.Version != Version { // whose layout is not known
		return nil, checkMessage(h)
	}
	if p = p[2:]; len(p) < 9 {
		return nil, malformed(TypeHello, "body too short")
	}
	h.Features, h.Role, p = be.Uint64(p), Role(p[8]), p[9:]
	for _, s := range [...]*string{&h.Cluster, &h.Node, &h.Zone, &h.Addr, &h.Software} {
		var ok bool
		if *s, p, ok = cutString(p); !ok {
			return nil, malformed(TypeHello, "string cut short")
		}
	}
	if len(p) > 0 {
		return nil, malformed(TypeHello, "bytes after the last field")
	}
	if f := checkMessage(h); f != nil {
		return nil, f
	}
	return h, nil
}

func (b *Block) decodeFixed(p []byte) {
	b.Blob, b.Piece, b.Offset, b.Queue = handle(p), be.Uint32(p[4:]), be.Uint32(p[8:]), be.Uint16(p[12:])
}

func handle(p []byte) Handle { return Handle(be.Uint32(p)) }

func cutString(p []byte) (s string, rest []byte, ok bool) {
	if len(p) == 0 || len(p) <= int(p[0]) {
		return "", nil, false
	}
	n := 1 + int(p[0])
	return string(p[1:n]), p[n:], true
}

var (
	blocks   = sync.Pool{New: func() any { return new(Block) }}
	requests = sync.Pool{New: func() any { return new(Request) }}
	haves    = sync.Pool{New: func() any { return new(Have) }}
)

// Release lets a later decoding reuse m, so that the frequent messages need no
// allocation. Nobody may use m, or a Have's Pieces, afterwards; a Block's Data
// is not touched. It is optional, and does nothing for the rare messages.
func Release(m Message) {
	switch m := m.(type) {
	case *Block:
		*m = Block{}
		blocks.Put(m)
	case *Request:
		requests.Put(m)
	case *Have:
		haves.Put(m)
	}
}
