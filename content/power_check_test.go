package content

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/swarm/piece"
)

// checkPower opens the directory that a power cut has left with the normal recovery,
// and checks what FORMAT.md promises.
func checkPower(t testing.TB, top string, said map[string]string) {
	dir := filepath.Join(top, "content")
	checkMaps(t, dir)
	checkWhole(t, dir, said)
	cfg := Config{Root: dir, FreeFloor: -1, Report: func(err error) { t.Errorf("reported: %v", err) }}
	if said[mends] != "" {
		cfg.Wrong = func(piece.ID, int) {}
	}
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Errorf("opening: %v", err)
		return
	}
	defer s.Close()
	for what, promise := range said {
		if what == mends {
			continue
		}
		if label, ok := strings.CutPrefix(what, "label of "); ok {
			if info, err := s.Info(t.Context(), digest.Digest(label)); err != nil || info.Labels["a"] != promise {
				t.Errorf("the label of %s: %v, %v, want %q", label, info.Labels, err, promise)
			}
			continue
		}
		id, err := idOf(piece.SHA256, powerBlobs[what])
		if strings.HasPrefix(what, "sha512:") {
			id, err = idOf(piece.SHA512, powerBlobs[what])
		}
		must(t, err)
		checkPromise(t, s, id, promise)
	}
	s.sweep(t.Context())
	checkLitter(t, s, dir)
	for what, promise := range said { // and everything goes on
		if data := powerBlobs[what]; data != nil && promise != promisedRotten && promise != promisedWrong {
			id, _ := piece.ParseID(what, int64(len(data)))
			if err := arrive(t, s, id, data); err != nil {
				t.Errorf("fetching %s again: %v", id, err)
			}
		}
	}
}

// arrive completes and publishes a blob, however much of it is there.
func arrive(t testing.TB, s *Store, id piece.ID, data []byte) error {
	b, err := s.Blob(t.Context(), id, true)
	if err != nil {
		return err
	}
	defer b.Close()
	checkTrue(t, b, data)
	if !b.Completed() {
		sums := sumsOf(t, id, data)
		if _, err := b.Adopt(sums); err != nil {
			return err
		}
		for i := range id.Pieces() {
			if err := b.WritePiece(piece.NewClaim(sums, i, pieceOf(id, data, i))); err != nil {
				return err
			}
		}
		if err := b.Complete(t.Context()); err != nil {
			return err
		}
	}
	return b.Publish(t.Context())
}

func checkPromise(t testing.TB, s *Store, id piece.ID, promise string) {
	what, rest, _ := strings.Cut(promise, " ")
	switch what {
	case promisedPieces:
		var want int
		fmt.Sscan(rest, &want)
		b, err := s.Blob(t.Context(), id, false)
		if errors.Is(err, ErrQuarantined) {
			return // it has just been renamed over a rotten one, whose mark was still to go
		}
		if err != nil {
			t.Errorf("%s: %v, want %d pieces", id, err, want)
			return
		}
		defer b.Close()
		if n := b.Have().Count(); n < want {
			t.Errorf("%s has %d pieces, want %d", id, n, want)
		}
	case promisedWrong:
		b, err := s.Blob(t.Context(), id, false)
		if err != nil {
			t.Errorf("%s: %v", id, err)
			return
		}
		defer b.Close()
		checkTrue(t, b, powerBlobs[id.Digest()])
		if n := b.Have().Count(); s.Presence(id) != Committed || n < id.Pieces()-1 {
			t.Errorf("%s is %v and has %d pieces, want all but one", id, s.Presence(id), n)
		}
	case promisedCached, promisedCommitted:
		want := map[string]Presence{promisedCached: Cached, promisedCommitted: Committed}[what]
		if got := s.Presence(id); got < want {
			t.Errorf("%s is %v, want %v", id, got, want)
			return
		}
		if sums, err := s.StoredSums(id); rest == "" && (sums == nil || err != nil) {
			t.Errorf("the sums of %s are gone: %v", id, err)
		}
		b, err := s.Blob(t.Context(), id, false)
		if err != nil {
			t.Errorf("%s: %v", id, err)
			return
		}
		defer b.Close()
		got := make([]byte, id.Size)
		if _, err := b.ReadAt(got, 0); err != nil || !bytes.Equal(got, powerBlobs[id.Digest()]) {
			t.Errorf("%s reads wrong: %v", id, err)
		}
	}
}

// checkMaps checks that maps cover nothing that is not there.
func checkMaps(t testing.TB, dir string) {
	maps, _ := filepath.Glob(filepath.Join(dir, "swarm/partial", "*.map"))
	for _, path := range maps {
		id, _ := parsePartial(strings.TrimSuffix(filepath.Base(path), ".map"))
		r, err := readRecord(path, kindMap, id)
		if errors.Is(err, errRecord) {
			t.Errorf("half a map: %v", err)
			continue
		}
		data, err2 := os.ReadFile(strings.TrimSuffix(path, ".map") + ".data")
		if errors.Is(err2, fs.ErrNotExist) {
			continue
		}
		must(t, errors.Join(err, err2))
		for i := r.have.NextSet(0); i >= 0; i = r.have.NextSet(i + 1) {
			if off := id.Offset(i); int64(len(data)) < off+int64(id.PieceSize(i)) || r.sums.Verify(i, pieceOf(id, data, i)) != nil {
				t.Errorf("%s covers piece %d, which is not there", path, i)
			}
		}
	}
}

// checkWhole checks that nothing half is in blobs/ or cache/, but what is known to
// have rotted.
func checkWhole(t testing.TB, dir string, said map[string]string) {
	for _, in := range []string{"blobs", "cache"} {
		paths, _ := filepath.Glob(filepath.Join(dir, in, "*", "*"))
		for _, path := range paths {
			d := filepath.Base(filepath.Dir(path)) + ":" + filepath.Base(path)
			b, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(b, powerBlobs[d]) &&
				!(bytes.HasPrefix(b, []byte("rotten")) && (said[d] == promisedRotten || said[d] == promisedWrong || said[d] == "" ||
					strings.HasPrefix(said[d], promisedPieces))) {
				t.Errorf("%s is not whole: %d bytes, %v", path, len(b), err)
			}
		}
	}
}

// checkLitter checks that a crash leaves nothing for ever.
func checkLitter(t testing.TB, s *Store, dir string) {
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		must(t, err)
		rel, _ := filepath.Rel(dir, path)
		if e.IsDir() || rel == "upload" || rel == "swarm/format" || rel == "swarm/lock" {
			return nil
		}
		name, in := filepath.Base(path), filepath.Dir(path)
		d, ok := blobDigest(filepath.Base(in), strings.TrimSuffix(name, ".bad"))
		switch {
		case strings.HasPrefix(rel, "blobs/"), strings.HasPrefix(rel, "cache/"),
			strings.HasPrefix(rel, "swarm/sums/"), strings.HasPrefix(rel, "swarm/labels/"):
			ok = ok && s.index[d] != nil
		case strings.HasPrefix(rel, "swarm/partial/"):
			id, is := parsePartial(strings.TrimSuffix(strings.TrimSuffix(name, ".map"), ".data"))
			ok = is && s.parts[id] != nil
		case strings.HasPrefix(rel, "ingest/"):
			ok = true // containerd's
		}
		if !ok {
			t.Errorf("%s is left behind", rel)
		}
		return nil
	})
}
