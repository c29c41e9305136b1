package unpack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/userns"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/internal/durable/disk"
)

// Config configures an [Applier]. The zero value is good.
type Config struct {
	// Options are the limits and the number of workers for each layer. Overlay
	// and Lower are ignored: mounts say that.
	Options Options

	// MountManager activates mounts that only containerd's mount manager can
	// make; it is reached over containerd's socket (core/mount/proxy). nil:
	// such mounts fail as mount types that the kernel does not know.
	MountManager mount.Manager

	// StreamProcessors are containerd's [stream_processors], by id: programs for
	// media types such as encrypted layers. They are registered for the whole process,
	// by the first Applier that names them.
	StreamProcessors map[string]StreamProcessor

	// Applied, if not nil, is called after each layer that was applied, on the
	// goroutine of its Apply: how it was compressed ("tar", "gzip", "zstd", or
	// "other" for what only a stream processor knows), and by whom it was applied.
	Applied func(format string, by By)
}

// By says who applied a layer.
type By string

const (
	ByLayer By = "capelin"    // [Layer]
	ByStock By = "containerd" // containerd's own applier, in this process
)

// A StreamProcessor has the fields of containerd's configuration.
type StreamProcessor struct {
	Accepts []string // media types
	Returns string   // media type
	Path    string   // looked up in PATH
	Args    []string
	Env     []string // added to the process's own
}

// DefaultStreamProcessors returns those of containerd's default configuration:
// imgcrypt's, for encrypted layers.
func DefaultStreamProcessors() map[string]StreamProcessor {
	args := []string{"--decryption-keys-path", "/etc/containerd/ocicrypt/keys"}
	env := []string{"OCICRYPT_KEYPROVIDER_CONFIG=/etc/containerd/ocicrypt/ocicrypt_keyprovider.conf"}
	return map[string]StreamProcessor{
		"io.containerd.ocicrypt.decoder.v1.tar.gzip": {
			Accepts: []string{images.MediaTypeImageLayerGzipEncrypted},
			Returns: ocispec.MediaTypeImageLayerGzip,
			Path:    "ctd-decoder", Args: args, Env: env,
		},
		"io.containerd.ocicrypt.decoder.v1.tar": {
			Accepts: []string{images.MediaTypeImageLayerEncrypted},
			Returns: ocispec.MediaTypeImageLayer,
			Path:    "ctd-decoder", Args: args, Env: env,
		},
	}
}

// PrepareTempMounts makes dir, which belongs to this process alone, the place
// where containerd's applier mounts what it cannot write to directly, and unmounts
// and removes what a killed process has left there. Call it before the first
// Apply. It holds for the whole process.
func PrepareTempMounts(dir string) error {
	if err := mount.SetTempMountLocation(dir); err != nil {
		return fmt.Errorf("preparing %s for temporary mounts: %w", dir, err)
	}
	warnings, err := mount.CleanupTempMounts(0)
	if err := errors.Join(append(warnings, err)...); err != nil {
		return fmt.Errorf("cleaning up temporary mounts in %s: %w", dir, err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "containerd-mount*"))
	for _, d := range left {
		err = errors.Join(err, unix.Rmdir(d)) // never with content: that could be a mount's
	}
	return err
}

// Applier is containerd's diff.Applier on this package: layers in tar, gzip and
// zstd for a bind mount or for the upper directory of an overlay are applied by
// [Layer], everything else by containerd's own applier. Both read from the same provider.
type Applier struct {
	store     ctrdcontent.Provider
	stock     diff.Applier
	opts      Options
	manager   bool // there is a mount manager
	applied   func(format string, by By)
	processed map[string]bool // media types that a stream processor accepts
	able      bool            // this process and kernel can do what Layer needs
}

var _ diff.Applier = (*Applier)(nil)

// NewApplier returns an Applier that reads blobs from store, whose ReaderAt
// should be a local file's.
func NewApplier(store ctrdcontent.Provider, cfg Config) *Applier {
	a := &Applier{
		store:     store,
		stock:     apply.NewFileSystemApplierWithMountManager(store, cfg.MountManager),
		opts:      cfg.Options,
		manager:   cfg.MountManager != nil,
		applied:   cfg.Applied,
		processed: make(map[string]bool),
		able:      Able(),
	}
	if a.applied == nil {
		a.applied = func(string, By) {}
	}
	for id, p := range cfg.StreamProcessors {
		register(id, p)
		for _, mt := range p.Accepts {
			a.processed[mt] = true
		}
	}
	return a
}

var (
	registerMu sync.Mutex
	registered = make(map[string]bool)
)

func register(id string, p StreamProcessor) {
	registerMu.Lock()
	defer registerMu.Unlock()
	if !registered[id] {
		registered[id] = true
		diff.RegisterProcessor(diff.BinaryHandler(id, p.Returns, p.Accepts, p.Path, p.Args, p.Env))
	}
}

