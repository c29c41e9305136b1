package fetchertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
)

func (s suite) swap(t *testing.T, key, data, version string) fetcher.Info {
	t.Helper()
	info, err := s.WriteIf(t.Context(), key, []byte(data), version)
	if err != nil {
		t.Fatalf("WriteIf of %s, version %q: %v", key, version, err)
	}
	if info.Key != key || info.Size != int64(len(data)) || info.Version == "" || info.Version == version {
		t.Errorf("WriteIf of %s, version %q: %+v", key, version, info)
	}
	s.holds(t, key, []byte(data))
	return info
}

func (s suite) conflict(t *testing.T, key, version string) {
	t.Helper()
	before, _ := s.Stat(t.Context(), key)
	if _, err := s.WriteIf(t.Context(), key, []byte("lost"), version); !errdefs.IsConflict(err) {
		t.Errorf("WriteIf of %s, version %q instead of %q: %v", key, version, before.Version, err)
	}
	if after, _ := s.Stat(t.Context(), key); after.Version != before.Version {
		t.Errorf("a lost WriteIf of %s changed it", key)
	}
}

func testWriteIf(t *testing.T, s suite) {
	const key = "conformance/swap"
	s.conflict(t, key, "no-such-version")
	a := s.swap(t, key, "a", "")
	s.conflict(t, key, "")
	s.conflict(t, key, "no-such-version")
	if _, info := s.read(t, key); info.Version != a.Version {
		t.Errorf("read version %q, written %q", info.Version, a.Version)
	}
	b := s.swap(t, key, "b", a.Version)
	s.conflict(t, key, a.Version)
	empty := s.swap(t, key, "", b.Version)
	c := s.write(t, key, []byte("written"))
	s.conflict(t, key, empty.Version)
	s.swap(t, key, "d", c.Version)
	if !s.Capabilities().Delete {
		return
	}
	last, err := s.Stat(t.Context(), key)
	if err == nil {
		err = s.Delete(t.Context(), key)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.conflict(t, key, last.Version)
	s.swap(t, key, "e", "")
	s.conflict(t, key, last.Version)
}

func testCheck(t *testing.T, s suite) {
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Check(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Check of a context that has ended: %v", err)
	}
}

func testProve(t *testing.T, s suite) {
	if err := fetcher.Prove(t.Context(), s.Backend, s.again(t)); err != nil {
		t.Error(err)
	}
}

// testVersions goes A → B → A if the backend has generations, else through bytes that do not come again, and also over a second
// opening of the storage.
func testVersions(t *testing.T, s suite) {
	const key = "conformance/aba"
	seen := map[string]string{}
	info := s.swap(t, key, "A", "")
	for i := range 40 {
		data := "AB"[i%2 : i%2+1]
		if !s.Capabilities().Generations {
			data += strconv.Itoa(i)
		}
		if was, ok := seen[info.Version]; ok {
			t.Fatalf("version %q was %s, and is %s", info.Version, was, data)
		}
		seen[info.Version] = data
		if i%10 == 9 {
			other := suite{s.again(t), s.o}
			if got, err := other.Stat(t.Context(), key); err != nil || got.Version != info.Version {
				t.Fatalf("opened again: version %q, %v, want %q", got.Version, err, info.Version)
			}
			info = other.swap(t, key, data, info.Version)
			continue
		}
		info = s.swap(t, key, data, info.Version)
	}
}

// testRace has one winner per round.
func testRace(t *testing.T, s suite) {
	backends := []fetcher.Backend{s.Backend, s.again(t)}
	for round := range 10 {
		key := fmt.Sprintf("conformance/race/%d", round%5)
		version := ""
		if round >= 5 {
			info, err := s.Stat(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			version = info.Version
		}
		var winners atomic.Int32
		var won atomic.Value
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				data := fmt.Sprintf("%d-%d", round, i)
				switch _, err := backends[i%2].WriteIf(t.Context(), key, []byte(data), version); {
				case err == nil:
					winners.Add(1)
					won.Store(data)
				case !errdefs.IsConflict(err):
					t.Errorf("a loser got %v", err)
				}
			})
		}
		wg.Wait()
		if n := winners.Load(); n != 1 {
			t.Fatalf("round %d has %d winners", round, n)
		}
		s.holds(t, key, []byte(won.Load().(string)))
	}
}

// testCount increments a number from several sides: none is lost.
func testCount(t *testing.T, s suite) {
	const key, each, sides = "conformance/count", 5, 4
	backends := []fetcher.Backend{s.Backend, s.again(t)}
	increment := func(b fetcher.Backend) error {
		for {
			n, version := 0, ""
			rc, info, err := b.Open(t.Context(), key, 0, -1)
			if err == nil {
				data, rerr := io.ReadAll(rc)
				rc.Close()
				if rerr != nil {
					return rerr
				}
				n, version = len(data), info.Version
			} else if !errdefs.IsNotFound(err) {
				return err
			}
			_, err = b.WriteIf(t.Context(), key, bytes.Repeat([]byte("x"), n+1), version)
			if !errdefs.IsConflict(err) {
				return err
			}
		}
	}
	var wg sync.WaitGroup
	for i := range sides {
		wg.Go(func() {
			for range each {
				if err := increment(backends[i%2]); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	s.holds(t, key, bytes.Repeat([]byte("x"), each*sides))
}
