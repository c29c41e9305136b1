package httpobject

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/containerd/errdefs"
)

// Request is a HEAD or a GET of an object.
type Request struct {
	Method string
	Header http.Header // to be added; may be nil
	Accept []int       // statuses that are answers besides 200
}

// Object is what a server has. Its methods may be called concurrently if its functions
// may. It must not change while they are.
type Object struct {
	// Send sends a request, again if need be, and returns an answer with status 200 or
	// one of Accept. Each Read of its body has to end in time. Its errors have classes.
	Send func(context.Context, Request) (*http.Response, error)
	// Fail wraps the errors of a reader: it says whose they are, and what failed.
	Fail func(op string, err error) error
	// Known returns the size if it is known from before, and Told is told it. nil: nobody
	// remembers.
	Known func() (size int64, ok bool)
	Told  func(size int64)
	// Immutable: its name can only ever mean the same bytes, so that no version is looked at.
	Immutable bool
	// HeadRefused are the statuses besides 405 and 501 that say nothing about the object if
	// a HEAD is answered so: a GET is asked instead.
	HeadRefused []int
}

// Info is what an answer says of an object.
type Info struct {
	Size     int64     // bytes; -1: it does not say
	Modified time.Time // zero: it does not say
}

// Stat asks for the size: by HEAD, or by GET of a byte if that is refused or has no size.
func (o *Object) Stat(ctx context.Context) (Info, error) {
	resp, err := o.Send(ctx, Request{Method: http.MethodHead})
	var status *StatusError
	switch {
	case err == nil:
		resp.Body.Close()
		if err := plain(resp); err != nil {
			return Info{}, err
		}
		if info := o.info(resp, resp.ContentLength); info.Size >= 0 {
			return info, nil
		}
	case !errors.As(err, &status) || status.Code != http.StatusMethodNotAllowed && status.Code != http.StatusNotImplemented &&
		!slices.Contains(o.HeadRefused, status.Code):
		return Info{}, err
	}
	p, err := o.get(ctx, 0, 1, version{})
	if err != nil {
		return Info{}, err
	}
	p.body.Close()
	return p.info, nil
}

// info returns what an answer tells of the object whose size is that, and remembers it.
func (o *Object) info(resp *http.Response, size int64) Info {
	if size >= 0 && o.Told != nil {
		o.Told(size)
	}
	i := Info{Size: max(size, -1)}
	if resp != nil {
		i.Modified, _ = http.ParseTime(resp.Header.Get("Last-Modified"))
	}
	return i
}

// plain reports an answer whose bytes are not the object's, because they are compressed,
// although that was not asked for.
func plain(resp *http.Response) error {
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return fmt.Errorf("the server sends it with Content-Encoding %.40q instead of as it is: that must be turned off there: %w",
			e, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// part is an answer with an object's bytes, from the offset on that was asked for.
type part struct {
	body    io.ReadCloser
	info    Info
	version version
	skipped bool // what comes before the offset came, too
}

// get asks for n bytes of the object from off on; a negative n: to its end. The answer
// may go beyond these bytes, or end before them. If want is of a version it is that one's.
func (o *Object) get(ctx context.Context, off, n int64, want version) (part, error) {
	size, known := int64(-1), false
	if o.Known != nil {
		size, known = o.Known()
	}
	if n == 0 && !known {
		info, err := o.Stat(ctx)
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
				// Somebody may have deleted the object, or may not read it; but no byte is told.
				return part{body: http.NoBody, info: o.info(nil, size)}, nil
			}
		}
		r := Request{Method: http.MethodGet}
		asked := rangeOf(off, n, size, known)
		if try == 2 {
			asked = "" // it refuses ranges with an end, too
		}
		if asked != "" {
			r.Header = http.Header{"Range": {asked}}
			if v := want.condition(); v != "" {
				r.Header.Set("If-Range", v)
			}
			r.Accept = []int{http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable}
		}
		resp, err := o.Send(ctx, r)
		if err != nil {
			return part{}, err
		}
		switch resp.StatusCode {
		case http.StatusOK:
			return o.whole(resp, off, want)
		case http.StatusPartialContent:
			return o.partial(resp, off, want)
		}
		resp.Body.Close()
		if try == 2 {
			return part{}, fmt.Errorf("status %d to a request without a range: %w", resp.StatusCode, errdefs.ErrUnavailable)
		}
		// 416: beyond the end, or a kind of range that it does not know.
		if _, size, err = contentRange(resp.Header.Get("Content-Range")); err != nil || size < 0 {
			info, err := o.head(ctx)
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

// head is a Stat that asks for no range, for those who do not know ranges; a size of -1 if
// it knows no HEAD, either.
func (o *Object) head(ctx context.Context) (Info, error) {
	resp, err := o.Send(ctx, Request{Method: http.MethodHead})
	var status *StatusError
	if errors.As(err, &status) && (status.Code == http.StatusMethodNotAllowed || status.Code == http.StatusNotImplemented ||
		slices.Contains(o.HeadRefused, status.Code)) {
		return Info{Size: -1}, nil
	}
	if err != nil {
		return Info{}, err
	}
	resp.Body.Close()
	return o.info(resp, resp.ContentLength), nil
}

// whole is an answer that begins at 0, whether or not that was asked for.
func (o *Object) whole(resp *http.Response, off int64, want version) (part, error) {
	v := versionOf(resp, resp.ContentLength)
	err := plain(resp)
	if err == nil {
		err = want.check(v)
	}
	if err == nil && resp.ContentLength >= 0 {
		err = inside(off, resp.ContentLength)
	}
	if err != nil {
		resp.Body.Close()
		return part{}, err
	}
	info := o.info(resp, resp.ContentLength)
	if n, err := io.CopyN(io.Discard, resp.Body, off); err != nil {
		resp.Body.Close()
		if err == io.EOF && info.Size < 0 {
			return part{}, inside(off, o.info(resp, n).Size)
		}
		return part{}, &NetworkError{fmt.Errorf("skipping to %d: %w", off, unexpected(err))}
	}
	return part{resp.Body, info, v, off > 0}, nil
}

func (o *Object) partial(resp *http.Response, off int64, want version) (part, error) {
	start, size, err := contentRange(resp.Header.Get("Content-Range"))
	if err == nil && (start != off || size >= 0 && off >= size) {
		err = fmt.Errorf("it is from %d, not %d: %w", start, off, errdefs.ErrUnavailable)
	}
	if err != nil {
		resp.Body.Close()
		return part{}, fmt.Errorf("the range that it sends: %w", err)
	}
	v := versionOf(resp, size)
	if err = plain(resp); err == nil {
		err = want.check(v)
	}
	if err != nil {
		resp.Body.Close()
		return part{}, err
	}
	return part{resp.Body, o.info(resp, size), v, false}, nil
}
