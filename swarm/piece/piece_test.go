package piece

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

func testBlob(t testing.TB, alg Algorithm, size int) (ID, []byte) {
	t.Helper()
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(size)}).Read(data)
	var dgst string
	switch alg {
	case SHA256:
		dgst = fmt.Sprintf("sha256:%x", sha256.Sum256(data))
	case SHA512:
		dgst = fmt.Sprintf("sha512:%x", sha512.Sum512(data))
	}
	id, err := ParseID(dgst, int64(size))
	if err != nil {
		t.Fatal(err)
	}
	if id.Digest() != dgst {
		t.Fatalf("Digest = %s, want %s", id.Digest(), dgst)
	}
	return id, data
}

func sumsOf(t testing.TB, id ID, data []byte) *Sums {
	t.Helper()
	s := NewSums(id)
	h := NewHasher(s)
	for p := data; len(p) > 0; {
		n := min(len(p), 50_001)
		if err := h.Write(s, p[:n]); err != nil {
			t.Fatal(err)
		}
		p = p[n:]
	}
	if !s.Complete() {
		t.Fatalf("%d states of %d", s.Len(), s.MaxLen())
	}
	return s
}

func TestGeometry(t *testing.T) {
	for _, tt := range []struct{ size, length, pieces int64 }{
		{1, 64 << 10, 1},
		{64 << 10, 64 << 10, 1},
		{64<<10 + 1, 64 << 10, 2},
		{2000 * 64 << 10, 64 << 10, 2000},
		{2000*64<<10 + 1, 128 << 10, 1001},
		{200_000_000, 128 << 10, 1526},
		{1_500_000_000, 1 << 20, 1431},
		{100 << 30, 8 << 20, 12800},
		{MaxSize, 8 << 20, 131072},
	} {
		id := ID{Alg: SHA256, Size: tt.size}
		if id.Length() != tt.length || int64(id.Pieces()) != tt.pieces {
			t.Errorf("size %d: length %d, %d pieces; want %d, %d", tt.size, id.Length(), id.Pieces(), tt.length, tt.pieces)
		}
		last := id.Pieces() - 1
		if got := id.Offset(last) + int64(id.PieceSize(last)); got != tt.size {
			t.Errorf("size %d: the last piece ends at %d", tt.size, got)
		}
		if id.PieceSize(-1) != 0 || id.PieceSize(last+1) != 0 {
			t.Errorf("size %d: pieces outside the blob have a size", tt.size)
		}
	}
}

func TestParseIDRefuses(t *testing.T) {
	hex64 := "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for _, tt := range []struct {
		digest string
		size   int64
	}{
		{"", 1}, {"sha256", 1}, {"sha256:", 1}, {"sha256:" + hex64[1:], 1},
		{"sha256:" + hex64 + "00", 1}, {"sha512:" + hex64, 1}, {"md5:" + hex64, 1},
		{"sha256:E3" + hex64[2:], 1}, {"sha256:zz" + hex64[2:], 1},
		{"sha256:" + hex64, 0}, {"sha256:" + hex64, -1}, {"sha256:" + hex64, MaxSize + 1},
	} {
		if id, err := ParseID(tt.digest, tt.size); !errors.Is(err, ErrInvalid) {
			t.Errorf("ParseID(%q, %d) = %v, %v; want ErrInvalid", tt.digest, tt.size, id, err)
		}
	}
	bad := ID{Alg: SHA256, Size: 1}
	bad.Sum[40] = 1
	if err := bad.Validate(); !errors.Is(err, ErrInvalid) {
		t.Errorf("a sha256 of more than 32 bytes: %v", err)
	}
}

