package trackerpb

import (
	"bytes"
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/capelin-io/capelin/swarm/piece"
)

func TestBlobID(t *testing.T) {
	for _, digest := range []string{
		"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
	} {
		id, err := piece.ParseID(digest, 5)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := FromID(id).ID(); err != nil || back != id {
			t.Errorf("%s became %s, %v", id, back, err)
		}
	}
	for _, b := range []*Blob{nil, {}, {Digest: make([]byte, 33), Size: 1}, {Digest: make([]byte, 32)},
		{Digest: make([]byte, 32), Size: -1}, {Digest: make([]byte, 64), Size: 1<<40 + 1}} {
		if id, err := b.ID(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%v: %v, %v", b, id, err)
		}
	}
}

// An announcement's size decides what a thousand of them cost.
func TestInventoryIsSmall(t *testing.T) {
	id, _ := piece.ParseID("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", 200<<20)
	v := &Inventory{}
	for range MaxBatch - 1 {
		v.Add(id, &[32]byte{1})
	}
	m := &FromAgent{Inventory: []*Inventory{v}}
	if err := CheckBatch(m); err != nil {
		t.Error(err)
	}
	if n := proto.Size(m) / MaxBatch; n > 70 { // 64 are the digest and the hash
		t.Errorf("%d bytes per announcement", n)
	}
	v.Add(id, nil)
	if err := CheckBatch(m); !errors.Is(err, ErrInvalid) {
		t.Errorf("%d blobs in an inventory: %v", v.Blobs.Len(), err)
	}
}

// A list has digests of one algorithm, and gives back what was put in.
func TestInventory(t *testing.T) {
	a := piece.ID{Alg: piece.SHA256, Sum: [64]byte{1}, Size: 5}
	b := piece.ID{Alg: piece.SHA512, Sum: [64]byte{2, 63: 3}, Size: 1 << 40}
	for _, ids := range [][]piece.ID{{a, a}, {b, b}} {
		v, other := &Inventory{}, a
		if ids[0] == a {
			other = b
		}
		if !v.Add(ids[0], nil) || v.Add(other, nil) || !v.Add(ids[1], &[32]byte{7}) {
			t.Fatalf("%v and %v do not go together as they should", ids, other)
		}
		enc, err := proto.Marshal(&FromAgent{Inventory: []*Inventory{v, {}}})
		if err != nil {
			t.Fatal(err)
		}
		m := &FromAgent{}
		if err := proto.Unmarshal(enc, m); err != nil || CheckBatch(m) != nil {
			t.Fatal(err, CheckBatch(m))
		}
		v = m.Inventory[0]
		if v.Blobs.Len() != 2 || v.Blobs.ID(0) != ids[0] || v.Blobs.ID(1) != ids[1] {
			t.Errorf("%v became %v", ids, v)
		}
		if v.SumsHash(0) != nil || !bytes.Equal(v.SumsHash(1), append([]byte{7}, make([]byte, 31)...)) {
			t.Errorf("hashes %x and %x", v.SumsHash(0), v.SumsHash(1))
		}
	}
	hash := make([]byte, 32)
	for _, v := range []*Inventory{
		{Blobs: &Blobs{Digests: make([]byte, 33), Sizes: []int64{1}}, SumsHashes: hash},
		{Blobs: &Blobs{Digests: make([]byte, 96), Sizes: []int64{1, 1}}, SumsHashes: make([]byte, 64)},
		{Blobs: &Blobs{Digests: make([]byte, 32)}},
		{Blobs: &Blobs{Sizes: []int64{1}}, SumsHashes: hash},
		{Blobs: &Blobs{Digests: make([]byte, 32), Sizes: []int64{0}}, SumsHashes: hash},
		{Blobs: &Blobs{Digests: make([]byte, 32), Sizes: []int64{1}}, SumsHashes: hash[:31]},
		{Blobs: &Blobs{Digests: make([]byte, 32), Sizes: []int64{1}}},
		{SumsHashes: hash},
	} {
		if err := CheckBatch(&FromAgent{Inventory: []*Inventory{v}}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%v: %v", v, err)
		}
	}
}

