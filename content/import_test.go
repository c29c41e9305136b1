package content

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/swarm/piece"
)

func TestImport(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, Config{Root: dir})
	write := func(data []byte) string {
		p := filepath.Join(dir, "upload")
		if err := os.WriteFile(p, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	id, data := testBlob(t, piece.SHA256, 300_000, 1)
	sums := sumsOf(t, id, data)
	dgst := func(id piece.ID) digest.Digest { return digest.Digest(id.Digest()) }

	other := piece.NewSums(id)
	wrong := bytes.Clone(sums.Bytes())
	wrong[len(wrong)-1] ^= 1
	other.Append(wrong)
	for _, tt := range []struct {
		name string
		data []byte
		sums *piece.Sums
	}{
		{"short file", data[:len(data)-1], sums},
		{"wrong last piece", append(bytes.Clone(data[:len(data)-1]), data[len(data)-1]^1), sums},
		{"sums of something else", data, other},
		{"sums missing", data, piece.NewSums(id)},
	} {
		p := write(tt.data)
		if err := s.Import(t.Context(), p, tt.sums); !errors.Is(err, piece.ErrMismatch) {
			t.Errorf("%s: got %v, want a mismatch", tt.name, err)
		}
		if _, err := os.Stat(p); err != nil || s.Presence(id) != Absent {
			t.Errorf("%s: the file is gone or the blob is there: %v, %v", tt.name, err, s.Presence(id))
		}
	}

	check := func(what string) {
		t.Helper()
		if s.Presence(id) != Committed {
			t.Fatalf("%s: %v", what, s.Presence(id))
		}
		if _, err := os.Stat(filepath.Join(dir, "upload")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the file is still there: %v", what, err)
		}
		if st, err := s.StoredSums(id); err != nil || st == nil || st.Hash() != sums.Hash() {
			t.Errorf("%s: sums are not stored: %v", what, err)
		}
		b, err := s.Blob(t.Context(), id, false)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		f, err := b.Reopen()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes, %v", what, len(got), err)
		}
		if _, proven := b.Sums(); !proven || !b.Completed() {
			t.Errorf("%s: not proven", what)
		}
	}
	for _, what := range []string{"new", "again"} {
		if err := s.Import(t.Context(), write(data), sums); err != nil {
			t.Fatal(err)
		}
		check(what)
	}
	if err := s.Delete(t.Context(), dgst(id)); err != nil || s.Presence(id) != Cached {
		t.Fatalf("unpinned: %v, %v", err, s.Presence(id))
	}
	if err := s.Import(t.Context(), write(data), sums); err != nil {
		t.Fatal(err)
	}
	check("from the cache")
	if u := s.Usage(); u.Committed != 1 || u.Cached != 0 || u.Partial != 0 {
		t.Errorf("usage %+v", u)
	}

	// A blob that was found to be rotten is replaced.
	if err := os.Chmod(s.blobPath(dgst(id), Committed), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.blobPath(dgst(id), Committed), make([]byte, len(data)), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := s.Blob(t.Context(), id, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Recheck(0); !errors.Is(err, piece.ErrMismatch) {
		t.Fatalf("recheck: %v", err)
	}
	b.Close()
	if st, err := s.StoredSums(id); st != nil || err != nil {
		t.Errorf("sums of a rotten blob are given out: %v", err)
	}
	if err := s.Import(t.Context(), write(data), sums); err != nil {
		t.Fatal(err)
	}
	check("over a rotten one")
	s.Close()
	s = openStore(t, Config{Root: dir})
	check("after a restart")
}
