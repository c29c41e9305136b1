package content

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/capelin-io/capelin/swarm/piece"
)

// Peers and upstreams that lie in every way, in any order, over restarts: what
// counts always verifies against the list that counts, the map on disk never
// says more, and only the true blob ever completes.
func TestLies(t *testing.T) {
	const seeds = 50
	id, data := testBlob(t, piece.SHA256, 500_000, 1)
	truth := sumsOf(t, id, data)
	contents := [][]byte{data, flip(data, 70_000), flip(data, 499_999)}
	lists := make([]*piece.Sums, len(contents))
	for i, c := range contents {
		lists[i] = sumsFor(id, sumsOf(t, mustID(t, c), c))
	}
	old := bootID
	defer func() { bootID = old }()
	completed := 0
	for seed := range seeds {
		rnd := rand.New(rand.NewPCG(5, uint64(seed)))
		root := t.TempDir()
		s, err := Open(t.Context(), Config{Root: root})
		if err != nil {
			t.Fatal(err)
		}
		b := mustBlob(t, s, id, true)
		a, from := (*Appender)(nil), data
		list := func() *piece.Sums { // whole or its beginning
			l := lists[rnd.IntN(len(lists))]
			if rnd.IntN(2) == 0 {
				p := piece.NewSums(id)
				p.Append(l.Range(0, rnd.IntN(l.Len()+1)))
				return p
			}
			return l
		}
		expect := func(what string, err error, allowed ...error) {
			t.Helper()
			for _, e := range allowed {
				if errors.Is(err, e) {
					return
				}
			}
			if err != nil {
				t.Errorf("seed %d: %s: %v", seed, what, err)
			}
		}
		for range 80 {
			switch rnd.IntN(12) {
			case 0, 1, 2, 3:
				i := rnd.IntN(id.Pieces())
				err := b.WritePiece(piece.NewClaim(list(), i, pieceOf(id, contents[rnd.IntN(len(contents))], i)))
				expect("WritePiece", err, piece.ErrMismatch, piece.ErrInvalid)
			case 4, 5, 6:
				if a == nil {
					from = contents[rnd.IntN(len(contents))]
					if a, err = b.Append(t.Context(), rnd.Int64N(b.Prefix()+1)); err != nil {
						t.Fatal(err)
					}
				}
				n := min(id.Size-a.Offset(), rnd.Int64N(200_000))
				if _, err := a.Write(from[a.Offset():][:n]); err != nil {
					expect("Append", err, piece.ErrMismatch, ErrIncomplete)
					a.Close()
					a = nil
				}
			case 7:
				if a != nil {
					a.Close()
					a = nil
				}
			case 8:
				_, err := b.Adopt(list())
				expect("Adopt", err, piece.ErrMismatch)
			case 9:
				expect("Recheck", b.Recheck(rnd.IntN(id.Pieces())), ErrIncomplete)
			case 10:
				expect("checkpoint", b.st.checkpoint())
			case 11:
				if a != nil {
					a.Close()
					a = nil
				}
				if rnd.IntN(2) == 0 {
					b.Close()
					expect("Close", s.Close())
				} else {
					abandon(s)
				}
				if rnd.IntN(2) == 0 {
					bootID = func() [16]byte { return [16]byte{1, byte(rnd.IntN(256))} }
				}
				if s, err = Open(t.Context(), Config{Root: root}); err != nil {
					t.Fatal(err)
				}
				b = mustBlob(t, s, id, true)
			}
			sums, proven := b.Sums()
			have := b.Have()
			for i := have.NextSet(0); i >= 0; i = have.NextSet(i + 1) {
				p := make([]byte, id.PieceSize(i))
				_, err := b.ReadAt(p, id.Offset(i))
				if err == nil {
					err = sums.Verify(i, p)
				}
				expect("a piece that counts", err)
			}
			if have.Full() && !bytes.Equal(sums.Bytes(), truth.Bytes()) {
				t.Errorf("seed %d: every piece counts under false sums", seed)
			}
			if proven && !b.Completed() {
				t.Errorf("seed %d: proven, and not complete", seed)
			}
			if t.Failed() {
				return
			}
			if have.Full() {
				break
			}
		}
		if a != nil {
			a.Close()
		}
		err = b.Complete(t.Context())
		expect("Complete", err, ErrIncomplete)
		if err == nil {
			completed++
			expect("Publish", b.Publish(t.Context()))
			if !bytes.Equal(readBlob(t, s, id), data) {
				t.Errorf("seed %d: another blob was published", seed)
			}
		}
		b.Close()
		s.Close()
	}
	t.Logf("%d of %d completed", completed, seeds)
}
