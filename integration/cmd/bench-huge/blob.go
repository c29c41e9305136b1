package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// blob is as many bytes as one likes, any of which are made when they are read: AES in counter mode.
type blob struct {
	size   int64
	block  cipher.Block
	digest digest.Digest
}

// newBlob makes one, whose digest is computed unless it is known.
func newBlob(ctx context.Context, size int64, known string) (*blob, error) {
	block, err := aes.NewCipher([]byte("capelin's blob.."))
	if err != nil {
		return nil, err
	}
	b := &blob{size: size, block: block, digest: digest.Digest(known)}
	if known != "" {
		return b, b.digest.Validate()
	}
	sum, buf := sha256.New(), make([]byte, 1<<20)
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := b.ReadAt(buf, off)
		if n == 0 {
			return nil, err
		}
		sum.Write(buf[:n])
		off += int64(n)
	}
	b.digest = digest.NewDigest(digest.SHA256, sum)
	return b, nil
}

// ReadAt implements io.ReaderAt.
func (b *blob) ReadAt(p []byte, off int64) (n int, err error) {
	if off >= b.size {
		return 0, io.EOF
	}
	if int64(len(p)) > b.size-off {
		p, err = p[:b.size-off], io.EOF
	}
	var iv [aes.BlockSize]byte
	binary.BigEndian.PutUint64(iv[8:], uint64(off/aes.BlockSize))
	stream := cipher.NewCTR(b.block, iv[:])
	var skip [aes.BlockSize]byte
	stream.XORKeyStream(skip[:off%aes.BlockSize], skip[:off%aes.BlockSize])
	clear(p)
	stream.XORKeyStream(p, p)
	return len(p), err
}

// reader reads it from the beginning, and wherever one seeks to.
func (b *blob) reader() *io.SectionReader { return io.NewSectionReader(b, 0, b.size) }

// ServeHTTP serves it to whoever names its digest.
func (b *blob) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/"+b.digest.Encoded() {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("ETag", fmt.Sprintf("%q", b.digest.Encoded()))
	http.ServeContent(w, r, "", time.Time{}, b.reader())
}
