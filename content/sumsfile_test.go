package content

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/capelin-io/capelin/swarm/piece"
)

var update = flag.Bool("update", false, "rewrite testdata/format")

// vectors are the records of testdata/format: <name>.hex, and what they must
// decode to, in words, or "invalid".
func vectors(t testing.TB) map[string]*record {
	id, data := testBlob(t, piece.SHA256, 200_000, 1)
	id512, data512 := testBlob(t, piece.SHA512, 70_000, 2)
	full := sumsOf(t, id, data)
	half := piece.NewSums(id)
	half.Append(full.Range(0, 2))
	have := piece.NewBits(id.Pieces())
	have.Set(0)
	have.Set(1)
	all := have.Clone()
	all.Clear(1)
	all.Set(3)
	boot := [16]byte{1, 2, 3, 15: 16}
	return map[string]*record{
		"map-prefix":     {kind: kindMap, boot: boot, sums: half, have: have},
		"map-random":     {kind: kindMap, boot: boot, sums: full, have: all, proven: true},
		"map-empty":      {kind: kindMap, boot: boot, sums: piece.NewSums(id), have: piece.NewBits(id.Pieces())},
		"sums":           {kind: kindSums, proven: true, sums: full},
		"sums-sha512":    {kind: kindSums, proven: true, sums: sumsOf(t, id512, data512)},
		"x-sums-partial": {kind: kindSums, proven: true, sums: half},
		"x-sums-boot":    {kind: kindSums, proven: true, sums: full, boot: boot},
		"x-sums-neither": {kind: kindSums, sums: full},
		"x-map-beyond":   {kind: kindMap, boot: boot, sums: half, have: all},
		"x-kind":         {kind: 3, sums: full},
	}
}

func TestFormatVectors(t *testing.T) {
	for name, want := range vectors(t) {
		p := filepath.Join("testdata", "format", name+".hex")
		if *update {
			os.MkdirAll(filepath.Dir(p), 0o755)
			if err := os.WriteFile(p, []byte(hex.EncodeToString(want.encode())+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := hex.DecodeString(strings.TrimSpace(string(b)))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(raw, want.encode()) {
			t.Errorf("%s: encoding differs from the vector", name)
		}
		got, err := decodeRecord(raw)
		if strings.HasPrefix(name, "x-") {
			if err == nil {
				t.Errorf("%s: decoded, want invalid", name)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got.kind != want.kind || got.proven != want.proven || got.boot != want.boot ||
			!bytes.Equal(got.sums.Bytes(), want.sums.Bytes()) || got.sums.ID() != want.sums.ID() {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
		if got.kind == kindMap {
			g, _ := got.have.AppendBinary(nil)
			w, _ := want.have.AppendBinary(nil)
			if !bytes.Equal(g, w) {
				t.Errorf("%s: have %x, want %x", name, g, w)
			}
		}
		for i := range raw {
			c := bytes.Clone(raw)
			c[i] ^= 0x10
			if _, err := decodeRecord(c); err == nil {
				t.Errorf("%s: a flipped bit in byte %d was not noticed", name, i)
			}
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	for _, r := range vectors(f) {
		b := r.encode()
		f.Add(b[:len(b)-4])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := decodeRecord(withCRC(body))
		if err != nil {
			return
		}
		if got := r.encode(); !bytes.Equal(got, withCRC(body)) {
			t.Errorf("decoded and encoded again:\n%x\n%x", withCRC(body), got)
		}
	})
}
