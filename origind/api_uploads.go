package origind

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/origind/ringstate/mirror"
)

// leader returns the member that makes a request, and the term by which it leads the upload.
// Without it, a client does.
func (a *api) leader(r *http.Request, q map[string]string) (from string, term mirror.Term, err error) {
	if from = q[origin.ParamFrom]; from == "" {
		if q[origin.ParamReplica] != "" || q[origin.ParamID] != "" {
			return "", 0, fmt.Errorf("an upload of another member without its name: %w", errdefs.ErrInvalidArgument)
		}
		return "", 0, nil
	}
	if !a.s.peers.has(from) {
		return "", 0, fmt.Errorf("%q is no member of this ring: %w", shorten(from), errdefs.ErrPermissionDenied)
	}
	if a.s.identity != nil {
		id, err := identity.PeerID(*r.TLS)
		if err == nil && (id.Name != from || !id.Has(identity.RoleOrigin)) {
			err = fmt.Errorf("%v is not the origin %q: %w", id, shorten(from), errdefs.ErrPermissionDenied)
		}
		if err != nil {
			return "", 0, err
		}
	}
	if r.Method == http.MethodHead || r.Method == http.MethodGet {
		return from, 0, nil
	}
	n, err := strconv.ParseUint(q[origin.ParamReplica], 10, 63)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("replica %q is no term: %w", shorten(q[origin.ParamReplica]), errdefs.ErrInvalidArgument)
	}
	return from, mirror.Term(n), nil
}

// found returns the upload that a request is about. nil without an error: the client was sent to
// another member that has it.
func (a *api) found(w http.ResponseWriter, r *http.Request, from string) (*upload, error) {
	id, err := uploadID(r)
	if err == nil && from == "" && r.Method != http.MethodDelete {
		err = a.s.member.takes()
	}
	if err != nil {
		return nil, err
	}
	u, err := a.s.uploads.get(id)
	if err == nil || from != "" {
		return u, err
	}
	m, err := a.s.uploads.search(r.Context(), id)
	if err != nil {
		return nil, err
	}
	w.Header().Set("Location", m.Base()+r.URL.RequestURI())
	w.WriteHeader(http.StatusTemporaryRedirect)
	return nil, nil
}

// setStand says where an upload stands, if that is known.
func setStand(w http.ResponseWriter, at mirror.Answer) {
	if at.Code != 0 {
		w.Header().Set(origin.HeaderOffset, strconv.FormatInt(at.Offset, 10))
		w.Header().Set(origin.HeaderTerm, strconv.FormatUint(uint64(at.Term), 10))
	}
}

