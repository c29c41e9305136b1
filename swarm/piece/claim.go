package piece

import (
	"encoding/binary"
	"fmt"

	"github.com/capelin-io/capelin/internal/sha256x2"
)

// Claim says that data is a piece of a blob. It is verified at most once, whoever asks.
type Claim struct {
	sums *Sums
	i    int
	data [][]byte

	verified bool
	err      error // of verifying
}

// NewClaim says that data, in consecutive parts, is piece i according to sums. Neither
// may be changed until the claim is done with.
func NewClaim(sums *Sums, i int, data ...[]byte) *Claim { return &Claim{sums: sums, i: i, data: data} }

// Sums returns the list that the claim is about.
func (c *Claim) Sums() *Sums { return c.sums }

// Piece returns the piece's number.
func (c *Claim) Piece() int { return c.i }

// Data returns the parts.
func (c *Claim) Data() [][]byte { return c.data }

// Verify returns nil if the claim is true, ErrMismatch, or ErrInvalid if the list does
// not reach the piece yet. It hashes at the machine's speed and allocates no buffer.
func (c *Claim) Verify() error {
	if c.verified {
		return c.err
	}
	l, err := c.link()
	if err != nil {
		c.verified, c.err = true, err
		return err
	}
	h := resume(c.sums.id, c.i, l.from)
	for _, d := range c.data {
		h.Write(d)
	}
	c.judge(end(c.sums.id, h, c.last()) == l.to)
	return c.err
}

// VerifyBoth verifies two claims, which are not the same one, where the processor can in
// little more than the time that one takes.
func VerifyBoth(c, d *Claim) {
	if !c.Pairs() || !d.Pairs() || c.size() != d.size() {
		c.Verify() //nolint:errcheck // the claim keeps it
		d.Verify() //nolint:errcheck // likewise
		return
	}
	lc, _ := c.link()
	ld, _ := d.link()
	x, y := state256(lc.from), state256(ld.from)
	var p, q []byte
	for nc, nd := 0, 0; ; {
		for len(p) == 0 && nc < len(c.data) {
			p = c.data[nc]
			nc++
		}
		for len(q) == 0 && nd < len(d.data) {
			q = d.data[nd]
			nd++
		}
		n := min(len(p), len(q))
		if n == 0 {
			break // of both: they are of one size
		}
		sha256x2.Blocks(&x, &y, p[:n], q[:n])
		p, q = p[n:], q[n:]
	}
	c.judge(x == state256(lc.to))
	d.judge(y == state256(ld.to))
}

// Pairs reports whether VerifyBoth wins anything with this claim: the processor can, and
// the claim is yet to be verified, consists of whole blocks of SHA-256, and stands between
// two states of the list. How a hash begins, and how its last block is padded, is crypto/sha256's business.
func (c *Claim) Pairs() bool {
	if !sha256x2.Available || c.verified || c.sums.id.Alg != SHA256 || c.i == 0 || c.last() {
		return false
	}
	for _, d := range c.data {
		if len(d)%sha256x2.BlockSize != 0 {
			return false
		}
	}
	_, err := c.link()
	return err == nil
}

func (c *Claim) last() bool { return c.i == c.sums.id.Pieces()-1 }

func (c *Claim) size() (n int) {
	for _, d := range c.data {
		n += len(d)
	}
	return n
}

// link returns the states that the piece stands between; an error if there are none, or
// the data is not as long as the piece.
func (c *Claim) link() (link, error) {
	id := c.sums.id
	l, ok := c.sums.link(c.i)
	if !ok {
		return l, fmt.Errorf("piece %d of %s has no sums: %w", c.i, id.Digest(), ErrInvalid)
	}
	if n := c.size(); n != id.PieceSize(c.i) {
		return l, fmt.Errorf("piece %d of %s: %d bytes, want %d: %w", c.i, id.Digest(), n, id.PieceSize(c.i), ErrMismatch)
	}
	return l, nil
}

func (c *Claim) judge(ok bool) {
	c.verified = true
	if !ok {
		c.err = fmt.Errorf("piece %d of %s: %w", c.i, c.sums.id.Digest(), ErrMismatch)
	}
}

// state256 is a chaining state of SHA-256 in words.
func state256(s Sum) (w sha256x2.State) {
	for i := range w {
		w[i] = binary.BigEndian.Uint32(s[4*i:])
	}
	return w
}
