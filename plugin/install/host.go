package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/capelin-io/capelin/internal/rpcerr"
	"github.com/capelin-io/capelin/plugin"
)

// Host is the machine that is looked at and changed.
type Host interface {
	// Path returns where a file of the host is for this process.
	Path(path string) string
	// Live reports whether the host is the running machine, and not an image of one.
	// The methods below fail with ErrNotLive if it is not.
	Live() bool
	// Run runs a command and returns what it printed to its standard output, also
	// with an error, which tells what it said.
	Run(ctx context.Context, name string, args ...string) (string, error)
	// Dial connects, as net.Dialer does.
	Dial(ctx context.Context, network, address string) (net.Conn, error)
	// Lookup returns the addresses of a host name.
	Lookup(ctx context.Context, name string) ([]string, error)
	// Containerd asks the containerd behind a Unix socket about itself.
	Containerd(ctx context.Context, socket string) (Containerd, error)
	// Healthy asks a gRPC server on a Unix socket whether it serves.
	Healthy(ctx context.Context, socket string) error
	// Agent asks the agent behind an admin socket how it is.
	Agent(ctx context.Context, admin string) (plugin.Status, error)
	// Disk tells about the file system that a path is on.
	Disk(path string) (Disk, error)
	// Kernel returns the kernel's release, such as "6.1.0-28-amd64".
	Kernel() (string, error)
	// Clock returns the time, and whether the kernel says that it is synchronised.
	Clock() (now time.Time, synchronised bool, err error)
	// Addresses returns those of the host's network interfaces.
	Addresses() ([]net.Addr, error)
}

// ErrNotLive says that the host is not the running machine.
var ErrNotLive = errors.New("the host is not running")

// Containerd is what a running containerd says of itself.
type Containerd struct {
	Version string
	Plugins []Plugin // content stores, snapshotters and differs only
}

// Plugin is one plugin of a running containerd.
type Plugin struct {
	Type, ID string
	Root     string // its directory, if it says so
	Err      string // why it is not usable; "": it is
}

// Disk is a file system.
type Disk struct {
	Device uint64
	Size   int64 // in bytes
	Free   int64 // in bytes, for unprivileged users
}

// Limits of what is read from others.
const (
	maxFile    = 1 << 20
	maxOutput  = 1 << 20
	maxPlugins = 1000
)

// Local is this machine, or an image of one whose root directory is Root.
type Local struct {
	Root string // "" or "/": this machine
}

// Live reports whether it is this machine.
func (l Local) Live() bool { return l.Root == "" || filepath.Clean(l.Root) == "/" }

// Path puts the root before the path.
func (l Local) Path(path string) string {
	if l.Live() {
		return path
	}
	return filepath.Join(l.Root, path)
}

// Run runs a command. Its output is cut at 1 MiB.
func (l Local) Run(ctx context.Context, name string, args ...string) (string, error) {
	if !l.Live() {
		return "", ErrNotLive
	}
	var out, errs limited
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if err != nil {
		said := strings.TrimSpace(errs.String())
		if len(said) > 1000 {
			said = said[:1000] + " …"
		}
		err = fmt.Errorf("%s: %w", strings.Join(append([]string{name}, args...), " "), err)
		if said != "" {
			err = fmt.Errorf("%w: %s", err, said)
		}
	}
	return out.String(), err
}

// limited keeps the first maxOutput bytes.
type limited struct{ kept bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	l.kept.Write(p[:min(len(p), maxOutput-l.kept.Len())])
	return len(p), nil
}

func (l *limited) String() string { return l.kept.String() }

// Dial connects.
func (l Local) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if !l.Live() {
		return nil, ErrNotLive
	}
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

// Lookup asks the resolver.
func (l Local) Lookup(ctx context.Context, name string) ([]string, error) {
	if !l.Live() {
		return nil, ErrNotLive
	}
	return net.DefaultResolver.LookupHost(ctx, name)
}

// dialUnix returns a client of the gRPC server on a Unix socket.
func dialUnix(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(rpcerr.Unary))
}

// Containerd asks for version and plugins.
func (l Local) Containerd(ctx context.Context, socket string) (Containerd, error) {
	if !l.Live() {
		return Containerd{}, ErrNotLive
	}
	conn, err := dialUnix(socket)
	if err != nil {
		return Containerd{}, fmt.Errorf("containerd on %s: %w", socket, err)
	}
	defer conn.Close()
	v, err := versionapi.NewVersionClient(conn).Version(ctx, &emptypb.Empty{})
	if err != nil {
		return Containerd{}, fmt.Errorf("containerd on %s: %w", socket, err)
	}
	c := Containerd{Version: v.Version}
	resp, err := introspection.NewIntrospectionClient(conn).Plugins(ctx, &introspection.PluginsRequest{Filters: []string{
		"type==" + typeContent, "type==" + typeSnapshots, "type==" + typeDiff,
	}})
	if err != nil {
		return Containerd{}, fmt.Errorf("plugins of containerd on %s: %w", socket, err)
	}
	for _, p := range resp.Plugins[:min(len(resp.Plugins), maxPlugins)] {
		c.Plugins = append(c.Plugins, Plugin{Type: p.Type, ID: p.ID, Root: p.Exports["root"], Err: p.InitErr.GetMessage()})
	}
	return c, nil
}

// Healthy asks for the server's health.
func (l Local) Healthy(ctx context.Context, socket string) error {
	if !l.Live() {
		return ErrNotLive
	}
	conn, err := dialUnix(socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		return err
	}
	if resp.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("it is %v", resp.Status)
	}
	return nil
}

// Agent asks for its status.
func (l Local) Agent(ctx context.Context, admin string) (plugin.Status, error) {
	if !l.Live() {
		return plugin.Status{}, ErrNotLive
	}
	return plugin.FetchStatus(ctx, admin)
}

// Disk asks the kernel.
func (l Local) Disk(path string) (Disk, error) {
	var st unix.Stat_t
	if err := unix.Stat(l.Path(path), &st); err != nil {
		return Disk{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(l.Path(path), &fs); err != nil {
		return Disk{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	block := int64(fs.Bsize) //nolint:unconvert // not on every architecture
	return Disk{
		Device: uint64(st.Dev), //nolint:unconvert // not on every architecture
		Size:   int64(fs.Blocks) * block,
		Free:   int64(fs.Bavail) * block,
	}, nil
}

// Kernel asks the kernel.
func (l Local) Kernel() (string, error) {
	if !l.Live() {
		return "", ErrNotLive
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// Clock asks the kernel.
func (l Local) Clock() (time.Time, bool, error) {
	if !l.Live() {
		return time.Time{}, false, ErrNotLive
	}
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return time.Now(), false, fmt.Errorf("adjtimex: %w", err)
	}
	return time.Now(), state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0, nil
}

// Addresses asks the kernel.
func (l Local) Addresses() ([]net.Addr, error) {
	if !l.Live() {
		return nil, ErrNotLive
	}
	return net.InterfaceAddrs()
}

// read returns a file of the host, which must have at most 1 MiB.
func read(h Host, path string) ([]byte, error) {
	f, err := os.Open(h.Path(path))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	return data, nil
}

// exists reports whether the host has a file, of whatever kind.
func exists(h Host, path string) bool {
	_, err := os.Stat(h.Path(path))
	return err == nil
}
