package fetchertest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/fetcher"
)

func testStat(t *testing.T, s suite) {
	if s.Name() == "" {
		t.Error("it has no name")
	}
	data := random(1000)
	key := s.put(t, data)
	info, err := s.Stat(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if info.Key != key || info.Size != 1000 && info.Size != -1 {
		t.Errorf("got %+v, want key %s and size 1000", info, key)
	}
	if s.Capabilities().CompareAndSwap != (info.Version != "") {
		t.Errorf("version is %q, CompareAndSwap %v", info.Version, s.Capabilities().CompareAndSwap)
	}
	if d := time.Since(info.Modified); !info.Modified.IsZero() && (d > time.Hour || d < -time.Hour) {
		t.Errorf("modified %v ago", d)
	}
	if _, opened := s.read(t, key); opened.Size != 1000 || opened.Key != key || opened.Version != info.Version {
		t.Errorf("Open says %+v, Stat %+v", opened, info)
	}
	if _, err := s.Stat(t.Context(), s.o.Missing); !errdefs.IsNotFound(err) {
		t.Errorf("stat of what is not there: %v", err)
	}
	_, _, err = s.Open(t.Context(), s.o.Missing, 0, -1)
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), s.o.Missing) {
		t.Errorf("open of what is not there: %v", err)
	}
}

func testKeys(t *testing.T, s suite) {
	c := s.Capabilities()
	for _, key := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", "a\x00b", "a b", "a\nb", `a\b`, "\x7f",
		strings.Repeat("x", 201), strings.Repeat("x/", 600) + "x",
	} {
		check := func(op string, err error) {
			t.Helper()
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s of key %s: %v", op, short(key), err)
			}
		}
		_, err := s.Stat(t.Context(), key)
		check("stat", err)
		_, _, err = s.Open(t.Context(), key, 0, -1)
		check("open", err)
		if c.Write {
			_, err = s.Write(t.Context(), key, 1, strings.NewReader("x"))
			check("write", err)
		}
		if c.CompareAndSwap {
			_, err = s.WriteIf(t.Context(), key, []byte("x"), "")
			check("writeif", err)
		}
		if c.Delete {
			check("delete", s.Delete(t.Context(), key))
		}
	}
	if c.List {
		for _, prefix := range []string{"a", "/", "a//", "../", "a/../", "a b/"} {
			if _, _, err := s.List(t.Context(), prefix, "", 0); !errdefs.IsInvalidArgument(err) {
				t.Errorf("list of prefix %q: %v", prefix, err)
			}
		}
	}
	if !c.Write {
		return
	}
	for _, key := range []string{
		"x", "-", "a:b@c+d=e,f;g%2F~", "ünï/ço∂é", "%", "?a#b&c", "*", "'\"`$(x)", ".a", "..a", "a..", strings.Repeat("y", 200),
		"index/" + strings.Repeat("z/", 500) + "z",
	} {
		s.write(t, key, []byte(key))
	}
	for _, key := range []string{"x", "a:b@c+d=e,f;g%2F~", "ünï/ço∂é", "?a#b&c", "*", ".a", strings.Repeat("y", 200)} {
		s.holds(t, key, []byte(key))
	}
}

func testRanges(t *testing.T, s suite) {
	for _, size := range []int64{0, 1, 1000, int64(s.o.Large)} {
		data := random(int(size))
		key := s.put(t, data)
		for _, r := range []struct{ off, n int64 }{
			{0, -1}, {0, size}, {0, 0}, {0, 1}, {0, size - 1}, {0, size + 1}, {0, math.MaxInt64}, {0, math.MinInt64},
			{1, -1}, {1, 1}, {size / 2, -1}, {size / 2, 100}, {size / 2, math.MaxInt64},
			{size - 1, -1}, {size - 1, 1}, {size - 1, 2}, {size, -1}, {size, 0}, {size, 1}, {size, math.MaxInt64},
			{size + 1, -1}, {size + 1, 0}, {size + 1, 1}, {math.MaxInt64, -1}, {math.MaxInt64, 1}, {math.MaxInt64, math.MaxInt64},
			{-1, -1}, {-1, 1}, {-size, -1}, {math.MinInt64, -1}, {math.MinInt64, math.MaxInt64},
		} {
			rc, info, err := s.Open(t.Context(), key, r.off, r.n)
			if r.off < 0 || r.off > size {
				if !errdefs.IsOutOfRange(err) {
					t.Errorf("size %d, off %d, n %d: %v, want out of range", size, r.off, r.n, err)
				}
				if err == nil {
					rc.Close()
				}
				continue
			}
			if err != nil {
				t.Errorf("size %d, off %d, n %d: %v", size, r.off, r.n, err)
				continue
			}
			want := data[r.off:]
			if r.n >= 0 && r.n < int64(len(want)) {
				want = want[:r.n]
			}
			if size < 1<<20 { // it reads in many ways, some of them byte by byte
				if err := iotest.TestReader(onlyReader{rc}, want); err != nil {
					t.Errorf("size %d, off %d, n %d: %v", size, r.off, r.n, err)
				}
			} else if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, want) {
				t.Errorf("size %d, off %d, n %d: %d bytes, %v, want %d", size, r.off, r.n, len(got), err, len(want))
			}
			if info.Size != size || info.Key != key {
				t.Errorf("size %d, off %d, n %d: info %+v", size, r.off, r.n, info)
			}
			if err := rc.Close(); err != nil {
				t.Errorf("closing: %v", err)
			}
		}
	}
	// A reader may be closed at any point.
	rc, _, err := s.Open(t.Context(), s.put(t, random(s.o.Large)), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(rc, make([]byte, 10)); err != nil {
		t.Error(err)
	}
	if err := rc.Close(); err != nil {
		t.Errorf("closing early: %v", err)
	}
}

