package wire

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/capelin-io/capelin/swarm/piece"
)

// A stream of everything valid, with optional unknown messages in between,
// arrives whole however it is cut up.
func TestReaderStream(t *testing.T) {
	var stream []byte
	var want []Message
	for _, v := range vectors(t) {
		if v.outcome == "ok" || v.outcome == "skipped" {
			stream = append(stream, v.frame...)
		}
		if v.outcome == "ok" {
			want = append(want, v.message)
		}
	}
	big := []Message{
		&Block{Blob: 1, Piece: 2, Data: bytes.Repeat([]byte{7}, piece.MaxBlock)},
		&Sums{Blob: 1, States: bytes.Repeat([]byte{8}, maxStates)},
		&Have{Blob: 1, Pieces: make([]uint32, MaxHave)},
		&Block{Blob: 1, Piece: 2, Offset: 9, Data: []byte{1}},
	}
	for _, m := range big {
		var err error
		if stream, err = Append(stream, m); err != nil {
			t.Fatal(err)
		}
		want = append(want, m)
	}
	for _, tt := range []struct {
		name string
		r    io.Reader
	}{
		{"whole", bytes.NewReader(stream)},
		{"one byte at a time", iotest.OneByteReader(bytes.NewReader(stream))},
		{"half reads", iotest.HalfReader(bytes.NewReader(stream))},
		{"data with the error", iotest.DataErrReader(bytes.NewReader(stream))},
	} {
		r := NewReader(tt.r, nil)
		for i, w := range want {
			m, err := r.Next()
			if err != nil || !reflect.DeepEqual(m, w) {
				t.Fatalf("%s: message %d: %v, %v; want a %v", tt.name, i, m, err, w.Type())
			}
		}
		if _, err := r.Next(); err != io.EOF {
			t.Errorf("%s: at the end: %v, want EOF", tt.name, err)
		}
	}
}

// A stream that ends within a message never looks like one that ended well.
func TestReaderTruncated(t *testing.T) {
	for _, v := range vectors(t) {
		if v.outcome != "ok" && v.outcome != "skipped" {
			continue
		}
		for n := 1; n < len(v.frame); n++ {
			if m, err := NewReader(bytes.NewReader(v.frame[:n]), nil).Next(); err != io.ErrUnexpectedEOF {
				t.Errorf("%s cut to %d bytes: %v, %v; want unexpected EOF", v.path, n, m, err)
			}
		}
	}
	broken := errors.New("broken")
	r := NewReader(io.MultiReader(bytes.NewReader([]byte{13, 0, 0, 0, 13}), iotest.ErrReader(broken)), nil)
	if m, err := r.Next(); err != nil || m.Type() != TypePing {
		t.Errorf("%v, %v; want Ping", m, err)
	}
	if _, err := r.Next(); err != broken {
		t.Errorf("%v; want the reader's own error", err)
	}
}

// A header that promises the most, with nothing behind it, costs no more than
// one frame; a header beyond the limit costs nothing.
func TestReaderAllocation(t *testing.T) {
	for typ := range 256 {
		for _, n := range []int{MaxBody, MaxBody + 1, 1<<24 - 1} {
			h := make([]byte, HeaderLen)
			putHeader(h, Type(typ), n)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := NewReader(bytes.NewReader(h), nil).Next()
			runtime.ReadMemStats(&after)
			if err == nil {
				t.Errorf("type %d, %d bytes: no error", typ, n)
			}
			if got := after.TotalAlloc - before.TotalAlloc; got > MaxFrame+readBuffer+64<<10 {
				t.Errorf("type %d, %d bytes: allocated %d", typ, n, got)
			}
		}
	}
}

func TestBlockHeaderAlone(t *testing.T) {
	b := &Block{Blob: 7, Piece: 3, Offset: 131072, Queue: 2, Data: []byte("the data")}
	whole, err := Append(nil, b)
	if err != nil {
		t.Fatal(err)
	}
	head, err := AppendBlockHeader(nil, b, len(b.Data))
	if err != nil || len(head) != BlockHeaderLen || !bytes.Equal(append(head, b.Data...), whole) {
		t.Errorf("header %x, %v; frame %x", head, err, whole)
	}
	for _, n := range []int{-1, 0, piece.MaxBlock + 1} {
		if p, err := AppendBlockHeader(nil, b, n); err == nil || len(p) != 0 {
			t.Errorf("a block of %d bytes: %x, %v", n, p, err)
		}
	}
}

