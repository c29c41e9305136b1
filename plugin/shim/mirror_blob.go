package shim

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/capelin-io/capelin/internal/httpclient"
	"github.com/capelin-io/capelin/internal/ociapi"
	"github.com/capelin-io/capelin/swarm/piece"
)

// blob serves the GET of a blob.
func (m *Mirror) blob(w http.ResponseWriter, r *http.Request, req request) {
	s := source{m: m, url: req.url(r.URL.Path), header: http.Header{}}
	for _, k := range []string{"Authorization", "User-Agent", "Accept"} {
		if v := r.Header[k]; v != nil {
			s.header[k] = v
		}
	}
	relay := func(why error) {
		fields := log.Fields{"digest": req.digest, "registry": req.upstream.Host}
		log.G(r.Context()).WithError(why).WithFields(fields).Debug("mirror: blob relayed")
		m.count(kindBlobRelayed)
		m.proxy.ServeHTTP(w, r)
	}
	id, err := s.stat(r.Context(), req.digest)
	if err != nil {
		relay(err)
		return
	}
	in := r.Clone(r.Context())
	if strings.Contains(in.Header.Get("Range"), ",") {
		in.Header.Del("Range") // several: a server may send everything instead
	}
	want := Want{Upstream: s.open, Registry: req.upstream.Host, Part: isPart(in.Header.Get("Range"), id.Size)}
	if m.cfg.AuthorizeBlob {
		if want.Tail, err = s.tail(r.Context()); err != nil {
			relay(err)
			return
		}
	}
	rd, err := m.blobs.Open(r.Context(), id, want)
	if err != nil {
		relay(err)
		return
	}
	body := &body{r: rd, id: id, hash: newHash(id.Alg)}
	if p, ok := rd.(interface{ Proven() bool }); ok && p.Proven() {
		body.hashed = -1 // it was hashed when it came
	}
	late := ociapi.NewLate(w)
	late.Header().Set("Content-Type", "application/octet-stream")
	late.Header().Set("Docker-Content-Digest", req.digest)
	late.Header().Set("Etag", strconv.Quote(req.digest))
	func() {
		defer rd.Close()
		defer late.NoLater(headerAfter)()
		http.ServeContent(late, in, "", time.Time{}, body)
	}()
	switch {
	case body.err == nil:
		m.count(kindBlob)
	case !late.Begun() && r.Context().Err() == nil:
		relay(body.err)
	default:
		m.count(kindBlob)
		log.G(r.Context()).WithError(body.err).WithField("digest", req.digest).Debug("mirror: blob broken off")
		panic(http.ErrAbortHandler)
	}
}

// isPart reports whether the header Range is for a part of a blob that somebody wants by
// itself. A download that is resumed asks for all the rest, without naming its end.
func isPart(rng string, size int64) bool {
	var from, to int64
	if n, _ := fmt.Sscanf(rng, "bytes=%d-%d", &from, &to); n == 2 && from == 0 && to >= size-1 {
		return false
	}
	return rng != "" && !strings.HasSuffix(rng, "-")
}

// source is a blob at a registry, as one client may have it.
type source struct {
	m      *Mirror
	url    *url.URL
	header http.Header
	size   int64 // known after stat
}

// do asks for the bytes rng, "" for all.
func (s *source) do(ctx context.Context, method, rng string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, s.url.String(), nil)
	if err != nil {
		return nil, err
	}
	r.Header = s.header.Clone()
	r.Header.Set("Accept-Encoding", "identity")
	r.Header.Set("Via", s.m.via)
	if r.Header.Get("User-Agent") == "" {
		r.Header.Set("User-Agent", "")
	}
	if rng != "" {
		r.Header.Set("Range", rng)
	}
	return s.m.client.Do(r)
}

// stat asks the registry whether the client may have the blob, and how long it
// is. It fails for blobs that the swarm cannot have, too.
func (s *source) stat(ctx context.Context, dgst string) (piece.ID, error) {
	if _, err := piece.ParseID(dgst, 1); err != nil {
		return piece.ID{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	resp, err := s.do(ctx, http.MethodHead, "")
	if err != nil {
		return piece.ID{}, err
	}
	resp.Body.Close()
	s.size = resp.ContentLength
	if resp.StatusCode != http.StatusOK && resp.Request.URL.Host != s.url.Host {
		// The registry has allowed it, and sent us to a store that signs GETs only.
		if resp, err = s.do(ctx, http.MethodGet, "bytes=0-0"); err != nil {
			return piece.ID{}, err
		}
		resp.Body.Close()
		s.size = resp.ContentLength
		if resp.StatusCode == http.StatusPartialContent {
			_, _, s.size = contentRange(resp)
		}
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		return piece.ID{}, fmt.Errorf("the registry answers %s", resp.Status)
	}
	if err := plain(resp); err != nil {
		return piece.ID{}, err
	}
	return piece.ParseID(dgst, s.size) // refuses sizes below 1
}

// plain reports that an answer has other bytes than the blob's, although those were asked for. A
// registry, or what stands before it, may say so of the GET only.
func plain(resp *http.Response) error {
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return fmt.Errorf("the registry encodes it as %.100q: %w", enc, errdefs.ErrUnavailable)
	}
	return nil
}

// contentRange returns a 206's first and last byte and the whole size, -1 each
// if it does not say.
func contentRange(resp *http.Response) (from, to, size int64) {
	if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &size); err != nil {
		return -1, -1, -1
	}
	return from, to, size
}

