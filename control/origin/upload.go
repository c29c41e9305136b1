package origin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/internal/httpclient"
)

// tagOf tells an origin's uploads from others'.
func tagOf(o *httpclient.Server) string {
	sum := sha256.Sum256([]byte(o.Base))
	return hex.EncodeToString(sum[:4])
}

// StartUpload is BeginUpload of what nobody owns.
func (c *Client) StartUpload(ctx context.Context, namespace string, d digest.Digest) (id string, err error) {
	return c.BeginUpload(ctx, NewUpload{Namespace: namespace, Digest: d})
}

// BeginUpload begins an upload to a namespace and returns its id, which is of
// lower-case hexadecimal digits and "-". It is begun where its blob belongs, if that is said; it may
// become another one. errdefs.ErrFailedPrecondition if no backend takes the namespace. An upload is
// at one origin, and at its mirrors if that is in a ring. After an error that is
// errdefs.ErrUnavailable, UploadOffset finds out where it goes on.
func (c *Client) BeginUpload(ctx context.Context, u NewUpload) (id string, err error) {
	if u.Namespace == "" {
		return "", fmt.Errorf("starting an upload: no namespace: %w", errdefs.ErrInvalidArgument)
	}
	if err := errors.Join(CheckNamespace(u.Namespace), CheckOwner(u.Owner)); err != nil {
		return "", fmt.Errorf("starting an upload: %w", err)
	}
	key, q := strconv.FormatUint(rand.Uint64(), 16), url.Values{ParamNamespace: {u.Namespace}}
	if CheckDigest(u.Digest) == nil { // else Commit will say so
		key = string(u.Digest)
		q.Set(ParamDigest, key)
	}
	if u.Owner != "" {
		q.Set(ParamOwner, u.Owner)
	}
	var errs []error
	for o := range c.http.Turns(ctx, c.order(key), false) { // none twice: it may have begun one and not said so
		at, err := c.startAt(ctx, o, q)
		for _, later := range []string{ParamOwner, ParamDigest} { // of which an earlier release does not know
			if errdefs.IsInvalidArgument(err) && q.Has(later) {
				q.Del(later)
				at, err = c.startAt(ctx, o, q)
			}
		}
		switch {
		case err == nil:
			return tagOf(o) + "-" + at, nil
		case errdefs.IsUnavailable(err):
			c.members.soon()
		case !errdefs.IsResourceExhausted(err): // another one may have room
			return "", err
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// startAt begins an upload at one origin, and returns the id that it has there.
func (c *Client) startAt(ctx context.Context, o *httpclient.Server, q url.Values) (string, error) {
	ctx, cancel := httpclient.Within(ctx, writeTimeout)
	defer cancel()
	resp, err := c.send(ctx, o, &httpclient.Request{Method: "POST", Path: PathUploads + "?" + q.Encode()})
	if err != nil {
		return "", err
	}
	resp.Body.Close()
	at := resp.Header.Get(HeaderUpload)
	if err := CheckUploadID(at); err != nil {
		return "", fmt.Errorf("origin %s: starting an upload: %w: %w", o.Base, err, errdefs.ErrUnavailable)
	}
	return at, nil
}

// Append writes what r has to an upload, at its offset; any other off is
// errdefs.ErrOutOfRange. It returns where the upload ends now. After an error a part
// may have been written: UploadOffset says how much. Only one Append at a time
// (errdefs.ErrConflict).
func (c *Client) Append(ctx context.Context, id string, off int64, r io.Reader) (end int64, err error) {
	o, path, err := c.upload(ctx, id)
	if err != nil {
		return 0, err
	}
	if off < 0 || off > MaxSize {
		return 0, fmt.Errorf("appending at %d to upload %s: %w", off, id, errdefs.ErrOutOfRange)
	}
	stall := httpclient.NewStall(ctx, stallTimeout)
	defer stall.End()
	resp, err := c.send(stall.Context(), o, &httpclient.Request{
		Method: "PATCH", Path: path + "?" + url.Values{ParamOffset: {strconv.FormatInt(off, 10)}}.Encode(), Body: stall.Sending(r),
		Header: http.Header{"Content-Type": {"application/octet-stream"}, "Expect": {"100-continue"}},
	})
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return c.readNumber(o, resp, HeaderOffset)
}

// UploadOffset returns where the next byte of an upload goes. If its origin does not answer, and
// another member of its ring has a copy, the upload goes on there, where it may be shorter.
func (c *Client) UploadOffset(ctx context.Context, id string) (int64, error) {
	u, err := c.Upload(ctx, id)
	return u.Offset, err
}

// Upload returns where an upload stands, as UploadOffset does, and whose it is.
func (c *Client) Upload(ctx context.Context, id string) (Upload, error) {
	at, path, err := c.whose(id)
	if err != nil {
		return Upload{}, err
	}
	if at == nil {
		return c.search(ctx, id, path)
	}
	u, err := c.uploadAt(ctx, at, id, path)
	if !errdefs.IsUnavailable(err) {
		return u, err
	}
	c.members.soon()
	for o := range c.http.Turns(ctx, c.order(id), false) {
		if o == at {
			continue
		}
		if u, oerr := c.uploadAt(ctx, o, id, path); oerr == nil {
			return u, nil
		}
	}
	return Upload{}, err // what others say is of no consequence: the upload's own origin may come back
}

// search finds an upload whose id names none of the origins by the address that it has now.
func (c *Client) search(ctx context.Context, id, path string) (Upload, error) {
	c.members.known(ctx) // it may be one of those that are not configured
	if at, _, _ := c.whose(id); at != nil {
		return c.uploadAt(ctx, at, id, path)
	}
	v := c.members.now()
	var t tries
	for o := range c.http.Turns(ctx, v.order(id), true) {
		g := v.ring(o)
		if t.done(g) {
			continue
		}
		u, err := c.uploadAt(ctx, o, id, path)
		switch {
		case err == nil:
			return u, nil
		case errdefs.IsNotFound(err):
			t.settle(g) // it has asked the others
		default:
			t.failed(o, g, err)
		}
	}
	if err := errors.Join(t.errs(), ctx.Err()); err != nil {
		return Upload{}, err
	}
	return Upload{}, fmt.Errorf("upload %s: none of the origins has it: %w", id, errdefs.ErrNotFound)
}

// uploadAt asks one origin, which may send the question on to the one that has the upload.
func (c *Client) uploadAt(ctx context.Context, o *httpclient.Server, id, path string) (Upload, error) {
	ctx, cancel := httpclient.Within(ctx, writeTimeout)
	defer cancel()
	resp, err := c.send(ctx, o, &httpclient.Request{Method: "HEAD", Path: path})
	if err != nil {
		return Upload{}, err
	}
	resp.Body.Close()
	u := Upload{Namespace: resp.Header.Get(HeaderSpace), Owner: resp.Header.Get(HeaderOwner)}
	if u.Offset, err = c.readNumber(o, resp, HeaderOffset); err == nil {
		c.found(id, c.answered(o, resp))
	}
	return u, err
}

// found remembers where an upload is.
func (c *Client) found(id string, at *httpclient.Server) {
	if tag, _, _ := strings.Cut(id, "-"); c.members.now().tags[tag] == at {
		c.moved.Remove(id)
	} else {
		c.moved.Add(id, at)
	}
}

// whose returns the origin that has an upload, or nil if its id does not say it, and the path that
// the upload has there.
func (c *Client) whose(id string) (*httpclient.Server, string, error) {
	tag, at, ok := strings.Cut(id, "-")
	if !ok || CheckUploadID(at) != nil {
		return nil, "", fmt.Errorf("%q is not the id of an upload: %w", shorten(id), errdefs.ErrInvalidArgument)
	}
	o, ok := c.moved.Get(id)
	if !ok {
		o = c.members.now().tags[tag]
	}
	return o, PathUploads + "/" + at, nil
}

// upload is whose for who has to know it.
func (c *Client) upload(ctx context.Context, id string) (*httpclient.Server, string, error) {
	o, path, err := c.whose(id)
	if err != nil || o != nil {
		return o, path, err
	}
	if _, err := c.search(ctx, id, path); err != nil {
		return nil, "", err
	}
	if o, path, _ = c.whose(id); o == nil {
		return nil, "", fmt.Errorf("upload %s: it was found, and is forgotten already: %w", id, errdefs.ErrUnavailable)
	}
	return o, path, nil
}

// Commit ends an upload: its bytes become the blob d, which is as durable as the
// origin is configured to promise when Commit returns. errdefs.ErrInvalidArgument if
// they have another digest; the upload is still there then. It may be repeated. errdefs.ErrOutOfRange if the upload went on
// at a mirror that has not all of what was appended: what comes after UploadOffset is appended again.
//
// In a ring that takes until enough members have the blob. An origin that is still at it is asked
// again, for an hour; one that says who is missing, for a minute, before that is the error.
func (c *Client) Commit(ctx context.Context, id string, d digest.Digest) (Info, error) {
	if err := CheckDigest(d); err != nil {
		return Info{}, err
	}
	o, path, err := c.upload(ctx, id)
	if err != nil {
		return Info{}, err
	}
	path += "?" + url.Values{ParamDigest: {string(d)}}.Encode()
	began, moves := time.Now(), 0
	pause := backoff.ExponentialBackOff{InitialInterval: commitPauseMin, MaxInterval: commitPauseMax, Multiplier: 2}
	for {
		info, done, err := c.commit(ctx, o, path)
		switch spent := time.Since(began); {
		case done:
			return info, err
		case err == nil && spent >= commitFor:
			return Info{}, fmt.Errorf("origin %s: committing upload %s: not done after %v: %w", o.Base, id, commitFor, errdefs.ErrUnavailable)
		case errdefs.IsUnavailable(err):
			c.members.soon()
			if at, moved := c.elsewhere(ctx, id, o); moved && moves < maxMoves {
				o = at
				moves++
				continue
			}
			if !httpclient.Answered(err) || spent >= commitAgain {
				return Info{}, fmt.Errorf("committing upload %s: %w", id, err)
			}
		case err != nil:
			return Info{}, err
		}
		select {
		case <-time.After(pause.NextBackOff()):
		case <-ctx.Done():
			return Info{}, errors.Join(err, fmt.Errorf("committing upload %s: %w", id, ctx.Err()))
		}
	}
}

// maxMoves is how often one Commit follows an upload to another origin.
const maxMoves = 5

// Between two requests to commit.
const (
	commitPauseMin = 100 * time.Millisecond
	commitPauseMax = 2 * time.Second
)

// elsewhere looks for an upload after its origin has failed.
func (c *Client) elsewhere(ctx context.Context, id string, was *httpclient.Server) (at *httpclient.Server, moved bool) {
	if _, err := c.UploadOffset(ctx, id); err != nil {
		return nil, false
	}
	at, _, err := c.upload(ctx, id)
	return at, err == nil && at != was
}

// commit asks for a commit; not done and no error: the origin is at it still.
func (c *Client) commit(ctx context.Context, o *httpclient.Server, path string) (_ Info, done bool, _ error) {
	ctx, cancel := httpclient.Within(ctx, commitTimeout)
	defer cancel()
	resp, err := c.send(ctx, o, &httpclient.Request{Method: "PUT", Path: path})
	if err != nil {
		return Info{}, false, err
	}
	resp.Body.Close()
	if resp.StatusCode == http.StatusAccepted {
		return Info{}, false, nil
	}
	info, err := c.readInfo(o, resp)
	return info, true, err
}

// Cancel removes an upload. It is no error if there is none.
func (c *Client) Cancel(ctx context.Context, id string) error {
	o, path, err := c.upload(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	ctx, cancel := httpclient.Within(ctx, writeTimeout)
	defer cancel()
	resp, err := c.send(ctx, o, &httpclient.Request{Method: "DELETE", Path: path})
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
