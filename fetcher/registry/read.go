package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
)

const (
	maxOffset = math.MaxInt64
	// maxResumes is how often in a row a reader begins anew without getting a byte.
	maxResumes = 3
)

// part is an answer with a blob's bytes, from the offset on that was asked for.
type part struct {
	body io.ReadCloser
	info fetcher.Info
}

// get asks for n bytes of a blob from off on; a negative n: to its end. The answer
// may go beyond these bytes, or end before them.
func (b *Backend) get(ctx context.Context, bl blob, off, n int64) (part, error) {
	size, known := b.sizes.Get(bl.key)
	if n == 0 && !known {
		info, err := b.stat(ctx, bl)
		if err != nil {
			return part{}, err
		}
		if size, known = info.Size, info.Size >= 0; !known {
			n = 1
		}
	}
	for try := 0; ; try++ {
		if known {
			if err := inside(off, size); err != nil {
				return part{}, err
			}
			if off == size || n == 0 {
				// Somebody may have deleted the blob, or may not read it; but no byte is told.
				return part{http.NoBody, b.info(bl, size)}, nil
			}
		}
		r := request{method: http.MethodGet, repo: bl.repo, what: "blobs/" + bl.digest.String()}
		asked := rangeOf(off, n, size, known)
		if try == 2 {
			asked = "" // it refuses ranges with an end, too
		}
		if asked != "" {
			r.header = http.Header{"Range": {asked}}
			r.accept = []int{http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable}
		}
		resp, err := b.send(ctx, r)
		if err != nil {
			return part{}, err
		}
		switch resp.StatusCode {
		case http.StatusOK:
			return b.whole(bl, resp, off)
		case http.StatusPartialContent:
			return b.partial(bl, resp, off)
		}
		resp.Body.Close()
		if try == 2 {
			return part{}, fmt.Errorf("status %d to a request without a range: %w", resp.StatusCode, errdefs.ErrUnavailable)
		}
		// 416: beyond the end, or a kind of range that it does not know.
		if _, size, err = contentRange(resp.Header.Get("Content-Range")); err != nil || size < 0 {
			info, err := b.stat(ctx, bl)
			if err != nil {
				return part{}, err
			}
			size = info.Size
		}
		if known = size >= 0; !known {
			try = 1
		}
	}
}

func inside(off, size int64) error {
	if off > size {
		return fmt.Errorf("offset %d is outside of %d bytes: %w", off, size, errdefs.ErrOutOfRange)
	}
	return nil
}

// rangeOf returns the header's value; "": the whole blob. It names the last byte
// if that can be known, because some registries want that.
func rangeOf(off, n, size int64, known bool) string {
	last := int64(-1)
	if n > 0 && n <= maxOffset-off {
		last = off + n - 1
	}
	if known && (last < 0 || last >= size) {
		last = size - 1
	}
	switch {
	case off == 0 && (last < 0 || known && last == size-1):
		return ""
	case last < 0:
		return fmt.Sprintf("bytes=%d-", off)
	}
	return fmt.Sprintf("bytes=%d-%d", off, last)
}

// whole is an answer that begins at 0, whether or not that was asked for.
func (b *Backend) whole(bl blob, resp *http.Response, off int64) (part, error) {
	info := b.info(bl, resp.ContentLength)
	if info.Size >= 0 {
		if err := inside(off, info.Size); err != nil {
			resp.Body.Close()
			return part{}, err
		}
	}
	if n, err := io.CopyN(io.Discard, resp.Body, off); err != nil {
		resp.Body.Close()
		if err == io.EOF && info.Size < 0 {
			return part{}, inside(off, b.info(bl, n).Size)
		}
		return part{}, &networkError{fmt.Errorf("skipping to %d: %w", off, unexpected(err))}
	}
	return part{resp.Body, info}, nil
}

func (b *Backend) partial(bl blob, resp *http.Response, off int64) (part, error) {
	start, size, err := contentRange(resp.Header.Get("Content-Range"))
	if err == nil && (start != off || size >= 0 && off >= size) {
		err = fmt.Errorf("it is from %d, not %d: %w", start, off, errdefs.ErrUnavailable)
	}
	if err != nil {
		resp.Body.Close()
		return part{}, fmt.Errorf("the range that it sends: %w", err)
	}
	return part{resp.Body, b.info(bl, size)}, nil
}

// contentRange reads "bytes 5-9/100", with -1 for what is a "*".
func contentRange(v string) (start, size int64, err error) {
	bad := fmt.Errorf("Content-Range %q: %w", v[:min(len(v), 100)], errdefs.ErrUnavailable)
	spec, ok := strings.CutPrefix(v, "bytes ")
	if !ok {
		return 0, 0, bad
	}
	span, total, ok := strings.Cut(spec, "/")
	if !ok {
		return 0, 0, bad
	}
	start, size = -1, -1
	if total != "*" {
		if size, err = strconv.ParseInt(total, 10, 64); err != nil || size < 0 {
			return 0, 0, bad
		}
	}
	if span != "*" {
		first, last, _ := strings.Cut(span, "-")
		end, err := strconv.ParseInt(last, 10, 64)
		if err != nil {
			return 0, 0, bad
		}
		if start, err = strconv.ParseInt(first, 10, 64); err != nil || start < 0 || end < start {
			return 0, 0, bad
		}
	}
	return start, size, nil
}

// reader is a range of a blob. It survives broken connections.
type reader struct {
	ctx     context.Context
	b       *Backend
	blob    blob
	body    io.ReadCloser // nil: to be opened at off
	off     int64
	end     int64 // -1: where the blob ends, which is not known
	sized   bool  // end is certainly not beyond the blob's
	resumes int   // in a row, without a byte
	err     error // for good
}

func (r *reader) Read(p []byte) (int, error) {
	for {
		if r.err == nil && r.ctx.Err() != nil {
			r.err = r.b.fail("reading", r.blob.key, r.ctx.Err())
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
		part, err := r.b.get(r.ctx, r.blob, r.off, n)
		if err != nil {
			r.err = r.b.fail("reading on", r.blob.key, err)
			return 0, nil
		}
		r.body = part.body
	}
	return r.body.Read(p)
}

// breakOff gives up an answer that failed or ended too early.
func (r *reader) breakOff(err error) {
	r.body.Close()
	r.body = nil
	if r.resumes++; r.resumes > maxResumes {
		r.err = r.b.fail("reading", r.blob.key, &networkError{fmt.Errorf("broken off at %d: %w", r.off, unexpected(err))})
	}
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
