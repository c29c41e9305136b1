package swarm_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/swarmtest"
	"github.com/capelin-io/capelin/swarm/wire"
)

// dial connects to n.
func (n *testNode) dial(t testing.TB) *swarmtest.Conn {
	t.Helper()
	nc, err := n.at.dial(context.Background(), n.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return swarmtest.NewConn(nc)
}

// greeted returns an established connection to n under a name.
func greeted(t testing.TB, n *testNode, name string) *swarmtest.Conn {
	t.Helper()
	c := n.dial(t)
	h, err := c.Greet(swarmtest.Hello("test", name))
	if err != nil || h.Node != n.name || h.Addr != n.addr {
		t.Fatalf("greeting: %+v, %v", h, err)
	}
	return c
}

// fetch requests a block over a connection and waits for it: proof that the
// node and the connection live.
func fetch(t *testing.T, c *swarmtest.Conn, id piece.ID, handle wire.Handle) {
	t.Helper()
	if err := c.Say(&wire.Request{Blob: handle, Piece: 0, Length: uint32(min(piece.MaxBlock, id.PieceSize(0)))}); err != nil {
		t.Error(err)
		return
	}
	for {
		m, err := c.Hear()
		if err != nil {
			t.Errorf("waiting for a block: %v", err)
			return
		}
		switch m := m.(type) {
		case *wire.Block:
			return
		case *wire.Error:
			t.Errorf("waiting for a block: %v: %s", m.Code, m.Text)
			return
		}
	}
}

type badInput struct {
	name  string
	bytes []byte
	code  wire.Code
}

// badInputs are the vectors that wire refuses, and valid messages that a Peer
// must refuse in the state after one Open of id with handle 1.
func badInputs(t *testing.T, id piece.ID) (bad []badInput) {
	codes := map[string]wire.Code{"malformed": wire.CodeMalformed, "limit": wire.CodeLimit, "version": wire.CodeVersion}
	paths, err := filepath.Glob("wire/testdata/vectors/bad-*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		in := badInput{name: strings.TrimSuffix(filepath.Base(path), ".txt")}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			switch key {
			case "outcome":
				in.code = codes[value]
			case "hex":
				p, err := hex.DecodeString(value)
				if err != nil {
					t.Fatal(err)
				}
				in.bytes = append(in.bytes, p...)
			}
		}
		if in.code != 0 { // not truncated: those end without an Error
			bad = append(bad, in)
		}
	}
	other, _, _ := swarmtest.Bytes(100_000, 9)
	n := uint32(id.Pieces())
	for _, v := range []struct {
		name string
		code wire.Code
		m    wire.Message
	}{
		{"second hello", wire.CodeUnexpected, swarmtest.Hello("test", "bad")},
		{"handle in use", wire.CodeUnexpected, &wire.Open{Blob: 1, ID: other}},
		{"blob opened twice", wire.CodeUnexpected, &wire.Open{Blob: 2, ID: id}},
		{"close of an unopened handle", wire.CodeUnexpected, &wire.Close{Blob: 9}},
		{"have of an unopened handle", wire.CodeUnexpected, &wire.Have{Blob: 9, Pieces: []uint32{0}}},
		{"have beyond the last piece", wire.CodeMalformed, &wire.Have{Blob: 1, Pieces: []uint32{n}}},
		{"sums request of an unopened handle", wire.CodeUnexpected, &wire.SumsRequest{Blob: 9, Count: 1}},
		{"sums of an unopened handle", wire.CodeUnexpected, &wire.Sums{Blob: 9}},
		{"request beyond the last piece", wire.CodeMalformed, &wire.Request{Blob: 1, Piece: n, Length: 1}},
		{"request beyond the piece", wire.CodeMalformed, &wire.Request{Blob: 1, Piece: 0, Offset: uint32(id.PieceSize(0)), Length: 1}},
		{"request of an unopened handle", wire.CodeUnexpected, &wire.Request{Blob: 9, Length: 1}},
		{"block of an unopened handle", wire.CodeUnexpected, &wire.Block{Blob: 9, Data: []byte{1}}},
		{"busy of an unopened handle", wire.CodeUnexpected, &wire.Busy{Blob: 9}},
		{"lost of an unopened handle", wire.CodeUnexpected, &wire.Lost{Blob: 9}},
		{"lost beyond the last piece", wire.CodeMalformed, &wire.Lost{Blob: 1, Piece: n}},
		{"cancel of an unopened handle", wire.CodeUnexpected, &wire.Cancel{Blob: 9}},
		{"bad of an unopened handle", wire.CodeUnexpected, &wire.Bad{Blob: 9}},
		{"bad beyond the last piece", wire.CodeMalformed, &wire.Bad{Blob: 1, Piece: n}},
	} {
		p, err := wire.Append(nil, v.m)
		if err != nil {
			t.Fatal(err)
		}
		bad = append(bad, badInput{v.name, p, v.code})
	}
	return bad
}

