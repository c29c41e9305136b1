package gcs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/storage/v1"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/internal/httpobject"
)

// objectFields are what is asked of an object's metadata.
const objectFields googleapi.Field = "name,size,generation,updated,crc32c,metadata"

// infoOf returns what the storage says of an object.
func infoOf(key string, o *storage.Object) (fetcher.Info, error) {
	if o.Generation <= 0 || o.Size > math.MaxInt64 {
		return fetcher.Info{}, fmt.Errorf("the storage says that it has generation %d and %d bytes: %w",
			o.Generation, o.Size, errdefs.ErrUnavailable)
	}
	info := fetcher.Info{Key: key, Size: int64(o.Size), Version: versionOf(o.Generation)}
	info.Modified, _ = time.Parse(time.RFC3339, o.Updated)
	return info, nil
}

func versionOf(generation int64) string { return strconv.FormatInt(generation, 10) }

// Stat implements fetcher.Backend.
func (b *Backend) Stat(ctx context.Context, key string) (fetcher.Info, error) {
	var info fetcher.Info
	name, err := b.object(key)
	if err == nil {
		var o *storage.Object
		if o, err = b.get(ctx, name); err == nil {
			info, err = infoOf(key, o)
		}
	}
	if err != nil {
		return fetcher.Info{}, b.fail("looking for", key, err)
	}
	return info, nil
}

// get asks for an object's metadata.
func (b *Backend) get(ctx context.Context, name string) (o *storage.Object, err error) {
	err = b.ask(ctx, func(s *api) (err error) {
		o, err = s.Objects.Get(b.cfg.Bucket, name).Fields(objectFields).Context(ctx).Do()
		return err
	})
	switch {
	case statusOf(err) == http.StatusNotFound:
		return nil, b.missing(ctx, err)
	case err != nil:
		return nil, err
	}
	b.answered()
	_, err = infoOf("", o)
	return o, err
}

// Open implements fetcher.Backend. It costs one request. A reader whose connection breaks goes on
// with the same generation; if that is gone it fails.
func (b *Backend) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	r, info, err := b.open(ctx, key, off, n)
	if err != nil {
		return nil, fetcher.Info{}, b.fail("reading", key, err)
	}
	return r, info, nil
}

func (b *Backend) open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	name, err := b.object(key)
	if err != nil {
		return nil, fetcher.Info{}, err
	}
	d := &download{b: b, name: name}
	o := &httpobject.Object{
		Send:      d.send,
		Fail:      func(op string, err error) error { return b.fail(op, key, err) },
		Immutable: true, // a generation is
	}
	r, info, err := o.Open(ctx, off, n)
	if err != nil {
		return nil, fetcher.Info{}, err
	}
	return r, fetcher.Info{Key: key, Size: info.Size, Version: versionOf(d.generation), Modified: info.Modified}, nil
}

// download is an object that is read: of any generation at first, and then of that one only.
type download struct {
	b          *Backend
	name       string
	generation int64 // 0: any
}

// send is for an httpobject.Object.
func (d *download) send(ctx context.Context, r httpobject.Request) (*http.Response, error) {
	if r.Method == http.MethodHead {
		return d.head(ctx)
	}
	var resp *http.Response
	err := d.b.ask(ctx, func(s *api) (err error) {
		call := s.Objects.Get(d.b.cfg.Bucket, d.name).Context(ctx)
		if v := r.Header.Get("Range"); v != "" {
			call.Header().Set("Range", v)
		}
		if d.generation != 0 {
			call.Generation(d.generation)
		}
		resp, err = call.Download() //nolint:bodyclose // closed below, or by whom it is given to
		return err
	})
	var status *httpobject.StatusError
	switch {
	case errors.As(err, &status) && status.Code == http.StatusRequestedRangeNotSatisfiable:
		return &http.Response{StatusCode: status.Code, Header: status.Header, Body: http.NoBody}, nil
	case err != nil:
		return nil, d.gone(ctx, err)
	}
	d.b.answered()
	if e := resp.Header.Get("X-Goog-Stored-Content-Encoding"); e != "" && e != "identity" {
		resp.Body.Close()
		return nil, fmt.Errorf("it was stored with Content-Encoding %.40q, and is not sent as it is: %w", e, errdefs.ErrFailedPrecondition)
	}
	generation, err := strconv.ParseInt(resp.Header.Get("X-Goog-Generation"), 10, 64)
	if err != nil || generation <= 0 || d.generation != 0 && d.generation != generation {
		resp.Body.Close()
		return nil, fmt.Errorf("generation %.40q instead of %d is sent: %w",
			resp.Header.Get("X-Goog-Generation"), d.generation, errdefs.ErrUnavailable)
	}
	d.generation = generation
	return resp, nil
}

