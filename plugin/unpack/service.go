package unpack

import (
	"context"
	"errors"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc"
)

// Service is containerd's diff service: the other end of a proxy plugin of type
// "diff". Diff is not implemented here, and containerd's diff service goes on to
// the next differ of its list, so that one has to end with "walking".
type Service struct {
	diffapi.UnimplementedDiffServer
	applier diff.Applier
}

// NewService returns the service on an [Applier] for store.
func NewService(store ctrdcontent.Provider, cfg Config) *Service {
	return &Service{applier: NewApplier(store, cfg)}
}

// Register adds the service to a server that does not serve yet.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	diffapi.RegisterDiffServer(r, s)
}

// Apply unpacks a layer; see [Applier.Apply].
func (s *Service) Apply(ctx context.Context, req *diffapi.ApplyRequest) (*diffapi.ApplyResponse, error) {
	if req.Diff == nil {
		return nil, errgrpc.ToGRPCf(errdefs.ErrInvalidArgument, "no layer named")
	}
	opts := []diff.ApplyOpt{diff.WithSyncFs(req.SyncFs)}
	if len(req.Payloads) > 0 {
		payloads := make(map[string]typeurl.Any, len(req.Payloads))
		for k, v := range req.Payloads {
			payloads[k] = v
		}
		opts = append(opts, diff.WithPayloads(payloads))
	}
	desc, err := s.applier.Apply(ctx, oci.DescriptorFromProto(req.Diff), mount.FromProto(req.Mounts), opts...)
	if err != nil {
		l := log.G(ctx).WithError(err).WithField("digest", req.Diff.Digest)
		var p *PanicError
		if errors.As(err, &p) {
			l = l.WithField("stack", string(p.Stack))
		}
		l.Warn("layer was not unpacked")
		return nil, errgrpc.ToGRPC(err)
	}
	return &diffapi.ApplyResponse{Applied: oci.DescriptorToProto(desc)}, nil
}

// Diff is not implemented.
func (s *Service) Diff(context.Context, *diffapi.DiffRequest) (*diffapi.DiffResponse, error) {
	return nil, errgrpc.ToGRPCf(errdefs.ErrNotImplemented, "comparing snapshots is left to containerd")
}