// tail returns the blob's last bytes, which the registry sends to who may have the blob.
func (s *source) tail(ctx context.Context) ([]byte, error) {
	off := s.size - Tail
	if off <= 0 {
		return nil, fmt.Errorf("it has no more than the %d bytes that the registry has to send", Tail)
	}
	body, ranges, err := s.get(ctx, off)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if !ranges {
		return nil, fmt.Errorf("registry %s does not send parts of blobs", s.url.Host)
	}
	tail := make([]byte, Tail)
	n, err := io.ReadFull(body, tail)
	if s.m.cfg.OnRelayed != nil {
		s.m.cfg.OnRelayed(n)
	}
	if err != nil {
		return nil, fmt.Errorf("registry %s: the last bytes of the blob: %w", s.url.Host, err)
	}
	return tail, nil
}

// open is the blob's Upstream.
func (s *source) open(ctx context.Context, off int64) (io.ReadCloser, error) {
	body, ranges, err := s.get(ctx, off)
	if err != nil || ranges || off == 0 {
		return body, err
	}
	if _, err := io.CopyN(io.Discard, body, off); err != nil {
		body.Close()
		return nil, fmt.Errorf("registry %s: %w", s.url.Host, err)
	}
	return body, nil
}

// get asks for the bytes from off on. Without ranges, the answer begins at 0 nevertheless.
func (s *source) get(ctx context.Context, off int64) (body io.ReadCloser, ranges bool, err error) {
	stall := httpclient.NewStall(ctx, upstreamStall)
	stall.Start(upstreamStall)
	fail := func(err error) (io.ReadCloser, bool, error) {
		err = stall.Err(err)
		stall.End()
		return nil, false, fmt.Errorf("registry %s: %w", s.url.Host, err)
	}
	rng := ""
	if off > 0 {
		rng = fmt.Sprintf("bytes=%d-%d", off, s.size-1)
	}
	resp, err := s.do(stall.Context(), http.MethodGet, rng)
	if err != nil {
		return fail(fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable))
	}
	if err := s.check(resp, off); err != nil {
		resp.Body.Close()
		return fail(err)
	}
	return stall.Answer(resp.Body), resp.StatusCode == http.StatusPartialContent, nil
}

// check checks the answer to a GET from off on.
func (s *source) check(resp *http.Response, off int64) error {
	if resp.StatusCode/100 == 2 {
		if err := plain(resp); err != nil {
			return err
		}
	}
	switch resp.StatusCode {
	case http.StatusOK:
		if n := resp.ContentLength; n >= 0 && n != s.size {
			return fmt.Errorf("sends %d bytes of a blob that has %d: %w", n, s.size, errdefs.ErrUnavailable)
		}
		return nil
	case http.StatusPartialContent:
		if from, to, size := contentRange(resp); off == 0 || from != off || to != s.size-1 || size != s.size {
			return fmt.Errorf("sends %.100q of the bytes from %d to %d: %w",
				resp.Header.Get("Content-Range"), off, s.size-1, errdefs.ErrUnavailable)
		}
		return nil
	case http.StatusUnauthorized:
		return fmt.Errorf("%s: %w", resp.Status, errdefs.ErrUnauthenticated)
	case http.StatusForbidden:
		return fmt.Errorf("%s: %w", resp.Status, errdefs.ErrPermissionDenied)
	case http.StatusNotFound:
		return fmt.Errorf("%s: %w", resp.Status, errdefs.ErrNotFound)
	}
	return fmt.Errorf("%s: %w", resp.Status, errdefs.ErrUnavailable)
}

func newHash(a piece.Algorithm) hash.Hash {
	if a == piece.SHA512 {
		return sha512.New()
	}
	return sha256.New()
}

// body is a blob as http.ServeContent reads it.
type body struct {
	r   io.ReadSeeker
	id  piece.ID
	off int64 // of the next byte
	at  int64 // r's
	err error // the first one

	// What was read from 0 on without a gap, as it is sent.
	hash   hash.Hash
	hashed int64 // negative: no need to
}

func (b *body) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += b.off
	case io.SeekEnd:
		off += b.id.Size
	}
	if off < 0 || off > b.id.Size {
		return 0, fmt.Errorf("seeking to %d of %s", off, b.id)
	}
	b.off = off
	return off, nil
}

func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.off == b.id.Size {
		return 0, io.EOF
	}
	n, err := 0, error(nil)
	if b.at != b.off {
		b.at, err = b.r.Seek(b.off, io.SeekStart)
	}
	if err == nil {
		n, err = b.r.Read(p)
		b.at += int64(n)
	}
	if n == 0 {
		b.err = fmt.Errorf("reading %s at %d: %w", b.id, b.off, cmp.Or(err, io.ErrUnexpectedEOF))
		return 0, b.err
	}
	if b.off == b.hashed {
		b.hash.Write(p[:n])
		b.hashed += int64(n)
		if b.hashed == b.id.Size && string(b.hash.Sum(nil)) != string(b.id.Sum[:b.id.Alg.Size()]) {
			b.err = fmt.Errorf("what was read of %s, part of it before it was all here, is something else: %w", b.id, piece.ErrMismatch)
			return 0, b.err
		}
	}
	b.off += int64(n)
	return n, nil
}
