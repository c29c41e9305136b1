package content

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/testsuite"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/swarm/piece"
)

// containerd's own suite, against the Store directly. The plugin runs it again,
// through its socket.
func TestContentSuite(t *testing.T) {
	testsuite.ContentSuite(t, "capelin", func(ctx context.Context, root string) (context.Context, ctrdcontent.Store, func() error, error) {
		s, err := Open(ctx, Config{Root: root})
		if err != nil {
			return nil, nil, nil, err
		}
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		return ctx, s, func() error {
			cancel()
			return errors.Join(<-done, s.Close())
		}, nil
	})
}

// recorder is an Observer that remembers.
type recorder struct {
	mu     sync.Mutex
	pieces map[piece.ID]*piece.Bits
	states map[piece.ID][]byte
	added  map[piece.ID]int
	gone   map[piece.ID]int
}

func newRecorder() *recorder {
	return &recorder{
		pieces: map[piece.ID]*piece.Bits{}, states: map[piece.ID][]byte{},
		added: map[piece.ID]int{}, gone: map[piece.ID]int{},
	}
}

func (r *recorder) PiecesAdded(id piece.ID, from, to int, states []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pieces[id] == nil {
		r.pieces[id] = piece.NewBits(id.Pieces())
	}
	for i := from; i < to; i++ {
		r.pieces[id].Set(i)
	}
	r.states[id] = append(r.states[id], states...)
}
func (r *recorder) BlobAdded(id piece.ID) { r.mu.Lock(); r.added[id]++; r.mu.Unlock() }
func (r *recorder) BlobGone(id piece.ID)  { r.mu.Lock(); r.gone[id]++; r.mu.Unlock() }

