package unpack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestPanic panics on each goroutine of an apply, early and late. It becomes an
// error, and nothing hangs or is left running (TestMain).
func TestPanic(t *testing.T) {
	needRoot(t)
	var es []entry
	for i := range 300 {
		es = append(es, directory(fmt.Sprint("d", i)), reg(fmt.Sprintf("d%d/f", i), strings.Repeat("x", i*97%9000)))
	}
	es = append(es, reg("big", strings.Repeat("y", 30*chunkSize))) // more than the stream holds
	plain := layer(t, es...)
	for _, stage := range []string{"inflate", "hash", "entry", "file"} {
		for _, after := range []int32{1, 3, 20} {
			var n atomic.Int32
			o := Options{Overlay: true, Workers: 2, hook: func(s string) {
				if s == stage && n.Add(1) == after {
					panic("injected")
				}
			}}
			_, err := applyBytes(t.Context(), t.TempDir(), plain, o)
			isPanic(t, fmt.Sprint(stage, after), err)
		}
	}
}

func isPanic(t *testing.T, what string, err error) {
	t.Helper()
	var p *PanicError
	if !errors.As(err, &p) || p.Value != "injected" || !errdefs.IsInternal(err) || !bytes.Contains(p.Stack, []byte("panic")) {
		t.Errorf("%s: %v", what, err)
	}
}

// panickingReaderAt stands for a decoder that a layer makes panic: at the first
// read of the format, or within the stream.
type panickingReaderAt struct {
	memReaderAt
	from int64
}

func (r panickingReaderAt) ReadAt(p []byte, off int64) (int, error) {
	if off >= r.from {
		panic("injected")
	}
	return r.memReaderAt.ReadAt(p[:min(int64(len(p)), r.from-off)], off)
}

func TestPanicInDecoder(t *testing.T) {
	needRoot(t)
	blob := gzipped(layer(t, reg("f", strings.Repeat("content ", 1<<16))))
	for _, from := range []int64{0, 100, int64(len(blob)) - 1} {
		r := panickingReaderAt{memReaderAt{bytes.NewReader(blob)}, from}
		_, err := Layer(t.Context(), r, int64(len(blob)), true, t.TempDir(), Options{})
		isPanic(t, fmt.Sprint("from ", from), err)
	}
}

type panickingApplier struct{}

func (panickingApplier) Apply(context.Context, ocispec.Descriptor, []mount.Mount, ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	panic("injected")
}

func TestPanicInStock(t *testing.T) {
	a := NewApplier(memProvider{}, Config{Applied: func(string, By) { t.Error("applied") }})
	a.stock = panickingApplier{}
	_, err := a.Apply(t.Context(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer}, nil)
	isPanic(t, "stock", err)
}

// TestNotImplemented leaves to containerd's next differ what cannot be done here.
func TestNotImplemented(t *testing.T) {
	p := memProvider{}
	a := NewApplier(p, Config{Applied: func(string, By) { t.Error("applied") }})
	for _, c := range []struct {
		mediaType, mountType string
	}{
		{"application/vnd.erofs.layer.v1", "bind"},
		{ocispec.MediaTypeImageLayerGzip, "format/mkdir/overlay"},
	} {
		_, err := a.Apply(t.Context(), p.add(c.mediaType, []byte(c.mountType)),
			[]mount.Mount{{Type: c.mountType, Source: t.TempDir(), Options: []string{"upperdir=" + t.TempDir()}}})
		if !errdefs.IsNotImplemented(err) {
			t.Errorf("%v: %v", c, err)
		}
	}
}
