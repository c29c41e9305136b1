package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/httpclient"
)

// maxResumes is how often a reader goes on elsewhere without having received a
// byte in between.
const maxResumes = 3

// reader reads a range of a blob, from another origin if one fails.
type reader struct {
	c       *Client
	ctx     context.Context
	ref     Ref
	once    bool  // it does not go on after a failure
	off, n  int64 // what is still to be read; negative n: not known yet
	size    int64 // of the blob, once known
	o       *httpclient.Server
	body    io.ReadCloser // nil: to be opened
	resumes int
	err     error // sticky
}

// open asks for the rest of the range.
func (r *reader) open() (info Info, err error) {
	err = r.c.find(r.ctx, r.ref, func(o *httpclient.Server, path string) error {
		info, err = r.ask(o, path)
		return err
	})
	return info, err
}

// ask asks one origin. The request's context ends when the reader is closed, or
// nothing comes for too long.
func (r *reader) ask(o *httpclient.Server, path string) (info Info, err error) {
	stall := httpclient.NewStall(r.ctx, stallTimeout)
	defer func() {
		if r.body == nil {
			stall.End()
		}
	}()
	stall.Start(openTimeout)
	rng := fmt.Sprintf("bytes=%d-", r.off)
	if r.n > 0 {
		rng += fmt.Sprint(r.off + min(r.n, MaxSize) - 1)
	}
	header := http.Header{"Range": {rng}}
	if r.off == 0 && r.n < 0 {
		header = nil // the whole blob; an empty one has no range
	}
	resp, err := r.c.send(stall.Context(), o, &httpclient.Request{Method: "GET", Path: path, Header: header})
	if errdefs.IsOutOfRange(err) && resp != nil {
		// At its very end there is nothing, which is no error.
		info, ierr := r.c.readInfo(o, resp)
		if ierr == nil && info.Size == r.off {
			r.size, r.n = info.Size, 0
			return info, nil
		}
		return Info{}, err
	}
	if err != nil {
		return Info{}, err
	}
	o = r.c.answered(o, resp) // who is to blame from now on
	if info, err = r.c.readInfo(o, resp); err == nil {
		err = r.accept(o, resp, info)
	}
	if err != nil {
		resp.Body.Close()
		return Info{}, err
	}
	r.o, r.body = o, stall.Answer(resp.Body)
	return info, nil
}

// accept checks that an answer is the range that was asked for.
func (r *reader) accept(o *httpclient.Server, resp *http.Response, info Info) error {
	left := info.Size - r.off
	if r.n >= 0 {
		left = min(left, r.n)
	}
	whole := r.off == 0 && left == info.Size
	switch {
	case left < 0 || r.size > 0 && info.Size != r.size,
		resp.ContentLength != left,
		resp.StatusCode == http.StatusOK && !whole:
		return fmt.Errorf("origin %s: %s at %d: the answer is not the range that was asked for: %w", o.Base, r.ref, r.off, errdefs.ErrUnavailable)
	}
	r.size, r.n = info.Size, left
	return nil
}

func (r *reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if r.n == 0 {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if r.body == nil {
			if _, err := r.open(); err != nil {
				r.err = err
				return 0, err
			}
			if r.body == nil {
				r.err = fmt.Errorf("reading %s at %d: %w", r.ref, r.off, io.ErrUnexpectedEOF)
				return 0, r.err
			}
		}
		n, err := r.body.Read(p[:min(int64(len(p)), r.n)])
		r.off, r.n = r.off+int64(n), r.n-int64(n)
		if n > 0 {
			r.resumes = 0
			return n, nil // an error comes again
		}
		if err == nil {
			continue
		}
		r.drop()
		if r.ctx.Err() != nil {
			r.err = fmt.Errorf("reading %s at %d: %w", r.ref, r.off, r.ctx.Err())
			return 0, r.err
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		r.o.Failed()
		r.c.members.soon()
		if r.resumes++; r.once || r.resumes > maxResumes {
			r.err = fmt.Errorf("origin %s: reading %s at %d: %w: %w", r.o.Base, r.ref, r.off, err, errdefs.ErrUnavailable)
			return 0, r.err
		}
	}
}

// drop gives the answer up.
func (r *reader) drop() {
	if r.body != nil {
		r.body.Close()
		r.body = nil
	}
}

func (r *reader) Close() error {
	r.drop()
	if r.err == nil {
		r.err = fmt.Errorf("reading %s: closed", r.ref)
	}
	return nil
}
