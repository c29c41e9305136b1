package content

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"flag"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/swarm/piece"
)

func TestMain(m *testing.M) {
	if os.Getenv("CAPELIN_CRASH_CHILD") != "" {
		crashChild()
		return
	}
	flag.Parse()
	_ = log.SetLevel("error") // the stock store's, about fsverity
	if dir, ok := memoryDir(); ok {
		os.Setenv("TMPDIR", dir)
	}
	goleak.VerifyTestMain(m)
}

// memoryDir returns a directory in memory for the tests, which sync a thousand
// times and would otherwise measure the machine's disk. Benchmarks run on the
// disk, and so do tests if TMPDIR is set.
func memoryDir() (string, bool) {
	const dir = "/dev/shm"
	if flag.Lookup("test.bench").Value.String() != "" || os.Getenv("TMPDIR") != "" {
		return "", false
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || int64(st.Bavail)*st.Bsize < 60<<20 {
		return "", false
	}
	return dir, unix.Access(dir, unix.W_OK) == nil
}

// testBlob returns size pseudo-random bytes and their name.
func testBlob(t testing.TB, alg piece.Algorithm, size int, seed byte) (piece.ID, []byte) {
	t.Helper()
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{seed}).Read(data)
	id, err := idOf(alg, data)
	if err != nil {
		t.Fatal(err)
	}
	return id, data
}

func idOf(alg piece.Algorithm, data []byte) (piece.ID, error) {
	d := fmt.Sprintf("sha256:%x", sha256.Sum256(data))
	if alg == piece.SHA512 {
		d = fmt.Sprintf("sha512:%x", sha512.Sum512(data))
	}
	return piece.ParseID(d, int64(len(data)))
}

func sumsOf(t testing.TB, id piece.ID, data []byte) *piece.Sums {
	t.Helper()
	s := piece.NewSums(id)
	if err := piece.NewHasher(s).Write(s, data); err != nil {
		t.Fatal(err)
	}
	return s
}

func pieceOf(id piece.ID, data []byte, i int) []byte {
	return data[id.Offset(i):][:id.PieceSize(i)]
}

func withCRC(b []byte) []byte {
	b = b[:len(b):len(b)]
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// openStore opens a store that is closed with the test.
func openStore(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing the store: %v", err)
		}
	})
	return s
}

// runStore runs s.Run until the test ends or stop is called.
func runStore(t testing.TB, s *Store) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func descriptor(id piece.ID) ocispec.Descriptor {
	return ocispec.Descriptor{Digest: digest.Digest(id.Digest()), Size: id.Size}
}