// Whatever a stranger says, it gets the right code, and nobody else notices.
func TestMalformed(t *testing.T) {
	inMemory(t, func(t *testing.T, at *place) {
		n := at.start(t, "node", swarmtest.NewStore(""), nil)
		id, _, _ := addBlob(t, n.store, 300_000)
		n.join(t, id, false)
		good := greeted(t, n, "good")
		if err := good.Say(&wire.Open{Blob: 1, ID: id, Want: true}); err != nil {
			t.Fatal(err)
		}
		faults := n.Snapshot().Total.Faults
		for _, in := range badInputs(t, id) {
			for _, early := range []bool{true, false} { // instead of Hello, and after Open
				name, code := in.name+"/established", in.code
				var c *swarmtest.Conn
				if early {
					name = in.name + "/before hello"
					if code == wire.CodeMalformed || code == wire.CodeUnexpected { // valid types come too early
						code = 0
					}
					c = n.dial(t)
				} else {
					c = greeted(t, n, "bad")
					if err := c.Say(&wire.Open{Blob: 1, ID: id, Want: true}); err != nil {
						t.Fatal(err)
					}
				}
				if early && in.name == "second hello" {
					continue
				}
				if err := c.SayBytes(in.bytes); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				e, err := c.HearError()
				switch {
				case err != nil:
					t.Errorf("%s: %v", name, err)
				case code == 0 && e.Code != wire.CodeMalformed && e.Code != wire.CodeUnexpected, code != 0 && e.Code != code:
					t.Errorf("%s: closed with %v %q, want %v", name, e.Code, e.Text, code)
				}
				c.Close()
			}
			if fetch(t, good, id, 1); t.Failed() {
				t.Fatalf("after %s", in.name)
			}
		}
		if n.Snapshot().Total.Faults == faults || len(n.reported(swarm.ReportFault)) == 0 || len(n.reported(swarm.ReportRefused)) == 0 {
			t.Error("no fault was counted or reported")
		}
	})
}

// A stream that ends anywhere within a message is a lost connection, no more.
func TestTruncatedStreams(t *testing.T) {
	inMemory(t, func(t *testing.T, at *place) {
		n := at.start(t, "node", swarmtest.NewStore(""), nil)
		id, _, _ := addBlob(t, n.store, 300_000)
		n.join(t, id, false)
		good := greeted(t, n, "good")
		if err := good.Say(&wire.Open{Blob: 1, ID: id, Want: true}); err != nil {
			t.Fatal(err)
		}
		var stream []byte
		for _, m := range []wire.Message{
			swarmtest.Hello("test", "bad"),
			&wire.Open{Blob: 1, ID: id, Want: true},
			&wire.Request{Blob: 1, Piece: 1, Length: 1000},
			&wire.Block{Blob: 1, Data: make([]byte, 20)},
		} {
			var err error
			if stream, err = wire.Append(stream, m); err != nil {
				t.Fatal(err)
			}
		}
		for cut := range len(stream) {
			c := n.dial(t)
			if err := c.SayBytes(stream[:cut]); err != nil {
				t.Error(err)
			}
			if err := c.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Error(err)
			}
			for { // up to the end
				if _, err := c.Hear(); err != nil {
					var f *wire.Fault
					if ne := net.Error(nil); errors.As(err, &f) || errors.As(err, &ne) && ne.Timeout() {
						t.Errorf("cut at %d: %v", cut, err)
					}
					break
				}
			}
			c.Close()
		}
		fetch(t, good, id, 1)
	})
}

func TestHandshakeRefusals(t *testing.T) {
	inMemory(t, func(t *testing.T, at *place) {
		n := at.start(t, "node", swarmtest.NewStore(""), nil)
		for _, tt := range []struct {
			name string
			h    *wire.Hello
			code wire.Code
		}{
			{"cluster", swarmtest.Hello("another", "peer"), wire.CodeCluster},
			{"its own name", swarmtest.Hello("test", "node"), wire.CodeIdentity},
		} {
			c := n.dial(t)
			if err := c.Say(tt.h); err != nil {
				t.Fatal(err)
			}
			if e, err := c.HearError(); err != nil || e.Code != tt.code {
				t.Errorf("%s: %+v, %v; want %v", tt.name, e, err, tt.code)
			}
		}
		c := n.dial(t)
		if err := c.SayBytes([]byte("\x01\x00\x00\x0cCAPELIN\x00\x00\x63xx")); err != nil {
			t.Fatal(err)
		}
		if e, err := c.HearError(); err != nil || e.Code != wire.CodeVersion || !strings.Contains(e.Text, "version 99") ||
			!strings.Contains(e.Text, "1") {
			t.Errorf("version 99: %+v, %v", e, err)
		}
		if s := n.Snapshot(); s.Total.Refused != 3 || s.Total.Accepted != 0 {
			t.Errorf("snapshot %+v", s.Total)
		}
		if r := n.reported(swarm.ReportRefused); len(r) != 3 || !strings.Contains(r[0].Err.Error(), `"another"`) {
			t.Errorf("reports %v", r)
		}
	})
}

