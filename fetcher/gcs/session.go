package gcs

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/storage/v1"

	"github.com/capelin-io/capelin/fetcher/parts"
	"github.com/capelin-io/capelin/internal/daemon/version"
	"github.com/capelin-io/capelin/internal/httpobject"
)

// session is a resumable upload: an object comes in chunks, one after the other, and is there when its last one
// is. A chunk may be sent again: the storage passes over the bytes that it has. What is not ended
// is removed by the storage after a week.
//
// The library has such sessions, too, but takes memory for a chunk without asking a budget, and believes that
// the storage keeps all of each chunk, which it need not.
type session struct {
	*writing
	uri string // with a secret
}

// begin begins a session.
func (w *writing) begin(ctx context.Context) (*session, error) {
	meta, err := json.Marshal(w.meta())
	if err != nil {
		return nil, err
	}
	q := url.Values{"uploadType": {"resumable"}, "name": {w.name}}
	u := fmt.Sprintf("%s/upload/storage/v1/b/%s/o?%s", w.b.cfg.Endpoint, url.PathEscape(w.b.cfg.Bucket), q.Encode())
	s := &session{writing: w}
	err = w.b.ask(ctx, func(a *api) error {
		resp, err := a.send(ctx, http.MethodPost, u, meta, http.Header{
			"Content-Type": {"application/json; charset=UTF-8"}, "X-Upload-Content-Type": {mediaType},
		})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if err := googleapi.CheckResponse(resp); err != nil {
			return err
		}
		if s.uri = resp.Header.Get("Location"); s.uri == "" {
			return fmt.Errorf("the storage does not say where an upload goes on: %w", errdefs.ErrUnavailable)
		}
		return nil
	})
	switch {
	case statusOf(err) == http.StatusNotFound:
		return nil, w.b.noBucket()
	case err != nil:
		return nil, fmt.Errorf("beginning an upload: %w", err)
	}
	w.b.answered()
	return s, nil
}

// send sends a request that the library has no call for.
func (a *api) send(ctx context.Context, method, url string, data []byte, h http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("the storage names no URL: %w", errdefs.ErrFailedPrecondition) // err has it, and its secret
	}
	req.Header = h
	req.Header.Set("User-Agent", version.Software())
	return a.client.Do(req)
}

// send sends a part, which is the next one; if it is the last it returns the object.
func (s *session) send(ctx context.Context, p parts.Part) (o *storage.Object, err error) {
	from, end := p.Offset, p.Offset+int64(len(p.Data))
	err = s.b.ask(ctx, func(a *api) error {
		for {
			done, next, err := s.chunk(ctx, a, p.Data[from-p.Offset:], from, p.Last)
			switch {
			case err != nil:
				return err
			case p.Last && done != nil:
				o = done
				return nil
			case done != nil || next < from || next > end:
				return fmt.Errorf("the storage has %d bytes, and was sent those from %d to %d: %w", next, from, end, errdefs.ErrFailedPrecondition)
			case next == end && !p.Last:
				return nil
			case next == from:
				return &httpobject.NetworkError{Err: fmt.Errorf("the storage kept nothing of what was sent from %d to %d", from, end)}
			}
			from = next // it may keep a part of what it was sent
		}
	})
	if err != nil && p.Last && (unclear(err) || statusOf(err) == http.StatusNotFound || statusOf(err) == http.StatusGone) {
		if own, oerr := s.own(ctx); oerr == nil && own != nil {
			o, err = own, nil // the answer was lost, and the session is over
		}
	}
	switch {
	case statusOf(err) == http.StatusNotFound, statusOf(err) == http.StatusGone:
		//nolint:errorlint // its class must not show
		return nil, fmt.Errorf("the storage gave up the upload at %d: %v: %w", from, err, errdefs.ErrUnavailable)
	case err != nil:
		return nil, fmt.Errorf("uploading from %d: %w", from, err)
	case p.Last:
		return s.verified(ctx, o, end)
	}
	return nil, nil
}

// verified returns the object if it has the bytes that were sent. Otherwise it is removed. Google's storage has compared
// them before it made the object.
func (s *session) verified(ctx context.Context, o *storage.Object, size int64) (*storage.Object, error) {
	if o.Size == uint64(size) && (o.Crc32c == "" || o.Crc32c == checksum(s.sum)) {
		return o, nil
	}
	err := fmt.Errorf("the storage has %d bytes with CRC32C %.20q of the %d with %q that were sent: %w",
		o.Size, o.Crc32c, size, checksum(s.sum), errdefs.ErrUnavailable)
	if rerr := s.b.remove(ctx, s.name, o.Generation); rerr != nil {
		err = fmt.Errorf("%w; and they could not be removed: %v", err, rerr) //nolint:errorlint // the first counts
	}
	return nil, err
}

// chunk sends bytes from an offset on, once. It returns the object if it is complete, or else how many bytes the
// storage has.
func (s *session) chunk(ctx context.Context, a *api, data []byte, from int64, last bool) (*storage.Object, int64, error) {
	end := from + int64(len(data))
	span, total := fmt.Sprintf("%d-%d", from, end-1), "*"
	if len(data) == 0 {
		span = "*"
	}
	h := http.Header{"Content-Type": {mediaType}}
	if last {
		total = strconv.FormatInt(end, 10)
		h.Set("X-Goog-Hash", "crc32c="+checksum(s.sum))
	}
	h.Set("Content-Range", "bytes "+span+"/"+total)
	resp, err := a.send(ctx, http.MethodPut, s.uri, data, h)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusPermanentRedirect { // here: goes on
		v := resp.Header.Get("Range")
		if v == "" {
			return nil, 0, nil
		}
		lastByte, ok := strings.CutPrefix(v, "bytes=0-")
		n, err := strconv.ParseInt(lastByte, 10, 63)
		if !ok || err != nil || n < 0 {
			return nil, 0, fmt.Errorf("the storage says that it has %.40q: %w", v, errdefs.ErrFailedPrecondition)
		}
		return nil, n + 1, nil
	}
	if err := googleapi.CheckResponse(resp); err != nil {
		return nil, 0, err
	}
	o := &storage.Object{}
	if err := json.NewDecoder(resp.Body).Decode(o); err != nil {
		return nil, 0, err
	}
	return o, end, nil
}