// Able reports whether [Layer] can work here: as root of the machine (devices,
// owners, and what containerd itself checks), with openat2 and /proc. Otherwise an
// [Applier] leaves all layers to containerd's applier.
func Able() bool {
	if os.Geteuid() != 0 || userns.RunningInUserNS() {
		return false
	}
	fd, err := openBeneath(unix.AT_FDCWD, ".")
	if err != nil {
		return false
	}
	unix.Close(fd)
	_, err = os.Lstat("/proc/self/fd")
	return err == nil
}

// Apply applies the layer desc to mounts and returns the uncompressed layer's
// descriptor. The result does not depend on who applied it. What neither Layer
// nor containerd's applier can do here fails with errdefs.ErrNotImplemented, at
// which containerd's diff service tries its next differ: media types that no
// stream processor takes, and mounts of the mount manager without one.
func (a *Applier) Apply(
	ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt,
) (ocispec.Descriptor, error) {
	root, o, ok := a.target(mounts)
	compressed, known := a.layerType(ctx, desc.MediaType)
	if !a.able || !ok || !known {
		return a.applyStock(ctx, desc, mounts, opts)
	}
	var config diff.ApplyConfig
	for _, opt := range opts {
		if err := opt(ctx, desc, &config); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("failed to apply config opt: %w", err)
		}
	}
	ra, err := a.store.ReaderAt(ctx, desc)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("opening layer %s: %w", desc.Digest, err)
	}
	defer ra.Close()
	if config.Progress != nil {
		config.Progress(0)
	}
	res, err := Layer(ctx, ra, ra.Size(), compressed, root, o)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("unpacking layer %s: %w", desc.Digest, err)
	}
	if config.SyncFs {
		if err := syncFs(root); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	if config.Progress != nil {
		config.Progress(ra.Size())
	}
	a.applied(res.Format, ByLayer)
	return ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayer,
		Size:      res.Size,
		Digest:    res.DiffID,
	}, nil
}

func (a *Applier) applyStock(
	ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts []diff.ApplyOpt,
) (res ocispec.Descriptor, err error) {
	for _, m := range mounts {
		if !a.manager && strings.Contains(m.Type, "/") { // such as format/mkdir/overlay
			return res, fmt.Errorf("unpacking layer %s to a mount of type %s: %w", desc.Digest, m.Type, errdefs.ErrNotImplemented)
		}
	}
	err = guard(func() error {
		res, err = a.stock.Apply(ctx, desc, mounts, opts...)
		return err
	})
	if errors.Is(err, diff.ErrNoProcessor) {
		return res, fmt.Errorf("%w: %w", errdefs.ErrNotImplemented, err)
	}
	if err != nil {
		return res, err
	}
	format := "other"
	switch c, _ := images.DiffCompression(ctx, desc.MediaType); {
	case a.processed[desc.MediaType]:
	case c == "gzip", c == "zstd":
		format = c
	case c == "" && images.IsLayerType(desc.MediaType):
		format = "tar"
	}
	a.applied(format, ByStock)
	return res, nil
}

// layerType reports whether mt is a layer in tar, and whether it may be
// compressed. Types with further suffixes belong to stream processors.
func (a *Applier) layerType(ctx context.Context, mt string) (compressed, known bool) {
	if a.processed[mt] {
		return false, false
	}
	base, suffix, _ := strings.Cut(mt, "+")
	switch suffix {
	case "", "gzip", "zstd":
	default:
		return false, false
	}
	//nolint:staticcheck // deprecated, and still found
	if suffix != "" && base != ocispec.MediaTypeImageLayer && base != ocispec.MediaTypeImageLayerNonDistributable {
		return false, false
	}
	c, err := images.DiffCompression(ctx, mt)
	return c != "", err == nil
}

// target returns the directory to write to, if mounts are of a kind that can be
// written without mounting it: what containerd's own applier does for an
// overlay, and for a plain bind mount the directory that it would bind.
func (a *Applier) target(mounts []mount.Mount) (root string, o Options, ok bool) {
	o = a.opts
	o.Overlay, o.Lower = false, nil
	if len(mounts) != 1 {
		return "", o, false
	}
	m := mounts[0]
	switch m.Type {
	case "overlay":
		for _, opt := range m.Options {
			if v, ok := strings.CutPrefix(opt, "upperdir="); ok {
				root = v
			} else if v, ok := strings.CutPrefix(opt, "lowerdir="); ok {
				o.Lower = strings.Split(v, ":")
			}
		}
		o.Overlay = true
	case "bind":
		plain := !slices.ContainsFunc(m.Options, func(o string) bool {
			return o != "bind" && o != "rbind" && o != "rw"
		})
		if plain && m.Target == "" {
			root = m.Source
		}
	}
	return root, o, root != ""
}

func syncFs(root string) error {
	f, err := os.Open(root)
	if err != nil {
		return err
	}
	defer f.Close()
	return disk.SyncFS(f)
}
