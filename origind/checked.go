package origind

import (
	"fmt"
	"hash"
	"io"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
)

// checked reads a blob of ours and verifies its digest on the way. If the disk has
// spoiled it, the last bytes are withheld, so that no backend takes it for whole.
type checked struct {
	b   *content.Blob
	h   hash.Hash
	off int64
}

func newChecked(b *content.Blob) *checked {
	return &checked{b: b, h: digest.Digest(b.ID().Digest()).Algorithm().Hash()}
}

func (c *checked) Read(p []byte) (int, error) {
	id := c.b.ID()
	if c.off == id.Size {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), id.Size-c.off)]
	n, err := c.b.ReadAt(p, c.off)
	if err != nil {
		recheck(c.b, c.off, int64(len(p)))
		return 0, err
	}
	c.h.Write(p[:n])
	c.off += int64(n)
	if d := digest.Digest(id.Digest()); c.off == id.Size && digest.NewDigest(d.Algorithm(), c.h) != d {
		recheck(c.b, 0, id.Size)
		return 0, fmt.Errorf("%s on this origin's disk is not what its digest says: %w", d, errdefs.ErrDataLoss)
	}
	return n, nil
}
