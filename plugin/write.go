package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	api "github.com/containerd/containerd/api/services/content/v1"
	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/protobuf"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/internal/diskfull"
	"github.com/capelin-io/capelin/plugin/fetch"
	"github.com/capelin-io/capelin/swarm/piece"
)

// sessionBlobs is the store, for sessions.
type sessionBlobs interface {
	// Committed reports from memory whether containerd has the blob.
	Committed(id piece.ID) bool
	// AdoptIngest takes over what stock containerd wrote under the ref before.
	AdoptIngest(ctx context.Context, ref string, id piece.ID) error
}

// sessions is the set of live Write streams of the swarm, one a ref.
type sessions struct {
	mu   sync.Mutex
	live map[string]*session
}

func newSessions() *sessions { return &sessions{live: map[string]*session{}} }

// start registers a session, or fails with Unavailable if the ref has one.
func (ss *sessions) start(s *session) error {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if other := ss.live[s.ref]; other != nil {
		return refLocked(s.ref, other.started)
	}
	ss.live[s.ref] = s
	return nil
}

func (ss *sessions) end(s *session) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	delete(ss.live, s.ref)
}

func (ss *sessions) status(ref string) (ctrdcontent.Status, bool) {
	ss.mu.Lock()
	s := ss.live[ref]
	ss.mu.Unlock()
	if s == nil {
		return ctrdcontent.Status{}, false
	}
	return s.status(), true
}

func (ss *sessions) list() []ctrdcontent.Status {
	ss.mu.Lock()
	live := slices.Collect(maps.Values(ss.live))
	ss.mu.Unlock()
	out := make([]ctrdcontent.Status, 0, len(live))
	for _, s := range live {
		out = append(out, s.status())
	}
	return out
}

// abort ends the ref's session, if it has one.
func (ss *sessions) abort(ref string) {
	ss.mu.Lock()
	s := ss.live[ref]
	ss.mu.Unlock()
	if s != nil {
		s.cancel(fmt.Errorf("ref %s was aborted: %w", ref, errdefs.ErrAborted))
	}
}

// ids returns the blobs that sessions have open.
func (ss *sessions) ids() []piece.ID {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ids := make([]piece.ID, 0, len(ss.live))
	for _, s := range ss.live {
		ids = append(ids, s.id)
	}
	return ids
}

// A session is one Write stream on a ref that belongs to the swarm. What
// containerd sends, and what is answered:
//
//	STAT ref, size      → 0            the opening, under containerd's locks
//	STAT                → N            waits for the swarm; N is final
//	WRITE @c, n bytes   → c+n          if N < size; c counts from 0
//	STAT                → N+c          again, inside COMMIT's transaction
//	COMMIT @c, size     → size         a rename, under containerd's locks
//
// Two coordinates: containerd's metadata layer opens the stream and takes the
// first STAT's answer, 0, for its own counter of bytes. The next STAT's answer N
// says from where the blob's bytes come, but never moves the counter, so that
// the byte at counter c is the blob's byte N + c. STAT and COMMIT answer in blob
// offsets, WRITE in the counter's.
type session struct {
	ref     string
	id      piece.ID
	started time.Time
	updated atomic.Int64 // Unix nanoseconds
	offset  atomic.Int64 // of the blob, as containerd sees it; while it waits, see status
	fetch   *fetch.Session
	blobs   sessionBlobs
	cancel  context.CancelCauseFunc

	// Owned by the stream's handler.
	settled bool  // the blocking STAT was answered, or was skipped
	base    int64 // N
	written int64 // the counter
	app     fetch.Appender
	done    error // of Finish, reported at COMMIT
	closed  bool  // the client ended the stream, rather than breaking it off
	full    bool  // the disk could not take what the client brought
}

func (s *session) status() ctrdcontent.Status {
	st := ctrdcontent.Status{
		Ref: s.ref, Total: s.id.Size, Offset: s.offset.Load(),
		StartedAt: s.started, UpdatedAt: time.Unix(0, s.updated.Load()),
	}
	if st.Offset < 0 { // not settled: what the swarm has delivered so far
		verified, at := s.fetch.Progress()
		st.Offset = verified
		if at.After(st.UpdatedAt) {
			st.UpdatedAt = at
		}
	}
	return st
}

func (s *session) moved(offset int64) {
	s.offset.Store(offset)
	s.updated.Store(time.Now().UnixNano())
}

