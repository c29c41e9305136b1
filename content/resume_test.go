package content

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/capelin-io/capelin/swarm/piece"
)

// abandon leaves a store as kill -9 does: nothing is written any more, the lock
// is gone, and the page cache stays.
func abandon(s *Store) { s.lock.Close() }

// reboot makes bootID return another id until the test ends.
func reboot(t testing.TB) {
	old := bootID
	bootID = func() [16]byte { id := old(); id[0] ^= 0xff; return id }
	t.Cleanup(func() { bootID = old })
}

func TestResume(t *testing.T) {
	id, data := testBlob(t, piece.SHA256, 900_000, 1)
	sums := sumsOf(t, id, data)
	// Pieces 0 to 3 are covered by a map, 4 to 6 were written afterwards.
	for _, tt := range []struct {
		name    string
		clean   bool // Close instead of kill -9
		reboot  bool
		zero    []int // pieces whose bytes the power cut took
		corrupt string
		want    []int
	}{
		{"closed", true, false, nil, "", []int{0, 1, 2, 3, 4, 5, 6}},
		{"killed", false, false, nil, "", []int{0, 1, 2, 3, 4, 5, 6}},
		{"power cut", false, true, []int{4, 5, 6}, "", []int{0, 1, 2, 3}},
		{"power cut, and a disk that lied", false, true, []int{2, 4, 5, 6}, "", []int{0, 1, 3}},
		{"closed, then a power cut", true, true, nil, "", []int{0, 1, 2, 3, 4, 5, 6}},
		{"killed, map damaged", false, false, nil, ".map", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			s, err := Open(t.Context(), Config{Root: root})
			if err != nil {
				t.Fatal(err)
			}
			b := mustBlob(t, s, id, true)
			for i := range 7 {
				if i == 4 {
					if err := b.st.checkpoint(); err != nil {
						t.Fatal(err)
					}
				}
				if err := b.WritePiece(piece.NewClaim(sums, i, pieceOf(id, data, i))); err != nil {
					t.Fatal(err)
				}
			}
			if tt.clean {
				if err := errors.Join(b.Close(), s.Close()); err != nil {
					t.Fatal(err)
				}
			} else {
				abandon(s)
			}
			for _, i := range tt.zero {
				overwrite(t, s.partialPath(id, ".data"), make([]byte, id.PieceSize(i)), id.Offset(i))
			}
			if tt.corrupt != "" {
				overwrite(t, s.partialPath(id, tt.corrupt), []byte("garbage"), 30)
			}
			if tt.reboot {
				reboot(t)
			}
			s = openStore(t, Config{Root: root})
			if s.Presence(id) != Partial {
				t.Errorf("presence %v", s.Presence(id))
			}
			b = mustBlob(t, s, id, true)
			defer b.Close()
			checkHave(t, b, data, tt.want)
			b.Close()
			s.writeMaps(true)
			// What was verified after a boot is not verified again.
			if tt.reboot {
				r, err := readRecord(s.partialPath(id, ".map"), kindMap, id)
				if err != nil || r.boot != bootID() {
					t.Errorf("the map is still of the other boot: %v", err)
				}
			}
			b = mustBlob(t, s, id, true)
			for i := range id.Pieces() {
				if err := b.WritePiece(piece.NewClaim(sums, i, pieceOf(id, data, i))); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(b.Complete(t.Context()), b.Publish(t.Context())); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(readBlob(t, s, id), data) {
				t.Error("reads differ")
			}
		})
	}
}

// checkHave checks that exactly the pieces of want count, and that they read
// right.
func checkHave(t testing.TB, b *Blob, data []byte, want []int) {
	t.Helper()
	have := b.Have()
	if have.Count() != len(want) {
		t.Errorf("%d pieces count, want %v", have.Count(), want)
	}
	for _, i := range want {
		if !have.Has(i) {
			t.Errorf("piece %d is lost", i)
		}
	}
	checkTrue(t, b, data)
}

// checkTrue checks that every piece that counts has the blob's bytes.
func checkTrue(t testing.TB, b *Blob, data []byte) {
	t.Helper()
	have, id := b.Have(), b.ID()
	for i := have.NextSet(0); i >= 0; i = have.NextSet(i + 1) {
		p := make([]byte, id.PieceSize(i))
		if _, err := b.ReadAt(p, id.Offset(i)); err != nil || !bytes.Equal(p, pieceOf(id, data, i)) {
			t.Errorf("piece %d counts, but reads wrong: %v", i, err)
		}
	}
}

