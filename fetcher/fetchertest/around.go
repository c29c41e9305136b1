package fetchertest

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"

	"github.com/capelin-io/capelin/fetcher"
)

// through is a reader with something before and after each Read.
type through struct {
	io.ReadCloser
	before func(p []byte) ([]byte, error)      // may shorten p
	after  func(n int, err error) (int, error) // may take back bytes
}

func (t *through) Read(p []byte) (n int, err error) {
	if t.before != nil {
		if p, err = t.before(p); err != nil {
			return 0, err
		}
	}
	n, err = t.ReadCloser.Read(p)
	if t.after != nil {
		n, err = t.after(n, err)
	}
	return n, err
}

// Slow is a backend behind a line: all its readers and writers together move at
// most BytesPerSecond, and each Open and Stat takes Latency until its first byte.
// It uses package time, and works in a bubble of testing/synctest.
type Slow struct {
	fetcher.Backend
	BytesPerSecond int64 // 0: no limit
	Latency        time.Duration

	once  sync.Once
	limit *rate.Limiter
}

var _ fetcher.Locator = (*Slow)(nil)

// slowChunk is how many bytes pass at once.
const slowChunk = 64 << 10

func (s *Slow) wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: waiting for the first byte: %w", s.Name(), ctx.Err())
	}
}

// pace returns r, no faster than the line.
func (s *Slow) pace(ctx context.Context, r io.ReadCloser) io.ReadCloser {
	if s.BytesPerSecond <= 0 {
		return r
	}
	s.once.Do(func() { s.limit = rate.NewLimiter(rate.Limit(s.BytesPerSecond), slowChunk) })
	return &through{
		ReadCloser: r,
		before:     func(p []byte) ([]byte, error) { return p[:min(len(p), slowChunk)], nil },
		after: func(n int, err error) (int, error) {
			if s.limit.WaitN(ctx, n) != nil {
				// The limiter says in words of its own that the deadline is too near.
				return 0, fmt.Errorf("%s: reading: %w", s.Name(), cmp.Or(ctx.Err(), context.DeadlineExceeded))
			}
			return n, err
		},
	}
}

func (s *Slow) Stat(ctx context.Context, key string) (fetcher.Info, error) {
	if err := s.wait(ctx, s.Latency); err != nil {
		return fetcher.Info{}, err
	}
	return s.Backend.Stat(ctx, key)
}

func (s *Slow) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	if err := s.wait(ctx, s.Latency); err != nil {
		return nil, fetcher.Info{}, err
	}
	r, info, err := s.Backend.Open(ctx, key, off, n)
	if err != nil {
		return nil, info, err
	}
	return s.pace(ctx, r), info, nil
}

func (s *Slow) Write(ctx context.Context, key string, size int64, r io.Reader) (fetcher.Info, error) {
	return s.Backend.Write(ctx, key, size, s.pace(ctx, io.NopCloser(r)))
}

// Locate implements fetcher.Locator.
func (s *Slow) Locate(namespace string, d digest.Digest) (string, error) {
	return fetcher.Locate(s.Backend, namespace, d)
}

// Op is a method of a Backend.
type Op string

const (
	OpStat    Op = "stat"
	OpOpen    Op = "open"
	OpRead    Op = "read" // of what Open returned
	OpWrite   Op = "write"
	OpWriteIf Op = "writeif"
	OpList    Op = "list"
	OpDelete  Op = "delete"
)

// Faulty is a backend that fails when it is told to.
type Faulty struct {
	fetcher.Backend
	// Fail is asked before each call, and its error returned; nil: none. It is
	// called concurrently. A List's key is its prefix; OpRead is not asked for.
	Fail func(op Op, key string) error
	// FailAfter is asked after a Write, WriteIf or Delete that was done: the caller
	// gets the error although it was. nil: none.
	FailAfter func(op Op, key string) error
	// ReadAfter is asked at each Open: after how many bytes its reader fails, and
	// with what; nil: errdefs.ErrUnavailable. Negative: it does not. nil: none do.
	ReadAfter func(key string, off int64) (n int64, err error)
}

var _ fetcher.Locator = (*Faulty)(nil)

func ask(f func(Op, string) error, op Op, key string) error {
	if f == nil {
		return nil
	}
	if err := f(op, key); err != nil {
		return fmt.Errorf("faulty: %s %s: %w", op, key, err)
	}
	return nil
}

func (f *Faulty) Stat(ctx context.Context, key string) (fetcher.Info, error) {
	if err := ask(f.Fail, OpStat, key); err != nil {
		return fetcher.Info{}, err
	}
	return f.Backend.Stat(ctx, key)
}

