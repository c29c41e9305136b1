package piece

import (
	"bytes"
	"testing"
)

// A name that parses prints as it was written, and its pieces cover the blob.
func FuzzParseID(f *testing.F) {
	f.Add("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", int64(1))
	f.Add("sha512:", int64(MaxSize))
	f.Add("sha256:E3", int64(-1))
	f.Fuzz(func(t *testing.T, digest string, size int64) {
		id, err := ParseID(digest, size)
		if err != nil {
			return
		}
		if id.Digest() != digest || id.Validate() != nil {
			t.Fatalf("%q prints as %q", digest, id.Digest())
		}
		n, l := id.Pieces(), id.Length()
		if n < 1 || l < MinLength || l > MaxLength || l&(l-1) != 0 {
			t.Fatalf("size %d: %d pieces of %d", size, n, l)
		}
		if id.Offset(n-1)+int64(id.PieceSize(n-1)) != size {
			t.Fatalf("size %d: the last piece ends elsewhere", size)
		}
	})
}

// A bitfield that parses has one encoding, and its members agree with it.
func FuzzParseBits(f *testing.F) {
	f.Add([]byte{0x80}, 1)
	f.Add([]byte{0xff, 0x01}, 16)
	f.Add([]byte{}, 0)
	f.Fuzz(func(t *testing.T, p []byte, n int) {
		b, err := ParseBits(p, n)
		if err != nil {
			return
		}
		q, err := b.AppendBinary(nil)
		if err != nil || !bytes.Equal(p, q) {
			t.Fatalf("%x becomes %x", p, q)
		}
		count := 0
		for i := b.NextSet(0); i >= 0; i = b.NextSet(i + 1) {
			if !b.Has(i) {
				t.Fatalf("NextSet returned %d, which is not there", i)
			}
			count++
		}
		if count != b.Count() {
			t.Fatalf("counts %d, has %d", b.Count(), count)
		}
	})
}
