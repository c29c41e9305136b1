package origind

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/daemon/identity"
)

// Limits of the API (control/ORIGIN.md section 6).
const (
	maxRequests = 4096             // at once
	moveTimeout = 30 * time.Second // for a body to move at all, either way
	copyChunk   = 256 << 10        // bytes that are relayed between two deadlines
	farAhead    = 32 << 20         // bytes: a range that is so far beyond what has arrived,
	farBytes    = 8 << 20          // and so short, is read from the backend by itself
	commitWait  = 20 * time.Second // for an upload to be verified and copied, and again for copies to be confirmed
	commitSlack = time.Second
)

// Who may do what.
var (
	readers = []identity.Role{identity.RoleNode, identity.RoleOrigin, identity.RoleIndex, identity.RoleGateway, identity.RoleAdmin}
	writers = []identity.Role{identity.RoleOrigin, identity.RoleGateway, identity.RoleAdmin}
)

// api serves the origin's HTTP API.
type api struct {
	s     *server
	slots chan struct{} // holds a token per request
}

// handler returns the API.
func (s *server) handler() http.Handler {
	a := &api{s: s, slots: make(chan struct{}, maxRequests)}
	mux := http.NewServeMux()
	handle := func(pattern string, roles []identity.Role, f func(http.ResponseWriter, *http.Request) error) {
		mux.Handle(pattern, a.wrap(roles, f))
	}
	handle("GET "+origin.PathBlobs+"/{digest}", readers, a.getBlob) // HEAD, too
	handle("GET "+origin.PathBlobs+"/{digest}"+origin.SumsOf, readers, a.getSums)
	handle("DELETE "+origin.PathBlobs+"/{digest}", writers, a.deleteBlob)
	ring := a.ringHandler(s.cfg.Node, ringAndStorages{s.member, s.storages, s.store})
	mux.Handle(origin.PathRing, ring)
	mux.Handle(origin.PathRing+"/", ring)
	handle("POST "+origin.PathUploads, writers, a.startUpload)
	handle("GET "+origin.PathUploads+"/{id}", writers, a.getUpload) // HEAD, too
	handle("PATCH "+origin.PathUploads+"/{id}", writers, a.patchUpload)
	handle("PUT "+origin.PathUploads+"/{id}", writers, a.putUpload)
	handle("DELETE "+origin.PathUploads+"/{id}", writers, a.deleteUpload)
	handle("/", nil, func(_ http.ResponseWriter, r *http.Request) error {
		return fmt.Errorf("%s is no method and path of an origin: %w", strconv.Quote(shorten(r.Method+" "+r.URL.Path)), errdefs.ErrNotImplemented)
	})
	return mux
}

func shorten(s string) string { return s[:min(len(s), 200)] }

// wrap checks who asks, bounds what is under way, and answers errors.
func (a *api) wrap(roles []identity.Role, f func(http.ResponseWriter, *http.Request) error) http.Handler {
	return a.within(a.slots, "requests", func(w http.ResponseWriter, r *http.Request) error {
		// A deadline of the request before it on this connection would still stand.
		err := http.NewResponseController(w).SetWriteDeadline(time.Time{})
		if err != nil && !errors.Is(err, http.ErrNotSupported) {
			return err
		}
		if err := a.allow(r, roles); err != nil {
			return err
		}
		if r.Method != http.MethodPatch {
			r.Body = http.MaxBytesReader(w, r.Body, 1<<10)
		}
		return f(w, r)
	})
}

// within has at most as many requests under way as there are slots, counts them, and answers errors. what are they?
func (a *api) within(slots chan struct{}, what string, f func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.s.requests.Add(1)
		defer a.s.requests.Done()
		cw := &counted{ResponseWriter: w}
		defer func() { a.s.metrics.answered(r.Method, cw.status) }() // an abort, too
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			fail(cw, r, fmt.Errorf("%d %s are under way: %w", cap(slots), what, errdefs.ErrUnavailable))
			return
		}
		err := f(cw, r)
		if err == nil {
			return
		}
		if cw.status != 0 { // the answer has begun; it must not look whole
			log.G(r.Context()).WithError(err).WithField("path", r.URL.Path).Debug("an answer broke off")
			panic(http.ErrAbortHandler)
		}
		fail(cw, r, err)
	})
}

