package swarm

import (
	"bytes"
	"crypto/sha256"
	"testing"
	"time"

	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// FuzzStranger lets a stranger say anything that can be decoded to a Peer that
// downloads one blob, seeds another and has a third half. The Peer must not
// panic, and must not ask for anything that a Node could not do: send a message
// that cannot be encoded, or a block that does not exist.
func FuzzStranger(f *testing.F) {
	type swarm struct {
		id   piece.ID
		data []byte
		sums *piece.Sums
	}
	var blobs [3]swarm
	for i := range blobs {
		data := bytes.Repeat([]byte{byte(i), 7, 9}, 70_000+i)
		id := piece.ID{Alg: piece.SHA256, Size: int64(len(data))}
		sum := sha256.Sum256(data)
		copy(id.Sum[:], sum[:])
		sums := piece.NewSums(id)
		if err := piece.NewHasher(sums).Write(sums, data); err != nil {
			f.Fatal(err)
		}
		blobs[i] = swarm{id, data, sums}
	}
	script := func(ms ...wire.Message) (p []byte) {
		for _, m := range ms {
			var err error
			if p, err = wire.Append(p, m); err != nil {
				f.Fatal(err)
			}
		}
		return p
	}
	b := blobs
	block := func(i int, off, n int) *wire.Block {
		return &wire.Block{Blob: 1, Piece: uint32(i), Offset: uint32(off), Data: b[0].data[int(b[0].id.Offset(i))+off:][:n]}
	}
	f.Add(script(
		&wire.Open{Blob: 1, ID: b[0].id, Complete: true}, &wire.Sums{Blob: 1, Proven: true, States: b[0].sums.Bytes()},
		block(0, 0, 65536), block(1, 0, 65536), block(2, 0, 65536), &wire.Lost{Blob: 1, Piece: 3}, &wire.Busy{Blob: 1, Piece: 3, Retry: 1},
		block(3, 0, len(b[0].data)-3*65536), &wire.Bad{Blob: 1, Piece: 0}, &wire.Close{Blob: 1},
	))
	f.Add(script(
		&wire.Open{Blob: 1, ID: b[1].id, Want: true}, &wire.SumsRequest{Blob: 1, Count: 2048},
		&wire.Request{Blob: 1, Piece: wire.AnyPiece, Length: piece.MaxBlock}, &wire.Request{Blob: 1, Piece: 1, Length: 65536},
		&wire.Have{Blob: 1, Pieces: []uint32{0, 1, 2, 3}}, &wire.Cancel{Blob: 1, Piece: 1}, &wire.Close{Blob: 1},
		&wire.Open{Blob: 1, ID: b[2].id, Want: true, Bits: []byte{0x80}}, &wire.Request{Blob: 1, Piece: wire.AnyPiece, Length: piece.MaxBlock},
		&wire.Ping{}, &wire.Error{Code: wire.CodeIdle},
	))
	mine := piece.ID{Alg: piece.SHA256, Size: 1 << 40, Sum: piece.Sum{9}} // nobody else has it
	f.Add(script(
		&wire.Open{Blob: 1, ID: mine, Want: true, Complete: true}, &wire.Lost{Blob: 1, Piece: 7}, &wire.Have{Blob: 1, Pieces: []uint32{7}},
		&wire.Lost{Blob: 1, Piece: 131_071}, &wire.Close{Blob: 1}, &wire.Open{Blob: 1, ID: mine, Bits: make([]byte, 16_384)},
		&wire.SumsRequest{Blob: 1, Count: 2048}, &wire.Request{Blob: 1, Piece: 3, Length: 1000}, &wire.Bad{Blob: 1}, &wire.Close{Blob: 1},
	))
	f.Fuzz(func(t *testing.T, stream []byte) {
		now := time.Unix(1_000_000, 0)
		p := NewPeer(PeerConfig{Node: "self", Seed: 1})
		dead := make(map[ConnID]bool)
		var step func(ev Event)
		steps := 0
		step = func(ev Event) {
			if steps++; steps > 100_000 {
				t.Fatalf("no end of events; now %T %+v", ev, ev)
			}
			var next []Event
			for _, a := range append([]Action(nil), p.Step(now, ev)...) {
				switch a := a.(type) {
				case ActSend:
					if _, err := wire.Append(nil, a.Message); err != nil {
						t.Fatalf("asked to send %+v: %v", a.Message, err)
					}
				case ActSendBlock:
					head := wire.Block{Blob: a.Handle, Piece: uint32(a.Piece), Offset: uint32(a.Offset), Queue: a.Queue}
					if _, err := wire.AppendBlockHeader(nil, &head, a.Length); err != nil || a.Offset+a.Length > a.ID.PieceSize(a.Piece) {
						t.Fatalf("asked to send block %+v: %v", a, err)
					}
					next = append(next, EvBlockSent{a.Conn, a.Length})
				case ActStore:
					ev := EvStored{ID: a.ID, Piece: a.Piece, Err: a.Sums.Verify(a.Piece, a.Data...)}
					ev.Hash = sha256.Sum256(bytes.Join(a.Data, nil))
					next = append(next, ev)
				case ActClose:
					if !dead[a.Conn] {
						dead[a.Conn] = true
						next = append(next, EvDisconnected{a.Conn})
					}
				case ActComplete:
					next = append(next, EvProven{a.ID})
				case ActRecheck:
					next = append(next, EvLost{a.ID, a.Piece})
				case ActDial:
					next = append(next, EvDialFailed{Node: a.Node, Addr: a.Addr})
				case ActListen:
					next = append(next, EvHeard{Conn: a.Conn, Ago: time.Hour})
				case ActFail:
					next = append(next, EvLeave{a.ID})
				}
			}
			for _, ev := range next {
				step(ev)
			}
		}
		full := piece.NewBits(b[1].id.Pieces())
		full.SetAll()
		half := piece.NewBits(b[2].id.Pieces())
		half.Set(0)
		half.Set(2)
		step(EvJoin{ID: b[0].id, Want: true, Have: piece.NewBits(b[0].id.Pieces()), Sums: piece.NewSums(b[0].id)})
		step(EvJoin{ID: b[1].id, Have: full, Sums: b[1].sums.Clone(), Proven: true})
		step(EvJoin{ID: b[2].id, Want: true, Have: half, Sums: b[2].sums.Clone()})
		for _, s := range b {
			step(EvPeers{s.id, []PeerInfo{{Node: "stranger", Addr: "a:1", Complete: true, Source: true}}})
		}
		hello := wire.Hello{Version: wire.Version, Role: wire.RoleAgent, Cluster: "c", Node: "stranger"}
		step(EvConnected{Conn: 1, Peer: hello, Inbound: true})
		hello.Node = "witness"
		step(EvConnected{Conn: 2, Peer: hello, Inbound: true})
		step(EvMessage{2, &wire.Open{Blob: 1, ID: b[0].id, Want: true}})
		r := wire.NewReader(bytes.NewReader(stream), nil)
		for i := 0; ; i++ {
			m, err := r.Next()
			if err != nil {
				break
			}
			switch m.(type) {
			case *wire.Hello:
				return // a Node hands none on
			}
			now = now.Add(time.Duration(i%7) * 100 * time.Millisecond)
			step(EvMessage{1, m})
			step(EvTick{})
		}
		for range 20 { // and what comes of it
			now = now.Add(time.Second)
			step(EvTick{})
		}
		step(EvDisconnected{1})
		for _, s := range b {
			step(EvLeave{s.id})
		}
	})
}
