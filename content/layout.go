package content

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/swarm/piece"
)

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.cfg.Root}, elem...)...)
}

// oneFileSystem refuses directories between which blobs cannot be renamed.
func (s *Store) oneFileSystem() error {
	var dev uint64
	for i, d := range []string{"blobs/sha256", "cache/sha256", "cache/sha512", "swarm/partial", "swarm/trash", "ingest"} {
		var st unix.Stat_t
		if err := unix.Stat(s.path(d), &st); err != nil {
			return fmt.Errorf("%s: %w", s.path(d), err)
		}
		if i == 0 {
			dev = st.Dev
		} else if st.Dev != dev {
			return fmt.Errorf("%s and %s are on different file systems, and blobs move between them by rename", s.path("blobs/sha256"), s.path(d))
		}
	}
	return nil
}

func (s *Store) blobPath(d digest.Digest, place Presence) string {
	dir := "blobs"
	if place == Cached {
		dir = "cache"
	}
	return s.path(dir, string(d.Algorithm()), d.Encoded())
}

func (s *Store) sumsPath(d digest.Digest) string {
	return s.path("swarm/sums", string(d.Algorithm()), d.Encoded())
}

func (s *Store) partialPath(id piece.ID, ext string) string {
	return s.path("swarm/partial", fmt.Sprintf("%v-%s-%d%s", id.Alg, id.Hex(), id.Size, ext))
}

func parsePartial(base string) (piece.ID, bool) {
	f := strings.Split(base, "-")
	if len(f) != 3 {
		return piece.ID{}, false
	}
	n, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil || strconv.FormatInt(n, 10) != f[2] {
		return piece.ID{}, false
	}
	id, err := piece.ParseID(f[0]+":"+f[1], n)
	return id, err == nil
}

// blobDigest is digest.NewDigestFromEncoded and Validate without a regular
// expression per blob.
func blobDigest(alg, name string) (digest.Digest, bool) {
	a := digest.Algorithm(alg)
	if !a.Available() || len(name) != 2*a.Size() {
		return "", false
	}
	for _, c := range []byte(name) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", false
		}
	}
	return digest.Digest(alg + ":" + name), true
}

// swarmID returns the ID of a blob, unless it is one that no swarm can carry: an
// empty one, or one of an algorithm without chaining states.
func swarmID(d digest.Digest, size int64) (piece.ID, bool) {
	id, err := piece.ParseID(string(d), size)
	return id, err == nil
}

func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// readTree returns the names in each subdirectory that an algorithm may have.
func readTree(dir string) (map[string][]string, error) {
	algs, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	t := make(map[string][]string)
	for _, a := range algs {
		if !a.IsDir() || !digest.Algorithm(a.Name()).Available() {
			continue
		}
		if t[a.Name()], err = readNames(filepath.Join(dir, a.Name())); err != nil {
			return nil, err
		}
	}
	return t, nil
}
