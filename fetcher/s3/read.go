package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
)

const (
	// maxOffset is beyond the end of any object, and within what storages take in a Range.
	maxOffset = 1 << 50
	// maxResumes is how often in a row an answer may break off without a byte.
	maxResumes = 5
)

// Stat implements fetcher.Backend. It asks for the first byte: the answer to a HEAD has no text, so that it does not
// say whether it is the object that is missing or the bucket.
func (b *Backend) Stat(ctx context.Context, key string) (fetcher.Info, error) {
	info, err := b.stat(ctx, key)
	if err != nil {
		return fetcher.Info{}, b.fail("looking for", key, err)
	}
	return info, nil
}

func (b *Backend) stat(ctx context.Context, key string) (fetcher.Info, error) {
	p, err := b.get(ctx, key, "bytes=0-0", "")
	if is(err, codeInvalidRange) { // it is empty
		p, err = b.get(ctx, key, "", "")
	}
	if err != nil {
		return fetcher.Info{}, err
	}
	_, _ = io.CopyN(io.Discard, p.body, 2) // so that the connection can be used again
	p.body.Close()
	return p.info, nil
}

// part is what a GET answers.
type part struct {
	body io.ReadCloser
	info fetcher.Info
	off  int64 // of its first byte
}

// get asks for an object, for a range of it, for one version of it.
func (b *Backend) get(ctx context.Context, key, span, version string) (part, error) {
	name, err := b.object(ctx, key)
	if err != nil {
		return part{}, err
	}
	in := &s3.GetObjectInput{Bucket: &b.cfg.Bucket, Key: name}
	if span != "" {
		in.Range = &span
	}
	if version != "" {
		in.IfMatch = quoted(version)
	}
	out, err := b.client.GetObject(ctx, in)
	if err := asked(ctx, err); err != nil {
		if errdefs.IsPermissionDenied(err) {
			err = fmt.Errorf("%w (without s3:ListBucket this is also said of what is not there)", err)
		}
		return part{}, err
	}
	p := part{out.Body, fetcher.Info{Key: key, Size: -1, Version: unquoted(out.ETag), Modified: aws.ToTime(out.LastModified)}, 0}
	if out.ContentRange != nil {
		p.off, p.info.Size, err = contentRange(*out.ContentRange)
	} else if out.ContentLength != nil {
		p.info.Size = *out.ContentLength
	}
	switch {
	case err != nil:
	case p.info.Size < 0:
		err = errors.New("it does not say the object's size")
	case p.info.Version == "":
		err = errors.New("it has no ETag")
	case version != "" && p.info.Version != version:
		err = fmt.Errorf("it has another version, %q", p.info.Version)
	}
	if err != nil {
		out.Body.Close()
		return part{}, fmt.Errorf("the storage's answer: %w: %w", err, errdefs.ErrUnavailable)
	}
	return p, nil
}

// contentRange reads "bytes 5-9/100".
func contentRange(v string) (start, size int64, err error) {
	bad := fmt.Errorf("Content-Range %q", clean(v))
	spec, ok := strings.CutPrefix(v, "bytes ")
	span, total, ok2 := strings.Cut(spec, "/")
	first, last, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, bad
	}
	start, err1 := strconv.ParseInt(first, 10, 64)
	end, err2 := strconv.ParseInt(last, 10, 64)
	size, err3 := strconv.ParseInt(total, 10, 64)
	if err1 != nil || err2 != nil || err3 != nil || start < 0 || end < start || size <= end {
		return 0, 0, bad
	}
	return start, size, nil
}

// Open implements fetcher.Backend.
func (b *Backend) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	r, err := b.open(ctx, key, off, n)
	if err != nil {
		return nil, fetcher.Info{}, b.fail("reading", key, err)
	}
	return r, r.info, nil
}