// writeSwarm serves a stream on a ref that belongs to the swarm.
func (s *service) writeSwarm(stream api.Content_WriteServer, first *api.WriteContentRequest, id piece.ID) error {
	err := s.runSession(stream, first, id)
	switch {
	case err == nil:
		return nil
	case stream.Context().Err() != nil:
		return errgrpc.ToGRPC(context.Cause(stream.Context()))
	}
	log.G(stream.Context()).WithError(err).WithField("ref", first.Ref).Debug("write session failed")
	return errgrpc.ToGRPC(err)
}

func (s *service) runSession(stream api.Content_WriteServer, first *api.WriteContentRequest, id piece.ID) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	ses := &session{ref: first.Ref, id: id, blobs: s.blobs, started: time.Now(), cancel: cancel}
	ses.offset.Store(-1)
	ses.updated.Store(ses.started.UnixNano())
	if first.Expected != "" && s.blobs.Committed(id) {
		return fmt.Errorf("content %s: %w", id.Digest(), errdefs.ErrAlreadyExists)
	}
	ses.fetch = s.fetches.Open(id, s.registries.client(id, first.Ref))
	defer ses.fetch.Close()
	if err := s.sessions.start(ses); err != nil {
		return err
	}
	defer s.sessions.end(ses)
	defer ses.end(ctx)
	s.images.opened(id, first.Ref)

	// The opening: answered from memory, always 0, so that the counter is 0.
	resp := &api.WriteContentResponse{
		Action: api.WriteAction_STAT, Total: id.Size, Digest: id.Digest(),
		StartedAt: protobuf.ToTimestamp(ses.started), UpdatedAt: protobuf.ToTimestamp(ses.started),
	}
	s.called("Write/open", ses.started, nil)
	for {
		if err := stream.Send(resp); err != nil {
			return err
		}
		if resp.Action == api.WriteAction_COMMIT {
			return nil
		}
		req, err := stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				ses.closed = true
				return nil
			}
			return err
		}
		start, settled := time.Now(), ses.settled
		resp, err = ses.handle(ctx, req)
		s.called(messageName(req.Action, settled), start, err)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil && stream.Context().Err() == nil {
				return cause // aborted
			}
			return explain(err, id)
		}
	}
}

// messageName labels a message of a stream for metrics. Only Write/wait may wait
// for the swarm.
func messageName(a api.WriteAction, settled bool) string {
	switch {
	case a == api.WriteAction_COMMIT:
		return "Write/commit"
	case a == api.WriteAction_WRITE:
		return "Write/write"
	case settled:
		return "Write/stat"
	}
	return "Write/wait"
}

func (s *session) handle(ctx context.Context, req *api.WriteContentRequest) (*api.WriteContentResponse, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if req.Ref != "" && req.Ref != s.ref {
		return nil, fmt.Errorf("the session is about ref %s, not %s: %w", s.ref, req.Ref, errdefs.ErrInvalidArgument)
	}
	resp := &api.WriteContentResponse{Action: req.Action, Total: s.id.Size, Digest: s.id.Digest()}
	switch req.Action {
	case api.WriteAction_STAT:
		if !s.settled {
			if err := s.blobs.AdoptIngest(ctx, s.ref, s.id); err != nil {
				log.G(ctx).WithError(err).WithField("digest", s.id.Digest()).Warn("cannot adopt what was downloaded before the switch")
			}
			a, err := s.fetch.Wait(ctx)
			if err != nil {
				return nil, err
			}
			s.settled, s.base = true, a.Offset
			s.moved(a.Offset)
		}
		resp.Offset = s.base + s.written
	case api.WriteAction_WRITE:
		if err := s.write(ctx, req); err != nil {
			return nil, err
		}
		resp.Offset = s.written
	case api.WriteAction_COMMIT:
		if err := s.commit(ctx, req); err != nil {
			return nil, err
		}
		resp.Offset = s.id.Size
	default:
		return nil, fmt.Errorf("write action %d: %w", req.Action, errdefs.ErrInvalidArgument)
	}
	resp.StartedAt = protobuf.ToTimestamp(s.started)
	resp.UpdatedAt = protobuf.ToTimestamp(time.Unix(0, s.updated.Load()))
	return resp, nil
}

