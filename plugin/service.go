package plugin

import (
	"context"
	"fmt"
	"strings"
	"time"

	api "github.com/containerd/containerd/api/services/content/v1"
	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/containerd/v2/pkg/protobuf"
	ptypes "github.com/containerd/containerd/v2/pkg/protobuf/types"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/plugin/fetch"
)

// service is containerd's content API over the store, with a Write of its own
// for refs that belong to the swarm. Everything else is containerd's own
// contentserver.
type service struct {
	api.ContentServer // over store
	store             ctrdcontent.Store
	blobs             sessionBlobs
	fetches           *fetch.Fetches
	sessions          *sessions
	images            *images
	registries        *registryNames // nil: containerd is not asked
	// called observes a message of a Write stream.
	called func(method string, start time.Time, err error)
}

func newService(store ctrdcontent.Store, blobs sessionBlobs, fs *fetch.Fetches, im *images) *service {
	return &service{
		ContentServer: contentserver.New(store), store: store,
		blobs: blobs, fetches: fs, sessions: newSessions(), images: im,
		called: func(string, time.Time, error) {},
	}
}

// hidingStore shows only what containerd has committed, for authorize = "blob":
// Info of a cached blob would make it containerd's without the registry's consent.
type hidingStore struct {
	ctrdcontent.Store
	hidden func(digest.Digest) bool
}

func (s hidingStore) Info(ctx context.Context, d digest.Digest) (ctrdcontent.Info, error) {
	if s.hidden(d) {
		return ctrdcontent.Info{}, fmt.Errorf("content %s: %w", d, errdefs.ErrNotFound)
	}
	return s.Store.Info(ctx, d)
}

func (s hidingStore) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (ctrdcontent.ReaderAt, error) {
	if s.hidden(desc.Digest) {
		return nil, fmt.Errorf("content %s: %w", desc.Digest, errdefs.ErrNotFound)
	}
	return s.Store.ReaderAt(ctx, desc)
}

// Update refuses a request without an Info, which would be a nil dereference in
// the stock server.
func (s *service) Update(ctx context.Context, req *api.UpdateRequest) (*api.UpdateResponse, error) {
	if req.Info == nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("update without an info: %w", errdefs.ErrInvalidArgument))
	}
	return s.ContentServer.Update(ctx, req)
}

// Delete of a blob that is not there succeeds: containerd's garbage collection
// stops at the first error.
func (s *service) Delete(ctx context.Context, req *api.DeleteContentRequest) (*ptypes.Empty, error) {
	d, err := digest.Parse(req.Digest)
	if err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("digest %q: %w: %w", req.Digest, err, errdefs.ErrInvalidArgument))
	}
	if err := s.store.Delete(ctx, d); err != nil && !errdefs.IsNotFound(err) {
		return nil, errgrpc.ToGRPC(err)
	}
	return &ptypes.Empty{}, nil
}

// Read serves a range of a blob.
func (s *service) Read(req *api.ReadContentRequest, stream api.Content_ReadServer) error {
	if err := s.ContentServer.Read(req, stream); err != nil {
		return err
	}
	if req.Offset <= 0 {
		s.images.read(digest.Digest(req.Digest))
	}
	return nil
}

// Status reports a live session of the swarm with its verified bytes, or else
// the stock ingest.
func (s *service) Status(ctx context.Context, req *api.StatusRequest) (*api.StatusResponse, error) {
	if st, ok := s.sessions.status(req.Ref); ok {
		return &api.StatusResponse{Status: statusToGRPC(st)}, nil
	}
	return s.ContentServer.Status(ctx, req)
}

// ListStatuses lists live sessions of the swarm and stock ingests.
func (s *service) ListStatuses(ctx context.Context, req *api.ListStatusesRequest) (*api.ListStatusesResponse, error) {
	filter, err := filters.ParseAll(req.Filters...)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	resp, err := s.ContentServer.ListStatuses(ctx, req)
	if err != nil {
		return nil, err
	}
	live := map[string]bool{}
	for _, st := range s.sessions.list() {
		live[st.Ref] = true
		if filter.Match(adaptStatus(st)) {
			resp.Statuses = append(resp.Statuses, statusToGRPC(st))
		}
	}
	// An ingest that stock containerd left under a ref that is now a session of
	// the swarm appears once.
	if len(live) > 0 {
		seen := map[string]int{}
		out := resp.Statuses[:0]
		for _, st := range resp.Statuses {
			if i, dup := seen[st.Ref]; dup {
				out[i] = st
				continue
			}
			seen[st.Ref] = len(out)
			out = append(out, st)
		}
		resp.Statuses = out
	}
	return resp, nil
}