func seeds() []*FromAgent {
	blob := &Blob{Digest: make([]byte, 32), Size: 1}
	return []*FromAgent{
		{Hello: &Hello{Version: 1, Cluster: "c", Node: "n", Addr: "h:1", Role: 1}},
		{Announces: []*Announce{{Blob: blob, State: 2, SumsHash: make([]byte, 32)}}, Unwants: []*Blob{blob}},
		{Wants: []*Want{{Blob: blob, Waiting: true, Grant: true, Seq: 3}}, Progress: []*LeaseProgress{{Blob: blob, Bytes: 1}}},
		{Done: []*LeaseDone{{Blob: blob, Outcome: 2, Error: "429"}}, Disproved: []*Disproved{{Blob: blob, SumsHash: make([]byte, 32)}}},
		{Results: []*CommandResult{{Id: 1, Blobs: []*Announce{{Blob: blob}}}}},
		{NotHere: []*Blob{blob, {}}},
		{Inventory: []*Inventory{{Blobs: &Blobs{Digests: make([]byte, 64), Sizes: []int64{1, 2}}, SumsHashes: make([]byte, 64)}, {}}},
		{Wants: []*Want{nil}, Done: []*LeaseDone{{}}},
	}
}

// FuzzCheck: what passes the checks is within the stated bounds, names valid
// blobs, and survives encoding.
func FuzzCheck(f *testing.F) {
	for _, m := range seeds() {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &FromAgent{}
		if proto.Unmarshal(data, m) != nil {
			return
		}
		if err := CheckHello(m.Hello); err == nil {
			if h := m.Hello; len(h.Node) > MaxNode || h.Node == "" || len(h.Addr) > MaxAddr || bytes.ContainsAny([]byte(h.Node+h.Zone), "\n\r\x00") {
				t.Errorf("hello passed: %v", h)
			}
		} else if !errors.Is(err, ErrInvalid) {
			t.Errorf("hello: %v does not wrap ErrInvalid", err)
		}
		if err := CheckBatch(m); err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("batch: %v does not wrap ErrInvalid", err)
			}
			return
		}
		if n := len(m.Announces) + len(m.Wants) + len(m.Unwants) + len(m.NotHere); n > MaxBatch {
			t.Errorf("%d elements passed", n)
		}
		blobs := append(append([]*Blob(nil), m.Unwants...), m.NotHere...)
		for _, a := range m.Announces {
			blobs = append(blobs, a.Blob)
		}
		for _, w := range m.Wants {
			blobs = append(blobs, w.Blob)
		}
		for _, p := range m.Progress {
			blobs = append(blobs, p.Blob)
		}
		for _, v := range m.Inventory {
			for i := range v.Blobs.Len() {
				blobs = append(blobs, FromID(v.Blobs.ID(i)))
				_ = v.SumsHash(i)
			}
		}
		if len(blobs) > MaxBatch {
			t.Errorf("%d blobs passed", len(blobs))
		}
		for _, b := range blobs {
			id, err := b.ID()
			if err != nil {
				t.Fatalf("passed, but: %v", err)
			}
			if !proto.Equal(FromID(id), &Blob{Digest: b.Digest, Size: b.Size}) {
				t.Errorf("%v became %v", b, FromID(id))
			}
		}
		out, err := proto.Marshal(m)
		if err != nil {
			t.Fatalf("passed, but cannot be encoded: %v", err)
		}
		again := &FromAgent{}
		if err := proto.Unmarshal(out, again); err != nil || CheckBatch(again) != nil {
			t.Errorf("encoded and decoded: %v, %v", err, CheckBatch(again))
		}
	})
}
