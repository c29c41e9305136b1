package indexd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/indexd/replicate"
	"github.com/capelin-io/capelin/internal/daemon/identity"
)

// Who may do what, with identity (control/INDEX.md, "Who may").
var (
	readers = []identity.Role{identity.RoleNode, identity.RoleGateway, identity.RoleAdmin, identity.RoleIndex}
	writers = []identity.Role{identity.RoleGateway, identity.RoleAdmin, identity.RoleIndex}
	admins  = []identity.Role{identity.RoleAdmin}
)

// How long an operation may take; the client waits a little longer.
const (
	readTimeout  = 15 * time.Second
	writeTimeout = time.Minute
)

// maxRequests is how many requests are served at once. Others wait.
const maxRequests = 512

// server is the API over an Index.
type server struct {
	index   *Index
	proof   *proof // nil: the storage is known to compare and swap
	metrics *metrics
	// peer says who is at the other end; nil: there is no identity, and everybody
	// may do everything.
	peer  func(*http.Request) (identity.ID, error)
	slots chan struct{}

	replication *replicate.Service

	looking sync.Mutex // held by who looks through the storage
}

// operation is one of the API: it returns the answer, nil for none.
type operation func(ctx context.Context, r *request) (any, error)

// request is one, with its parameters read as they are wanted.
type request struct {
	*http.Request
	query url.Values
	from  string // who asks, for the log
}

func (r *request) repo() string          { return r.query.Get("repository") }
func (r *request) name() string          { return r.query.Get("name") }
func (r *request) digest() digest.Digest { return digest.Digest(r.query.Get("digest")) }
func (r *request) after() string         { return r.query.Get("after") }
func (r *request) limit() (int, error) {
	v := r.query.Get("limit")
	if v == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		return 0, fmt.Errorf("limit %.20q is no number: %w", v, errdefs.ErrInvalidArgument)
	}
	return n, nil
}

// content reads the body. Its digest is that of the URL, if that has one.
func (r *request) content() (ocispec.Descriptor, error) {
	var c index.Content
	if err := r.body(&c); err != nil {
		return c.Descriptor, err
	}
	if d := r.digest(); d != "" && d != c.Descriptor.Digest {
		return c.Descriptor, fmt.Errorf("the request is about %.200q, its body about %.200q: %w",
			d, c.Descriptor.Digest, errdefs.ErrInvalidArgument)
	}
	return c.Descriptor, nil
}

// body reads the body into a value.
func (r *request) body(into any) error {
	dec := json.NewDecoder(http.MaxBytesReader(nil, r.Body, index.MaxRequest))
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	if err == nil {
		if _, err = dec.Token(); err == io.EOF {
			err = nil
		} else if err == nil {
			err = fmt.Errorf("something follows")
		}
	}
	if err != nil {
		return fmt.Errorf("the request's body: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	for _, o := range []struct {
		method, path, name string
		do                 operation
	}{
		{"GET", index.PathRepositories, "repositories", s.repositories},
		{"GET", index.PathTags, "tags", s.tags},
		{"GET", index.PathManifests, "manifests", s.manifests},
		{"GET", index.PathReferrers, "referrers", s.referrers},
		{"GET", index.PathTag, "get_tag", s.tag},
		{"PUT", index.PathTag, "put_tag", s.putTag},
		{"DELETE", index.PathTag, "delete_tag", s.deleteTag},
		{"GET", index.PathManifest, "get_manifest", s.manifest},
		{"PUT", index.PathManifest, "put_manifest", s.putManifest},
		{"DELETE", index.PathManifest, "delete_manifest", s.deleteManifest},
		{"GET", index.PathBlob, "get_blob", s.blob},
		{"PUT", index.PathBlob, "link_blob", s.linkBlob},
		{"DELETE", index.PathBlob, "unlink_blob", s.unlinkBlob},
		{"PUT", index.PathTokenKeys, "token_keys", s.tokenKeys},
	} {
		mux.Handle(o.method+" "+o.path, s.serve(o.name, o.method != "GET", o.do))
	}
	mux.Handle("POST "+index.PathProve, s.serve("prove", true, s.prove))
	mux.Handle("POST "+index.PathFsck, http.HandlerFunc(s.fsck))
	mux.Handle("GET "+index.PathReplication, s.serve("replication", false, s.replicationStatus))
	mux.Handle("PUT "+index.PathRule, s.serve("set_rule", true, s.setRule))
	mux.Handle("DELETE "+index.PathRule, s.serve("remove_rule", true, s.removeRule))
	mux.Handle("POST "+index.PathRetry, s.serve("retry", true, s.retry))
	mux.Handle("POST "+index.PathVerify, http.HandlerFunc(s.verify))
	return mux
}

func (r *request) log(ctx context.Context, what string, fields log.Fields) {
	log.G(ctx).WithFields(fields).WithFields(log.Fields{"repository": r.repo(), "by": r.from}).Info(what)
}

// serve is an operation with who may do it, its time, and its metrics.
func (s *server) serve(name string, writes bool, do operation) http.Handler {
	timeout := readTimeout
	if writes {
		timeout = writeTimeout
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		start := time.Now()
		ctx, cancel := context.WithTimeout(req.Context(), timeout)
		defer cancel()
		answer, err := s.perform(ctx, req, writes, do)
		class, _ := index.Class(err)
		s.metrics.done(name, class, time.Since(start))
		switch {
		case err != nil:
			if class == "data_loss" || class == "internal" || class == "unavailable" && req.Context().Err() == nil {
				log.G(ctx).WithError(err).WithFields(log.Fields{"operation": name}).Warn("request failed")
			}
			index.WriteError(w, err)
		case answer == nil:
			w.WriteHeader(http.StatusNoContent)
		default:
			index.WriteJSON(w, http.StatusOK, answer)
		}
	})
}

func (s *server) perform(ctx context.Context, req *http.Request, writes bool, do operation) (any, error) {
	query, err := url.ParseQuery(req.URL.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("the request's parameters: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	r := &request{Request: req, query: query}
	allowed := readers
	switch {
	case req.Method == http.MethodPost, strings.HasPrefix(req.URL.Path, index.PathReplication):
		allowed = admins
	case writes:
		allowed = writers
	}
	if r.from, err = s.who(req, allowed); err != nil {
		return nil, err
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return nil, fmt.Errorf("too many requests at once: %w", errdefs.ErrUnavailable)
	}
	if writes && req.Method != http.MethodPost && s.proof != nil {
		if err := s.proof.wait(ctx); err != nil {
			return nil, err
		}
	}
	return do(ctx, r)
}

// who says who asks, for the log, if that is somebody who may.
func (s *server) who(req *http.Request, allowed []identity.Role) (string, error) {
	if s.peer == nil {
		return req.RemoteAddr, nil
	}
	id, err := s.peer(req)
	if err != nil {
		return "", fmt.Errorf("who is %s? %w: %w", req.RemoteAddr, err, errdefs.ErrUnauthenticated)
	}
	if !id.Has(allowed...) {
		return "", fmt.Errorf("%s may not do that, one of the roles %v is needed: %w", id, allowed, errdefs.ErrPermissionDenied)
	}
	return id.String(), nil
}

// drain returns when the operations that are under way have ended, and keeps others
// from beginning.
func (s *server) drain() {
	for range cap(s.slots) {
		s.slots <- struct{}{}
	}
}