// Abort of something that is not there succeeds, like Delete. A live session of
// the swarm ends; the pieces it has verified stay, within the cache's budget.
func (s *service) Abort(ctx context.Context, req *api.AbortRequest) (*ptypes.Empty, error) {
	s.sessions.abort(req.Ref)
	if err := s.store.Abort(ctx, req.Ref); err != nil && !errdefs.IsNotFound(err) {
		return nil, errgrpc.ToGRPC(err)
	}
	return &ptypes.Empty{}, nil
}

// Write routes a stream by its first message.
func (s *service) Write(stream api.Content_WriteServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if id, ok := parseRef(first.Ref, first.Total); ok && first.Action == api.WriteAction_STAT {
		if first.Expected == "" || first.Expected == id.Digest() {
			return s.writeSwarm(stream, first, id)
		}
	}
	w := &replayStream{Content_WriteServer: stream, first: first}
	if isManifestRef(first.Ref) {
		w.committed = func(d digest.Digest, size int64) { s.images.committed(d, size) }
		w.received = s.fetches.Config().OnRegistry
	}
	return s.ContentServer.Write(w)
}

// replayStream gives the stock server a stream whose first message was read
// already, and watches for the commit.
type replayStream struct {
	api.Content_WriteServer
	first     *api.WriteContentRequest
	committed func(d digest.Digest, size int64) // may be nil
	received  func(bytes int)                   // may be nil
}

func (r *replayStream) Recv() (*api.WriteContentRequest, error) {
	req := r.first
	r.first = nil
	if req == nil {
		var err error
		if req, err = r.Content_WriteServer.Recv(); err != nil {
			return nil, err
		}
	}
	if r.received != nil {
		r.received(len(req.Data))
	}
	return req, nil
}

func (r *replayStream) Send(resp *api.WriteContentResponse) error {
	if r.committed != nil && resp.Action == api.WriteAction_COMMIT {
		if d, err := digest.Parse(resp.Digest); err == nil {
			r.committed(d, resp.Offset)
		}
	}
	return r.Content_WriteServer.Send(resp)
}

func statusToGRPC(st ctrdcontent.Status) *api.Status {
	return &api.Status{
		Ref: st.Ref, Offset: st.Offset, Total: st.Total, Expected: st.Expected.String(),
		StartedAt: protobuf.ToTimestamp(st.StartedAt), UpdatedAt: protobuf.ToTimestamp(st.UpdatedAt),
	}
}

// adaptStatus lets containerd's filters see a status, as its stores do.
func adaptStatus(st ctrdcontent.Status) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		if len(path) == 1 && path[0] == "ref" {
			return st.Ref, true
		}
		return "", false
	})
}

// readBlob reads a small blob that containerd committed.
func readBlob(ctx context.Context, store ctrdcontent.Store, d digest.Digest, most int64) ([]byte, error) {
	ra, err := store.ReaderAt(ctx, ocispec.Descriptor{Digest: d})
	if err != nil {
		return nil, err
	}
	defer ra.Close()
	if ra.Size() > most {
		return nil, fmt.Errorf("%s has %d bytes, more than %d: %w", d, ra.Size(), most, errdefs.ErrOutOfRange)
	}
	p := make([]byte, ra.Size())
	if n, err := ra.ReadAt(p, 0); int64(n) != ra.Size() {
		return nil, err
	}
	return p, nil
}

// refLocked is the stock store's answer for a ref that has a live session.
func refLocked(ref string, since time.Time) error {
	return fmt.Errorf("ref %s locked for %s: %w",
		strings.ToValidUTF8(ref, "?"), time.Since(since).Round(time.Millisecond), errdefs.ErrUnavailable)
}