// write stores what containerd downloaded itself.
func (s *session) write(ctx context.Context, req *api.WriteContentRequest) error {
	if !s.settled { // a client that writes without asking where
		s.settled = true
		s.fetch.Write()
		s.moved(0)
	}
	if req.Offset == 0 && s.written > 0 {
		// Truncate, in the stock server's language: the client begins the blob
		// again, from its first byte.
		if err := s.closeAppender(); err != nil {
			return err
		}
		s.base, s.written, s.done = 0, 0, nil
		s.moved(0)
	}
	if req.Offset != s.written {
		return fmt.Errorf("write @%d must occur at current offset %d: %w", req.Offset, s.written, errdefs.ErrOutOfRange)
	}
	if len(req.Data) == 0 {
		return nil
	}
	at := s.base + s.written
	if int64(len(req.Data)) > s.id.Size-at {
		return fmt.Errorf("write of %d bytes @%d of %s exceeds its size of %d: %w",
			len(req.Data), at, s.id.Digest(), s.id.Size, errdefs.ErrOutOfRange)
	}
	if s.app == nil {
		b, err := s.fetch.Blob(ctx)
		if err != nil {
			return err
		}
		if s.app, err = b.Append(ctx, at); err != nil {
			return err
		}
	}
	n, err := s.app.Write(req.Data)
	if n > 0 {
		s.written += int64(n)
		s.moved(s.base + s.written)
		s.fetch.Wrote(n, s.base+s.written)
	}
	if err != nil {
		s.checkDisk(err)
		if errors.Is(err, piece.ErrMismatch) {
			s.done = err // a commit would say so too
		}
		return err
	}
	if s.base+s.written == s.id.Size {
		// The data is synced and proven here, because COMMIT comes under
		// containerd's lock. A wrong digest is COMMIT's to report.
		switch err := s.app.Finish(ctx); {
		case err == nil:
			s.fetch.End(nil)
		case errors.Is(err, piece.ErrMismatch):
			s.done = err
		default:
			s.checkDisk(err)
			return err
		}
	}
	return nil
}

// checkDisk fails everybody who wants the blob if the disk is full.
func (s *session) checkDisk(err error) {
	if isFull(err) {
		s.full = true
		s.fetch.Fail(err)
	}
}

func isFull(err error) bool {
	return errdefs.IsResourceExhausted(diskfull.Classed(err))
}

// commit makes the blob containerd's: a rename and a directory sync.
func (s *session) commit(ctx context.Context, req *api.WriteContentRequest) error {
	if want := digest.Digest(req.Expected); want != "" && want.String() != s.id.Digest() {
		return fmt.Errorf("unexpected commit digest %s, expected %s: %w", s.id.Digest(), want, errdefs.ErrFailedPrecondition)
	}
	if req.Total != 0 && req.Total != s.id.Size {
		return fmt.Errorf("unexpected commit size %d of %s, expected %d: %w", req.Total, s.id.Digest(), s.id.Size, errdefs.ErrFailedPrecondition)
	}
	if len(req.Data) > 0 {
		if err := s.write(ctx, req); err != nil {
			return err
		}
	} else if req.Offset != s.written {
		return fmt.Errorf("commit @%d must occur at current offset %d: %w", req.Offset, s.written, errdefs.ErrOutOfRange)
	}
	if s.done != nil {
		return s.done
	}
	if at := s.base + s.written; at != s.id.Size {
		return fmt.Errorf("unexpected commit size %d of %s, expected %d: %w", at, s.id.Digest(), s.id.Size, errdefs.ErrFailedPrecondition)
	}
	b, err := s.fetch.Blob(ctx)
	if err != nil {
		return err
	}
	return b.Publish(ctx)
}

func (s *session) closeAppender() error {
	if s.app == nil {
		return nil
	}
	app := s.app
	s.app = nil
	return app.Close()
}

// end is called when the stream is over, however it ended.
func (s *session) end(ctx context.Context) {
	if err := s.closeAppender(); err != nil {
		log.G(ctx).WithError(err).WithField("digest", s.id.Digest()).Warn("cannot close what containerd wrote of a blob")
	}
	// A client whose registry fails it closes the stream; trackers should not
	// hold it against the registry if it was something else.
	switch {
	case s.done != nil:
		s.fetch.End(s.done)
	case s.full || !s.closed:
		s.fetch.End(fetch.ErrGivenUp)
	default:
		s.fetch.End(fetch.ErrNotWritten)
	}
}

// explain gives an error the class by which containerd reacts to it, and a text
// by which a person can.
func explain(err error, id piece.ID) error {
	switch {
	case errors.Is(err, piece.ErrMismatch):
		return fmt.Errorf("unexpected commit digest, expected %s: %w: %w", id.Digest(), err, errdefs.ErrFailedPrecondition)
	case isFull(err):
		return fmt.Errorf("no space for %s (%d bytes): %w; free space on that file system, for instance by removing images, and pull again: %w",
			id.Digest(), id.Size, err, errdefs.ErrResourceExhausted)
	}
	return err
}
