package content

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/capelin-io/capelin/swarm/piece"
)

// stored reports how many of the file's bytes differ from zero.
func stored(t *testing.T, b *Blob) (n int) {
	t.Helper()
	buf := make([]byte, b.ID().Size)
	if _, err := b.File().ReadAt(buf, 0); err != nil {
		t.Fatal(err)
	}
	for _, c := range buf {
		if c != 0 {
			n++
		}
	}
	return n
}

// A download whose bytes are those of another blob.
func TestWrongDigest(t *testing.T) {
	s := openStore(t, Config{Root: t.TempDir()})
	id, data := testBlob(t, piece.SHA256, 700_000, 1)
	wrong := bytes.Clone(data)
	wrong[100_000] ^= 1
	b := mustBlob(t, s, id, true)
	defer b.Close()
	a, err := b.Append(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if _, err := a.Write(wrong[:650_000]); err != nil {
		t.Fatal(err)
	}
	if n := b.Have().Count(); n != 9 {
		t.Errorf("%d provisional pieces", n)
	}
	s.writeMaps(true)
	b.st.checkpoint()
	_, err = a.Write(wrong[650_000:])
	if !errors.Is(err, piece.ErrMismatch) {
		t.Errorf("the last byte: %v", err)
	}
	if err := a.Finish(t.Context()); !errors.Is(err, piece.ErrMismatch) {
		t.Errorf("Finish: %v", err)
	}
	if sums, _ := b.Sums(); b.Have().Count() != 0 || sums.Len() != 0 || stored(t, b) != 0 {
		t.Errorf("%d pieces, %d states, %d bytes survive", b.Have().Count(), sums.Len(), stored(t, b))
	}
	if _, err := os.Stat(s.partialPath(id, ".map")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the map survives: %v", err)
	}
	// The retry succeeds.
	a2, err := b.Append(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer a2.Close()
	if _, err := a2.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := a2.Finish(t.Context()); err != nil {
		t.Error(err)
	}
}

// A download that contradicts what the swarm brought, under sums that are true
// or false, proven or not.
func TestContradiction(t *testing.T) {
	id, data := testBlob(t, piece.SHA256, 700_000, 1)
	sums := sumsOf(t, id, data)
	wrong := bytes.Clone(data)
	wrong[200_000] ^= 1 // piece 3 of 11
	falseSums := func() *piece.Sums {
		s := piece.NewSums(id)
		s.Append(sumsOf(t, mustID(t, wrong), wrong).Bytes())
		return s
	}()
	for _, tt := range []struct {
		name     string
		sums     *piece.Sums
		swarm    []byte // whose bytes the swarm brought
		pieces   []int
		proven   bool
		upstream []byte
		want     int    // pieces that count after the contradiction
		text     string // in the error
	}{
		{"false sums, compared", falseSums, wrong, []int{0, 1, 2, 3, 4, 9}, false, data, 3, "byte 200000 "},
		{"false sums, hashed", falseSums, wrong, []int{0, 1, 2, 4}, false, data, 3, "piece 3 "},
		{"false sums, last piece", falseSums, wrong, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, false, wrong, 0, "piece 10 "},
		{"true sums, compared", sums, data, []int{0, 1, 2, 3, 4, 9}, false, wrong, 3, "byte 200000 "},
		{"proven, compared", sums, data, []int{0, 1, 2, 3, 4, 9}, true, wrong, 6, "byte 200000 "},
		{"proven, hashed", sums, data, []int{0, 1, 2, 4, 9}, true, wrong, 5, "piece 3 "},
		{"proven, last piece", sums, data, []int{0, 1, 2, 3, 4, 9}, true, flip(data, 690_000), 10, "piece 10 "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t, Config{Root: t.TempDir()})
			b := mustBlob(t, s, id, true)
			defer b.Close()
			if dropped, err := b.Adopt(tt.sums); err != nil || dropped != nil {
				t.Fatal(dropped, err)
			}
			b.st.proven = tt.proven // as a partial whose Complete could not finish
			for _, i := range tt.pieces {
				if err := b.WritePiece(piece.NewClaim(tt.sums, i, pieceOf(id, tt.swarm, i))); err != nil {
					t.Fatal(err)
				}
			}
			b.st.checkpoint()
			a, err := b.Append(t.Context(), 0)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			_, err = a.Write(tt.upstream)
			if !errors.Is(err, piece.ErrMismatch) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v, want %q in it", err, tt.text)
			}
			if got := b.Have().Count(); got != tt.want {
				t.Errorf("%d pieces count, want %d", got, tt.want)
			}
			// A retry from the prefix, with the right bytes, ends well, at the
			// latest after the one that a false prefix costs.
			for try := 0; ; try++ {
				a, err := b.Append(t.Context(), b.Prefix())
				if err != nil {
					t.Fatal(err)
				}
				_, err = a.Write(data[a.Offset():])
				if err == nil {
					err = a.Finish(t.Context())
				}
				a.Close()
				if err == nil {
					break
				}
				if try == 1 {
					t.Fatalf("retry: %v", err)
				}
			}
			b.Publish(t.Context())
			if !bytes.Equal(readBlob(t, s, id), data) {
				t.Error("reads differ")
			}
		})
	}
}