func TestVerifyInAnyOrder(t *testing.T) {
	for _, alg := range []Algorithm{SHA256, SHA512} {
		for _, size := range []int{1, 64 << 10, 64<<10 + 1, 1<<20 + 12345} {
			id, data := testBlob(t, alg, size)
			s := sumsOf(t, id, data)
			for _, i := range rand.Perm(id.Pieces()) {
				p := data[id.Offset(i):][:id.PieceSize(i)]
				if err := s.Verify(i, p[:len(p)/3], p[len(p)/3:]); err != nil {
					t.Errorf("%v %d: %v", alg, size, err)
				}
				bad := bytes.Clone(p)
				bad[rand.IntN(len(bad))] ^= 1
				if err := s.Verify(i, bad); !errors.Is(err, ErrMismatch) {
					t.Errorf("%v %d: piece %d with a flipped bit: %v", alg, size, i, err)
				}
				if err := s.Verify(i, p[1:]); !errors.Is(err, ErrMismatch) {
					t.Errorf("%v %d: short piece %d: %v", alg, size, i, err)
				}
			}
			if err := s.Verify(id.Pieces(), nil); !errors.Is(err, ErrInvalid) {
				t.Errorf("a piece too many: %v", err)
			}
		}
	}
}

// Two claims that are verified together have the outcomes that they have alone, whatever
// they are, and however their data is cut.
func TestVerifyBoth(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var claims []func() *Claim
	for _, alg := range []Algorithm{SHA256, SHA512} {
		id, data := testBlob(t, alg, 4*MinLength+12345)
		s := sumsOf(t, id, data)
		short := NewSums(id)
		if err := short.Append(s.Range(0, 2)); err != nil {
			t.Fatal(err)
		}
		for i := range id.Pieces() {
			p := data[id.Offset(i):][:id.PieceSize(i)]
			bad := bytes.Clone(p)
			bad[r.IntN(len(bad))] ^= 1
			for _, s := range []*Sums{s, short} {
				for _, data := range [][][]byte{
					{p}, {p[:len(p)/2], p[len(p)/2:]}, {p[:len(p)/3], nil, p[len(p)/3:]}, {p[:64], p[64:192], p[192:]}, {p[1:]}, {bad}, {}, {nil},
				} {
					claims = append(claims, func() *Claim { return NewClaim(s, i, data...) })
				}
			}
		}
	}
	kind := func(err error) error {
		for _, k := range []error{ErrMismatch, ErrInvalid} {
			if errors.Is(err, k) {
				return k
			}
		}
		return err
	}
	alone := make([]error, len(claims))
	for i, c := range claims {
		alone[i] = kind(c().Verify())
	}
	for i, c := range claims {
		for j, d := range claims {
			x, y := c(), d()
			VerifyBoth(x, y)
			if got, want := kind(x.Verify()), alone[i]; got != want {
				t.Fatalf("%d with %d: %v, want %v", i, j, got, want)
			}
			if got, want := kind(y.Verify()), alone[j]; got != want {
				t.Fatalf("%d after %d: %v, want %v", j, i, got, want)
			}
		}
	}
}

// A chain that verifies link by link proves the digest, so it cannot verify for
// other data: at least one link fails.
func TestWrongSumsCannotProve(t *testing.T) {
	id, data := testBlob(t, SHA256, 300_000)
	other := bytes.Clone(data)
	other[70_000] ^= 1
	oid, _ := ParseID(fmt.Sprintf("sha256:%x", sha256.Sum256(other)), id.Size)
	wrong := NewSums(id)
	if err := wrong.Append(sumsOf(t, oid, other).Bytes()); err != nil {
		t.Fatal(err)
	}
	failed := 0
	for i := range id.Pieces() {
		if wrong.Verify(i, other[id.Offset(i):][:id.PieceSize(i)]) != nil {
			failed++
		}
	}
	if failed != 1 {
		t.Errorf("%d links of a false chain failed, want the last", failed)
	}
	if wrong.Hash() == sumsOf(t, id, data).Hash() {
		t.Error("true and false sums have one hash")
	}
}

