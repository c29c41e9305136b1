package plugin

import (
	"context"
	"path/filepath"

	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/log"
	"google.golang.org/grpc"

	"github.com/capelin-io/capelin/plugin/unpack"
)

// unpack adds containerd's diff service to srv. It reads the blobs that
// containerd sees, from their files.
//
// What a killed agent's calls have left is cleaned up here, and in the snapshots
// by containerd, which throws away whatever Apply did not finish. Failing to is no
// reason to keep containers from starting.
func (a *agent) unpack(ctx context.Context, srv *grpc.Server, store ctrdcontent.Store) {
	// Below the socket's directory, which is this agent's own.
	if err := unpack.PrepareTempMounts(filepath.Join(filepath.Dir(a.cfg.Socket), "mounts")); err != nil {
		log.G(ctx).WithError(err).Error("unpack")
	}
	if !unpack.Able() {
		log.G(ctx).Warn("unpack: this kernel or this process is not able to (Linux 5.6, root, no user namespace); containerd's own applier does it, in the agent")
	}
	unpack.NewService(store, unpack.Config{
		StreamProcessors: unpack.DefaultStreamProcessors(),
		Applied:          a.metrics.unpacked,
	}).Register(srv)
}

// The diff service goes on to "walking" for what the agent does not do: comparing
// snapshots, and layers or mounts that it has no program for.
const unpackDropIn = `
# The agent also unpacks layers ("unpack" in agent.toml). Remove all that
# follows, or print this file again, before that is switched off.
[proxy_plugins.capelin-diff]
  type = "diff"
  address = %q

# For clients that unpack themselves, and CRI's local pull.
[plugins."io.containerd.service.v1.diff-service"]
  default = ["capelin-diff", "walking"]

# For the transfer service: CRI and ctr. This list replaces containerd's own,
# which from 2.3 on has an entry for erofs as well. Snapshotters that are not
# listed here cannot be unpacked to by the transfer service.
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = %q
  snapshotter = "overlayfs"
  differ = "capelin-diff"
`