// The dialling side checks as well: a tracker may send it to the wrong place.
func TestDialedPeerRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		say  func() []byte
		want string
	}{
		{"other node", func() []byte { p, _ := wire.Append(nil, swarmtest.Hello("test", "someone")); return p }, `found "someone"`},
		{"other cluster", func() []byte { p, _ := wire.Append(nil, swarmtest.Hello("x", "peer")); return p }, `cluster "x"`},
		{"web server", func() []byte { return []byte("HTTP/1.1 400 Bad Request\r\n\r\n") }, "unknown"},
		{"refusal", func() []byte {
			p, _ := wire.Append(nil, &wire.Error{Code: wire.CodeSurplus, Text: "enough"})
			return p
		}, "surplus"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inMemory(t, func(t *testing.T, at *place) {
				l := at.listen(t)
				defer l.Close()
				served := make(chan struct{})
				go func() {
					defer close(served)
					nc, err := l.Accept()
					if err != nil {
						return
					}
					defer nc.Close()
					c := swarmtest.NewConn(nc)
					c.Hear()
					c.SayBytes(tt.say())
					c.Hear()
				}()
				reported := make(chan swarm.Report, 100)
				n := at.start(t, "node", swarmtest.NewStore(""), func(c *swarm.NodeConfig) {
					c.OnReport = func(r swarm.Report) {
						select {
						case reported <- r:
						default:
						}
					}
				})
				id, _, _ := swarmtest.Bytes(1000, 1)
				n.join(t, id, true)
				n.AddPeers(id, []swarm.PeerInfo{{Node: "peer", Addr: l.Addr().String(), Complete: true}})
				select {
				case r := <-reported:
					if r.Kind != swarm.ReportDialFailed || r.Node != "peer" || !strings.Contains(r.Err.Error(), tt.want) {
						t.Errorf("report %+v, want %q", r, tt.want)
					}
				case <-time.After(patience):
					t.Error("no report")
				}
				<-served
			})
		})
	}
}

func TestInboundLimits(t *testing.T) {
	inMemory(t, func(t *testing.T, at *place) {
		n := at.start(t, "node", swarmtest.NewStore(""), func(c *swarm.NodeConfig) { c.MaxInbound = 2 })
		a, b := greeted(t, n, "a"), greeted(t, n, "b")
		c := n.dial(t)
		if _, err := c.Greet(swarmtest.Hello("test", "c")); err == nil {
			t.Error("a third connection was accepted")
		}
		a.Close()
		b.Close()
		synctest.Wait() // until the node has seen it
		if _, err := n.dial(t).Greet(swarmtest.Hello("test", "d")); err != nil {
			t.Errorf("closed connections still count: %v", err)
		}
	})
}

// A seeder whose copy is damaged, and one that lies about the sums, cannot
// hurt: the bytes come from the third.
func TestWrongBytes(t *testing.T) {
	inMemory(t, func(t *testing.T, at *place) {
		id, data, sums := swarmtest.Bytes(8<<20, 1)
		bad := at.start(t, "bad", swarmtest.NewStore(""), nil)
		b, err := bad.store.Add(id, data, sums)
		if err != nil {
			t.Fatal(err)
		}
		for i := range id.Pieces() {
			if err := b.Corrupt(i); err != nil {
				t.Fatal(err)
			}
		}
		bad.join(t, id, false)
		good := at.start(t, "good", swarmtest.NewStore(""), nil)
		if _, err := good.store.Add(id, data, sums); err != nil {
			t.Fatal(err)
		}
		good.join(t, id, false)
		leech := at.start(t, "leech", swarmtest.NewStore(""), nil)
		leech.join(t, id, true)
		leech.SumsHash(id, sums.Hash())
		leech.AddPeers(id, []swarm.PeerInfo{bad.info(true), good.info(true)})
		if err := leech.wait(t, id); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(leech.store.Blob(id).Bytes(), data) {
			t.Error("other bytes arrived")
		}
	})
}

