package unpack

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
	kgzip "github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/capelin-io/capelin/plugin/unpack/inflate"
)

// readSize is how much is read from the blob at a time.
const readSize = 256 << 10

// errDecoder is wrapped around a decoder's own errors, as opposed to those of reading the blob.
var errDecoder = errors.New("decompressing")

// A decoder reads the uncompressed bytes of a blob.
type decoder struct {
	io.Reader
	format string // as in Result
	end    func()
}

// decompress returns the decoder of ra, which is size bytes long. If detect is
// not set, it passes the bytes themselves; otherwise the first of them tell the
// format, as they do in containerd: a media type says only that a layer is
// compressed.
//
// Decoders run on the goroutine that reads from them and start no others: there
// nobody could recover from a panic. What takes too much memory runs in a process of its
// own (see Options.Child), which is killed when ctx is done.
func decompress(ctx context.Context, ra io.ReaderAt, size int64, detect bool, opts *Options) (decoder, error) {
	none := func() {}
	raw := io.NewSectionReader(blobReader{ra}, 0, size)
	if !detect {
		return decoder{raw, "tar", none}, nil
	}
	var magic [10]byte
	n, err := raw.ReadAt(magic[:], 0)
	if err != nil && err != io.EOF {
		return decoder{}, err
	}
	switch compression.DetectCompression(magic[:n]) {
	case compression.Gzip:
		// containerd's decoder takes some streams that are cut short, and others that ours refuses.
		r := &retrying{r: inflate.NewReader(raw), retry: func(error) (io.Reader, error) {
			return kgzip.NewReader(bufio.NewReaderSize(io.NewSectionReader(raw, 0, size), readSize))
		}}
		return decoder{r, "gzip", none}, nil
	case compression.Zstd:
		z, err := newZstd(raw, zstd.WithDecoderLowmem(false), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return decoder{}, fmt.Errorf("%w: %w", errDecoder, err)
		}
		end := z.Close
		r := &retrying{r: z, retry: func(failed error) (io.Reader, error) {
			if !errors.Is(failed, zstd.ErrWindowSizeExceeded) {
				return nil, failed
			}
			c, err := startChild(ctx, opts.Child, io.NewSectionReader(raw, 0, size))
			if err != nil {
				return nil, err
			}
			end = func() {
				c.end()
				z.Close()
			}
			return c, nil
		}}
		return decoder{r, "zstd", func() { end() }}, nil
	default:
		return decoder{raw, "tar", none}, nil
	}
}

// A retrying reader goes on with another decoder of the same blob where the first one fails.
type retrying struct {
	r     io.Reader
	read  int64                                 // bytes
	retry func(failed error) (io.Reader, error) // nil: not again
}

func (r *retrying) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.read += int64(n)
	var blobErr blobError
	if err == nil || err == io.EOF || r.retry == nil || errors.As(err, &blobErr) {
		return n, err
	}
	again, err := r.retry(err)
	r.retry = nil
	if err == nil {
		_, err = io.CopyN(io.Discard, again, r.read)
	}
	if err == io.EOF { // the blob is less to it than to the first
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		again = failing{err}
	}
	r.r = again
	return n, nil
}

// failing is a reader that has failed.
type failing struct{ error }

func (f failing) Read([]byte) (int, error) { return 0, f.error }

// A blobError is one of reading the blob, and not the layer's fault.
type blobError struct{ error }

func (e blobError) Unwrap() error { return e.error }

// A blobReader marks the errors of a blob as blobErrors.
type blobReader struct{ io.ReaderAt }

func (r blobReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.ReaderAt.ReadAt(p, off)
	if err != nil && err != io.EOF {
		err = blobError{fmt.Errorf("reading the blob: %w", err)}
	}
	return n, err
}