func flip(data []byte, i int) []byte {
	data = bytes.Clone(data)
	data[i] ^= 1
	return data
}

func mustID(t *testing.T, data []byte) piece.ID {
	id, err := idOf(piece.SHA256, data)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestAdopt(t *testing.T) {
	s := openStore(t, Config{Root: t.TempDir()})
	id, data := testBlob(t, piece.SHA256, 700_000, 1)
	sums := sumsOf(t, id, data)
	wrong := flip(data, 200_000) // states after piece 3 and on differ
	falseSums := sumsFor(id, sumsOf(t, mustID(t, wrong), wrong))
	b := mustBlob(t, s, id, true)
	defer b.Close()
	for _, i := range []int{1, 3, 4, 9} {
		if err := b.WritePiece(piece.NewClaim(falseSums, i, pieceOf(id, wrong, i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.st.checkpoint(); err != nil {
		t.Fatal(err)
	}
	if err := b.WritePiece(piece.NewClaim(sums, 5, pieceOf(id, data, 5))); !errors.Is(err, piece.ErrMismatch) {
		t.Errorf("a piece of another list: %v", err)
	}
	dropped, err := b.Adopt(sums)
	if err != nil || fmt.Sprint(dropped) != "[3 4 9]" {
		t.Errorf("dropped %v, %v", dropped, err)
	}
	if err := b.WritePiece(piece.NewClaim(falseSums, 5, pieceOf(id, wrong, 5))); !errors.Is(err, piece.ErrMismatch) {
		t.Errorf("a piece of the old list: %v", err)
	}
	if got := b.st.onDisk.Count(); got != 4 {
		t.Errorf("the map on disk covers %d pieces", got)
	}
	// Before new bytes go over old ones, the map must not cover them any more.
	if err := b.WritePiece(piece.NewClaim(sums, 3, pieceOf(id, data, 3))); err != nil {
		t.Fatal(err)
	}
	r, err := readRecord(s.partialPath(id, ".map"), kindMap, id)
	if err != nil || r.have.Count() != 1 || !r.have.Has(1) {
		t.Errorf("the map on disk covers %v, %v", r.have.Words(), err)
	}
	for i := range id.Pieces() {
		if err := b.WritePiece(piece.NewClaim(sums, i, pieceOf(id, data, i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Adopt(falseSums); !errors.Is(err, piece.ErrMismatch) {
		t.Errorf("adopting over proven sums: %v", err)
	}
	if d, err := b.Adopt(sums); err != nil || d != nil {
		t.Errorf("adopting the proven sums: %v, %v", d, err)
	}
}

// A longer list that begins the same needs no Adopt.
func TestListGrows(t *testing.T) {
	s := openStore(t, Config{Root: t.TempDir()})
	id, data := testBlob(t, piece.SHA256, 700_000, 1)
	sums := sumsOf(t, id, data)
	b := mustBlob(t, s, id, true)
	defer b.Close()
	for _, n := range []int{1, 4, 3, 10} {
		l := piece.NewSums(id)
		l.Append(sums.Range(0, n))
		if err := b.WritePiece(piece.NewClaim(l, n-1, pieceOf(id, data, n-1))); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := b.Sums(); got.Len() != 10 || b.Have().Count() != 4 {
		t.Errorf("%d states, %d pieces", got.Len(), b.Have().Count())
	}
}

// An Appender whose ground goes away gets an error, and nothing false counts.
func TestAdoptUnderAnAppender(t *testing.T) {
	s := openStore(t, Config{Root: t.TempDir()})
	id, data := testBlob(t, piece.SHA256, 700_000, 1)
	sums := sumsOf(t, id, data)
	wrong := flip(data, 100_000) // piece 1
	for _, at := range []int64{3 * 64 << 10, 3*64<<10 + 1000} {
		b := mustBlob(t, s, id, true)
		a, err := b.Append(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Write(wrong[:at]); err != nil {
			t.Fatal(err)
		}
		dropped, err := b.Adopt(sums)
		if err != nil || fmt.Sprint(dropped) != "[1 2]" {
			t.Errorf("dropped %v, %v", dropped, err)
		}
		// The following bytes are right, whatever came before.
		if _, err := a.Write(wrong[at:]); err != nil {
			t.Errorf("right bytes: %v", err)
		}
		if err := a.Finish(t.Context()); !errors.Is(err, ErrIncomplete) {
			t.Errorf("Finish with pieces dropped: %v", err)
		}
		checkTrue(t, b, data)
		a2, err := b.Append(t.Context(), 100)
		if err != nil {
			t.Fatal(err)
		}
		short := piece.NewSums(id)
		short.Append(sumsFor(id, sumsOf(t, mustID(t, wrong), wrong)).Range(0, 2))
		b.Adopt(short) // now piece 0 only is left, under the false list
		if _, err := a2.Write(data[100:]); !errors.Is(err, piece.ErrMismatch) {
			t.Errorf("the right bytes under a false list: %v", err)
		}
		a2.Close()
		a.Close()
		b.Drop()
		b.Close()
	}
}

// A proven list stays, also when no piece of it counts: a sync that failed may have
// taken them all.
func TestProvenListStays(t *testing.T) {
	s := openStore(t, Config{Root: t.TempDir()})
	id, data := testBlob(t, piece.SHA256, 300_000, 1)
	wrong := flip(data, 10)
	other := piece.NewSums(id)
	other.Append(sumsOf(t, mustID(t, wrong), wrong).Bytes())
	b := mustBlob(t, s, id, true)
	defer b.Close()
	if _, err := b.Adopt(sumsOf(t, id, data)); err != nil {
		t.Fatal(err)
	}
	b.st.proven = true
	if err := b.WritePiece(piece.NewClaim(other, 0, pieceOf(id, wrong, 0))); !errors.Is(err, piece.ErrMismatch) {
		t.Errorf("a piece of another list: %v, want a mismatch", err)
	}
	if sums, proven := b.Sums(); !proven || sums.Hash() != sumsOf(t, id, data).Hash() {
		t.Error("the proven list was replaced")
	}
}

// What somebody found to be in doubt is forgotten, on disk too; what is whole stays.
func TestEmpty(t *testing.T) {
	s := openStore(t, Config{Root: t.TempDir()})
	id, data := testBlob(t, piece.SHA256, 700_000, 1)
	wrong := bytes.Clone(data)
	wrong[100] ^= 1
	b := mustBlob(t, s, id, true)
	defer b.Close()
	write := func(data []byte) error {
		a, err := b.Append(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		if _, err = a.Write(data); err == nil && len(data) == int(id.Size) {
			err = a.Finish(t.Context())
		}
		return err
	}
	if err := write(wrong[:650_000]); err != nil {
		t.Fatal(err)
	}
	s.writeMaps(true)
	changed := b.Changed()
	if err := b.Empty(); err != nil || b.Have().Count() != 0 || stored(t, b) != 0 {
		t.Errorf("%d pieces, %d bytes survive (%v)", b.Have().Count(), stored(t, b), err)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told")
	}
	if _, err := os.Stat(s.partialPath(id, ".map")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the map survives: %v", err)
	}
	if err := write(data); err != nil {
		t.Errorf("what was false is still compared: %v", err)
	}
	if err := b.Empty(); err != nil || !b.Have().Full() {
		t.Errorf("a whole blob has %d pieces left (%v)", b.Have().Count(), err)
	}
}