func overwrite(t testing.TB, path string, p []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

// A sequential download is cut short by a power cut, at random, again and again,
// with random checkpoints; whatever was not synced is lost. Nothing false ever
// counts, and nothing that was synced is lost.
func TestPowerCuts(t *testing.T) {
	root := t.TempDir()
	id, data := testBlob(t, piece.SHA256, 3_000_000, 1)
	sums := sumsOf(t, id, data)
	rnd := rand.New(rand.NewPCG(1, 2))
	synced := piece.NewBits(id.Pieces())
	for round := range 25 {
		s, err := Open(t.Context(), Config{Root: root})
		if err != nil {
			t.Fatal(err)
		}
		b := mustBlob(t, s, id, true)
		checkTrue(t, b, data)
		have := b.Have()
		for i := range id.Pieces() {
			if synced.Has(i) && !have.Has(i) {
				t.Fatalf("round %d: piece %d was synced and is lost", round, i)
			}
		}
		if have.Full() {
			if round < 3 {
				t.Error("over before it began")
			}
			break
		}
		a, err := b.Append(t.Context(), b.Prefix())
		if err != nil {
			t.Fatal(err)
		}
		for range rnd.IntN(12) {
			switch rnd.IntN(4) {
			case 0:
				i := rnd.IntN(id.Pieces())
				if err := b.WritePiece(piece.NewClaim(sums, i, pieceOf(id, data, i))); err != nil {
					t.Fatal(err)
				}
			case 1:
				if err := b.st.checkpoint(); err != nil {
					t.Fatal(err)
				}
				synced = b.Have()
			default:
				n := min(int64(1+rnd.IntN(200_000)), id.Size-a.Offset())
				if _, err := a.Write(data[a.Offset():][:n]); err != nil {
					t.Fatal(err)
				}
			}
		}
		lost := b.Have()
		abandon(s)
		for i := range id.Pieces() {
			if lost.Has(i) && !synced.Has(i) {
				junk := make([]byte, id.PieceSize(i))
				if rnd.IntN(2) == 0 {
					junk[rnd.IntN(len(junk))] = 1
				}
				overwrite(t, s.partialPath(id, ".data"), junk, id.Offset(i))
			}
		}
		a.Close()
		old := bootID
		bootID = func() [16]byte { return [16]byte{1, byte(round)} }
		defer func() { bootID = old }()
	}
}

// What a crash between two steps, or another program, can leave behind.
func TestReconcile(t *testing.T) {
	root := t.TempDir()
	ids := make([]piece.ID, 8)
	blobs := make([][]byte, 8)
	s, err := Open(t.Context(), Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	for i := range ids {
		ids[i], blobs[i] = testBlob(t, piece.SHA256, 100_000+i, byte(i))
	}
	inCache := func(id piece.ID) string { return filepath.Join(root, "cache/sha256", id.Hex()) }
	inBlobs := func(id piece.ID) string { return filepath.Join(root, "blobs/sha256", id.Hex()) }
	put := func(p string, b []byte) {
		t.Helper()
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	partialMap := func(id piece.ID, data []byte) []byte {
		l := sumsOf(t, id, data)
		h := piece.NewBits(id.Pieces())
		h.Set(1)
		return (&record{kind: kindMap, boot: bootID(), sums: l, have: h}).encode()
	}
	// 0: in blobs/ and in cache/
	put(inBlobs(ids[0]), blobs[0])
	put(inCache(ids[0]), blobs[0])
	// 1: a partial, complete in cache/ (the crash came before the map was removed)
	put(inCache(ids[1]), blobs[1])
	put(s.partialPath(ids[1], ".map"), partialMap(ids[1], blobs[1]))
	// 2: a partial, and the blob in blobs/ (stock containerd pulled it)
	put(inBlobs(ids[2]), blobs[2])
	put(s.partialPath(ids[2], ".map"), partialMap(ids[2], blobs[2]))
	put(s.partialPath(ids[2], ".data"), blobs[2])
	// 3: data without a map; 4: a map without data
	put(s.partialPath(ids[3], ".data"), blobs[3])
	put(s.partialPath(ids[4], ".map"), partialMap(ids[4], blobs[4]))
	// 5: a good partial
	put(s.partialPath(ids[5], ".map"), partialMap(ids[5], blobs[5]))
	put(s.partialPath(ids[5], ".data"), blobs[5])
	// 6: the map of another blob
	put(s.partialPath(ids[6], ".map"), partialMap(ids[5], blobs[5]))
	put(s.partialPath(ids[6], ".data"), blobs[6])
	// 7: sums and labels of nothing
	put(filepath.Join(root, "swarm/sums/sha256", ids[7].Hex()), []byte("x"))
	os.MkdirAll(filepath.Join(root, "swarm/labels/sha256"), 0o700)
	put(filepath.Join(root, "swarm/labels/sha256", ids[7].Hex()), []byte("{}"))
	for _, d := range []string{"swarm/partial", "swarm/sums/sha256", "cache/sha256", "blobs/sha256", "swarm/trash"} {
		put(filepath.Join(root, d, ".tmp-123"), []byte("x"))
	}
	put(filepath.Join(root, "blobs/sha256/not-a-digest"), []byte("x"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = openStore(t, Config{Root: root})
	s.emptyTrash(t.Context())
	for i, want := range []string{"blobs", "cache", "blobs", "", "", "data map", "data map", ""} {
		if got := strings.Join(places(t, root, ids[i]), " "); got != want {
			t.Errorf("%d is in %q, want %q", i, got, want)
		}
	}
	for i, want := range []Presence{Committed, Cached, Committed, Absent, Absent, Partial, Partial, Absent} {
		if got := s.Presence(ids[i]); got != want {
			t.Errorf("%d is %v, want %v", i, got, want)
		}
	}
	b := mustBlob(t, s, ids[5], false)
	if !b.Have().Has(1) {
		t.Error("the good partial lost its piece")
	}
	b.Close()
	b = mustBlob(t, s, ids[6], false)
	if b.Have().Count() != 0 {
		t.Error("another blob's map was believed")
	}
	b.Close()
	var left []string
	filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if strings.HasPrefix(d.Name(), ".tmp-") || strings.Contains(p, ids[7].Hex()) {
			left = append(left, p)
		}
		return err
	})
	// Temporary names in blobs/ are not ours to judge.
	if len(left) != 1 || !strings.Contains(left[0], "blobs") {
		t.Errorf("left behind: %v", left)
	}
}

func TestUnknownFormat(t *testing.T) {
	root := t.TempDir()
	s, err := Open(t.Context(), Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	os.WriteFile(filepath.Join(root, "swarm/format"), []byte("capelin content 2\n"), 0o600)
	if _, err := Open(t.Context(), Config{Root: root}); !errors.Is(err, ErrFormat) {
		t.Errorf("a directory of the future: %v", err)
	}
	os.WriteFile(filepath.Join(root, "swarm/format"), []byte(formatLine), 0o600)
	openStore(t, Config{Root: root}) // the refusal gave the lock back
}

// An opening that is given up, or fails, loses nothing and leaves nothing.
func TestOpeningFails(t *testing.T) {
	root := t.TempDir()
	id, data := testBlob(t, piece.SHA256, 900_000, 1)
	s, err := Open(t.Context(), Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	b := mustBlob(t, s, id, true)
	b.WritePiece(piece.NewClaim(sumsOf(t, id, data), 3, pieceOf(id, data, 3)))
	b.Close()
	s.Close()
	reboot(t)
	s = openStore(t, Config{Root: root})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 2 {
		if _, err := s.Blob(ctx, id, true); !errors.Is(err, context.Canceled) {
			t.Errorf("given up: %v", err)
		}
	}
	b = mustBlob(t, s, id, false)
	checkHave(t, b, data, []int{3})
	b.Close()

	other, _ := testBlob(t, piece.SHA256, 900_000, 2)
	p := s.partialPath(other, ".data")
	if err := os.Mkdir(p, 0o700); err != nil { // so that it cannot be made
		t.Fatal(err)
	}
	if _, err := s.Blob(t.Context(), other, true); err == nil {
		t.Error("a directory was taken for a file")
	}
	if s.Presence(other) != Absent {
		t.Errorf("after a failure: %v", s.Presence(other))
	}
	os.Remove(p)
	mustBlob(t, s, other, true).Close()
}
