package gateway

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/ociapi"
)

// maxAge is how long, in seconds, a client may take a blob from a cache without asking: a year. Its name says what it is.
const maxAge = "max-age=31536000"

// blob serves GET and HEAD of a blob.
func (g *Gateway) blob(w http.ResponseWriter, r *request) error {
	desc, err := g.store.findBlob(r.Context(), r.Repository, r.Digest)
	if err != nil {
		return err
	}
	return g.send(w, r, desc, http.Header{"Cache-Control": {maxAge}})
}

func (g *Gateway) deleteBlob(w http.ResponseWriter, r *request) error {
	if err := g.store.deleteBlob(r.Context(), r.Repository, r.Digest); err != nil {
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// send answers GET and HEAD with what an origin has, or with the parts of it that are asked for. If the origin cannot give the
// first bytes, that is the error.
func (g *Gateway) send(w http.ResponseWriter, r *request, desc ocispec.Descriptor, more http.Header) error {
	late := ociapi.NewLate(w)
	h := late.Header()
	for k, v := range more {
		h[k] = v
	}
	h.Set("Content-Type", desc.MediaType)
	h.Set("Docker-Content-Digest", string(desc.Digest))
	h.Set("Etag", strconv.Quote(string(desc.Digest)))
	in := r.Request
	if in.Header.Get("If-None-Match") == string(desc.Digest) { // as Docker's registry takes it, too
		in = in.Clone(in.Context())
		in.Header.Set("If-None-Match", h.Get("Etag"))
	}
	ctx, cancel := context.WithCancel(r.Context())
	c := &content{
		open: func(off, n int64) (io.ReadCloser, error) {
			body, _, err := g.store.origin.Open(ctx, origin.Ref{Namespace: r.Repository, Digest: desc.Digest}, off, n)
			return body, err
		},
		size: desc.Size, runs: runs(in.Header.Get("Range"), desc.Size),
	}
	if len(c.runs) > maxRuns {
		in = in.Clone(in.Context())
		in.Header.Del("Range") // they get everything
		c.runs = nil
	}
	http.ServeContent(late, in, "", time.Time{}, c)
	cancel()
	switch err := c.close(); {
	case err == nil:
		late.Begin()
		return nil
	case !late.Begun():
		// The index says that it is there.
		return unavailable(fmt.Errorf("%s of %s: %w", desc.Digest, r.Repository, err))
	default:
		if r.Context().Err() == nil {
			log.G(r.Context()).WithError(err).WithFields(log.Fields{"repository": r.Repository, "digest": desc.Digest.String()}).
				Warn("blob broken off")
		}
		panic(http.ErrAbortHandler) // so that the client sees that something is missing
	}
}

// content is what an origin has, as http.ServeContent reads it. Of several parts it is read by another
// goroutine, which may still be at it when the answer is over.
type content struct {
	open func(off, n int64) (io.ReadCloser, error)
	size int64
	runs map[int64]int64

	mu  sync.Mutex
	off int64 // of the next byte
	at  int64 // body's
	end int64 // of body
	// body is nil if nothing is open.
	body io.ReadCloser
	err  error // the first one
}

func (c *content) Seek(off int64, whence int) (int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		off += c.off
	case io.SeekEnd:
		off += c.size
	}
	if off < 0 || off > c.size {
		return 0, fmt.Errorf("seeking to %d of %d bytes", off, c.size)
	}
	c.off = off
	return off, nil
}

func (c *content) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	if c.off == c.size {
		return 0, io.EOF
	}
	if c.err = c.reach(); c.err != nil {
		return 0, c.err
	}
	n, err := c.body.Read(p)
	c.off, c.at = c.off+int64(n), c.at+int64(n)
	if n > 0 {
		return n, nil // an error comes again
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	c.err = err
	return 0, err
}

// reach has body be at off, which is one of its bytes.
func (c *content) reach() error {
	if c.body != nil && (c.off < c.at || c.off >= c.end || c.off-c.at > maxGap) {
		_ = c.body.Close()
		c.body = nil
	}
	if c.body == nil {
		end, ok := c.runs[c.off]
		if !ok {
			end = c.size
		}
		n := end - c.off
		if end == c.size && c.off == 0 {
			n = -1
		}
		body, err := c.open(c.off, n)
		if err != nil {
			return err
		}
		c.body, c.at, c.end = body, c.off, end
	}
	n, err := io.CopyN(io.Discard, c.body, c.off-c.at)
	c.at += n
	return err
}

// close returns why not all was read that was asked for.
func (c *content) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.body != nil {
		_ = c.body.Close()
	}
	return c.err
}

// Parts of a blob that lie close together are read with what is between them.
const (
	maxGap  = 64 << 10 // bytes
	maxRuns = 1024     // requests to origins for one of a client
)

// runs returns what is read at once, by where it begins: the end of each part of a Range, or of the last one that
// follows closely. What is no Range that http.ServeContent takes needs none.
func runs(header string, size int64) map[int64]int64 {
	all := map[int64]int64{}
	list, ok := strings.CutPrefix(header, "bytes=")
	if !ok {
		return all
	}
	var from, to int64 = 0, -1 // of the run
	for part := range strings.SplitSeq(list, ",") {
		first, last, _ := strings.Cut(strings.TrimSpace(part), "-")
		a, err := strconv.ParseInt(first, 10, 64)
		if err != nil || a >= size { // of the end, or no part at all
			continue
		}
		b, err := strconv.ParseInt(last, 10, 64)
		if err != nil || b >= size {
			b = size - 1
		}
		if to < 0 || a < to || a-to > maxGap {
			from = a
		}
		to = b + 1
		all[from] = max(all[from], to)
	}
	return all
}