func readBlob(t testing.TB, s *Store, id piece.ID) []byte {
	t.Helper()
	b, err := ctrdcontent.ReadBlob(context.Background(), s, ocispec.Descriptor{Digest: digest.Digest(id.Digest())})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustBlob(t testing.TB, s *Store, id piece.ID, create bool) *Blob {
	t.Helper()
	b, err := s.Blob(context.Background(), id, create)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// fetch takes a blob in through WritePiece and completes it.
func fetch(t testing.TB, s *Store, id piece.ID, data []byte) *Blob {
	t.Helper()
	b := mustBlob(t, s, id, true)
	sums := sumsOf(t, id, data)
	for i := id.Pieces() - 1; i >= 0; i-- {
		if err := b.WritePiece(piece.NewClaim(sums, i, pieceOf(id, data, i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

// places returns where files of id are, by directory.
func places(t testing.TB, root string, id piece.ID) (in []string) {
	t.Helper()
	for _, d := range []string{"blobs", "cache"} {
		if _, err := os.Stat(filepath.Join(root, d, id.Alg.String(), id.Hex())); err == nil {
			in = append(in, d)
		}
	}
	m, _ := filepath.Glob(filepath.Join(root, "swarm/partial", id.Alg.String()+"-"+id.Hex()+"-*"))
	for _, p := range m {
		in = append(in, filepath.Ext(p)[1:])
	}
	return in
}

func TestPiecesInAnyOrder(t *testing.T) {
	for _, alg := range []piece.Algorithm{piece.SHA256, piece.SHA512} {
		rec := newRecorder()
		root := t.TempDir()
		s := openStore(t, Config{Root: root, Observer: rec})
		id, data := testBlob(t, alg, 700_001, 3)
		ctx := t.Context()
		if p := s.Presence(id); p != Absent {
			t.Errorf("presence %v before", p)
		}
		if _, err := s.Blob(ctx, id, false); !errors.Is(err, ErrNotFound) || !errdefs.IsNotFound(err) {
			t.Errorf("opening what is not there: %v", err)
		}
		b := mustBlob(t, s, id, true)
		sums := sumsOf(t, id, data)
		bad := bytes.Clone(pieceOf(id, data, 2))
		bad[7] ^= 1
		if err := b.WritePiece(piece.NewClaim(sums, 2, bad)); !errors.Is(err, piece.ErrMismatch) || b.Have().Has(2) {
			t.Errorf("a wrong piece: %v", err)
		}
		for i := id.Pieces() - 1; i >= 0; i-- {
			if err := b.Complete(ctx); !errors.Is(err, ErrIncomplete) {
				t.Errorf("completing too early: %v", err)
			}
			changed := b.Changed()
			p := pieceOf(id, data, i)
			if err := b.WritePiece(piece.NewClaim(sums, i, p[:len(p)/2], p[len(p)/2:])); err != nil {
				t.Fatal(err)
			}
			<-changed
			got := make([]byte, len(p))
			if _, err := b.ReadAt(got, id.Offset(i)); err != nil || !bytes.Equal(got, p) {
				t.Errorf("piece %d reads wrong: %v", i, err)
			}
			if i > 0 {
				if _, err := b.ReadAt(got[:2], id.Offset(i)-1); !errors.Is(err, ErrIncomplete) {
					t.Errorf("a read into piece %d: %v", i-1, err)
				}
			}
		}
		if s.Presence(id) != Partial || b.Prefix() != id.Size {
			t.Errorf("presence %v, prefix %d", s.Presence(id), b.Prefix())
		}
		f := b.File()
		if err := b.Complete(ctx); err != nil {
			t.Fatal(err)
		}
		if _, proven := b.Sums(); !proven || s.Presence(id) != Cached || rec.added[id] != 1 {
			t.Errorf("proven %t, presence %v, told %d times", proven, s.Presence(id), rec.added[id])
		}
		if err := s.Walk(ctx, func(ctrdcontent.Info) error { return errors.New("listed") }); err != nil {
			t.Errorf("a cached blob: %v", err)
		}
		if err := b.Publish(ctx); err != nil {
			t.Fatal(err)
		}
		if got := places(t, root, id); len(got) != 1 || got[0] != "blobs" {
			t.Errorf("it is in %v", got)
		}
		if got := readBlob(t, s, id); !bytes.Equal(got, data) {
			t.Error("reads differ")
		}
		got := make([]byte, 10)
		if _, err := f.ReadAt(got, id.Size-10); err != nil || !bytes.Equal(got, data[id.Size-10:]) {
			t.Errorf("the file after two renames: %v", err)
		}
		b.Close()
		if err := b.WritePiece(piece.NewClaim(sums, 0, pieceOf(id, data, 0))); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}

		// Deleted by containerd it goes to cache/, and a mere Info brings it back.
		d := digest.Digest(id.Digest())
		for range 2 { // the second is of something not there
			if err := s.Delete(ctx, d); err != nil {
				t.Fatal(err)
			}
		}
		if got := places(t, root, id); len(got) != 1 || got[0] != "cache" || s.Presence(id) != Cached {
			t.Errorf("deleted, it is in %v, %v", got, s.Presence(id))
		}
		if _, err := s.ReaderAt(ctx, ocispec.Descriptor{Digest: d}); !errdefs.IsNotFound(err) {
			t.Errorf("reading a deleted blob: %v", err)
		}
		b = mustBlob(t, s, id, false)
		if s, proven := b.Sums(); !proven || !s.Complete() || !b.Have().Full() {
			t.Error("stored sums are lost")
		}
		if err := b.Recheck(1); err != nil {
			t.Error(err)
		}
		b.Close()
		info, err := s.Info(ctx, d)
		if err != nil || info.Size != id.Size {
			t.Errorf("Info: %+v, %v", info, err)
		}
		if got := places(t, root, id); len(got) != 1 || got[0] != "blobs" {
			t.Errorf("after Info it is in %v", got)
		}
	}
}

func TestAppendAndSwarmShareTheWork(t *testing.T) {
	rec := newRecorder()
	s := openStore(t, Config{Root: t.TempDir(), Observer: rec})
	id, data := testBlob(t, piece.SHA256, 1_000_000, 4)
	sums := sumsOf(t, id, data)
	b := mustBlob(t, s, id, true)
	defer b.Close()
	if err := b.WritePiece(piece.NewClaim(sums, 5, pieceOf(id, data, 5))); err != nil {
		t.Fatal(err)
	}
	a, err := b.Append(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	r := bytes.NewReader(data)
	if _, err := io.CopyBuffer(struct{ io.Writer }{a}, io.LimitReader(r, 500_000), make([]byte, 33_333)); err != nil {
		t.Fatal(err)
	}
	want := id.Offset(int(500_000 / id.Length()))
	if a.Offset() != 500_000 || b.Prefix() != want {
		t.Errorf("offset %d, prefix %d; want 500000, %d", a.Offset(), b.Prefix(), want)
	}
	if _, err := b.Append(t.Context(), b.Prefix()+1); !errors.Is(err, ErrIncomplete) {
		t.Errorf("appending beyond the prefix: %v", err)
	}
	// A second one, from the middle of a piece.
	a2, err := b.Append(t.Context(), b.Prefix()-77)
	if err != nil {
		t.Fatal(err)
	}
	defer a2.Close()
	if _, err := a2.Write(data[a2.Offset():]); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Write(data[a.Offset():]); err != nil { // compared only
		t.Fatal(err)
	}
	if err := a.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a2.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, proven := b.Sums(); !proven || !bytes.Equal(got.Bytes(), sums.Bytes()) {
		t.Error("sums are not those of the blob")
	}
	got := rec.pieces[id]
	for i := range id.Pieces() {
		if got.Has(i) == (i == 5) {
			t.Errorf("piece %d told: %t", i, got.Has(i))
		}
	}
	// And the tail again, as with authorize = "blob".
	a3, err := b.Append(t.Context(), id.Size-64<<10)
	if err != nil {
		t.Fatal(err)
	}
	defer a3.Close()
	if _, err := a3.Write(data[id.Size-64<<10:]); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a3.Finish(t.Context()), b.Publish(t.Context())); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readBlob(t, s, id), data) {
		t.Error("reads differ")
	}
}

func TestLock(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, Config{Root: root})
	_, err := Open(t.Context(), Config{Root: root})
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), root) {
		t.Errorf("a second agent: %v", err)
	}
	if _, err := Lock(root); !errors.Is(err, ErrLocked) {
		t.Errorf("looked at while it is open: %v", err)
	}
	s.Close()
	unlock, err := Lock(root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Root: root}); !errors.Is(err, ErrLocked) {
		t.Errorf("opened while it is being looked at: %v", err)
	}
	if err := unlock(); err != nil {
		t.Error(err)
	}
	openStore(t, Config{Root: root})
	if _, err := Lock(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no content directory: %v", err)
	}
}

// stockPull puts a blob in with containerd's own store, as a stock containerd.
func stockPull(t testing.TB, root string, data []byte) digest.Digest {
	t.Helper()
	stock, err := local.NewStore(root)
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(data)
	if err := ctrdcontent.WriteBlob(context.Background(), stock, "layer-"+d.String(), bytes.NewReader(data),
		ocispec.Descriptor{Digest: d, Size: int64(len(data))}); err != nil {
		t.Fatal(err)
	}
	return d
}