func (a *api) startUpload(w http.ResponseWriter, r *http.Request) error {
	q, err := query(r, origin.ParamNamespace, origin.ParamOwner, origin.ParamDigest, origin.ParamID, origin.ParamFrom, origin.ParamReplica)
	if err != nil {
		return err
	}
	meta := uploadMeta{Namespace: q[origin.ParamNamespace], Owner: q[origin.ParamOwner], Key: q[origin.ParamDigest]}
	if err := origin.CheckNamespace(meta.Namespace); err != nil {
		return err
	}
	if err := origin.CheckOwner(meta.Owner); err != nil {
		return err
	}
	if meta.Key != "" {
		if err := origin.CheckDigest(digest.Digest(meta.Key)); err != nil {
			return err
		}
	}
	from, term, err := a.leader(r, q)
	if err != nil {
		return err
	}
	id := q[origin.ParamID]
	if from != "" {
		err = origin.CheckUploadID(id)
	} else {
		err = a.s.member.takes()
	}
	if err != nil {
		return err
	}
	u, err := a.s.startUpload(id, meta)
	if err != nil {
		return err
	}
	at, err := u.await(r.Context(), u.ask(mirror.Request{Kind: mirror.Start, From: from, Term: term}, nil))
	setStand(w, at)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set(origin.HeaderUpload, u.id)
	h.Set("Location", origin.PathUploads+"/"+u.id)
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (a *api) getUpload(w http.ResponseWriter, r *http.Request) error {
	q, err := query(r, origin.ParamFrom)
	if err != nil {
		return err
	}
	from, _, err := a.leader(r, q)
	if err != nil {
		return err
	}
	u, err := a.found(w, r, from)
	if u == nil {
		return err
	}
	st := u.stands(from)
	setStand(w, mirror.Answer{Code: mirror.Done, Offset: st.Offset, Term: st.Term})
	h := w.Header()
	h.Set(origin.HeaderSpace, u.meta.Namespace)
	if u.meta.Owner != "" {
		h.Set(origin.HeaderOwner, u.meta.Owner)
	}
	if from != "" {
		h.Set(origin.HeaderLeads, strconv.FormatBool(st.Leads))
		h.Set(origin.HeaderFeeds, strconv.FormatBool(st.Feeds))
		if st.Committed != "" {
			h.Set(origin.HeaderDigest, string(st.Committed))
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (a *api) patchUpload(w http.ResponseWriter, r *http.Request) error {
	q, err := query(r, origin.ParamOffset, origin.ParamFrom, origin.ParamReplica)
	if err != nil {
		return err
	}
	off, ok := number(q[origin.ParamOffset])
	if !ok {
		return fmt.Errorf("offset %q: %w", shorten(q[origin.ParamOffset]), errdefs.ErrInvalidArgument)
	}
	from, term, err := a.leader(r, q)
	if err != nil {
		return err
	}
	u, err := a.found(w, r, from)
	if u == nil {
		return err
	}
	body := &moving{r: r.Body, rc: http.NewResponseController(w)}
	at, err := u.append(r.Context(), mirror.Request{From: from, Term: term, Off: off}, body, body.stop)
	setStand(w, at)
	if err != nil {
		return err
	}
	a.s.metrics.received(at.Offset - off)
	w.WriteHeader(http.StatusOK)
	return nil
}

// moving is a body that has to bring something now and then.
type moving struct {
	r  io.Reader
	rc *http.ResponseController

	mu      sync.Mutex
	stopped bool
}

func (m *moving) Read(p []byte) (int, error) {
	if err := m.until(time.Now().Add(moveTimeout), false); err != nil {
		return 0, err
	}
	return m.r.Read(p)
}

// stop ends a Read, and all that come after it.
func (m *moving) stop() { _ = m.until(time.Now(), true) }

// until sets the time until which the body has to bring something.
func (m *moving) until(t time.Time, stop bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped && !stop {
		return errStopped
	}
	m.stopped = stop
	err := m.rc.SetReadDeadline(t)
	if errors.Is(err, http.ErrNotSupported) {
		err = nil
	}
	return err
}

func (a *api) putUpload(w http.ResponseWriter, r *http.Request) error {
	q, err := query(r, origin.ParamDigest, origin.ParamOffset, origin.ParamFrom, origin.ParamReplica)
	if err != nil {
		return err
	}
	d := digest.Digest(q[origin.ParamDigest])
	if err := origin.CheckDigest(d); err != nil {
		return err
	}
	req := mirror.Request{Kind: mirror.Put, Off: -1, Digest: d}
	if text := q[origin.ParamOffset]; text != "" {
		var ok bool
		if req.Off, ok = number(text); !ok {
			return fmt.Errorf("offset %q: %w", shorten(text), errdefs.ErrInvalidArgument)
		}
	}
	if req.From, req.Term, err = a.leader(r, q); err != nil {
		return err
	}
	u, err := a.found(w, r, req.From)
	if u == nil {
		return err
	}
	// For the upload's machine, and then for the ring. Who was frozen meanwhile does not go on with a push that its client has
	// given up, as the blob may have been pushed elsewhere, and deleted, since.
	ctx, cancel := context.WithTimeout(r.Context(), 2*(commitWait+commitSlack))
	defer cancel()
	at, err := u.await(ctx, u.ask(req, nil))
	setStand(w, at)
	switch {
	case err != nil:
		return err
	case at.Code == mirror.Later:
		w.WriteHeader(http.StatusAccepted) // the client asks again
		return nil
	case req.From != "": // its leader waits for the backend
		w.WriteHeader(http.StatusCreated)
		return nil
	}
	info, copies, err := a.s.acknowledge(ctx, d, u.meta.Namespace, at.Mirrors)
	if errors.Is(err, context.DeadlineExceeded) && r.Context().Err() == nil {
		w.WriteHeader(http.StatusAccepted) // the client asks again
		return nil
	}
	if err != nil {
		return err
	}
	setInfo(w, info)
	w.Header().Set(origin.HeaderCopies, strconv.Itoa(copies))
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (a *api) deleteUpload(w http.ResponseWriter, r *http.Request) error {
	q, err := query(r, origin.ParamFrom, origin.ParamReplica)
	if err != nil {
		return err
	}
	req := mirror.Request{Kind: mirror.Delete}
	if req.From, req.Term, err = a.leader(r, q); err != nil {
		return err
	}
	u, err := a.found(w, r, req.From)
	if u == nil {
		return err
	}
	if _, err := u.await(r.Context(), u.ask(req, nil)); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
