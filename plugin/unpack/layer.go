package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"sync"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/internal/diskfull"
)

var (
	// ErrTooLarge is wrapped when a layer exceeds a limit of [Options].
	ErrTooLarge = fmt.Errorf("layer exceeds a limit: %w", errdefs.ErrResourceExhausted)
	// ErrInvalid is wrapped when a layer is not what it should be: not an
	// archive, truncated, or with entries that cannot be.
	ErrInvalid = fmt.Errorf("invalid layer: %w", errdefs.ErrInvalidArgument)
)

// Options say how a layer is applied. The zero value applies it to a plain directory.
type Options struct {
	// Overlay is set for the upper directory of an overlay: whiteouts become
	// character devices 0:0 and opaque directories are marked with
	// trusted.overlay.opaque. Otherwise both remove what they hide.
	Overlay bool
	// Lower are the lower directories of the overlay, the nearest first.
	// Directories that the layer does not mention inherit from them.
	Lower []string

	// MaxBytes bounds the uncompressed layer, and the sum of its files' sizes
	// with the holes of sparse ones. 0: 256 GiB.
	MaxBytes int64
	// MaxEntries bounds the entries of the archive; each costs some 100 bytes of
	// memory. 0: 20 million.
	MaxEntries int64
	// Workers is how many goroutines make files besides the one that reads the
	// archive. 0: one for every two CPUs, at most 4. Entries of one directory
	// wait for each other in the kernel, and decoder and hash want a CPU each.
	Workers int

	// Child is a command line whose process calls [DecodeZstd] with its standard input
	// and output, and ends with 1 and a line on standard error if that fails. It decodes
	// zstd with windows of more than 16 MiB: one layer at a time, with at most 1 GiB. If it
	// dies, that layer fails with ErrTooLarge. nil: so do all such layers.
	Child []string

	// Room, if not nil, is called when the file system of the open file fd is full, with what
	// has failed for that. It does that again when some of it was freed, for as long as there is
	// hope, and returns the last error.
	Room func(ctx context.Context, fd int, do func() error) error

	hook func(stage string) // tests only: called at the stages of guard
}

func (o *Options) at(stage string) {
	if o.hook != nil {
		o.hook(stage)
	}
}

func (o *Options) maxBytes() int64 {
	if o.MaxBytes == 0 {
		return 256 << 30
	}
	return o.MaxBytes
}

func (o *Options) maxEntries() int64 {
	if o.MaxEntries == 0 {
		return 20e6
	}
	return o.MaxEntries
}

func (o *Options) workers() int {
	if o.Workers == 0 {
		return max(1, min(runtime.GOMAXPROCS(0)/2, 4))
	}
	return o.Workers
}

// A Result describes the uncompressed layer.
type Result struct {
	DiffID digest.Digest // sha256 of all uncompressed bytes, those behind the archive's end included
	Size   int64         // their number
	Format string        // of the blob: "tar" (uncompressed), "gzip" or "zstd"
}

// Layer applies the layer in blob, which is size bytes long, to the directory
// root. If compressed is set, the blob's first bytes say how; an uncompressed
// one is fine, too. Nobody else may change what is below root meanwhile.
//
// It fails with [ErrInvalid] or [ErrTooLarge], with the file system's errors (a full
// disk is errdefs.ErrResourceExhausted),
// with ctx's, or with a [PanicError]. The caller has to compare the diff ID with what it expects, and
// to throw the directory away if that differs or Layer failed.
func Layer(ctx context.Context, blob io.ReaderAt, size int64, compressed bool, root string, opts Options) (Result, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var d decoder
	err := guard(func() (err error) {
		d, err = decompress(ctx, blob, size, compressed, &opts)
		return err
	})
	if err != nil {
		return Result{}, classify(err)
	}
	defer d.end()

	s := newStream()
	var wg sync.WaitGroup
	wg.Go(func() { s.inflate(ctx, d, &opts) })
	wg.Go(func() {
		if err := guard(func() error { s.digest(&opts); return nil }); err != nil {
			stop(err)
		}
	})
	err = guard(func() error { return writeTree(ctx, stop, s, root, &opts) })
	if err != nil {
		stop(err)
	}
	wg.Wait()
	s.close()
	if err == nil {
		err = context.Cause(ctx) // the hash's, of which writeTree knows nothing
	}
	if err != nil {
		return Result{}, classify(err)
	}
	return Result{DiffID: digest.NewDigestFromBytes(digest.SHA256, s.sum[:]), Size: s.size, Format: d.format}, nil
}

// writeTree reads all of s.
func writeTree(ctx context.Context, stop context.CancelCauseFunc, s *stream, root string, opts *Options) (err error) {
	f := startFiles(ctx, stop, opts)
	closed := false
	closeFiles := func() error {
		if closed {
			return nil
		}
		closed = true
		err := f.close()
		f.refused.log(ctx)
		return err
	}
	ds, err := openDirs(root, f)
	if err != nil {
		_ = closeFiles() // err comes first
		return err
	}
	defer ds.close()
	defer func() { _ = closeFiles() }() // before the directories that jobs use

	t := &tree{ctx: ctx, opts: opts, dirs: ds, files: f, src: &source{s: s}}
	t.tr = tar.NewReader(t.src)
	if !opts.Overlay {
		t.unpacked = make(map[string]struct{})
		t.opaque = make(map[string]struct{})
	}
	if err := t.apply(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause // a worker's error, or the caller's
		}
		return err
	}
	if err := closeFiles(); err != nil {
		return err
	}
	return t.src.drain()
}

// classify gives errors without a class of containerd's one. The file system's
// and the context's stay as they are.
func classify(err error) error {
	var pathErr *fs.PathError
	var blobErr blobError
	switch {
	case errors.As(err, &blobErr):
		return err
	case errors.Is(err, ErrInvalid), errors.Is(err, ErrTooLarge), errors.As(err, &pathErr),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return diskfull.Classed(err)
	case errors.Is(err, tar.ErrHeader), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, errDecoder):
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return err
}
