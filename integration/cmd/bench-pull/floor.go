package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"google.golang.org/grpc"

	"github.com/capelin-io/capelin/integration/harness"
)

// floorDropIn has containerd take its content store from a socket.
const floorDropIn = `version = 3
disabled_plugins = ["io.containerd.content.v1.content"]

[proxy_plugins.floor]
  type = "content"
  address = %q
`

// startFloor starts, on a node that is not started yet, what any content plugin costs: a
// process that passes containerd's calls on to containerd's own content store, and does
// nothing else. It does not unpack.
func startFloor(n *harness.Node) (*harness.Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(n.Dir, "floor.sock")
	if err := os.WriteFile(filepath.Join(n.Dir, "conf.d", "floor.toml"), fmt.Appendf(nil, floorDropIn, socket), 0o644); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	l.Close()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return n.Host.Start("floor", nil, []*os.File{f}, self, "-floor", n.ContentDir())
}

// knowing answers from memory how far a download is, which is most of what containerd asks.
type knowing struct{ content.Store }

func (knowing) Status(_ context.Context, ref string) (content.Status, error) {
	return content.Status{Ref: ref}, nil
}

// serveFloor is that process; its socket is file 3.
func serveFloor(root string) error {
	store, err := local.NewStore(root)
	if err != nil {
		return err
	}
	l, err := net.FileListener(os.NewFile(3, "socket"))
	if err != nil {
		return err
	}
	s := grpc.NewServer(grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize))
	api.RegisterContentServer(s, contentserver.New(knowing{store}))
	return s.Serve(l)
}
