package content

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/swarm/piece"
)

func TestTakeOverFromStockAndBack(t *testing.T) {
	root := t.TempDir()
	id, data := testBlob(t, piece.SHA256, 300_000, 1)
	d := stockPull(t, root, data)
	rec := newRecorder()
	s := openStore(t, Config{Root: root, Observer: rec})
	if p := s.Presence(id); p != Committed {
		t.Fatalf("a stock blob is %v", p)
	}
	s.Blobs(func(id piece.ID, _ Presence) bool { t.Errorf("%v listed before its size is known", id); return true })
	s.fill(t.Context())
	n := 0
	s.Blobs(func(got piece.ID, p Presence) bool {
		if n++; got != id || p != Committed {
			t.Errorf("Blobs: %v %v", got, p)
		}
		return true
	})
	if n != 1 || rec.added[id] != 1 {
		t.Errorf("%d blobs listed, told %d times", n, rec.added[id])
	}
	b := mustBlob(t, s, id, true)
	if sums, proven := b.Sums(); proven || sums.Len() != 0 || !b.Have().Full() {
		t.Error("a stock blob without sums has some")
	}
	if err := errors.Join(b.ComputeSums(t.Context()), b.ComputeSums(t.Context())); err != nil {
		t.Fatal(err)
	}
	want := sumsOf(t, id, data)
	if sums, proven := b.Sums(); !proven || !bytes.Equal(sums.Bytes(), want.Bytes()) {
		t.Error("computed sums are wrong")
	}
	if !bytes.Equal(rec.states[id], want.Bytes()) || !rec.pieces[id].Full() {
		t.Error("the observer was told other sums")
	}
	if err := errors.Join(b.Complete(t.Context()), b.Publish(t.Context()), b.Close()); err != nil {
		t.Error(err)
	}
	other, otherData := testBlob(t, piece.SHA256, 90_000, 2)
	b = fetch(t, s, other, otherData)
	b.Publish(t.Context())
	b.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// Back to stock: both blobs are there, one is deleted, another one added.
	stock, err := local.NewStore(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range [][]byte{data, otherData} {
		got, err := ctrdcontent.ReadBlob(t.Context(), stock, ocispec.Descriptor{Digest: digest.FromBytes(x)})
		if err != nil || !bytes.Equal(got, x) {
			t.Errorf("the stock store reads another blob: %v", err)
		}
	}
	if err := stock.Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	third, thirdData := testBlob(t, piece.SHA256, 10, 3)
	stockPull(t, root, thirdData)

	s = openStore(t, Config{Root: root})
	if s.Presence(id) != Absent || s.Presence(other) != Committed || s.Presence(third) != Committed {
		t.Errorf("after stock: %v %v %v", s.Presence(id), s.Presence(other), s.Presence(third))
	}
	s.emptyTrash(t.Context())
	if _, err := os.Stat(s.sumsPath(d)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("sums of a blob that is gone: %v", err)
	}
	b = mustBlob(t, s, other, false)
	if _, proven := b.Sums(); !proven {
		t.Error("sums were lost over stock")
	}
	b.Close()
}

func TestQuarantine(t *testing.T) {
	t.Run("delete", func(t *testing.T) { testQuarantine(t, false) })
	t.Run("heal", func(t *testing.T) { testQuarantine(t, true) })
}

func testQuarantine(t *testing.T, heal bool) {
	root := t.TempDir()
	id, data := testBlob(t, piece.SHA256, 300_000, 1)
	d := stockPull(t, root, data)
	p := filepath.Join(root, "blobs/sha256", id.Hex())
	os.Chmod(p, 0o644)
	f, err := os.OpenFile(p, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte("flipped"), 100_000)
	f.Close()
	rec := newRecorder()
	s := openStore(t, Config{Root: root, Observer: rec})
	b := mustBlob(t, s, id, false)
	if err := b.ComputeSums(t.Context()); !errors.Is(err, piece.ErrMismatch) {
		t.Errorf("computing sums of a corrupt blob: %v", err)
	}
	if b.Have().Count() != 0 || rec.gone[id] != 1 {
		t.Errorf("%d pieces count; gone %d times", b.Have().Count(), rec.gone[id])
	}
	b.Close()
	check := func(s *Store) {
		t.Helper()
		if _, err := s.Blob(t.Context(), id, false); !errors.Is(err, ErrQuarantined) || s.Presence(id) != Absent {
			t.Errorf("opening it: %v, presence %v", err, s.Presence(id))
		}
		s.fill(t.Context())
		s.Blobs(func(piece.ID, Presence) bool { t.Error("it is announced"); return true })
		if _, err := s.Info(t.Context(), d); err != nil {
			t.Errorf("it is still containerd's: %v", err)
		}
	}
	check(s)
	s.Close()
	s = openStore(t, Config{Root: root, Observer: rec})
	check(s)
	if heal {
		// It arrives anew, over a restart, and replaces the wrong one.
		b := mustBlob(t, s, id, true)
		sums := sumsOf(t, id, data)
		b.WritePiece(piece.NewClaim(sums, 0, pieceOf(id, data, 0)))
		b.Close()
		s.Close()
		s = openStore(t, Config{Root: root, Observer: rec})
		if s.Presence(id) != Partial {
			t.Errorf("presence %v", s.Presence(id))
		}
		b = fetch(t, s, id, data)
		if got := places(t, root, id); len(got) != 1 || got[0] != "blobs" || s.Presence(id) != Committed {
			t.Errorf("it is in %v, %v", got, s.Presence(id))
		}
		if err := b.Publish(t.Context()); err != nil {
			t.Error(err)
		}
		b.Close()
		if u := s.Usage(); u != (Usage{Committed: 1}) {
			t.Errorf("usage %+v", u)
		}
		if !bytes.Equal(readBlob(t, s, id), data) {
			t.Error("reads differ")
		}
		s.Close()
		s = openStore(t, Config{Root: root})
		if s.Presence(id) != Committed {
			t.Errorf("after a restart: %v", s.Presence(id))
		}
		return
	}
	// containerd deletes it: it must not be cached, and the digest is free again.
	if err := s.Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if got := places(t, root, id); len(got) != 0 {
		t.Errorf("it is in %v", got)
	}
	b = fetch(t, s, id, data)
	b.Publish(t.Context())
	b.Close()
	s.emptyTrash(t.Context())
	s.Close()
	s = openStore(t, Config{Root: root})
	b = mustBlob(t, s, id, false)
	if _, proven := b.Sums(); !proven {
		t.Error("the new blob's sums were lost")
	}
	b.Close()
}

func TestRecheckFinds(t *testing.T) {
	for _, publish := range []bool{false, true} {
		root := t.TempDir()
		s := openStore(t, Config{Root: root})
		id, data := testBlob(t, piece.SHA256, 300_000, 1)
		b := fetch(t, s, id, data)
		if publish {
			b.Publish(t.Context())
		}
		if err := b.Recheck(2); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(b.File().Name()); err == nil { // its name is the partial's, gone by now
			t.Fatal("the partial file is still there")
		}
		at := map[bool]string{false: "cache", true: "blobs"}[publish]
		p := filepath.Join(root, at, "sha256", id.Hex())
		os.Chmod(p, 0o600)
		f, err := os.OpenFile(p, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteAt([]byte("flipped"), id.Offset(2))
		f.Close()
		if err := b.Recheck(2); !errors.Is(err, piece.ErrMismatch) || b.Have().Has(2) {
			t.Errorf("published %t: %v", publish, err)
		}
		b.Close()
		if got := s.Presence(id); got != Absent {
			t.Errorf("published %t: presence %v", publish, got)
		}
		if got := places(t, root, id); publish != (len(got) == 1) {
			t.Errorf("published %t: it is in %v", publish, got)
		}
	}
}

// stockPrefix writes n bytes of data under ref, as a stock containerd that was
// stopped in mid-pull.
func stockPrefix(t testing.TB, root, ref string, data []byte, n int) {
	t.Helper()
	stock, err := local.NewStore(root)
	if err != nil {
		t.Fatal(err)
	}
	w, err := stock.Writer(context.Background(), ctrdcontent.WithRef(ref),
		ctrdcontent.WithDescriptor(ocispec.Descriptor{Size: int64(len(data))}))
	if err != nil {
		t.Fatal(err)
	}
	w.Write(data[:n])
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAdoptIngest(t *testing.T) {
	id, data := testBlob(t, piece.SHA256, 900_000, 1)
	sums := sumsOf(t, id, data)
	const ref = "k8s.io/7/layer-sha256:abc"
	wrong := bytes.Clone(data)
	wrong[300_000] ^= 1
	for _, tt := range []struct {
		name   string
		data   []byte
		n      int
		before []int // pieces that the swarm brought
		want   int64 // prefix
		pieces int
	}{
		{"fresh", data, 500_000, nil, 7 * 64 << 10, 7},
		{"all", data, len(data), nil, id.Size, 14},
		{"none", data, 0, nil, 0, 0},
		{"beside pieces", data, 500_000, []int{1, 9}, 7 * 64 << 10, 8},
		{"wrong beside sums", wrong, 500_000, []int{9}, 4 * 64 << 10, 4}, // piece 9 is in doubt, too
		{"too long", append(bytes.Clone(data), 1, 2, 3), len(data) + 3, nil, id.Size, 14},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			stockPrefix(t, root, ref, tt.data, tt.n)
			s := openStore(t, Config{Root: root})
			if st, err := s.Status(t.Context(), ref); err != nil || st.Offset != int64(tt.n) {
				t.Errorf("status %+v, %v", st, err)
			}
			b := mustBlob(t, s, id, true)
			defer b.Close()
			for _, i := range tt.before {
				if err := b.WritePiece(piece.NewClaim(sums, i, pieceOf(id, data, i))); err != nil {
					t.Fatal(err)
				}
			}
			f := b.File()
			for range 2 { // the second finds nothing
				if err := s.AdoptIngest(t.Context(), ref, id); err != nil {
					t.Fatal(err)
				}
			}
			if taken := b.File() != f; taken != (len(tt.before) == 0) {
				t.Errorf("the ingest's file was taken: %t", taken)
			}
			b2 := mustBlob(t, s, id, true)
			defer b2.Close()
			if b2.Prefix() != tt.want || b2.Have().Count() != tt.pieces {
				t.Errorf("prefix %d, %d pieces; want %d, %d", b2.Prefix(), b2.Have().Count(), tt.want, tt.pieces)
			}
			if all, err := s.ListStatuses(t.Context()); err != nil || len(all) != 0 {
				t.Errorf("statuses %v, %v", all, err)
			}
			if m, _ := os.ReadDir(filepath.Join(root, "ingest")); len(m) != 0 {
				t.Errorf("ingest holds %v", m)
			}
			// The pull goes on from there.
			a, err := b2.Append(t.Context(), b2.Prefix())
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			if _, err := a.Write(data[a.Offset():]); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(a.Finish(t.Context()), b2.Publish(t.Context())); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(readBlob(t, s, id), data) {
				t.Error("reads differ")
			}
		})
	}
}

func TestAdoptIngestLeavesWritersAlone(t *testing.T) {
	s := openStore(t, Config{Root: t.TempDir()})
	id, _ := testBlob(t, piece.SHA256, 100_000, 1)
	w, err := s.Writer(t.Context(), ctrdcontent.WithRef("r"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.AdoptIngest(t.Context(), "r", id); !errdefs.IsUnavailable(err) {
		t.Errorf("adopting under a writer: %v", err)
	}
	w.Close()
}

func TestStockWriterMeetsTheSwarm(t *testing.T) {
	root := t.TempDir()
	rec := newRecorder()
	s := openStore(t, Config{Root: root, Observer: rec})
	ctx := t.Context()
	write := func(data []byte, ref string) error {
		return ctrdcontent.WriteBlob(ctx, s, ref, bytes.NewReader(data), ocispec.Descriptor{Size: int64(len(data))})
	}
	// A blob that is in cache/ is imported.
	id, data := testBlob(t, piece.SHA256, 200_000, 1)
	fetch(t, s, id, data).Close()
	if err := write(data, "import-1"); err != nil {
		t.Fatal(err)
	}
	if got := places(t, root, id); len(got) != 1 || got[0] != "blobs" {
		t.Errorf("it is in %v", got)
	}
	// A blob that is arriving is imported; the swarm's copy completes afterwards.
	id2, data2 := testBlob(t, piece.SHA256, 200_000, 2)
	b := mustBlob(t, s, id2, true)
	sums := sumsOf(t, id2, data2)
	b.WritePiece(piece.NewClaim(sums, 0, pieceOf(id2, data2, 0)))
	if err := write(data2, "import-2"); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < id2.Pieces(); i++ {
		if err := b.WritePiece(piece.NewClaim(sums, i, pieceOf(id2, data2, i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(b.Complete(ctx), b.Publish(ctx), b.Close()); err != nil {
		t.Error(err)
	}
	if got := places(t, root, id2); len(got) != 1 || got[0] != "blobs" || s.Presence(id2) != Committed {
		t.Errorf("it is in %v, %v", got, s.Presence(id2))
	}
	b = mustBlob(t, s, id2, false)
	if _, proven := b.Sums(); !proven {
		t.Error("the sums were lost")
	}
	b.Close()
	// A partial of another size is of no use any more.
	id3, data3 := testBlob(t, piece.SHA256, 200_000, 3)
	liar := id3
	liar.Size = 300_000
	lb := mustBlob(t, s, liar, true)
	if err := lb.WritePiece(piece.NewClaim(sumsFor(liar, sumsOf(t, id3, data3)), 0, pieceOf(id3, data3, 0))); err != nil {
		t.Fatal(err)
	}
	lb.Close()
	s.writeMaps(true)
	if got := places(t, root, id3); len(got) != 2 {
		t.Errorf("the liar is in %v", got)
	}
	if err := write(data3, "import-3"); err != nil {
		t.Fatal(err)
	}
	if got := places(t, root, id3); len(got) != 1 || got[0] != "blobs" {
		t.Errorf("it is in %v", got)
	}
	if _, err := s.Blob(ctx, liar, true); !errors.Is(err, ErrSize) {
		t.Errorf("a wrong size for a known digest: %v", err)
	}
	if s.Presence(liar) != Absent {
		t.Errorf("the liar is %v", s.Presence(liar))
	}
	if rec.added[id] == 0 || rec.added[id2] == 0 || rec.added[id3] == 0 {
		t.Error("not all commits were told")
	}
}

// sumsFor renames states to another size.
func sumsFor(id piece.ID, s *piece.Sums) *piece.Sums {
	c := piece.NewSums(id)
	c.Append(s.Bytes())
	return c
}

func TestTwoSizes(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, Config{Root: root})
	id, data := testBlob(t, piece.SHA256, 200_000, 3)
	liar := id
	liar.Size = 200_001
	lb := mustBlob(t, s, liar, true)
	defer lb.Close()
	b := fetch(t, s, id, data) // the right one is not disturbed
	defer b.Close()
	a, err := lb.Append(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if _, err := a.Write(append(bytes.Clone(data), 0)); !errors.Is(err, piece.ErrMismatch) {
		t.Errorf("the false one: %v", err)
	}
	if lb.Have().Count() != 0 {
		t.Errorf("%d false pieces count", lb.Have().Count())
	}
	if _, err := a.Write([]byte{1}); !errors.Is(err, piece.ErrMismatch) {
		t.Errorf("a failed Appender goes on: %v", err)
	}
}

func TestIngestStatuses(t *testing.T) {
	root := t.TempDir()
	_, data := testBlob(t, piece.SHA256, 10_000, 1)
	stockPrefix(t, root, "old", data, 5000)
	s := openStore(t, Config{Root: root})
	ctx := t.Context()
	w, err := s.Writer(ctx, ctrdcontent.WithRef("new"))
	if err != nil {
		t.Fatal(err)
	}
	w.Write(data[:300])
	for range 2 {
		all, err := s.ListStatuses(ctx)
		if err != nil || len(all) != 2 {
			t.Fatalf("%v, %v", all, err)
		}
		if all, err = s.ListStatuses(ctx, `ref==old`); err != nil || len(all) != 1 || all[0].Offset != 5000 || all[0].Total != 10_000 {
			t.Fatalf("%v, %v", all, err)
		}
	}
	if st, err := s.Status(ctx, "new"); err != nil || st.Offset != 300 {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := s.Writer(ctx, ctrdcontent.WithRef("new")); !errdefs.IsUnavailable(err) {
		t.Errorf("a second writer: %v", err)
	}
	for _, ref := range []string{"new", "old", "old", "never"} {
		if err := s.Abort(ctx, ref); err != nil {
			t.Errorf("aborting %s: %v", ref, err)
		}
	}
	if _, err := s.Status(ctx, "new"); !errdefs.IsNotFound(err) {
		t.Errorf("aborted: %v", err)
	}
	if err := w.Commit(ctx, 300, ""); err == nil {
		t.Error("an aborted writer committed")
	}
	w.Close()
	if all, err := s.ListStatuses(ctx); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	s.emptyTrash(ctx)
	for _, d := range []string{"ingest", "swarm/trash"} {
		if m, _ := os.ReadDir(filepath.Join(root, d)); len(m) != 0 {
			t.Errorf("%s holds %v", d, m)
		}
	}
}

// Blobs that no swarm can carry are containerd's nonetheless.
func TestBlobsBeyondTheSwarm(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "blobs/sha384")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d384 := digest.SHA384.FromString("x")
	os.WriteFile(filepath.Join(dir, d384.Encoded()), []byte("x"), 0o444)
	empty := stockPull(t, root, nil)
	rec := newRecorder()
	s := openStore(t, Config{Root: root, Observer: rec})
	s.fill(t.Context())
	s.Blobs(func(id piece.ID, _ Presence) bool { t.Errorf("%v is announced", id); return true })
	var got []digest.Digest
	s.Walk(t.Context(), func(i ctrdcontent.Info) error { got = append(got, i.Digest); return nil })
	if len(got) != 2 || got[0] != empty || got[1] != d384 {
		t.Errorf("listed: %v", got)
	}
	for _, d := range got {
		if _, err := s.Info(t.Context(), d); err != nil {
			t.Error(err)
		}
		if _, err := ctrdcontent.ReadBlob(t.Context(), s, ocispec.Descriptor{Digest: d}); err != nil {
			t.Error(err)
		}
		if err := s.Delete(t.Context(), d); err != nil {
			t.Error(err)
		}
		if _, err := s.Info(t.Context(), d); !errdefs.IsNotFound(err) {
			t.Errorf("deleted: %v", err)
		}
	}
	if len(rec.added)+len(rec.gone) != 0 {
		t.Errorf("told of %v %v", rec.added, rec.gone)
	}
	for _, bad := range []digest.Digest{"", "sha256:abc", "sha256:../../etc/passwd", "nonsense"} {
		if _, err := s.Info(t.Context(), bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Info(%q): %v", bad, err)
		}
		if err := s.Delete(t.Context(), bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Delete(%q): %v", bad, err)
		}
	}
}

// Sizes learned by others than Run are announced, too.
func TestWalkBeforeFill(t *testing.T) {
	root := t.TempDir()
	id, data := testBlob(t, piece.SHA256, 1000, 1)
	stockPull(t, root, data)
	rec := newRecorder()
	s := openStore(t, Config{Root: root, Observer: rec})
	s.Walk(t.Context(), func(ctrdcontent.Info) error { return nil })
	s.fill(t.Context())
	if rec.added[id] != 1 {
		t.Errorf("told %d times", rec.added[id])
	}
}
