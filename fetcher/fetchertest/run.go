package fetchertest

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/fetcher"
)

// Options adapts the suite to a backend. The zero value is for one that can write.
type Options struct {
	// Put makes an object exist, and returns its key. nil: by Write.
	Put func(t *testing.T, b fetcher.Backend, data []byte) (key string)
	// Missing is the key of an object that is not there. Empty: "conformance/missing".
	Missing string
	// Again opens the storage of b once more, as another process does. nil: the
	// same backend is used twice.
	Again func(t *testing.T, b fetcher.Backend) fetcher.Backend
	// Large is the size of the large object in bytes. 0: 3 MiB and some.
	Large int
	// Without names parts of Run or RunFaults that a storage's kind cannot pass, although its Capabilities
	// say so; its own tests say what it does instead.
	Without []string
}

// Run checks that a backend keeps its contract. open returns one without objects,
// anew for each part of the suite, which closes it. What its Capabilities lack
// must be refused properly and is not tested further.
func Run(t *testing.T, open func(t *testing.T) fetcher.Backend, o Options) {
	if o.Missing == "" {
		o.Missing = "conformance/missing"
	}
	if o.Large == 0 {
		o.Large = 3<<20 + 17
	}
	for _, part := range []struct {
		name  string
		needs func(fetcher.Capabilities) bool
		test  func(*testing.T, suite)
	}{
		{"Check", nil, testCheck},
		{"Stat", nil, testStat},
		{"Keys", nil, testKeys},
		{"Ranges", nil, testRanges},
		{"Cancel", nil, testCancel},
		{"Concurrent", nil, testConcurrent},
		{"Refusals", nil, testRefusals},
		{"Locate", nil, testLocate},
		{"Write", canWrite, testWrite},
		{"WriteFails", canWrite, testWriteFails},
		{"Overwrite", canWrite, testOverwrite},
		{"WriteIf", canSwap, testWriteIf},
		{"Versions", canSwap, testVersions},
		{"Prove", canSwap, testProve},
		{"Race", canSwap, testRace},
		{"Count", canSwap, testCount},
		{"List", canList, testList},
		{"ListLong", canList, testListLong},
		{"Delete", canDelete, testDelete},
	} {
		t.Run(part.name, func(t *testing.T) {
			b := open(t)
			t.Cleanup(func() {
				if err := b.Close(); err != nil {
					t.Errorf("closing: %v", err)
				}
			})
			if part.needs != nil && !part.needs(b.Capabilities()) || slices.Contains(o.Without, part.name) {
				t.Skipf("%s cannot", b.Name())
			}
			part.test(t, suite{b, o})
		})
	}
}

func canWrite(c fetcher.Capabilities) bool  { return c.Write }
func canSwap(c fetcher.Capabilities) bool   { return c.Write && c.CompareAndSwap }
func canList(c fetcher.Capabilities) bool   { return c.Write && c.List }
func canDelete(c fetcher.Capabilities) bool { return c.Write && c.Delete }

type suite struct {
	fetcher.Backend
	o Options
}

func (s suite) again(t *testing.T) fetcher.Backend {
	if s.o.Again == nil {
		return s.Backend
	}
	b := s.o.Again(t, s.Backend)
	t.Cleanup(func() { b.Close() })
	return b
}

// put makes an object exist.
func (s suite) put(t *testing.T, data []byte) string {
	t.Helper()
	if s.o.Put != nil {
		return s.o.Put(t, s.Backend, data)
	}
	key := "conformance/put/" + digest.FromBytes(data).Encoded()
	s.write(t, key, data)
	return key
}

func (s suite) write(t *testing.T, key string, data []byte) fetcher.Info {
	t.Helper()
	info, err := s.Write(t.Context(), key, int64(len(data)), bytes.NewReader(data))
	if err != nil {
		t.Fatalf("writing %s: %v", key, err)
	}
	return info
}

func (s suite) read(t *testing.T, key string) (string, fetcher.Info) {
	t.Helper()
	r, info, err := s.Open(t.Context(), key, 0, -1)
	if err != nil {
		t.Fatalf("opening %s: %v", key, err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("reading %s: %v", key, err)
	}
	return string(got), info
}

// holds checks what an object has; want nil: that it is not there.
func (s suite) holds(t *testing.T, key string, want []byte) {
	t.Helper()
	if want == nil {
		if _, err := s.Stat(t.Context(), key); !errdefs.IsNotFound(err) {
			t.Errorf("%s is there: %v", key, err)
		}
		return
	}
	if got, info := s.read(t, key); got != string(want) || info.Size != int64(len(want)) {
		t.Errorf("%s has %s of %d bytes (Size %d), want %s of %d", key, short(got), len(got), info.Size, short(string(want)), len(want))
	}
}

func short(s string) string {
	if len(s) > 20 {
		return fmt.Sprintf("%q…", s[:20])
	}
	return fmt.Sprintf("%q", s)
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}
