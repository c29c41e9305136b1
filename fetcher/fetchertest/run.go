package fetchertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

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
			if part.needs != nil && !part.needs(b.Capabilities()) {
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

func testWrite(t *testing.T, s suite) {
	for _, size := range []int{0, 1, 4096, 256 << 10, s.o.Large} {
		for _, known := range []bool{true, false} {
			data := random(size)
			key := fmt.Sprintf("conformance/write/%d-%v", size, known)
			n := int64(-1)
			if known {
				n = int64(size)
			}
			// What is written is not there until it is whole.
			src := &through{ReadCloser: io.NopCloser(bytes.NewReader(data)), before: func(p []byte) ([]byte, error) {
				s.holds(t, key, nil)
				return p[:min(len(p), 700<<10)], nil
			}}
			info, err := s.Write(t.Context(), key, n, src)
			if err != nil {
				t.Fatalf("%s: %v", key, err)
			}
			if info.Key != key || info.Size != int64(size) {
				t.Errorf("%s: info %+v", key, info)
			}
			s.holds(t, key, data)
			if got, err := s.Stat(t.Context(), key); err != nil || got.Version != info.Version || got.Size != info.Size {
				t.Errorf("%s: Stat says %+v, %v, Write said %+v", key, got, err, info)
			}
			if got, err := s.again(t).Stat(t.Context(), key); err != nil || got.Version != info.Version || got.Size != info.Size {
				t.Errorf("%s: Stat of another process says %+v, %v, Write said %+v", key, got, err, info)
			}
		}
	}
}

func testWriteFails(t *testing.T, s suite) {
	boom := errors.New("boom")
	cancel := func() {} // of the case that runs
	half := func(then io.Reader) io.Reader { return io.MultiReader(bytes.NewReader(random(400<<10)), then) }
	is := func(want error) func(error) bool { return func(err error) bool { return errors.Is(err, want) } }
	for _, old := range [][]byte{nil, []byte("what was there before")} {
		for _, tt := range []struct {
			name string
			size int64
			r    io.Reader
			ok   func(error) bool
		}{
			{"short", 10, strings.NewReader("123456789"), errdefs.IsInvalidArgument},
			{"far too short", math.MaxInt64, strings.NewReader("x"), errdefs.IsInvalidArgument},
			{"empty", 1, strings.NewReader(""), errdefs.IsInvalidArgument},
			{"long", 8, strings.NewReader("123456789"), errdefs.IsInvalidArgument},
			{"long for 0", 0, strings.NewReader("1"), errdefs.IsInvalidArgument},
			{"very long", 300 << 10, bytes.NewReader(random(s.o.Large)), errdefs.IsInvalidArgument},
			{"fails at once", 10, iotest.ErrReader(boom), is(boom)},
			{"fails half way", 800 << 10, half(iotest.ErrReader(boom)), is(boom)},
			{"fails after all", 400 << 10, half(iotest.ErrReader(boom)), is(boom)},
			{"fails, size unknown", -1, half(iotest.ErrReader(boom)), is(boom)},
			{"ends early, size unknown", -1, half(iotest.ErrReader(io.ErrUnexpectedEOF)), is(io.ErrUnexpectedEOF)},
			{"cancelled", 1 << 40, half(readerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil })), is(context.Canceled)},
		} {
			ctx, stop := context.WithCancel(t.Context())
			cancel = stop
			key := fmt.Sprintf("conformance/fails/%v/%s", old != nil, strings.ReplaceAll(tt.name, " ", "-"))
			if old != nil {
				s.write(t, key, old)
			}
			if info, err := s.Write(ctx, key, tt.size, tt.r); err == nil || !tt.ok(err) {
				t.Errorf("%s: %+v, %v", tt.name, info, err)
			}
			stop()
			s.holds(t, key, old)
		}
	}
	if s.Capabilities().List {
		page, _, err := s.List(t.Context(), "conformance/fails/false/", "", 0)
		if err != nil || len(page) > 0 {
			t.Errorf("failed writes are listed: %v, %v", page, err)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func testOverwrite(t *testing.T, s suite) {
	const key = "conformance/overwritten"
	a, b := bytes.Repeat([]byte("a"), s.o.Large), bytes.Repeat([]byte("b"), s.o.Large/2)
	first := s.write(t, key, a)
	rc, _, err := s.Open(t.Context(), key, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	head := make([]byte, 1000)
	if _, err := io.ReadFull(rc, head); err != nil {
		t.Fatal(err)
	}
	second := s.write(t, key, b)
	if s.Capabilities().CompareAndSwap && first.Version == second.Version {
		t.Errorf("both versions are %q", first.Version)
	}
	s.holds(t, key, b)
	// A reader from before goes on with the old bytes, or fails.
	rest, err := io.ReadAll(rc)
	if all := slices.Concat(head, rest); err == nil && !bytes.Equal(all, a) || bytes.ContainsRune(all, 'b') {
		t.Errorf("a reader got bytes of two versions: %d, %v", len(all), err)
	}

	// Writers at the same time leave one of the contents, whole.
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			data := bytes.Repeat([]byte{'0' + byte(i)}, 100_000+i)
			if _, err := s.Write(t.Context(), key, int64(len(data)), bytes.NewReader(data)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got, _ := s.read(t, key)
	if i := int(got[0] - '0'); len(got) != 100_000+i || strings.Trim(got, got[:1]) != "" {
		t.Errorf("after writes at the same time: %s, %d bytes", short(got), len(got))
	}
}

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

// testVersions goes A → B → A, and also over a second opening of the storage.
func testVersions(t *testing.T, s suite) {
	const key = "conformance/aba"
	seen := map[string]string{}
	info := s.swap(t, key, "A", "")
	for i := range 40 {
		data := "AB"[i%2 : i%2+1]
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

func testList(t *testing.T, s suite) {
	keys := []string{
		"top", "l/a-b", "l/a/b", "l/a/b2/c", "l/a.b", "l/a0", "l/ab/c", "l/ab/d/e/f", "l/A", "l/~", "l/!", "l/é",
		"l/zz/1", "l/zz/2", "m/x", "l2/x", "l-/x", "k/x",
	}
	for i, key := range keys {
		s.write(t, key, make([]byte, i))
	}
	sizes := map[string]int64{}
	for i, key := range keys {
		sizes[key] = int64(i)
	}
	slices.Sort(keys)
	between := []string{"", "l/a", "l/a/", "l/a/b/c/d", "l/a/zzz", "l/b", "zzzz", "a", "l/ab/c/x", "l/zz", "\x00", "\xff"}
	for _, prefix := range []string{"", "l/", "l/a/", "l/ab/d/", "l/zz/", "l/a0/", "none/", "l/a-b/", "l/ab/d/e/f/"} {
		for _, after := range append(between, keys...) {
			var want []string
			for _, k := range keys {
				if strings.HasPrefix(k, prefix) && k > after {
					want = append(want, k)
				}
			}
			for _, limit := range []int{1, 2, 3, len(want), len(want) + 1, 0, -1, 1000, 5000} {
				page, more, err := s.List(t.Context(), prefix, after, limit)
				if err != nil {
					t.Fatalf("prefix %q, after %q, limit %d: %v", prefix, after, limit, err)
				}
				n := len(want)
				if limit > 0 {
					n = min(n, limit)
				}
				got := names(page)
				if !slices.Equal(got, want[:n]) || more != (n < len(want)) {
					t.Errorf("prefix %q, after %q, limit %d: got %q, more %v; want %q", prefix, after, limit, got, more, want[:n])
				}
				for _, info := range page {
					if info.Size != sizes[info.Key] {
						t.Errorf("%s has size %d, want %d", info.Key, info.Size, sizes[info.Key])
					}
				}
			}
		}
	}
	page, _, err := s.List(t.Context(), "m/", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := s.Stat(t.Context(), "m/x"); err != nil || page[0].Version != info.Version {
		t.Errorf("listed version %q, Stat says %q, %v", page[0].Version, info.Version, err)
	}
}

func names(page []fetcher.Info) (all []string) {
	for _, info := range page {
		all = append(all, info.Key)
	}
	return all
}

// testListLong has more than a page of objects.
func testListLong(t *testing.T, s suite) {
	var want []string
	for i := range 1050 {
		want = append(want, fmt.Sprintf("long/%02x/%04d", i%7, i))
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := i; j < len(want); j += 8 {
				if _, err := s.Write(t.Context(), want[j], 1, strings.NewReader("x")); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	slices.Sort(want)
	for _, limit := range []int{0, 1000, 100, 333} {
		var got []string
		after := ""
		for {
			page, more, err := s.List(t.Context(), "long/", after, limit)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, names(page)...)
			if more && (limit > 0 && len(page) != limit || limit == 0 && len(page) != 1000) {
				t.Errorf("limit %d: a page has %d", limit, len(page))
			}
			if !more {
				break
			}
			after = page[len(page)-1].Key
		}
		if !slices.Equal(got, want) {
			t.Errorf("limit %d: listed %d, want %d", limit, len(got), len(want))
		}
	}
}

func testDelete(t *testing.T, s suite) {
	const key = "conformance/deleted/x"
	for range 2 {
		if err := s.Delete(t.Context(), key); err != nil {
			t.Fatalf("deleting what is not there: %v", err)
		}
	}
	data := random(s.o.Large)
	for range 2 {
		s.write(t, key, data)
		s.write(t, key+"2", data)
		rc, _, err := s.Open(t.Context(), key, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(rc); err == nil && !bytes.Equal(got, data) {
			t.Errorf("a reader from before got %d wrong bytes", len(got))
		}
		rc.Close()
		s.holds(t, key, nil)
		s.holds(t, key+"2", data)
		if s.Capabilities().List {
			if page, _, err := s.List(t.Context(), "conformance/", "", 0); err != nil || len(page) != 1 {
				t.Errorf("after delete: listed %q, %v", names(page), err)
			}
		}
		// A part of a key is no key.
		if err := s.Delete(t.Context(), "conformance/deleted"); err != nil {
			t.Errorf("deleting a prefix: %v", err)
		}
		s.holds(t, key+"2", data)
	}
}