// head answers with the metadata.
func (d *download) head(ctx context.Context) (*http.Response, error) {
	o, err := d.b.get(ctx, d.name)
	if err != nil {
		return nil, d.gone(ctx, err)
	}
	info, err := infoOf("", o)
	if err != nil {
		return nil, err
	}
	if d.generation == 0 {
		d.generation = o.Generation
	} else if d.generation != o.Generation {
		return nil, errChanged
	}
	h := http.Header{"Last-Modified": {info.Modified.UTC().Format(http.TimeFormat)}}
	return &http.Response{StatusCode: http.StatusOK, Header: h, ContentLength: info.Size, Body: http.NoBody}, nil
}

var errChanged = fmt.Errorf("it was replaced or deleted while it was being read: %w: %w", io.ErrUnexpectedEOF, errdefs.ErrUnavailable)

// gone says what a 404 means: of a generation that was being read, nothing about the object.
func (d *download) gone(ctx context.Context, err error) error {
	switch {
	case statusOf(err) != http.StatusNotFound:
		return err
	case d.generation != 0:
		return errChanged
	}
	return d.b.missing(ctx, err)
}

// maxPage is how many objects a request lists.
const maxPage = 1000

// List implements fetcher.Backend. Objects whose names are no keys are not listed.
func (b *Backend) List(ctx context.Context, prefix, after string, limit int) ([]fetcher.Info, bool, error) {
	page, more, err := b.list(ctx, prefix, after, limit)
	if err != nil {
		return nil, false, b.fail("listing", prefix, err)
	}
	return page, more, nil
}

func (b *Backend) list(ctx context.Context, prefix, after string, limit int) (page []fetcher.Info, more bool, err error) {
	if prefix != "" {
		if prefix[len(prefix)-1] != '/' {
			return nil, false, fmt.Errorf("prefix %q does not end in \"/\": %w", prefix, errdefs.ErrInvalidArgument)
		}
		if _, err := b.object(prefix[:len(prefix)-1]); err != nil {
			return nil, false, err
		}
	}
	if limit < 1 || limit > maxPage {
		limit = maxPage
	}
	token := ""
	for {
		l, err := b.page(ctx, prefix, after, limit, token)
		if err != nil {
			return nil, false, err
		}
		for _, o := range l.Items {
			key, ok := strings.CutPrefix(o.Name, b.cfg.Prefix)
			if !ok || key <= after || fetcher.CheckKey(key) != nil {
				continue
			}
			if len(page) == limit {
				return page, true, nil
			}
			info, err := infoOf(key, o)
			if err != nil {
				return nil, false, fmt.Errorf("%s: %w", key, err)
			}
			page = append(page, info)
		}
		if token = l.NextPageToken; token == "" {
			return page, false, nil
		}
	}
}

// page asks for one more object than limit, if it may, to see whether there are more.
func (b *Backend) page(ctx context.Context, prefix, after string, limit int, token string) (l *storage.Objects, err error) {
	err = b.ask(ctx, func(s *api) (err error) {
		call := s.Objects.List(b.cfg.Bucket).Prefix(b.cfg.Prefix+prefix).MaxResults(int64(min(limit+1, maxPage))).
			Fields("nextPageToken", "items(name,size,generation,updated)").Context(ctx)
		if start := startAfter(after); start != "" {
			call.StartOffset(b.cfg.Prefix + start)
		}
		if token != "" {
			call.PageToken(token)
		}
		l, err = call.Do()
		return err
	})
	switch {
	case statusOf(err) == http.StatusNotFound:
		return nil, b.noBucket()
	case err != nil:
		return nil, err
	}
	b.answered()
	return l, nil
}

// startAfter returns where a list begins that has the keys after a string: it begins with what has that very
// name. No key has a character below "!", and what is not UTF-8 or has such a character is cut before it: then
// the list has some that are not wanted.
func startAfter(after string) string {
	for i, r := range after {
		if r == utf8.RuneError || r < '!' {
			return after[:i]
		}
	}
	if after == "" {
		return ""
	}
	return after + "!"
}