// The encoder refuses what a decoder would, and leaves the buffer as it was.
func TestAppendRefuses(t *testing.T) {
	id, err := piece.ParseID("sha256:"+strings.Repeat("ab", 32), 100_000)
	if err != nil {
		t.Fatal(err)
	}
	hello := Hello{Version: Version, Role: RoleAgent, Cluster: "c", Node: "n"}
	with := func(set func(*Hello)) *Hello { h := hello; set(&h); return &h }
	for _, m := range []Message{
		with(func(h *Hello) { h.Version = 2 }),
		with(func(h *Hello) { h.Role = 0 }),
		with(func(h *Hello) { h.Node = "" }),
		with(func(h *Hello) { h.Zone = strings.Repeat("z", 256) }),
		with(func(h *Hello) { h.Addr = "a\x00" }),
		&Open{},
		&Open{ID: id, Bits: []byte{0}, Complete: true},
		&Open{ID: id, Bits: []byte{1}},
		&Have{}, &Have{Pieces: make([]uint32, MaxHave+1)}, &Have{Pieces: []uint32{MaxPieces}},
		&SumsRequest{From: MaxPieces, Count: 1}, &SumsRequest{},
		&Sums{States: make([]byte, maxStates+32)}, &Sums{States: make([]byte, 1)},
		&Request{Piece: 1}, &Request{Piece: AnyPiece, Length: 1}, &Request{Length: piece.MaxBlock + 1},
		&Block{}, &Block{Data: make([]byte, piece.MaxBlock+1)}, &Block{Piece: MaxPieces, Data: []byte{1}},
		&Busy{Piece: MaxPieces}, &Lost{Piece: MaxPieces}, &Cancel{Piece: MaxPieces}, &Bad{Piece: AnyPiece},
		&Error{Text: "\x7f"},
	} {
		p, err := Append([]byte("kept"), m)
		var f *Fault
		if !errors.As(err, &f) || f.Type != m.Type() || string(p) != "kept" {
			t.Errorf("%+v: %q, %v; want a Fault and nothing appended", m, p, err)
		}
	}
}

func TestText(t *testing.T) {
	for _, s := range []string{"", "plain", "a\nb\x00c", "\xff\xfe", strings.Repeat("ü", 200), strings.Repeat("x", 254) + "ü"} {
		if got := Text(s); checkString(TypeError, got) != nil || len(s) > 0 && got == "" {
			t.Errorf("Text(%q) = %q", s, got)
		}
	}
}

// FuzzReader: whatever the bytes, a Reader yields messages that encode to
// exactly the bytes that they came from, and then one error for good reason.
func FuzzReader(f *testing.F) {
	var all []byte
	for _, v := range vectors(f) {
		f.Add(v.frame)
		if v.outcome == "ok" {
			all = append(all, v.frame...)
		}
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, data []byte) {
		r := NewReader(bytes.NewReader(data), nil)
		rest := data
		for {
			m, err := r.Next()
			if err != nil {
				var fault *Fault
				if err != io.EOF && err != io.ErrUnexpectedEOF && !errors.As(err, &fault) {
					t.Fatalf("error %v", err)
				}
				return
			}
			for len(rest) >= HeaderLen && rest[0] >= byte(optional) { // what the Reader skipped
				rest = rest[HeaderLen+int(be.Uint32(rest)&(1<<24-1)):]
			}
			enc, err := Append(nil, m)
			if err != nil {
				t.Fatalf("%+v was decoded but is refused: %v", m, err)
			}
			if !bytes.HasPrefix(rest, enc) {
				t.Fatalf("%+v encodes to\n%x, came from\n%x", m, enc, rest[:min(len(rest), len(enc))])
			}
			rest = rest[len(enc):]
			again, err := decode(enc)
			if err != nil || !reflect.DeepEqual(again, m) {
				t.Fatalf("decoded again: %+v, %v; want %+v", again, err, m)
			}
		}
	})
}

// repeat is an endless stream of one frame.
type repeat struct {
	frame []byte
	at    int
}

func (r *repeat) Read(p []byte) (n int, err error) {
	for n < len(p) {
		c := copy(p[n:], r.frame[r.at:])
		n += c
		r.at = (r.at + c) % len(r.frame)
	}
	return n, nil
}

func benchMessages() []Message {
	return []Message{
		&Request{Blob: 1, Piece: 7, Length: piece.MaxBlock},
		&Have{Blob: 1, Pieces: []uint32{1, 2, 3, 4}},
		&Block{Blob: 1, Piece: 7, Data: make([]byte, piece.MaxBlock)},
	}
}

func BenchmarkNext(b *testing.B) {
	for _, m := range benchMessages() {
		b.Run(m.Type().String(), func(b *testing.B) {
			frame, err := Append(nil, m)
			if err != nil {
				b.Fatal(err)
			}
			data := make([]byte, piece.MaxBlock)
			r := NewReader(&repeat{frame: frame}, func(n int) []byte { return data[:n] })
			b.SetBytes(int64(len(frame)))
			b.ReportAllocs()
			for b.Loop() {
				m, err := r.Next()
				if err != nil {
					b.Fatal(err)
				}
				Release(m)
			}
		})
	}
}

func BenchmarkAppend(b *testing.B) {
	var buf []byte
	for _, m := range benchMessages() {
		b.Run(m.Type().String(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if block, ok := m.(*Block); ok { // as a Node sends it
					buf, err = AppendBlockHeader(buf[:0], block, len(block.Data))
				} else {
					buf, err = Append(buf[:0], m)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// decode decodes one frame, which must be all of p. The message refers to
// nothing of p. An unknown optional message is errUnknown.
func decode(p []byte) (Message, error) {
	if len(p) < HeaderLen {
		return nil, io.ErrUnexpectedEOF
	}
	t, n, f := parseHeader([HeaderLen]byte(p))
	if f != nil {
		return nil, f
	}
	p = p[HeaderLen:]
	switch {
	case len(p) < n:
		return nil, io.ErrUnexpectedEOF
	case len(p) > n:
		return nil, malformed(t, "bytes after the frame")
	case !t.known():
		return nil, errUnknown
	}
	m, f := decodeBody(t, p, false)
	if f != nil {
		return nil, f
	}
	return m, nil
}

// errUnknown says that a message is of an unknown type that may be skipped.
var errUnknown = errors.New("unknown optional message")
