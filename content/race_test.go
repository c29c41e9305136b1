package content

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/swarm/piece"
)

// Two downloads in containerd, from different offsets and in different chunks,
// and three peers, all on one blob.
func TestEverybodyAtOnce(t *testing.T) {
	for round := range 4 {
		rec := newRecorder()
		s := openStore(t, Config{Root: t.TempDir(), Observer: rec})
		stop := runStore(t, s)
		id, data := testBlob(t, piece.SHA256, 2_345_678, byte(round))
		sums := sumsOf(t, id, data)
		var wg sync.WaitGroup
		for n := range 2 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(round), uint64(n)))
				b := mustBlob(t, s, id, true)
				defer b.Close()
				a, err := b.Append(t.Context(), b.Prefix())
				if err != nil {
					t.Error(err)
					return
				}
				defer a.Close()
				for a.Offset() < id.Size {
					n := min(id.Size-a.Offset(), 1+rnd.Int64N(150_000))
					if _, err := a.Write(data[a.Offset():][:n]); err != nil {
						t.Error(err)
						return
					}
				}
				if err := errors.Join(a.Finish(t.Context()), b.Publish(t.Context())); err != nil {
					t.Error(err)
				}
			})
		}
		for n := range 3 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(round), uint64(10+n)))
				b := mustBlob(t, s, id, true)
				defer b.Close()
				for _, i := range rnd.Perm(id.Pieces()) {
					if err := b.WritePiece(piece.NewClaim(sums, i, pieceOf(id, data, i))); err != nil {
						t.Error(err)
						return
					}
					checkOne(t, b, data, i)
				}
				if err := b.Complete(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if !bytes.Equal(readBlob(t, s, id), data) {
			t.Error("reads differ")
		}
		if rec.added[id] != 1 {
			t.Errorf("completed %d times", rec.added[id])
		}
		stop()
	}
}

func checkOne(t *testing.T, b *Blob, data []byte, i int) {
	id := b.ID()
	p := make([]byte, id.PieceSize(i))
	if _, err := b.ReadAt(p, id.Offset(i)); err != nil || !bytes.Equal(p, pieceOf(id, data, i)) {
		t.Errorf("piece %d: %v", i, err)
	}
}

// A false download ends (its chain is wiped) while peers write pieces.
func TestWipeUnderPieces(t *testing.T) {
	for round := range 4 {
		s := openStore(t, Config{Root: t.TempDir()})
		id, data := testBlob(t, piece.SHA256, 700_000, byte(round))
		sums := sumsOf(t, id, data)
		wrong := flip(data, 5)
		b := mustBlob(t, s, id, true)
		a, err := b.Append(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Write(wrong[:690_000]); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := a.Write(wrong[690_000:]); !errors.Is(err, piece.ErrMismatch) {
				t.Errorf("the false download: %v", err)
			}
			a.Close()
		})
		for range 2 {
			wg.Go(func() {
				for {
					missing := 0
					for i := range id.Pieces() {
						switch err := b.WritePiece(piece.NewClaim(sums, i, pieceOf(id, data, i))); {
						case errors.Is(err, piece.ErrMismatch):
							missing++ // the false list counts still
						case err != nil:
							t.Error(err)
							return
						}
					}
					if missing == 0 {
						return
					}
				}
			})
		}
		wg.Wait()
		for !b.Have().Full() { // those that the wipe took
			for i := range id.Pieces() {
				if err := b.WritePiece(piece.NewClaim(sums, i, pieceOf(id, data, i))); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := errors.Join(b.Complete(t.Context()), b.Publish(t.Context())); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(readBlob(t, s, id), data) {
			t.Error("reads differ")
		}
		b.Close()
	}
}

// containerd pulls, deletes and looks while the swarm fetches, completes and
// evicts the same few blobs. Each blob is in one place at the end, and reads are
// right throughout.
func TestChurn(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, Config{Root: root, CacheBytes: 500_000, Report: func(err error) { t.Error(err) }})
	stop := runStore(t, s)
	const n = 4
	ids, blobs, sums := make([]piece.ID, n), make([][]byte, n), make([]*piece.Sums, n)
	for i := range n {
		ids[i], blobs[i] = testBlob(t, piece.SHA256, 200_000+i, byte(i))
		sums[i] = sumsOf(t, ids[i], blobs[i])
	}
	ctx := t.Context()
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(9, uint64(w)))
			for range 60 {
				i := rnd.IntN(n)
				id, d := ids[i], digest.Digest(ids[i].Digest())
				switch rnd.IntN(7) {
				case 0:
					if err := s.Delete(ctx, d); err != nil {
						t.Error(err)
					}
				case 1:
					if _, err := s.Info(ctx, d); err != nil && !errdefs.IsNotFound(err) {
						t.Error(err)
					}
				case 2:
					ra, err := s.ReaderAt(ctx, ocispec.Descriptor{Digest: d})
					if errdefs.IsNotFound(err) {
						continue
					}
					if err != nil {
						t.Error(err)
						continue
					}
					got := make([]byte, 1000)
					if _, err := ra.ReadAt(got, 150_000); err != nil || !bytes.Equal(got, blobs[i][150_000:151_000]) {
						t.Errorf("read: %v", err)
					}
					ra.Close()
				case 3:
					err := ctrdcontent.WriteBlob(ctx, s, "ref-"+string(d), bytes.NewReader(blobs[i]), ocispec.Descriptor{Size: id.Size})
					if err != nil {
						t.Error(err)
					}
				default:
					b, err := s.Blob(ctx, id, true)
					if err != nil {
						t.Error(err)
						continue
					}
					for _, p := range rnd.Perm(id.Pieces()) {
						if err := b.WritePiece(piece.NewClaim(sums[i], p, pieceOf(id, blobs[i], p))); err != nil && !errors.Is(err, ErrDropped) {
							t.Error(err)
						}
					}
					if err := b.Complete(ctx); err != nil && !errors.Is(err, ErrDropped) {
						t.Error(err)
					} else if err == nil && rnd.IntN(2) == 0 {
						// Somebody else's Delete may have cached and evicted it, were it not open.
						if err := b.Publish(ctx); err != nil {
							t.Error(err)
						}
					}
					if rnd.IntN(4) == 0 {
						b.Drop()
					}
					b.Close()
				}
			}
		})
	}
	wg.Wait()
	stop()
	s.sweep(ctx)
	for i, id := range ids {
		want := map[Presence]int{Absent: 0, Cached: 1, Committed: 1, Partial: 2}[s.Presence(id)]
		got := places(t, root, id)
		if len(got) != want {
			t.Errorf("blob %d is %v, in %v", i, s.Presence(id), got)
		}
		if s.Presence(id) >= Cached {
			b := mustBlob(t, s, id, false)
			if err := b.ComputeSums(ctx); err != nil {
				t.Error(err)
			}
			b.Close()
		}
	}
}
