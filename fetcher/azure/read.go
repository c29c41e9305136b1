package azure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/internal/httpobject"
)

// infoOf returns what the storage says of a blob.
func infoOf(key string, size *int64, etag *azcore.ETag, modified *time.Time) (fetcher.Info, error) {
	info := fetcher.Info{Key: key}
	if size == nil || *size < 0 || etag == nil || versionOf(string(*etag)) == "" {
		return fetcher.Info{}, fmt.Errorf("the storage does not say its size and its ETag: %w", errdefs.ErrUnavailable)
	}
	info.Size, info.Version = *size, versionOf(string(*etag))
	if modified != nil {
		info.Modified = *modified
	}
	return info, nil
}

// versionOf returns an ETag without its quotes, which lists do not have; "": it is none.
func versionOf(etag string) string {
	v := strings.TrimSuffix(strings.TrimPrefix(etag, `"`), `"`)
	for i := range len(v) {
		if v[i] <= ' ' || v[i] >= 0x7f || v[i] == '"' || v[i] == '*' {
			return ""
		}
	}
	return v
}

// Stat implements fetcher.Backend.
func (b *Backend) Stat(ctx context.Context, key string) (fetcher.Info, error) {
	name, err := b.name(key)
	if err == nil {
		var p blob.GetPropertiesResponse
		if p, err = b.properties(ctx, name, b.ask); err == nil {
			var info fetcher.Info
			if info, err = infoOf(key, p.ContentLength, p.ETag, p.LastModified); err == nil {
				return info, nil
			}
		}
	}
	return fetcher.Info{}, b.fail("looking for", key, err)
}

// properties asks for what is known of a blob: ask says how often.
func (b *Backend) properties(
	ctx context.Context, name string, ask func(context.Context, func() error) error,
) (p blob.GetPropertiesResponse, err error) {
	c, err := b.connect()
	if err != nil {
		return p, err
	}
	blobs := c.NewBlobClient(name)
	err = ask(ctx, func() (err error) {
		p, err = blobs.GetProperties(ctx, nil)
		return err
	})
	return p, err
}

// Open implements fetcher.Backend. It costs one request. A reader whose connection breaks goes on
// with the same version; if that is gone it fails.
func (b *Backend) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	r, info, err := b.open(ctx, key, off, n)
	if err != nil {
		return nil, fetcher.Info{}, b.fail("reading", key, err)
	}
	return r, info, nil
}

func (b *Backend) open(ctx context.Context, key string, off, n int64) (io.ReadCloser, fetcher.Info, error) {
	name, err := b.name(key)
	if err != nil {
		return nil, fetcher.Info{}, err
	}
	d := &download{b: b, name: name}
	o := &httpobject.Object{
		Send:      d.send,
		Fail:      func(op string, err error) error { return b.fail(op, key, err) },
		Immutable: true, // a version is
	}
	r, info, err := o.Open(ctx, off, n)
	if err != nil {
		return nil, fetcher.Info{}, err
	}
	return r, fetcher.Info{Key: key, Size: info.Size, Version: d.version, Modified: info.Modified}, nil
}

// download is a blob that is read: of any version at first, and then of that one only.
type download struct {
	b       *Backend
	name    string
	version string // "": any
}

// send is for an httpobject.Object.
func (d *download) send(ctx context.Context, r httpobject.Request) (*http.Response, error) {
	if r.Method == http.MethodHead {
		return d.head(ctx)
	}
	c, err := d.b.connect()
	if err != nil {
		return nil, err
	}
	o := &blob.DownloadStreamOptions{}
	if v := r.Header.Get("Range"); v != "" {
		var last int64
		switch n, _ := fmt.Sscanf(v, "bytes=%d-%d", &o.Range.Offset, &last); n {
		case 2:
			o.Range.Count = last - o.Range.Offset + 1
		case 0:
			return nil, fmt.Errorf("range %q: %w", v, errdefs.ErrInvalidArgument)
		}
	}
	if d.version != "" {
		o.AccessConditions = conditions(d.version)
	}
	blobs := c.NewBlobClient(d.name)
	var resp *http.Response
	err = d.b.ask(ctx, func() error {
		_, err := blobs.DownloadStream(policy.WithCaptureResponse(ctx, &resp), o)
		return err
	})
	var status *failure
	switch {
	case errors.As(err, &status) && status.status == http.StatusRequestedRangeNotSatisfiable:
		return &http.Response{StatusCode: status.status, Header: resp.Header, Body: http.NoBody}, nil
	case d.version != "" && (lost(err) || errdefs.IsNotFound(err)):
		return nil, errChanged
	case err != nil:
		return nil, err
	}
	version := versionOf(resp.Header.Get("ETag"))
	if version == "" || d.version != "" && d.version != version {
		resp.Body.Close()
		return nil, fmt.Errorf("version %.40q instead of %q is sent: %w", version, d.version, errdefs.ErrUnavailable)
	}
	d.version = version
	if resp.StatusCode == http.StatusPartialContent && resp.ContentLength == 0 { // azurite's for a range after the end
		resp.Body.Close()
		_, size, _ := strings.Cut(resp.Header.Get("Content-Range"), "/")
		h := http.Header{"Content-Range": {"bytes */" + size}}
		return &http.Response{StatusCode: http.StatusRequestedRangeNotSatisfiable, Header: h, Body: http.NoBody}, nil
	}
	return resp, nil
}

