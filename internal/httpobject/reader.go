package httpobject

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

const (
	// maxResumes is how often in a row a reader begins anew without getting a byte.
	maxResumes = 3
	// maxSkips is how often in all it begins anew at a server that does not know ranges, and
	// so sends again what comes before.
	maxSkips = 3
)

// Open reads n bytes from off on; a negative n: to the end. What goes beyond the end is
// cut; an off beyond it, or negative, is errdefs.ErrOutOfRange. The reader ends with ctx. It
// goes on after broken connections. Whoever opens closes.
func (o *Object) Open(ctx context.Context, off, n int64) (io.ReadCloser, Info, error) {
	if off < 0 {
		return nil, Info{}, fmt.Errorf("offset %d is negative: %w", off, errdefs.ErrOutOfRange)
	}
	if err := ctx.Err(); err != nil {
		return nil, Info{}, err
	}
	p, err := o.get(ctx, off, n, version{})
	if err != nil {
		return nil, Info{}, err
	}
	r := &reader{ctx: ctx, o: o, body: p.body, began: off, off: off, end: -1, sized: p.info.Size >= 0}
	if !o.Immutable {
		r.version = p.version
	}
	if n >= 0 && n <= maxOffset-off {
		r.end = off + n
	}
	if r.sized && (r.end < 0 || r.end > p.info.Size) {
		r.end = p.info.Size
	}
	return r, p.info, nil
}

// reader is a range of an object. It survives broken connections.
type reader struct {
	ctx     context.Context
	o       *Object
	body    io.ReadCloser // nil: to be opened at off
	version version       // of the object; none: it is immutable
	began   int64
	off     int64
	end     int64 // -1: where the object ends, which is not known
	sized   bool  // end is certainly not beyond the object's
	resumes int   // in a row, without a byte
	skips   int   // in all
	err     error // for good
}

func (r *reader) Read(p []byte) (int, error) {
	for {
		if r.err == nil && r.ctx.Err() != nil {
			r.err = r.o.Fail("reading", r.ctx.Err())
		}
		if r.err != nil {
			return 0, r.err
		}
		if r.end >= 0 {
			if r.off == r.end {
				return 0, io.EOF
			}
			p = p[:min(int64(len(p)), r.end-r.off)]
		}
		n, err := r.read(p)
		r.off += int64(n)
		if n > 0 {
			r.resumes = 0
		}
		switch {
		case err == io.EOF && (!r.sized || r.off == r.end):
			r.end = r.off
		case err != nil:
			r.breakOff(err)
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
	}
}

// read reads from the answer, after asking for it anew if need be.
func (r *reader) read(p []byte) (int, error) {
	if r.body == nil {
		n := int64(-1)
		if r.end >= 0 {
			n = r.end - r.off
		}
		part, err := r.o.get(r.ctx, r.off, n, r.version)
		if err != nil {
			r.err = r.o.Fail("reading on", err)
			return 0, nil
		}
		if r.body = part.body; part.skipped {
			r.skips++
		}
	}
	return r.body.Read(p)
}

// breakOff gives up an answer that failed or ended too early.
func (r *reader) breakOff(err error) {
	r.body.Close()
	r.body = nil
	why := ""
	switch r.resumes++; {
	case r.resumes > maxResumes:
	case r.skips >= maxSkips:
		why = ", and the server does not know ranges"
	case r.off > r.began && !r.o.Immutable && r.version.condition() == "":
		why = ", and without a strong ETag or a Last-Modified what follows may be of another version"
	default:
		return
	}
	r.err = r.o.Fail("reading", &NetworkError{fmt.Errorf("broken off at %d%s: %w", r.off, why, unexpected(err))})
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (r *reader) Close() error {
	if r.body == nil {
		return nil
	}
	return r.body.Close()
}
