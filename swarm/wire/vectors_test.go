package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/capelin-io/capelin/swarm/piece"
)

var update = flag.Bool("update", false, "rewrite the hex lines of the vectors whose outcome is ok; read the diff")

// vector is one file of testdata/vectors (PROTOCOL.md §9).
type vector struct {
	path    string
	outcome string
	message Message // for ok
	frame   []byte
}

func vectors(t testing.TB) []vector {
	t.Helper()
	paths, err := filepath.Glob("testdata/vectors/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	var vs []vector
	for _, path := range paths {
		v, err := readVector(path)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		vs = append(vs, v)
	}
	return vs
}

func readVector(path string) (vector, error) {
	v := vector{path: path}
	text, err := os.ReadFile(path)
	if err != nil {
		return v, err
	}
	var fields reflect.Value
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(line, ":")
		if value = strings.TrimSpace(value); !ok {
			return v, fmt.Errorf("line %q", line)
		}
		switch key {
		case "outcome":
			v.outcome = value
		case "type":
			for _, m := range everyType() {
				if m.Type().String() == value {
					v.message, fields = m, reflect.ValueOf(m).Elem()
				}
			}
			if v.message == nil {
				return v, fmt.Errorf("type %q", value)
			}
		case "hex":
			b, err := hex.DecodeString(strings.ReplaceAll(value, " ", ""))
			if err != nil {
				return v, err
			}
			v.frame = append(v.frame, b...)
		default:
			if !fields.IsValid() || !fields.FieldByName(key).IsValid() {
				return v, fmt.Errorf("field %q", key)
			}
			if err := setField(fields.FieldByName(key), value); err != nil {
				return v, fmt.Errorf("%s: %w", key, err)
			}
		}
	}
	return v, nil
}

func everyType() []Message {
	return []Message{&Hello{}, &Open{}, &Close{}, &Have{}, &SumsRequest{}, &Sums{}, &Request{},
		&Block{}, &Busy{}, &Lost{}, &Cancel{}, &Bad{}, &Ping{}, &Error{}}
}

func setField(f reflect.Value, s string) error {
	switch f.Interface().(type) {
	case piece.ID:
		digest, size, _ := strings.Cut(s, "/")
		n, err := strconv.ParseInt(size, 10, 64)
		if err != nil {
			return err
		}
		id, err := piece.ParseID(digest, n)
		f.Set(reflect.ValueOf(id))
		return err
	case []uint32:
		for _, e := range strings.Split(s, ",") {
			n, err := strconv.ParseUint(strings.TrimSpace(e), 10, 32)
			if err != nil {
				return err
			}
			f.Set(reflect.Append(f, reflect.ValueOf(uint32(n))))
		}
		return nil
	case []byte:
		b, err := hex.DecodeString(s)
		if len(b) > 0 {
			f.SetBytes(b)
		}
		return err
	}
	switch f.Kind() {
	case reflect.String:
		f.SetString(s)
	case reflect.Bool:
		b, err := strconv.ParseBool(s)
		f.SetBool(b)
		return err
	default:
		n, err := strconv.ParseUint(s, 0, f.Type().Bits())
		f.SetUint(n)
		return err
	}
	return nil
}

func outcome(err error) string {
	var f *Fault
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &f):
		return f.Code.String()
	case errors.Is(err, errUnknown):
		return "skipped"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "truncated"
	}
	return err.Error()
}

func TestVectors(t *testing.T) {
	seen := map[Type]bool{}
	for _, v := range vectors(t) {
		t.Run(strings.TrimSuffix(filepath.Base(v.path), ".txt"), func(t *testing.T) {
			if v.outcome == "ok" {
				seen[v.message.Type()] = true
				enc, err := Append([]byte("before"), v.message)
				if err != nil {
					t.Fatalf("encoding: %v", err)
				}
				enc = enc[len("before"):]
				if *update && !bytes.Equal(enc, v.frame) {
					rewriteHex(t, v.path, enc)
					v.frame = enc
				}
				if !bytes.Equal(enc, v.frame) {
					t.Errorf("encoded\n%x, want\n%x", enc, v.frame)
				}
			}
			m, err := decode(v.frame)
			if got := outcome(err); got != v.outcome {
				t.Fatalf("decode: %v; want %s", err, v.outcome)
			}
			if v.outcome == "ok" && !reflect.DeepEqual(m, v.message) {
				t.Errorf("decoded %+v, want %+v", m, v.message)
			}
			r := NewReader(bytes.NewReader(v.frame), nil)
			m, err = r.Next()
			switch got := outcome(err); {
			case v.outcome == "skipped" && err == io.EOF:
			case got != v.outcome:
				t.Errorf("Next: %v; want %s", err, v.outcome)
			case v.outcome == "ok" && !reflect.DeepEqual(m, v.message):
				t.Errorf("Next: %+v, want %+v", m, v.message)
			}
		})
	}
	for _, m := range everyType() {
		if !seen[m.Type()] {
			t.Errorf("no vector for %v", m.Type())
		}
	}
}

func rewriteHex(t *testing.T, path string, frame []byte) {
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "hex:") {
			out.WriteString(line)
		}
	}
	for p := range chunks(frame, 32) {
		fmt.Fprintf(&out, "hex: %x\n", p)
	}
	if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

func chunks(p []byte, n int) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(p) > 0 {
			c := p[:min(n, len(p))]
			if p = p[len(c):]; !yield(c) {
				return
			}
		}
	}
}

// The worked example of PROTOCOL.md §8 is what the code does.
func TestWorkedExample(t *testing.T) {
	id, err := piece.ParseID("sha256:"+strings.Repeat("ab", 32), 100_000)
	if err != nil {
		t.Fatal(err)
	}
	hello := func(node, addr string) *Hello {
		return &Hello{Version: 1, Role: RoleAgent, Cluster: "c", Node: node, Zone: "z1", Addr: addr, Software: "x"}
	}
	want := []Message{
		hello("a", ""), hello("b", "b:7401"),
		&Open{Blob: 1, ID: id, Want: true}, &Open{Blob: 7, ID: id, Complete: true},
		&SumsRequest{Blob: 1, Count: 1}, &Sums{Blob: 7, Proven: true, States: make([]byte, 32)},
		&Request{Blob: 1, Piece: AnyPiece, Length: piece.MaxBlock},
		&Block{Blob: 7, Piece: 1, Data: make([]byte, 34_464)},
		&Have{Blob: 1, Pieces: []uint32{1}}, &Close{Blob: 1},
	}
	text, err := os.ReadFile("PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "A→B ") && !strings.HasPrefix(line, "B→A ") {
			continue
		}
		if len(want) == 0 {
			t.Fatalf("a line too many: %s", line)
		}
		line, _, _ = strings.Cut(line[len("A→B "):], "…")
		line, _, _ = strings.Cut(line, "  want")
		var digits strings.Builder
		for i, f := range strings.Fields(line) {
			if _, err := hex.DecodeString(f); err == nil && i > 0 {
				digits.WriteString(f)
			} else if i > 1 && f != "|" {
				break // words about it
			}
		}
		p, err := Append(nil, want[0])
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%x", p); digits.Len() < 2*HeaderLen || !strings.HasPrefix(got, digits.String()) {
			t.Errorf("%v: PROTOCOL.md has %s, want a prefix of %.200s", want[0].Type(), digits.String(), got)
		}
		want = want[1:]
	}
	if len(want) > 0 {
		t.Errorf("%d messages are not in the example", len(want))
	}
}
