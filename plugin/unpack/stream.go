package unpack

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

const (
	// chunkSize is what the inflater hands to the hash and to the tree at a
	// time. Small enough that a chunk stays in a core's second-level cache
	// until both have read it.
	chunkSize = 256 << 10
	// chunkCount bounds what the inflater is ahead, and so the memory of one
	// layer: chunkCount * chunkSize, plus the decoder.
	chunkCount = 24
)

// A chunk is a piece of the uncompressed layer, shared by whoever holds a
// reference: the hash, the tar reader, and the files that are being written from it.
type chunk struct {
	buf  []byte // chunkSize long; buf[:n] is the data
	n    int
	refs atomic.Int32
	free chan<- *chunk // of the stream; has room for all of its chunks
}

func (c *chunk) release() {
	if c.refs.Add(-1) == 0 {
		c.free <- c
	}
}

var chunkBufs = sync.Pool{New: func() any { b := make([]byte, chunkSize); return &b }}

// A stream is the uncompressed layer on its way from the decoder to the hash
// and to the tar reader, which run on goroutines of their own.
type stream struct {
	free chan *chunk
	hash chan *chunk // has room for all chunks: sending never blocks
	tar  chan *chunk // likewise

	// Written by inflate before it closes hash and tar.
	err  error // nil: the layer ended properly
	size int64

	// Written by digest before it returns.
	sum [sha256.Size]byte
}

func newStream() *stream {
	s := &stream{
		free: make(chan *chunk, chunkCount),
		hash: make(chan *chunk, chunkCount),
		tar:  make(chan *chunk, chunkCount),
	}
	for range chunkCount {
		s.free <- &chunk{free: s.free}
	}
	return s
}

// close gives the buffers back. Everything that used the stream has ended;
// chunks that a failed apply has not released are left to the collector.
func (s *stream) close() {
	for {
		select {
		case c := <-s.free:
			if c.buf != nil {
				b := c.buf
				chunkBufs.Put(&b)
			}
		default:
			return
		}
	}
}

// inflate reads r to its end. It fails, in s.err, with [ErrTooLarge] at the
// first byte past the limit, with r's error, or with ctx's cause.
func (s *stream) inflate(ctx context.Context, r io.Reader, opts *Options) {
	defer close(s.hash)
	defer close(s.tar)
	if err := guard(func() error { s.read(ctx, r, opts); return nil }); err != nil {
		s.err = err
	}
}

func (s *stream) read(ctx context.Context, r io.Reader, opts *Options) {
	limit := opts.maxBytes()
	for s.err == nil {
		opts.at("inflate")
		var c *chunk
		select {
		case c = <-s.free:
		case <-ctx.Done():
		}
		if ctx.Err() != nil { // also if both were ready
			s.err = context.Cause(ctx)
			return
		}
		if c.buf == nil {
			c.buf = *chunkBufs.Get().(*[]byte)
		}
		// Not io.ReadFull: it would turn a proper end into the error that a
		// decoder gives for a truncated layer.
		var err error
		for c.n = 0; c.n < len(c.buf) && err == nil; {
			var n int
			n, err = r.Read(c.buf[c.n:])
			c.n += n
		}
		s.size += int64(c.n)
		if s.size > limit {
			s.err = fmt.Errorf("more than %d bytes: %w", limit, ErrTooLarge)
			return
		}
		if c.n > 0 {
			c.refs.Store(2)
			s.hash <- c
			s.tar <- c
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			s.err = fmt.Errorf("%w: %w", errDecoder, err)
		}
	}
}

// digest hashes the stream to its end.
func (s *stream) digest(opts *Options) {
	h := sha256.New()
	for c := range s.hash {
		opts.at("hash")
		h.Write(c.buf[:c.n])
		c.release()
	}
	h.Sum(s.sum[:0])
}

// A source is the tar reader's end of a stream. It belongs to one goroutine.
//
// Contents of files do not go through archive/tar, which would copy them: take
// hands out the chunks themselves, between two calls of tar.Reader.Next. The
// tar reader does not know that and skips these bytes itself by reading them,
// so Read owes it that many bytes, whose values nobody looks at.
type source struct {
	s    *stream
	cur  *chunk
	off  int
	owed int64
}

// next makes sure that cur has a byte at off.
func (r *source) next() error {
	for r.cur == nil || r.off == r.cur.n {
		r.drop()
		c, ok := <-r.s.tar
		if !ok {
			if r.s.err != nil {
				return r.s.err
			}
			return io.EOF
		}
		r.cur, r.off = c, 0
	}
	return nil
}

func (r *source) drop() {
	if r.cur != nil {
		r.cur.release()
		r.cur = nil
	}
}

func (r *source) Read(p []byte) (int, error) {
	if r.owed > 0 {
		n := int(min(int64(len(p)), r.owed))
		r.owed -= int64(n)
		return n, nil
	}
	if err := r.next(); err != nil {
		return 0, err
	}
	n := copy(p, r.cur.buf[r.off:r.cur.n])
	r.off += n
	return n, nil
}

// take returns between 1 and limit bytes at the current position. They are the
// caller's until it releases the chunk. The layer ending here is
// [io.ErrUnexpectedEOF].
func (r *source) take(limit int64) (*chunk, []byte, error) {
	if err := r.next(); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, nil, err
	}
	b := r.cur.buf[r.off:r.cur.n]
	if int64(len(b)) > limit {
		b = b[:limit]
	}
	r.off += len(b)
	r.owed += int64(len(b))
	r.cur.refs.Add(1)
	return r.cur, b, nil
}

// drain reads to the end, so that the hash sees what follows the archive.
func (r *source) drain() error {
	r.drop()
	for c := range r.s.tar {
		c.release()
	}
	return r.s.err
}