// allow reports why the client may not do what it asks for.
func (a *api) allow(r *http.Request, roles []identity.Role) error {
	if a.s.identity == nil {
		return nil
	}
	if r.TLS == nil {
		return fmt.Errorf("no certificate: %w", errdefs.ErrUnauthenticated)
	}
	id, err := identity.PeerID(*r.TLS)
	if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnauthenticated)
	}
	if !id.Has(roles...) {
		return fmt.Errorf("%v may not %s %s: %w", id, r.Method, r.URL.Path, errdefs.ErrPermissionDenied)
	}
	return nil
}

// fail answers with an error.
func fail(w http.ResponseWriter, r *http.Request, err error) {
	class, status := origin.Class(err)
	if status >= 500 && !errdefs.IsUnavailable(err) && r.Context().Err() == nil {
		log.G(r.Context()).WithError(err).WithField("method", r.Method).WithField("path", r.URL.Path).Error("request failed")
	}
	reason := origin.Reason(err)
	h := w.Header()
	h.Set(origin.HeaderError, class)
	h.Set(origin.HeaderReason, reason)
	h.Del("Content-Range")
	if size := h.Get(origin.HeaderSize); size != "" && errdefs.IsOutOfRange(err) {
		h.Set("Content-Range", "bytes */"+size)
	}
	switch status {
	case http.StatusServiceUnavailable:
		h.Set("Retry-After", "1")
	case http.StatusTooManyRequests:
		h.Set("Retry-After", "10")
	}
	http.Error(w, reason, status)
}

// counted remembers the status.
type counted struct {
	http.ResponseWriter
	status int
}

func (w *counted) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *counted) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// ReadFrom lets sendfile through.
func (w *counted) ReadFrom(r io.Reader) (int64, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return io.Copy(w.ResponseWriter, r)
}

