package piece

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Algorithm is a digest algorithm. Its numbers are those of the wire protocol.
type Algorithm uint8

// The algorithms that OCI registers (image-spec, descriptor.md, "Digests").
const (
	SHA256 Algorithm = 1
	SHA512 Algorithm = 2
)

// Size returns the length in bytes of a digest, and of a chaining state, or 0
// for an unknown algorithm.
func (a Algorithm) Size() int {
	switch a {
	case SHA256:
		return 32
	case SHA512:
		return 64
	}
	return 0
}

func (a Algorithm) String() string {
	switch a {
	case SHA256:
		return "sha256"
	case SHA512:
		return "sha512"
	}
	return fmt.Sprintf("algorithm(%d)", uint8(a))
}

// Limits of the geometry. All are in bytes.
const (
	MinLength = 64 << 10  // the shortest piece
	MaxLength = 8 << 20   // the longest piece
	MaxBlock  = 128 << 10 // the longest range of a piece that one request asks for
	MaxSize   = 1 << 40   // the largest blob; bounds what a stranger's size can make us allocate

	// targetPieces is the number of pieces that Length stays at or below, as
	// long as MaxLength allows: between 1,000 and 2,000 pieces for blobs from
	// 64 MiB to 16 GB.
	targetPieces = 2000
)

// Shares is how many shares the pieces of a blob are divided into between the nodes
// of a zone that bring them in from others: piece i belongs to share i modulo Shares.
const Shares = 16

// Errors that this package's functions wrap.
var (
	ErrInvalid  = errors.New("invalid blob name")
	ErrMismatch = errors.New("bytes do not match their sums")
)

// Sum is a digest's or a chaining state's bytes; sha256 uses the first 32.
type Sum [64]byte

// ID names a swarm: a blob's digest and its size in bytes. The size is part of
// the name so that a manifest with a wrong size cannot fork the right swarm.
// IDs are comparable. The zero ID names nothing.
type ID struct {
	Alg  Algorithm
	Sum  Sum
	Size int64
}

// ParseID returns the ID of a blob from its OCI digest ("sha256:<hex>", lower
// case) and its size in bytes, which must be in 1..MaxSize.
func ParseID(digest string, size int64) (ID, error) {
	id := ID{Size: size}
	name, enc, ok := strings.Cut(digest, ":")
	if !ok {
		return ID{}, fmt.Errorf("digest %q: %w", digest, ErrInvalid)
	}
	switch name {
	case "sha256":
		id.Alg = SHA256
	case "sha512":
		id.Alg = SHA512
	default:
		return ID{}, fmt.Errorf("digest %q: unsupported algorithm: %w", digest, ErrInvalid)
	}
	if len(enc) != 2*id.Alg.Size() || strings.ToLower(enc) != enc {
		return ID{}, fmt.Errorf("digest %q: %w", digest, ErrInvalid)
	}
	if _, err := hex.Decode(id.Sum[:], []byte(enc)); err != nil {
		return ID{}, fmt.Errorf("digest %q: %w", digest, ErrInvalid)
	}
	return id, id.Validate()
}

// Validate reports what makes id unusable as a swarm's name: an unknown
// algorithm, bytes beyond the algorithm's digest, or a size outside 1..MaxSize.
func (id ID) Validate() error {
	n := id.Alg.Size()
	if n == 0 {
		return fmt.Errorf("%v: %w", id.Alg, ErrInvalid)
	}
	if [64]byte(id.Sum) != prefix(id.Sum, n) {
		return fmt.Errorf("%v digest longer than %d bytes: %w", id.Alg, n, ErrInvalid)
	}
	if id.Size < 1 || id.Size > MaxSize {
		return fmt.Errorf("size %d of %s outside 1..%d: %w", id.Size, id.Digest(), int64(MaxSize), ErrInvalid)
	}
	return nil
}

func prefix(s Sum, n int) (p [64]byte) {
	copy(p[:n], s[:n])
	return p
}

// Digest returns the OCI digest, "sha256:<hex>".
func (id ID) Digest() string {
	return id.Alg.String() + ":" + id.Hex()
}

// Hex returns the encoded part of the digest.
func (id ID) Hex() string { return hex.EncodeToString(id.Sum[:id.Alg.Size()]) }

// String returns the digest and the size, for messages.
func (id ID) String() string { return fmt.Sprintf("%s/%d", id.Digest(), id.Size) }

// Length returns the length in bytes of every piece but the last: the smallest
// power of two from MinLength to MaxLength that makes at most 2,000 pieces. It
// is a function of the size alone, so all peers agree on it.
func (id ID) Length() int64 {
	l := int64(MinLength)
	for l < MaxLength && (id.Size+l-1)/l > targetPieces {
		l *= 2
	}
	return l
}

// Pieces returns the number of pieces, at least 1 for a valid ID.
func (id ID) Pieces() int {
	l := id.Length()
	return int((id.Size + l - 1) / l)
}

// Offset returns where piece i begins in the blob. Offset(Pieces()) is not the
// blob's size unless that is a multiple of the length.
func (id ID) Offset(i int) int64 { return int64(i) * id.Length() }

// PieceSize returns the length in bytes of piece i, or 0 if there is no such
// piece.
func (id ID) PieceSize(i int) int {
	n := id.Pieces()
	switch {
	case i < 0 || i >= n:
		return 0
	case i == n-1:
		return int(id.Size - id.Offset(i))
	}
	return int(id.Length())
}
