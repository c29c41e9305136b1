package state

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/capelin-io/capelin/control/trackerpb"
)

// FuzzStep feeds batches that pass the checks to a tracker of an agent and an
// origin: no panic, and its bookkeeping stays right.
func FuzzStep(f *testing.F) {
	b := trackerpb.FromID(testID("X"))
	for _, m := range []*trackerpb.FromAgent{
		{Wants: []*trackerpb.Want{{Blob: b, Waiting: true, Grant: true}}, Progress: []*trackerpb.LeaseProgress{{Blob: b, Bytes: 5}}},
		{Announces: []*trackerpb.Announce{{Blob: b, State: 2, SumsHash: make([]byte, 32)}},
			Disproved: []*trackerpb.Disproved{{Blob: b, SumsHash: make([]byte, 32)}}},
		{Wants: []*trackerpb.Want{{Blob: b, Grant: true}}, NotHere: []*trackerpb.Blob{b}},
		{Inventory: []*trackerpb.Inventory{
			{Blobs: &trackerpb.Blobs{Digests: b.Digest, Sizes: []int64{b.Size}}, SumsHashes: make([]byte, 32)}, {},
		}},
		{Offers: []*trackerpb.Offer{{Blobs: []uint64{trackerpb.BlobKey(testID("X")), 1}, Sums: []uint64{0, 2}}}},
		{Done: []*trackerpb.LeaseDone{{Blob: b, Outcome: 2}}, Unwants: []*trackerpb.Blob{b}},
	} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, data, uint16(500))
	}
	f.Fuzz(func(t *testing.T, one, two []byte, ms uint16) {
		w := newWorld(t, Config{Warmup: -1, MaxBlobs: 5})
		for i, data := range [][]byte{one, two} {
			s := Stream(i + 1)
			m := &trackerpb.FromAgent{}
			if proto.Unmarshal(data, m) != nil || trackerpb.CheckBatch(m) != nil {
				return
			}
			w.nodes[s] = string(rune('a' + s))
			w.step(EvOpen{Stream: s, Hello: hello(w.nodes[s], "", trackerpb.Role(s))})
			w.step(EvBatch{Stream: s, Batch: m})
			w.advance(time.Duration(ms) * time.Millisecond)
			w.step(EvBatch{Stream: s, Batch: m})
		}
	})
}