func TestWrongSums(t *testing.T) {
	inMemory(t, func(t *testing.T, at *place) {
		id, data, sums := swarmtest.Bytes(8<<20, 1)
		_, _, others := swarmtest.Bytes(8<<20, 2)
		wrong := piece.NewSums(id)
		if err := wrong.Append(others.Bytes()); err != nil {
			t.Fatal(err)
		}
		liar := at.start(t, "liar", swarmtest.NewStore(""), nil)
		if _, err := liar.store.Add(id, data, wrong); err != nil {
			t.Fatal(err)
		}
		liar.join(t, id, false)
		good := at.start(t, "good", swarmtest.NewStore(""), nil)
		if _, err := good.store.Add(id, data, sums); err != nil {
			t.Fatal(err)
		}
		good.join(t, id, false)
		leech := at.start(t, "leech", swarmtest.NewStore(""), nil)
		leech.join(t, id, true)
		leech.AddPeers(id, []swarm.PeerInfo{liar.info(true), good.info(true)})
		if err := leech.wait(t, id); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(leech.store.Blob(id).Bytes(), data) {
			t.Error("other bytes arrived")
		}
	})
}

// One of two seeders goes away in the middle.
func TestSeederDies(t *testing.T) {
	inMemory(t, func(t *testing.T, at *place) {
		id, data, sums := swarmtest.Bytes(24<<20, 1)
		var seeders []*testNode
		for _, name := range []string{"dying", "living"} {
			n := at.start(t, name, swarmtest.NewStore(""), func(c *swarm.NodeConfig) { c.Peer.Up = 40 << 20 })
			if _, err := n.store.Add(id, data, sums); err != nil {
				t.Fatal(err)
			}
			n.join(t, id, false)
			seeders = append(seeders, n)
		}
		leech := at.start(t, "leech", swarmtest.NewStore(""), nil)
		leech.join(t, id, true)
		var half atomic.Int32
		died := make(chan struct{})
		leech.store.Blob(id).Fault = func(op string) error {
			if op == "write" && half.Add(1) == int32(id.Pieces()/3) {
				go func() { defer close(died); seeders[0].stop() }()
			}
			return nil
		}
		leech.AddPeers(id, []swarm.PeerInfo{seeders[0].info(true), seeders[1].info(true)})
		if err := leech.wait(t, id); err != nil {
			t.Fatal(err)
		}
		<-died
		if !bytes.Equal(leech.store.Blob(id).Bytes(), data) {
			t.Error("other bytes arrived")
		}
	})
}

// What the Store refuses ends the blob, not the Node.
func TestStoreFails(t *testing.T) {
	broken := errors.New("no space left on device")
	for _, op := range []string{"write", "complete", "read"} {
		t.Run(op, func(t *testing.T) {
			inMemory(t, func(t *testing.T, at *place) {
				seeder := at.start(t, "seeder", swarmtest.NewStore(""), nil)
				id, data, b := addBlob(t, seeder.store, 3<<20)
				seeder.join(t, id, false)
				leech := at.start(t, "leech", swarmtest.NewStore(""), nil)
				var fails atomic.Bool
				fails.Store(true)
				fault := func(o string) error {
					if o == op && fails.Load() {
						return broken
					}
					return nil
				}
				if op == "read" {
					b.Fault = fault
				}
				leech.join(t, id, true)
				if op != "read" {
					leech.store.Blob(id).Fault = fault
				}
				done := leech.Done(id) // before anything comes: it may be over at once
				leech.AddPeers(id, []swarm.PeerInfo{seeder.info(true)})
				if op != "read" {
					if err := <-done; !errors.Is(err, broken) {
						t.Fatalf("Done: %v, want the store's error", err)
					}
					if _, ok := leech.Status(id); ok {
						t.Error("still joined")
					}
				}
				fails.Store(false)
				if op == "read" {
					// The seeder has taken the pieces back; another has them.
					other := at.start(t, "other", swarmtest.NewStore(""), nil)
					addBlob(t, other.store, 3<<20)
					other.join(t, id, false)
					leech.AddPeers(id, []swarm.PeerInfo{other.info(true)})
				}
				leech.join(t, id, true)
				leech.AddPeers(id, []swarm.PeerInfo{seeder.info(true)})
				if err := leech.wait(t, id); err != nil {
					t.Fatalf("after the repair: %v", err)
				}
				if !bytes.Equal(leech.store.Blob(id).Bytes(), data) {
					t.Error("other bytes arrived")
				}
			})
		})
	}
}
