package fetchertest

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
)

func TestMemory(t *testing.T) {
	Run(t, func(*testing.T) fetcher.Backend { return new(Memory) }, Options{})
}

func TestDecorated(t *testing.T) {
	Run(t, func(*testing.T) fetcher.Backend {
		return &Slow{Backend: &Faulty{Backend: &Counting{Backend: new(Memory)}}, BytesPerSecond: 10e9}
	}, Options{})
}

func TestChecksums(t *testing.T) {
	Run(t, func(*testing.T) fetcher.Backend { return &Memory{Checksums: true} }, Options{})
}

func TestSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := new(Memory)
		s := &Slow{Backend: m, BytesPerSecond: 1 << 20, Latency: 3 * time.Second}
		if _, err := m.Write(t.Context(), "a", -1, bytes.NewReader(make([]byte, 10<<20))); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		r, _, err := s.Open(t.Context(), "a", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("opened after %v", d)
		}
		n, err := io.Copy(io.Discard, r)
		if d := time.Since(start); err != nil || n != 10<<20 || d < 12900*time.Millisecond || d > 13*time.Second {
			t.Errorf("%d bytes after %v, %v", n, d, err)
		}
	})
}

func TestFaulty(t *testing.T) {
	boom := errors.New("boom")
	m := new(Memory)
	var fail, after Op
	reads := int64(-1)
	f := &Faulty{
		Backend: m,
		Fail: func(op Op, _ string) error {
			if op == fail {
				return boom
			}
			return nil
		},
		FailAfter: func(op Op, _ string) error {
			if op == after {
				return boom
			}
			return nil
		},
		ReadAfter: func(string, int64) (int64, error) { return reads, nil },
	}
	call := map[Op]func() error{
		OpStat:    func() error { _, err := f.Stat(t.Context(), "a"); return err },
		OpOpen:    func() error { _, _, err := f.Open(t.Context(), "a", 0, -1); return err },
		OpWrite:   func() error { _, err := f.Write(t.Context(), "a", 3, bytes.NewReader([]byte("abc"))); return err },
		OpWriteIf: func() error { _, err := f.WriteIf(t.Context(), "b", nil, ""); return err },
		OpList:    func() error { _, _, err := f.List(t.Context(), "", "", 0); return err },
		OpDelete:  func() error { return f.Delete(t.Context(), "b") },
	}
	order := []Op{OpWrite, OpStat, OpOpen, OpWriteIf, OpList, OpDelete}
	for _, op := range order {
		fail = op
		if err := call[op](); !errors.Is(err, boom) {
			t.Errorf("%s: %v", op, err)
		}
		fail = ""
		if op == OpWrite || op == OpWriteIf || op == OpDelete {
			after = op
			if err := call[op](); !errors.Is(err, boom) {
				t.Errorf("%s, but done: %v", op, err)
			}
			after = ""
			if op == OpWriteIf {
				if _, err := m.Stat(t.Context(), "b"); err != nil {
					t.Errorf("not done: %v", err)
				}
				continue
			}
		}
		if err := call[op](); err != nil {
			t.Errorf("%s: %v", op, err)
		}
	}
	reads = 2
	r, _, err := f.Open(t.Context(), "a", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); string(got) != "ab" || !errdefs.IsUnavailable(err) {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestCounting(t *testing.T) {
	c := &Counting{Backend: new(Memory)}
	if _, err := c.Write(t.Context(), "a", 3, bytes.NewReader([]byte("abc"))); err != nil {
		t.Fatal(err)
	}
	r, _, err := c.Open(t.Context(), "a", 1, -1)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadAll(r)
	if c.Opens() != 1 || c.Writes() != 1 || c.Bytes() != 2 || c.Reading() != 1 {
		t.Errorf("counted %d opens, %d writes, %d bytes, %d readers", c.Opens(), c.Writes(), c.Bytes(), c.Reading())
	}
	r.Close()
	r.Close()
	if c.Reading() != 0 {
		t.Errorf("%d readers", c.Reading())
	}
}