func TestHasherResumes(t *testing.T) {
	id, data := testBlob(t, SHA256, 500_000)
	want := sumsOf(t, id, data)
	s := NewSums(id)
	if err := s.Append(want.Range(0, 3)); err != nil {
		t.Fatal(err)
	}
	h := NewHasher(s)
	if h.Offset() != id.Offset(3) {
		t.Fatalf("resumes at %d", h.Offset())
	}
	if err := h.Write(s, data[h.Offset():]); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.Bytes(), want.Bytes()) || s.Hash() != want.Hash() {
		t.Error("resumed sums differ")
	}
	if err := h.Write(s, []byte{0}); !errors.Is(err, ErrMismatch) {
		t.Errorf("a byte beyond the blob: %v", err)
	}
	if err := s.Append(make([]byte, 32)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a state too many: %v", err)
	}

	h = NewHasher(NewSums(id))
	data[0] ^= 1
	if err := h.Write(NewSums(id), data); !errors.Is(err, ErrMismatch) {
		t.Errorf("another blob's bytes: %v", err)
	}
}

func TestSumsPrefixAndAgreement(t *testing.T) {
	id, data := testBlob(t, SHA256, 500_000)
	want := sumsOf(t, id, data)
	s := want.Clone()
	part := NewSums(id)
	part.Append(want.Range(0, 4))
	if !s.HasPrefix(part) || part.HasPrefix(s) {
		t.Error("prefix of four states not recognised")
	}
	if part.Verifiable() != 4 || !part.Agrees(s, 3) || part.Agrees(s, 4) {
		t.Error("agreement beyond the known states")
	}
	if len(s.Range(3, 1<<30)) != 32*(s.Len()-3) || s.Range(s.Len(), 1) != nil || s.Range(-1, 2) != nil {
		t.Error("Range not cut to what is known")
	}
	c := part.Clone()
	c.Append(make([]byte, 32))
	part.Append(want.Range(4, 1))
	if !want.HasPrefix(part) {
		t.Error("appending to a clone changed the original")
	}
}

func TestBits(t *testing.T) {
	for _, n := range []int{0, 1, 7, 8, 63, 64, 65, 1000} {
		b := NewBits(n)
		want := map[int]bool{}
		for range n {
			i := rand.IntN(n)
			if b.Set(i) == want[i] {
				t.Fatalf("Set(%d) disagrees", i)
			}
			want[i] = true
			if i := rand.IntN(n); b.Clear(i) != want[i] {
				t.Fatalf("Clear(%d) disagrees", i)
			} else {
				delete(want, i)
			}
		}
		next := -1
		for i := n - 1; i >= 0; i-- {
			if want[i] {
				next = i
			}
			if b.NextSet(i) != next {
				t.Fatalf("n=%d NextSet(%d) = %d, want %d", n, i, b.NextSet(i), next)
			}
		}
		p, _ := b.AppendBinary(nil)
		c, err := ParseBits(p, n)
		if err != nil || c.Count() != len(want) || b.Count() != len(want) {
			t.Fatalf("n=%d: %v, count %d, want %d", n, err, c.Count(), len(want))
		}
		for i := -1; i <= n; i++ {
			if c.Has(i) != want[i] || b.Has(i) != want[i] {
				t.Fatalf("n=%d: Has(%d) = %t, want %t", n, i, c.Has(i), want[i])
			}
		}
		b.SetAll()
		if !b.Full() || b.Prefix() != n || b.NextClear(0) != -1 || b.Set(n) || b.Set(-1) {
			t.Fatalf("n=%d: not full", n)
		}
	}
	if _, err := ParseBits([]byte{0xff}, 7); !errors.Is(err, ErrInvalid) {
		t.Errorf("a bit beyond the last piece: %v", err)
	}
	if _, err := ParseBits([]byte{0xff, 0}, 8); !errors.Is(err, ErrInvalid) {
		t.Errorf("a byte too many: %v", err)
	}
}

func BenchmarkVerify(b *testing.B) {
	id, data := testBlob(b, SHA256, 1<<20)
	s := sumsOf(b, id, data)
	b.SetBytes(id.Length())
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Verify(3, data[id.Offset(3):][:id.PieceSize(3)]); err != nil {
			b.Fatal(err)
		}
	}
}
