package install

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/capelin-io/capelin/plugin"
)

// fakeHost is a machine of files below a directory, whose commands, sockets,
// disk and clock are told.
type fakeHost struct {
	root     string
	image    bool                                   // it does not run
	run      func(cmd string) (string, error)       // nil: no command is there
	ran      []string                               // all but "systemctl show" and questions
	dial     func(address string) (net.Conn, error) // nil: all refuse
	names    map[string][]string                    // resolver
	running  map[string]Containerd                  // by socket
	healthy  map[string]error                       // by socket
	agent    map[string]plugin.Status               // by admin socket
	disk     func(path string) (Disk, error)        // nil: a big empty one
	kernel   string
	clock    time.Time
	unsynced bool
	addrs    []net.Addr
}

func newFake(t *testing.T, files map[string]string) *fakeHost {
	t.Helper()
	h := &fakeHost{root: t.TempDir(), kernel: "6.1.0", clock: time.Now()}
	for path, text := range files {
		h.put(t, path, text)
	}
	return h
}

func (h *fakeHost) put(t *testing.T, path, text string) {
	t.Helper()
	if strings.HasSuffix(path, "/") {
		if err := os.MkdirAll(h.Path(path), 0o755); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := os.MkdirAll(filepath.Dir(h.Path(path)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.Path(path), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (h *fakeHost) get(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(h.Path(path))
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (h *fakeHost) Path(path string) string { return filepath.Join(h.root, path) }
func (h *fakeHost) Live() bool              { return !h.image }

func (h *fakeHost) Run(_ context.Context, name string, args ...string) (string, error) {
	cmd := strings.Join(append([]string{name}, args...), " ")
	if h.image {
		return "", ErrNotLive
	}
	if name == "systemctl" && args[0] != "show" && args[0] != "is-enabled" {
		h.ran = append(h.ran, strings.Join(args, " "))
	}
	if h.run == nil {
		return "", fmt.Errorf("%s: not found", cmd)
	}
	return h.run(cmd)
}

func (h *fakeHost) Dial(_ context.Context, _, address string) (net.Conn, error) {
	if h.dial == nil {
		return nil, errors.New("connection refused")
	}
	return h.dial(address)
}

func (h *fakeHost) Lookup(_ context.Context, name string) ([]string, error) {
	if a := h.names[name]; a != nil {
		return a, nil
	}
	return nil, fmt.Errorf("no such host %s", name)
}

func (h *fakeHost) Containerd(_ context.Context, socket string) (Containerd, error) {
	if c, ok := h.running[socket]; ok {
		return c, nil
	}
	return Containerd{}, fmt.Errorf("nobody answers on %s", socket)
}

func (h *fakeHost) Healthy(_ context.Context, socket string) error {
	if err, ok := h.healthy[socket]; ok {
		return err
	}
	return fmt.Errorf("nobody answers on %s", socket)
}

func (h *fakeHost) Agent(_ context.Context, admin string) (plugin.Status, error) {
	if st, ok := h.agent[admin]; ok {
		return st, nil
	}
	return plugin.Status{}, fmt.Errorf("nobody answers on %s", admin)
}

func (h *fakeHost) Disk(path string) (Disk, error) {
	if h.disk == nil {
		return Disk{Device: 1, Size: 100 << 30, Free: 80 << 30}, nil
	}
	return h.disk(path)
}

func (h *fakeHost) Kernel() (string, error)         { return h.kernel, nil }
func (h *fakeHost) Clock() (time.Time, bool, error) { return h.clock, !h.unsynced, nil }
func (h *fakeHost) Addresses() ([]net.Addr, error)  { return h.addrs, nil }