func (b *Backend) open(ctx context.Context, key string, off, n int64) (*reader, error) {
	if _, err := b.object(ctx, key); err != nil {
		return nil, err
	}
	if off < 0 {
		return nil, fmt.Errorf("offset %d is negative: %w", off, errdefs.ErrOutOfRange)
	}
	if n == 0 || off >= maxOffset {
		return b.openAtEnd(ctx, key, off)
	}
	end := int64(-1)
	if n > 0 && n < maxOffset-off {
		end = off + n
	}
	p, err := b.get(ctx, key, span(off, end), "")
	if is(err, codeInvalidRange) {
		return b.openAtEnd(ctx, key, off)
	}
	if err == nil && p.off != off {
		p.body.Close()
		err = fmt.Errorf("the storage answers from %d on instead of %d: %w", p.off, off, errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, err
	}
	if end < 0 || end > p.info.Size {
		end = p.info.Size
	}
	return &reader{ctx: ctx, b: b, info: p.info, body: p.body, off: off, end: end}, nil
}

// openAtEnd returns a reader of nothing, unless off is beyond the end.
func (b *Backend) openAtEnd(ctx context.Context, key string, off int64) (*reader, error) {
	info, err := b.stat(ctx, key)
	if err != nil {
		return nil, err
	}
	if off > info.Size {
		return nil, fmt.Errorf("offset %d is outside of %d bytes: %w", off, info.Size, errdefs.ErrOutOfRange)
	}
	return &reader{ctx: ctx, b: b, info: info, off: off, end: off}, nil
}

// span returns a Range of what begins at off and ends before end; negative: at the object's end.
func span(off, end int64) string {
	switch {
	case end >= 0:
		return fmt.Sprintf("bytes=%d-%d", off, end-1)
	case off > 0:
		return fmt.Sprintf("bytes=%d-", off)
	}
	return ""
}

// reader is a range of one version of an object. It survives broken connections.
type reader struct {
	ctx      context.Context
	b        *Backend
	info     fetcher.Info
	body     io.ReadCloser // nil: to be asked for at off
	off, end int64
	resumes  int   // in a row, without a byte
	err      error // for good
}

func (r *reader) Read(p []byte) (int, error) {
	for {
		if r.err == nil && r.ctx.Err() != nil {
			r.fail(r.ctx.Err())
		}
		if r.err != nil {
			return 0, r.err
		}
		if r.off == r.end {
			return 0, io.EOF
		}
		if len(p) == 0 {
			return 0, nil
		}
		if r.body == nil {
			r.resume()
			continue
		}
		n, err := r.body.Read(p[:min(int64(len(p)), r.end-r.off)])
		r.off += int64(n)
		if n > 0 {
			r.resumes = 0
		}
		if err != nil && r.off < r.end {
			r.breakOff(err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

func (r *reader) fail(err error) { r.err = r.b.fail("reading", r.info.Key, err) }

// breakOff gives up an answer that failed or ended too early.
func (r *reader) breakOff(err error) {
	r.body.Close()
	r.body = nil
	if r.resumes++; r.resumes > maxResumes && r.ctx.Err() == nil {
		r.fail(fmt.Errorf("broken off at %d: %w: %w: %w", r.off, innermost(err), io.ErrUnexpectedEOF, errdefs.ErrUnavailable))
	}
}

// resume asks for what is missing, of the same version.
func (r *reader) resume() {
	p, err := r.b.get(r.ctx, r.info.Key, span(r.off, r.end), r.info.Version)
	var f *failure
	switch {
	case err == nil && p.off != r.off:
		p.body.Close()
		err = fmt.Errorf("the storage answers from %d on instead of %d: %w", p.off, r.off, errdefs.ErrUnavailable)
	case err == nil:
		r.body = p.body
		return
	case errors.As(err, &f) && (f.status == http.StatusPreconditionFailed || f.code == codeNoSuchKey || f.code == codeInvalidRange):
		err = fmt.Errorf("it was replaced or deleted meanwhile: %w", err)
	}
	if r.ctx.Err() == nil {
		err = fmt.Errorf("%w: %w", err, io.ErrUnexpectedEOF)
	}
	r.fail(fmt.Errorf("reading on at %d: %w", r.off, err))
}

func (r *reader) Close() error {
	if r.body == nil {
		return nil
	}
	return r.body.Close()
}