// head answers with the properties.
func (d *download) head(ctx context.Context) (*http.Response, error) {
	p, err := d.b.properties(ctx, d.name, d.b.ask)
	var info fetcher.Info
	if err == nil {
		info, err = infoOf("", p.ContentLength, p.ETag, p.LastModified)
	}
	switch {
	case d.version != "" && (errdefs.IsNotFound(err) || err == nil && d.version != info.Version):
		return nil, errChanged
	case err != nil:
		return nil, err
	}
	d.version = info.Version
	h := http.Header{"Last-Modified": {info.Modified.UTC().Format(http.TimeFormat)}}
	return &http.Response{StatusCode: http.StatusOK, Header: h, ContentLength: info.Size, Body: http.NoBody}, nil
}

// maxPage is how many objects a List has.
const maxPage = 1000

// List implements fetcher.Backend. Blobs whose names are no keys are not listed.
func (b *Backend) List(ctx context.Context, prefix, after string, limit int) ([]fetcher.Info, bool, error) {
	page, more, err := b.list(ctx, prefix, after, limit)
	if err != nil {
		return nil, false, b.fail("listing", prefix, err)
	}
	return page, more, nil
}

func (b *Backend) list(ctx context.Context, prefix, after string, limit int) (page []fetcher.Info, more bool, err error) {
	if prefix != "" {
		dir, ok := strings.CutSuffix(prefix, "/")
		if !ok {
			return nil, false, fmt.Errorf("prefix %q does not end in \"/\": %w", prefix, errdefs.ErrInvalidArgument)
		}
		if _, err := b.name(dir); err != nil {
			return nil, false, err
		}
	}
	if limit < 1 || limit > maxPage {
		limit = maxPage
	}
	c, err := b.connect()
	if err != nil {
		return nil, false, err
	}
	o := &container.ListBlobsFlatOptions{Prefix: to.Ptr(b.cfg.Prefix + prefix), MaxResults: to.Ptr(int32(limit + 1))}
	if start := startAfter(after); start != "" {
		o.StartFrom = to.Ptr(b.cfg.Prefix + start)
	}
	for last := ""; ; {
		var l container.ListBlobsFlatResponse
		if err := b.ask(ctx, func() (err error) {
			l, err = c.NewListBlobsFlatPager(o).NextPage(ctx)
			return err
		}); err != nil {
			return nil, false, b.explained(err)
		}
		if l.Segment == nil {
			return nil, false, fmt.Errorf("it is no list: %w", errdefs.ErrUnavailable)
		}
		for _, item := range l.Segment.BlobItems {
			if item == nil || item.Name == nil || item.Properties == nil {
				continue
			}
			key, ok := strings.CutPrefix(*item.Name, b.cfg.Prefix)
			if !ok || key <= after || fetcher.CheckKey(key) != nil {
				continue
			}
			if key <= last {
				return nil, false, fmt.Errorf("%q is listed after %q: has the account a hierarchical namespace?: %w",
					key, last, errdefs.ErrFailedPrecondition)
			}
			if last = key; len(page) == limit {
				return page, true, nil
			}
			info, err := infoOf(key, item.Properties.ContentLength, item.Properties.ETag, item.Properties.LastModified)
			if err != nil {
				return nil, false, fmt.Errorf("%s: %w", key, err)
			}
			page = append(page, info)
		}
		if l.NextMarker == nil || *l.NextMarker == "" {
			return page, false, nil
		}
		o.Marker = l.NextMarker
	}
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
