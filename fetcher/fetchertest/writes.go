package fetchertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
)

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
