package plugin

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/log"

	"github.com/capelin-io/capelin/plugin/unpack"
)

// unpack returns containerd's diff service. It reads the blobs that containerd sees, from
// their files.
//
// What a killed agent's calls have left is cleaned up here, and in the snapshots
// by containerd, which throws away whatever Apply did not finish. Failing to is no
// reason to keep containers from starting.
func (a *agent) unpack(ctx context.Context, store ctrdcontent.Store) *unpack.Service {
	// Below the socket's directory, which is this agent's own.
	if err := unpack.PrepareTempMounts(filepath.Join(filepath.Dir(a.cfg.Socket), "mounts")); err != nil {
		log.G(ctx).WithError(err).Error("unpack")
	}
	if !unpack.Able() {
		log.G(ctx).Warn("unpack: this kernel or this process is not able to (Linux 5.6, root, no user namespace); " +
			"containerd's own applier does it, in the agent")
	}
	return unpack.NewService(store, unpack.Config{
		Options:          unpack.Options{Child: a.cfg.DecodeZstd, Room: a.disk.roomFor},
		StreamProcessors: unpack.DefaultStreamProcessors(),
		Applied:          a.metrics.unpacked,
	})
}

// DecodeZstd is the process of [Config.DecodeZstd]; see unpack.DecodeZstd.
func DecodeZstd(r io.Reader, w io.Writer) error { return unpack.DecodeZstd(r, w) }

// An UnpackTo is an entry of containerd's unpack_config: how its transfer service,
// and with it CRI and ctr, unpacks to a snapshotter.
type UnpackTo struct {
	Platform    string   `toml:"platform"`
	Snapshotter string   `toml:"snapshotter"`
	Differ      string   `toml:"differ"`
	ConfigType  string   `toml:"config_type"`
	LayerTypes  []string `toml:"layer_types"`
	Optional    bool     `toml:"optional"` // containerd 2.3 or newer; others must have all that is listed
}

// Unpacking is how containerd unpacks without the agent.
type Unpacking struct {
	Differs  []string   // of the diff service, in the order in which they are tried; none: stockDiffer
	UnpackTo []UnpackTo // none: to overlayfs, by stockDiffer
}

const (
	stockDiffer = "walking" // containerd's own
	diffProxy   = "capelin-diff"
)

// dropIn makes the agent unpack what containerd's own differ would. All else stays: the
// drop-in's lists replace those of containerd.
func (u Unpacking) dropIn(socket string, layers int) string {
	var b strings.Builder
	fmt.Fprintf(&b, unpackHead, diffProxy, socket)

	// The diff service goes on to the next for what the agent does not do: comparing
	// snapshots, and layers or mounts that it has no program for.
	differs := slices.DeleteFunc(slices.Clone(u.Differs), func(d string) bool { return d == diffProxy })
	if len(differs) == 0 {
		differs = []string{stockDiffer}
	}
	at := slices.Index(differs, stockDiffer)
	if at < 0 {
		at = len(differs)
	}
	fmt.Fprintf(&b, unpackDiffers, list(slices.Insert(differs, at, diffProxy)))

	b.WriteString(unpackTransfer)
	if layers > 1 {
		fmt.Fprintf(&b, "[plugins.%q]\n  max_concurrent_unpacks = %d\n", transferService, layers)
	}
	to := u.UnpackTo
	if len(to) == 0 {
		to = []UnpackTo{{Platform: "linux", Snapshotter: "overlayfs"}}
	}
	for _, t := range to {
		// What erofs mounts is made by containerd's mount manager, which the agent does
		// not have.
		if (t.Differ == "" || t.Differ == stockDiffer) && t.Snapshotter != "erofs" {
			t.Differ = diffProxy
		}
		fmt.Fprintf(&b, "[[plugins.%q.unpack_config]]\n  platform = %q\n  snapshotter = %q\n", transferService, t.Platform, t.Snapshotter)
		if t.Differ != "" {
			fmt.Fprintf(&b, "  differ = %q\n", t.Differ)
		}
		if t.ConfigType != "" {
			fmt.Fprintf(&b, "  config_type = %q\n", t.ConfigType)
		}
		if len(t.LayerTypes) > 0 {
			fmt.Fprintf(&b, "  layer_types = %s\n", list(t.LayerTypes))
		}
		if t.Optional {
			b.WriteString("  optional = true\n")
		}
	}
	return b.String()
}

// list is a list of strings in TOML.
func list(all []string) string {
	quoted := make([]string, len(all))
	for i, s := range all {
		quoted[i] = strconv.Quote(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

const (
	transferService = "io.containerd.transfer.v1.local"

	unpackHead = `
# The agent also unpacks layers, as long as agent.toml does not say "unpack = false":
# before it does, remove all that follows, or write this file again.
[proxy_plugins.%s]
  type = "diff"
  address = %q
`
	unpackDiffers = `
# For clients that unpack themselves, and CRI's local pull.
[plugins."io.containerd.service.v1.diff-service"]
  default = %s
`
	unpackTransfer = `
# For the transfer service: CRI and ctr. It unpacks to the snapshotters in this list
# only, which replaces containerd's own.
`
)
