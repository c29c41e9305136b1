package parts

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

// Part is a piece of an object.
type Part struct {
	Number int    // from 0 on
	Offset int64  // of its first byte
	Data   []byte // until the call ends
	// Last: nothing comes after it, and the object has the size that was said. A part with Number 0 that is
	// the last is the whole object, which may have no bytes at all.
	Last bool
}

// Budget bounds the bytes of parts that are in memory at once. It may be used by any goroutine.
type Budget struct {
	limit int64
	taken *semaphore.Weighted
}

// NewBudget returns a budget of that many bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit, semaphore.NewWeighted(limit)} }

// Options says how an object is cut.
type Options struct {
	// Size of all parts but the last, in bytes.
	Size int64
	// Parallel is how many parts are sent at once at most. Each object has one part in any case, as soon
	// as there is room for it, and takes more only if there is room at once.
	Parallel int
	Budget   *Budget
}

// Send reads r to its end and has send called for each part, in any order and at the same time, but for the last: it is
// called when all others have succeeded, unless it is the only one. size is what r should have, or negative: what it has is not known.
// It returns how many bytes that were.
//
// The first error ends all: that of send as it is, that of r wrapped, and errdefs.ErrInvalidArgument if r has not size bytes, which
// is found out before send hears of a last part. Send returns when no call of send is under way any more. It ends with ctx as
// soon as r returns from Read.
func Send(ctx context.Context, r io.Reader, size int64, o Options, send func(ctx context.Context, p Part) error) (int64, error) {
	s := sender{Options: o, r: bufio.NewReaderSize(r, 16), size: size, send: send}
	if size >= 0 && size < s.Size {
		s.Size = max(size, 1) // no more memory than that
	}
	s.weight = min(s.Size, o.Budget.limit)
	s.group, s.ctx = errgroup.WithContext(ctx)
	err := s.run()
	if sent := s.group.Wait(); sent != nil && (err == nil || errors.Is(err, context.Canceled) && ctx.Err() == nil) {
		err = sent
	}
	if err == nil {
		s.release(1) // the last part's
		err = send(ctx, s.last)
	}
	s.release(0)
	return s.offset, err
}

type sender struct {
	Options
	r       *bufio.Reader // to see whether there is more
	size    int64
	send    func(ctx context.Context, p Part) error
	group   *errgroup.Group
	ctx     context.Context
	weight  int64 // of a buffer
	buffers int   // how many there are
	free    chan []byte
	offset  int64
	last    Part
}

// release gives back all buffers but that many.
func (s *sender) release(but int) {
	s.Budget.taken.Release(int64(s.buffers-but) * s.weight)
	s.buffers = but
}

// run reads all parts, and has all but the last sent.
func (s *sender) run() error {
	s.free = make(chan []byte, max(s.Parallel, 1))
	for n := 0; ; n++ {
		buf, err := s.buffer()
		if err != nil {
			return err
		}
		p := Part{Number: n, Offset: s.offset}
		if p.Data, p.Last, err = s.fill(buf); err != nil {
			s.free <- buf
			return err
		}
		s.offset += int64(len(p.Data))
		if p.Last {
			s.last = p
			return nil
		}
		s.group.Go(func() error {
			defer func() { s.free <- buf }()
			return s.send(s.ctx, p)
		})
	}
}

// buffer returns one that is free, or a new one.
func (s *sender) buffer() ([]byte, error) {
	select {
	case buf := <-s.free:
		return buf, nil
	default:
	}
	switch {
	case s.buffers == 0:
		if err := s.Budget.taken.Acquire(s.ctx, s.weight); err != nil {
			return nil, fmt.Errorf("waiting for room in memory: %w", err)
		}
	case s.buffers >= s.Parallel || !s.Budget.taken.TryAcquire(s.weight):
		select {
		case buf := <-s.free:
			return buf, nil
		case <-s.ctx.Done():
			return nil, s.ctx.Err()
		}
	}
	s.buffers++
	return make([]byte, s.Size), nil
}

// fill reads a part, and finds out whether it is the last one.
func (s *sender) fill(buf []byte) (data []byte, last bool, err error) {
	n := 0
	for n < len(buf) && err == nil {
		if err = s.ctx.Err(); err != nil {
			return nil, false, err
		}
		var m int
		m, err = s.r.Read(buf[n:])
		n += m
	}
	if err == nil {
		_, err = s.r.Peek(1)
	}
	have := s.offset + int64(n)
	switch {
	case err == io.EOF && s.size >= 0 && have != s.size:
		return nil, false, fmt.Errorf("there are %d bytes instead of %d: %w", have, s.size, errdefs.ErrInvalidArgument)
	case err == nil && s.size >= 0 && have >= s.size:
		return nil, false, fmt.Errorf("there are more than %d bytes: %w", s.size, errdefs.ErrInvalidArgument)
	case err != nil && err != io.EOF:
		return nil, false, fmt.Errorf("reading what is to be written: %w", err)
	}
	return buf[:n], err == io.EOF, s.ctx.Err()
}
