package unpack

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
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
// nobody could recover from a panic.
func decompress(ra io.ReaderAt, size int64, detect bool) (decoder, error) {
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
		return decoder{inflate.NewReader(raw), "gzip", none}, nil
	case compression.Zstd:
		z, err := zstd.NewReader(bufio.NewReaderSize(raw, readSize), zstd.WithDecoderLowmem(false),
			zstd.WithDecoderConcurrency(1)) // 1: no goroutines
		if err != nil {
			return decoder{}, fmt.Errorf("%w: %w", errDecoder, err)
		}
		return decoder{z, "zstd", z.Close}, nil
	default:
		return decoder{raw, "tar", none}, nil
	}
}

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
