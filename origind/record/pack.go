package record

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/swarm/piece"
)

// Hash is the same for equal records, and for others it is not: SHA-256 of the packed record, which must be valid.
func (r *Record) Hash() [sha256.Size]byte { return sha256.Sum256(r.AppendPacked(nil)) }

// AppendPacked appends a valid record in its packed form (FORMAT.md), the only one for what it says.
func (r *Record) AppendPacked(b []byte) []byte {
	enc := r.Digest.Encoded()
	b = append(b, format)
	b = appendDigest(b, r.Digest)
	b = binary.AppendUvarint(b, uint64(r.Size))
	b = appendStamps(b, r.Removed)
	b = binary.AppendUvarint(b, uint64(len(r.Homes)))
	for i := range r.Homes {
		h := &r.Homes[i]
		b = appendString(b, h.Backend)
		b = appendString(b, strings.Replace(h.Key, enc, "\x00", 1))
		b = appendString(b, h.By)
		for _, s := range []Stamp{h.Since, h.More, h.Written} {
			b = binary.BigEndian.AppendUint64(b, uint64(s))
		}
		b = appendStamps(b, h.Namespaces)
	}
	return b
}

// appendDigest appends the algorithm, 1 for sha256 and 2 for sha512, and the bytes of a valid digest.
func appendDigest(b []byte, d digest.Digest) []byte {
	alg := byte(piece.SHA256)
	if d.Algorithm() == digest.SHA512 {
		alg = byte(piece.SHA512)
	}
	b, err := hex.AppendDecode(append(b, alg), []byte(d.Encoded()))
	if err != nil {
		panic(fmt.Sprintf("record: packing what is not valid: %q", d))
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendStamps(b []byte, m Stamps) []byte {
	b = binary.AppendUvarint(b, uint64(len(m)))
	for _, ns := range slices.Sorted(maps.Keys(m)) {
		b = binary.BigEndian.AppendUint64(appendString(b, ns), uint64(m[ns]))
	}
	return b
}

// Unpack reads a packed record. Whatever is not the packed form of a valid record is errdefs.ErrInvalidArgument.
func Unpack(b []byte) (*Record, error) {
	p := unpacker{left: b}
	r, err := p.record()
	if err == nil {
		err = r.check()
	}
	if err == nil && string(r.AppendPacked(make([]byte, 0, len(b)))) != string(b) {
		err = errors.New("it is not how this record is packed")
	}
	if err != nil {
		return nil, fmt.Errorf("packed record: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return r, nil
}

// unpacker reads what is left. After an error it reads zeros.
type unpacker struct {
	left []byte
	err  error
}

func (p *unpacker) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
	p.left = nil
}

func (p *unpacker) take(n uint64) []byte {
	if n > uint64(len(p.left)) {
		p.fail("it ends early")
		return nil
	}
	b := p.left[:n]
	p.left = p.left[n:]
	return b
}

func (p *unpacker) number() uint64 {
	n, size := binary.Uvarint(p.left)
	if size <= 0 {
		p.fail("it ends early, or a number is too large")
		return 0
	}
	p.left = p.left[size:]
	return n
}

func (p *unpacker) string() string { return string(p.take(p.number())) }

func (p *unpacker) stamp() Stamp {
	if b := p.take(8); b != nil {
		return Stamp(binary.BigEndian.Uint64(b))
	}
	return 0
}

func (p *unpacker) stamps() Stamps {
	n := p.number()
	if n == 0 {
		return nil
	}
	if n > MaxNamespaces+1 {
		p.fail("%d namespaces, %d are the most", n, MaxNamespaces)
		return nil
	}
	m := make(Stamps)
	for range n {
		ns := p.string()
		m[ns] = p.stamp()
		if p.err != nil {
			break
		}
	}
	return m
}

func (p *unpacker) digest() digest.Digest {
	b := p.take(1)
	if b == nil {
		return ""
	}
	alg, ok := map[piece.Algorithm]digest.Algorithm{piece.SHA256: digest.SHA256, piece.SHA512: digest.SHA512}[piece.Algorithm(b[0])]
	if !ok {
		p.fail("algorithm %d", b[0])
		return ""
	}
	return digest.NewDigestFromBytes(alg, p.take(uint64(alg.Size())))
}

func (p *unpacker) record() (*Record, error) {
	if b := p.take(1); p.err == nil && b[0] != format {
		p.fail("format %d", b[0])
	}
	r := &Record{Digest: p.digest()}
	if p.err != nil {
		return nil, p.err
	}
	enc := r.Digest.Encoded()
	r.Size = int64(p.number())
	r.Removed = p.stamps()
	n := p.number()
	if n > MaxHomes {
		p.fail("%d homes, %d are the most", n, MaxHomes)
	}
	for range n {
		if p.err != nil {
			break
		}
		r.Homes = append(r.Homes, Home{
			Place: Place{p.string(), strings.Replace(p.string(), "\x00", enc, 1)}, By: p.string(),
			Since: p.stamp(), More: p.stamp(), Written: p.stamp(), Namespaces: p.stamps(),
		})
	}
	if len(p.left) > 0 {
		p.fail("%d bytes come after it", len(p.left))
	}
	return r, p.err
}