func (w *counted) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// query returns the parameters of a request, each at most once and no others than
// those named.
func query(r *http.Request, names ...string) (map[string]string, error) {
	all, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("query: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	got := map[string]string{}
	for _, name := range names {
		if len(all[name]) > 1 {
			return nil, fmt.Errorf("query: %s is given twice: %w", name, errdefs.ErrInvalidArgument)
		}
		got[name] = all.Get(name)
		delete(all, name)
	}
	for name := range all {
		return nil, fmt.Errorf("query: unknown parameter %q: %w", shorten(name), errdefs.ErrInvalidArgument)
	}
	return got, nil
}

// blobRef returns which blob a request is about. hop: the client is a member, or was sent by one.
func blobRef(r *http.Request) (ref origin.Ref, hop bool, err error) {
	ref.Digest = digest.Digest(r.PathValue("digest"))
	if err := origin.CheckDigest(ref.Digest); err != nil {
		return ref, false, err
	}
	q, err := query(r, origin.ParamNamespace, origin.ParamHop)
	if err != nil {
		return ref, false, err
	}
	ref.Namespace = q[origin.ParamNamespace]
	return ref, q[origin.ParamHop] == "1", origin.CheckNamespace(ref.Namespace)
}

// uploadID returns which upload a request is about.
func uploadID(r *http.Request) (string, error) {
	id := r.PathValue("id")
	return id, origin.CheckUploadID(id)
}

func setInfo(w http.ResponseWriter, info origin.Info) {
	h := w.Header()
	h.Set(origin.HeaderSize, strconv.FormatInt(info.Size, 10))
	h.Set(origin.HeaderDurable, strconv.FormatBool(info.Durable))
}

// getBlob answers GET and HEAD of a blob.
func (a *api) getBlob(w http.ResponseWriter, r *http.Request) error {
	ref, hop, err := blobRef(r)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Accept-Ranges", "bytes")
	h.Set("Content-Type", "application/octet-stream")
	h.Set("ETag", `"`+string(ref.Digest)+`"`)
	snd := &sending{w: w, rc: http.NewResponseController(w), hop: hop}
	for try := 0; ; try++ {
		at := snd.off
		err := a.sendBlob(r, ref, snd)
		if snd.off > at {
			try = 0
		}
		if !errors.Is(err, errMoved) || try == 3 {
			return err
		}
	}
}

// sendTo sends a client to another member.
func (a *api) sendTo(w http.ResponseWriter, r *http.Request, name string) error {
	m, err := a.s.peers.get(name)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	q.Set(origin.ParamHop, "1")
	w.Header().Set("Location", m.Base()+r.URL.Path+"?"+q.Encode())
	w.WriteHeader(http.StatusTemporaryRedirect)
	return nil
}

// sendBlob sends what a request asks for of a blob, or what is left of that. With errMoved, it is to be located again.
func (a *api) sendBlob(r *http.Request, ref origin.Ref, snd *sending) error {
	ctx := r.Context()
	at := located{info: origin.Info{Durable: true}}
	var err error
	if !origin.IsEmpty(ref.Digest) {
		if at, err = a.s.locator.locate(ctx, ref, snd.hop); err != nil {
			return err
		}
	}
	switch {
	case snd.begun && (at.member != "" || at.info.Size != snd.size):
		return fmt.Errorf("%s is not here any more: %w", ref, errdefs.ErrUnavailable) // the client goes on elsewhere
	case at.member != "":
		return a.sendTo(snd.w, r, at.member)
	case !snd.begun:
		setInfo(snd.w, at.info)
		if r.Method == http.MethodHead || at.info.Size == 0 {
			snd.w.Header().Set("Content-Length", strconv.FormatInt(at.info.Size, 10))
			snd.w.WriteHeader(http.StatusOK)
			return nil
		}
		snd.size = at.info.Size
		if snd.off, snd.n, snd.partial, err = parseRange(r.Header.Get("Range"), snd.size); err != nil {
			return fmt.Errorf("%s: %w", ref, err)
		}
	}
	switch {
	case at.place == nil:
		return a.s.sendHere(ctx, snd, at.id)
	case snd.off-a.s.cold.prefix(at.id) > farAhead && snd.n <= farBytes:
		body, _, err := at.place.backend.Open(ctx, at.place.key, snd.off, snd.n)
		if err != nil {
			return fmt.Errorf("%s: %w: %w", at.place.source(), err, errdefs.ErrUnavailable)
		}
		defer body.Close()
		return snd.relay(body)
	}
	c, release, err := a.s.cold.join(ctx, *at.place)
	if err != nil {
		return err
	}
	defer release()
	snd.begin()
	return a.s.follow(ctx, snd, c)
}

// parseRange returns what a Range header asks for of size bytes. What is not one
// range of bytes is ignored, as RFC 9110 section 14.2 allows.
func parseRange(header string, size int64) (off, n int64, partial bool, err error) {
	spec, ok := strings.CutPrefix(header, "bytes=")
	first, last, dash := strings.Cut(spec, "-")
	if !ok || !dash {
		return 0, size, false, nil
	}
	unsatisfiable := fmt.Errorf("range %q of %d bytes: %w", shorten(header), size, errdefs.ErrOutOfRange)
	if first == "" { // the last bytes
		n, ok := number(last)
		switch {
		case !ok:
			return 0, size, false, nil
		case n == 0:
			return 0, 0, false, unsatisfiable
		}
		n = min(n, size)
		return size - n, n, true, nil
	}
	off, ok = number(first)
	end := int64(-1)
	if ok && last != "" {
		end, ok = number(last)
	}
	switch {
	case !ok || end >= 0 && end < off:
		return 0, size, false, nil
	case off >= size:
		return 0, 0, false, unsatisfiable
	case end < 0 || end >= size:
		end = size - 1
	}
	return off, end - off + 1, true, nil
}

// number reads decimal digits; what is too large is cut.
func number(s string) (int64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil || errors.Is(err, strconv.ErrRange)
}

func (a *api) deleteBlob(w http.ResponseWriter, r *http.Request) error {
	ref, _, err := blobRef(r)
	if err != nil {
		return err
	}
	if err := a.s.delete(r.Context(), ref); err != nil {
		return err
	}
	log.G(r.Context()).WithFields(log.Fields{"digest": ref.Digest, "namespace": ref.Namespace}).Info("blob deleted")
	w.WriteHeader(http.StatusNoContent)
	return nil
}
