package content

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"strings"
	"sync"

	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/swarm/piece"
)

// record is a map or sums file, FORMAT.md section 2.
type record struct {
	kind   byte
	proven bool
	boot   [16]byte
	sums   *piece.Sums
	have   *piece.Bits // kindMap only
}

const (
	recordMagic = "CPLNSUM\x01"

	kindMap  = 1
	kindSums = 2

	flagProven = 1

	recordHeader = 20 // bytes before the digest
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errRecord = errors.New("invalid map or sums file")

func (r *record) encode() []byte {
	id := r.sums.ID()
	states := r.sums.Bytes()
	b := make([]byte, 0, recordHeader+2*id.Alg.Size()+32+len(states)+id.Pieces()/8)
	b = append(b, recordMagic...)
	var flags byte
	if r.proven {
		flags |= flagProven
	}
	b = append(b, r.kind, flags, byte(id.Alg), 0)
	b = binary.BigEndian.AppendUint64(b, uint64(id.Size))
	b = append(b, id.Sum[:id.Alg.Size()]...)
	b = append(b, r.boot[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(r.sums.Len()))
	b = append(b, states...)
	if r.kind == kindMap {
		b, _ = r.have.AppendBinary(b)
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeRecord(b []byte) (*record, error) {
	bad := func(format string, args ...any) (*record, error) {
		return nil, fmt.Errorf(format+": %w", append(args, errRecord)...)
	}
	if len(b) < recordHeader+4 {
		return bad("%d bytes", len(b))
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return bad("wrong crc")
	}
	if string(body[:8]) != recordMagic {
		return bad("magic %q", body[:8])
	}
	r := &record{kind: body[8], proven: body[9]&flagProven != 0}
	if r.kind != kindMap && r.kind != kindSums || body[9]&^flagProven != 0 || body[11] != 0 {
		return bad("kind %d flags %#x reserved %d", r.kind, body[9], body[11])
	}
	id := piece.ID{Alg: piece.Algorithm(body[10]), Size: int64(binary.BigEndian.Uint64(body[12:]))}
	w := id.Alg.Size()
	p := body[recordHeader:]
	if w == 0 || len(p) < w+16+4 {
		return bad("%v in %d bytes", id.Alg, len(b))
	}
	copy(id.Sum[:], p[:w])
	if err := id.Validate(); err != nil {
		return bad("%v", err)
	}
	copy(r.boot[:], p[w:])
	n := binary.BigEndian.Uint32(p[w+16:])
	p = p[w+20:]
	if int64(n) > int64(id.Pieces()-1) || len(p) < int(n)*w {
		return bad("%d states of %d pieces in %d bytes", n, id.Pieces(), len(b))
	}
	r.sums = piece.NewSums(id)
	if err := r.sums.Append(p[: int(n)*w : int(n)*w]); err != nil {
		return bad("%v", err)
	}
	p = p[int(n)*w:]
	if r.kind == kindSums {
		switch {
		case len(p) != 0:
			return bad("%d bytes too many", len(p))
		case r.boot != [16]byte{}:
			return bad("sums with a boot id")
		case !r.proven || !r.sums.Complete():
			return bad("flags %#x with %d states of %d pieces", body[9], n, id.Pieces())
		}
		return r, nil
	}
	var err error
	if r.have, err = piece.ParseBits(p, id.Pieces()); err != nil {
		return bad("%v", err)
	}
	if i := r.have.NextSet(r.sums.Verifiable()); i >= 0 {
		return bad("piece %d beyond %d states", i, n)
	}
	return r, nil
}

// readRecord reads the file of that kind for id. A file that is not one is an
// errRecord.
func readRecord(path string, kind byte, id piece.ID) (*record, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r, err := decodeRecord(b)
	if err == nil && (r.kind != kind || r.sums.ID() != id) {
		err = fmt.Errorf("kind %d of %s: %w", r.kind, r.sums.ID(), errRecord)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return r, nil
}

// bootID returns the kernel's boot id, or zeros, which no map ever matches.
var bootID = sync.OnceValue(func() (id [16]byte) {
	s := strings.ReplaceAll(durable.BootID(), "-", "")
	if len(s) != 32 {
		return id
	}
	for i := range id {
		if _, err := fmt.Sscanf(s[2*i:2*i+2], "%02x", &id[i]); err != nil {
			return [16]byte{}
		}
	}
	return id
})