func (f *Faulty) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	if err := ask(f.Fail, OpOpen, key); err != nil {
		return nil, fetcher.Info{}, err
	}
	r, info, err := f.Backend.Open(ctx, key, off, n)
	if err != nil || f.ReadAfter == nil {
		return r, info, err
	}
	left, fault := f.ReadAfter(key, off)
	if left < 0 {
		return r, info, nil
	}
	if fault == nil {
		fault = errdefs.ErrUnavailable
	}
	return &through{
		ReadCloser: r,
		before: func(p []byte) ([]byte, error) {
			if left == 0 {
				return nil, fmt.Errorf("faulty: %s %s: %w", OpRead, key, fault)
			}
			return p[:min(int64(len(p)), left)], nil
		},
		after: func(n int, err error) (int, error) {
			left -= int64(n)
			return n, err
		},
	}, info, nil
}

func (f *Faulty) Write(ctx context.Context, key string, size int64, r io.Reader) (fetcher.Info, error) {
	if err := ask(f.Fail, OpWrite, key); err != nil {
		return fetcher.Info{}, err
	}
	info, err := f.Backend.Write(ctx, key, size, r)
	if err == nil {
		err = ask(f.FailAfter, OpWrite, key)
	}
	return info, err
}

func (f *Faulty) WriteIf(ctx context.Context, key string, data []byte, version string) (fetcher.Info, error) {
	if err := ask(f.Fail, OpWriteIf, key); err != nil {
		return fetcher.Info{}, err
	}
	info, err := f.Backend.WriteIf(ctx, key, data, version)
	if err == nil {
		err = ask(f.FailAfter, OpWriteIf, key)
	}
	return info, err
}

func (f *Faulty) List(ctx context.Context, prefix, after string, limit int) ([]fetcher.Info, bool, error) {
	if err := ask(f.Fail, OpList, prefix); err != nil {
		return nil, false, err
	}
	return f.Backend.List(ctx, prefix, after, limit)
}

func (f *Faulty) Delete(ctx context.Context, key string) error {
	if err := ask(f.Fail, OpDelete, key); err != nil {
		return err
	}
	if err := f.Backend.Delete(ctx, key); err != nil {
		return err
	}
	return ask(f.FailAfter, OpDelete, key)
}

// Locate implements fetcher.Locator.
func (f *Faulty) Locate(namespace string, d digest.Digest) (string, error) {
	return fetcher.Locate(f.Backend, namespace, d)
}

// Counting is a backend that counts what is asked of it.
type Counting struct {
	fetcher.Backend

	stats, opens, writes, lists, deletes, read, reading atomic.Int64
}

var _ fetcher.Locator = (*Counting)(nil)

// Stats, Opens, Writes (WriteIf included), Lists and Deletes are how many calls
// there were, failed ones included.
func (c *Counting) Stats() int64   { return c.stats.Load() }
func (c *Counting) Opens() int64   { return c.opens.Load() }
func (c *Counting) Writes() int64  { return c.writes.Load() }
func (c *Counting) Lists() int64   { return c.lists.Load() }
func (c *Counting) Deletes() int64 { return c.deletes.Load() }

// Bytes is how many bytes were read.
func (c *Counting) Bytes() int64 { return c.read.Load() }

// Reading is how many readers are not closed.
func (c *Counting) Reading() int64 { return c.reading.Load() }

func (c *Counting) Stat(ctx context.Context, key string) (fetcher.Info, error) {
	c.stats.Add(1)
	return c.Backend.Stat(ctx, key)
}

func (c *Counting) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	c.opens.Add(1)
	r, info, err := c.Backend.Open(ctx, key, off, n)
	if err != nil {
		return nil, info, err
	}
	c.reading.Add(1)
	return &counted{through{ReadCloser: r, after: func(n int, err error) (int, error) {
		c.read.Add(int64(n))
		return n, err
	}}, sync.OnceFunc(func() { c.reading.Add(-1) })}, info, nil
}

type counted struct {
	through
	closed func()
}

func (c *counted) Close() error {
	c.closed()
	return c.through.Close()
}

func (c *Counting) Write(ctx context.Context, key string, size int64, r io.Reader) (fetcher.Info, error) {
	c.writes.Add(1)
	return c.Backend.Write(ctx, key, size, r)
}

func (c *Counting) WriteIf(ctx context.Context, key string, data []byte, version string) (fetcher.Info, error) {
	c.writes.Add(1)
	return c.Backend.WriteIf(ctx, key, data, version)
}

func (c *Counting) List(ctx context.Context, prefix, after string, limit int) ([]fetcher.Info, bool, error) {
	c.lists.Add(1)
	return c.Backend.List(ctx, prefix, after, limit)
}

func (c *Counting) Delete(ctx context.Context, key string) error {
	c.deletes.Add(1)
	return c.Backend.Delete(ctx, key)
}

// Locate implements fetcher.Locator.
func (c *Counting) Locate(namespace string, d digest.Digest) (string, error) {
	return fetcher.Locate(c.Backend, namespace, d)
}