// onlyReader hides other methods, which iotest would try.
type onlyReader struct{ io.Reader }

func testCancel(t *testing.T, s suite) {
	c := s.Capabilities()
	key := s.put(t, random(s.o.Large))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	check := func(op string, err error) {
		t.Helper()
		if !errors.Is(err, context.Canceled) || errdefs.IsNotFound(err) {
			t.Errorf("%s with a cancelled context: %v", op, err)
		}
	}
	_, err := s.Stat(gone, key)
	check("stat", err)
	_, _, err = s.Open(gone, key, 0, -1)
	check("open", err)
	if c.Write {
		_, err = s.Write(gone, "conformance/cancel", 1, strings.NewReader("x"))
		check("write", err)
		s.holds(t, "conformance/cancel", nil)
	}
	if c.CompareAndSwap {
		_, err = s.WriteIf(gone, "conformance/cancel", []byte("x"), "")
		check("writeif", err)
		s.holds(t, "conformance/cancel", nil)
	}
	if c.List {
		_, _, err = s.List(gone, "", "", 0)
		check("list", err)
	}
	if c.Delete {
		check("delete", s.Delete(gone, key))
		if _, err := s.Stat(t.Context(), key); err != nil {
			t.Errorf("after a cancelled delete: %v", err)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	rc, _, err := s.Open(ctx, key, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if _, err := io.ReadFull(rc, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	cancel()
	// What is in a buffer already may still come; the end of the object may not.
	n, err := io.Copy(io.Discard, onlyReader{rc})
	if err == nil || n >= int64(s.o.Large)-100 {
		t.Errorf("reading went on for %d bytes after its context ended: %v", n, err)
	} else {
		check("read", err)
	}
}

func testConcurrent(t *testing.T, s suite) {
	data := random(256 << 10)
	key := s.put(t, data)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 20 {
				off := int64((i*7919 + j*10007) % len(data))
				rc, _, err := s.Open(t.Context(), key, off, 5000)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(rc)
				rc.Close()
				if want := data[off:min(off+5000, int64(len(data)))]; err != nil || !bytes.Equal(got, want) {
					t.Errorf("off %d: %d bytes, %v, want %d", off, len(got), err, len(want))
				}
				if _, err := s.Stat(t.Context(), key); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func testRefusals(t *testing.T, s suite) {
	c := s.Capabilities()
	check := func(op string, can bool, err error) {
		t.Helper()
		if !can && !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: %v, want errdefs.ErrNotImplemented", op, err)
		}
	}
	if !c.Write {
		_, err := s.Write(t.Context(), s.o.Missing, 1, strings.NewReader("x"))
		check("write", c.Write, err)
	}
	if !c.CompareAndSwap {
		_, err := s.WriteIf(t.Context(), s.o.Missing, []byte("x"), "")
		check("writeif", c.CompareAndSwap, err)
	}
	if !c.List {
		_, _, err := s.List(t.Context(), "", "", 0)
		check("list", c.List, err)
	}
	if !c.Delete {
		check("delete", c.Delete, s.Delete(t.Context(), s.o.Missing))
	}
}

func testLocate(t *testing.T, s suite) {
	d := digest.FromString("x")
	key, err := fetcher.Locate(s.Backend, "team/app", d)
	if err != nil {
		t.Fatal(err)
	}
	if err := fetcher.CheckKey(key); err != nil {
		t.Errorf("it locates a blob where no key can be: %v", err)
	}
	if s.Capabilities().NeedsRepository {
		if _, err := fetcher.Locate(s.Backend, "", d); !errdefs.IsInvalidArgument(err) {
			t.Errorf("without a repository: %v", err)
		}
	} else if other, err := fetcher.Locate(s.Backend, "", d); err != nil || other != key {
		t.Errorf("without a repository %q, with one %q; %v", other, key, err)
	}
	if _, err := fetcher.Locate(s.Backend, "team/app", "sha256:short"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a broken digest: %v", err)
	}
}
