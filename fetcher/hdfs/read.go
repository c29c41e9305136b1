package hdfs

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
)

// maxResumes is how often in a row a reader begins anew without getting a byte.
const maxResumes = 3

// Open implements fetcher.Backend. Files are read by the numbers of their inodes, so that what
// is replaced meanwhile is not taken for what Info is about. A reader whose file
// is replaced or deleted fails when it needs another connection, and perhaps sooner.
func (b *Backend) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	r, st, err := b.open(ctx, key, off, n)
	if err != nil {
		return nil, fetcher.Info{}, b.fail("reading", key, err)
	}
	return r, infoOf(key, st), nil
}

func (b *Backend) open(ctx context.Context, key string, off, n int64) (*reader, fileStatus, error) {
	path, err := b.locate(ctx, key)
	if err != nil {
		return nil, fileStatus{}, err
	}
	for range maxPlaces {
		st, err := b.file(ctx, path)
		if err != nil {
			return nil, st, err
		}
		if off < 0 || off > st.Length {
			return nil, st, fmt.Errorf("offset %d is outside of %d bytes: %w", off, st.Length, errdefs.ErrOutOfRange)
		}
		end := st.Length
		if n >= 0 && n < end-off {
			end = off + n
		}
		r := &reader{ctx: ctx, b: b, key: key, path: path, file: st, body: http.NoBody, off: off, end: end}
		if end == off {
			return r, st, nil
		}
		if r.body, err = b.fetch(ctx, path, st, off, end-off); err == nil {
			return r, st, nil
		}
		if err != errReplaced {
			return nil, st, err
		}
	}
	return nil, fileStatus{}, fmt.Errorf("the object is replaced again and again: %w", errdefs.ErrUnavailable)
}

// errReplaced says that a path is no more the file's that is to be read.
var errReplaced = fmt.Errorf("the object was replaced or deleted meanwhile: %w", errdefs.ErrUnavailable)

// fetch returns bytes of a file from off on, n at most. There may be less.
func (b *Backend) fetch(ctx context.Context, path string, st fileStatus, off, n int64) (io.ReadCloser, error) {
	if st.FileID > 0 && !b.noInodes.Load() {
		body, err := b.data(ctx, "/.reserved/.inodes/"+strconv.FormatInt(st.FileID, 10), off, n)
		if !errdefs.IsNotFound(err) {
			return body, err
		}
		if err := b.still(ctx, path, st); err != nil {
			return nil, err
		}
		b.noInodes.Store(true) // a router, perhaps
	}
	body, err := b.data(ctx, path, off, n)
	if errdefs.IsNotFound(err) {
		return nil, errReplaced
	}
	if err != nil {
		return nil, err
	}
	// Whoever sends these bytes had opened the file before this.
	if err := b.still(ctx, path, st); err != nil {
		body.Close()
		return nil, err
	}
	return body, nil
}

// still returns errReplaced if a path is no more the file's.
func (b *Backend) still(ctx context.Context, path string, st fileStatus) error {
	now, err := b.status(ctx, path)
	if errdefs.IsNotFound(err) || err == nil && !now.same(st) {
		return errReplaced
	}
	return err
}

// data asks for bytes: HttpFS sends them itself, a namenode names a datanode.
func (b *Backend) data(ctx context.Context, path string, off, n int64) (io.ReadCloser, error) {
	var bad excluded
	for try := 1; ; try++ {
		q := url.Values{"offset": {strconv.FormatInt(off, 10)}, "length": {strconv.FormatInt(n, 10)}}
		resp, err := b.sendBut(ctx, request{method: http.MethodGet, op: "OPEN", path: path, query: q, redirects: true}, bad)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusOK {
			return resp.Body, nil
		}
		resp.Body.Close()
		at, err := place(resp)
		if err != nil {
			return nil, err
		}
		body, err := b.dataAt(ctx, at)
		if err == nil || ctx.Err() != nil || try == maxPlaces || !errdefs.IsUnavailable(err) {
			return body, err
		}
		bad.remember(at, err)
	}
}

func (b *Backend) dataAt(ctx context.Context, at *url.URL) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("datanode %s: %w", at.Host, errdefs.ErrUnavailable) // err has the URL, and that a token
	}
	resp, err := b.do(req)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = failure(resp)
	}
	if err != nil {
		return nil, fmt.Errorf("datanode %s: %w", at.Host, err)
	}
	return resp.Body, nil
}

// reader is a range of a file. It survives broken connections.
type reader struct {
	ctx      context.Context
	b        *Backend
	key      string
	path     string
	file     fileStatus
	body     io.ReadCloser // nil: to be opened at off
	off, end int64
	resumes  int   // in a row, without a byte
	err      error // for good
}

func (r *reader) Read(p []byte) (int, error) {
	for {
		if r.err == nil && r.ctx.Err() != nil {
			r.err = r.b.fail("reading", r.key, r.ctx.Err())
		}
		if r.err != nil {
			return 0, r.err
		}
		if r.off == r.end {
			return 0, io.EOF
		}
		n, err := r.read(p[:min(int64(len(p)), r.end-r.off)])
		r.off += int64(n)
		if n > 0 {
			r.resumes = 0
		}
		if err != nil && r.off < r.end {
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
		body, err := r.b.fetch(r.ctx, r.path, r.file, r.off, r.end-r.off)
		if err != nil {
			if r.ctx.Err() == nil {
				err = fmt.Errorf("at %d: %w: %w", r.off, io.ErrUnexpectedEOF, err)
			}
			r.err = r.b.fail("reading on", r.key, err)
			return 0, nil
		}
		r.body = body
	}
	return r.body.Read(p)
}

// breakOff gives up an answer that failed or ended too early.
func (r *reader) breakOff(err error) {
	r.body.Close()
	r.body = nil
	if r.resumes++; r.resumes > maxResumes {
		r.err = r.b.fail("reading", r.key, &networkError{fmt.Errorf("broken off at %d: %w", r.off, unexpected(err))})
	}
}

func (r *reader) Close() error {
	if r.body == nil {
		return nil
	}
	return r.body.Close()
}
