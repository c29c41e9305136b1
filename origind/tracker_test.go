package origind

import (
	"bytes"
	"context"
	"net"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
	"github.com/capelin-io/capelin/trackerd"
)

// startTracker runs a tracker and returns its address.
func startTracker(t *testing.T) string {
	t.Helper()
	cfg := trackerd.DefaultConfig()
	cfg.Listen, cfg.Metrics, cfg.Lease.Warmup = "127.0.0.1:0", "", 0
	up := make(chan string, 1)
	cfg.OnListen = func(agents, _ net.Addr) { up <- agents.String() }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- trackerd.Run(ctx, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case addr := <-up:
		return addr
	case err := <-done:
		done <- nil
		t.Fatal(err)
		return ""
	}
}

// listener is an agent's side of a tracker: it remembers what it is told.
type listener struct {
	mu       sync.Mutex
	verdicts map[piece.ID]tracker.VerdictKind
	peers    map[piece.ID]tracker.Peer
	hashes   map[piece.ID][32]byte
}

func (l *listener) set(f func()) { l.mu.Lock(); defer l.mu.Unlock(); f() }

func (l *listener) Peers(id piece.ID, ps []tracker.Peer) {
	l.set(func() {
		for _, p := range ps {
			l.peers[id] = p
		}
	})
}
func (l *listener) Share(piece.ID, uint16)                 {}
func (l *listener) Upstream(piece.ID, tracker.Upstream)    {}
func (l *listener) PeersGone(id piece.ID, _ []string)      { l.set(func() { delete(l.peers, id) }) }
func (l *listener) SumsHash(id piece.ID, h [32]byte)       { l.set(func() { l.hashes[id] = h }) }
func (l *listener) Verdict(id piece.ID, v tracker.Verdict) { l.set(func() { l.verdicts[id] = v.Kind }) }
func (l *listener) Command(*trackerpb.Command)             {}
func (l *listener) Lookup(piece.ID)                        {}

func (l *listener) see(id piece.ID) (v tracker.VerdictKind, p tracker.Peer, h [32]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.verdicts[id], l.peers[id], l.hashes[id]
}

// An agent that wants a blob learns from its tracker that the origin has it, or can
// get it, whoever asked for it before.
func TestTracker(t *testing.T) {
	addr := startTracker(t)
	mem := &fetchertest.Memory{}
	count := &fetchertest.Counting{Backend: mem}
	cfg := testConfig(t, t.TempDir(), stores{"mem": count})
	cfg.Trackers = []string{addr}
	o := start(t, cfg)

	l := &listener{verdicts: map[piece.ID]tracker.VerdictKind{}, peers: map[piece.ID]tracker.Peer{}, hashes: map[piece.ID][32]byte{}}
	c := tracker.New(tracker.Config{Trackers: []string{addr}, Hello: tracker.Hello{
		Cluster: "default", Node: "node", Addr: "127.0.0.1:1", Role: wire.RoleAgent,
	}}, l)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	defer func() { cancel(); <-done }()
	eventually(t, "the agent is connected", func() bool { st := c.Status(); return len(st) == 1 && st[0].Connected })

	pushed, _ := testBlob(300_000, 1)
	o.mustPush("kept/app", pushed)
	cold, _ := testBlob(300_000, 2)
	put(t, mem, "", cold)
	nowhere, _ := testBlob(300_000, 3)
	_, isPushed, isCold := idOf(t, nowhere), idOf(t, pushed), idOf(t, cold)

	c.Want(isPushed, tracker.Want{Waiting: true})
	eventually(t, "the pushed blob's source and sums are known", func() bool {
		v, p, h := l.see(isPushed)
		return v == tracker.Sources && p.Node == "origin" && p.Complete && p.Addr == o.swarm && h != [32]byte{}
	})
	sums := piece.NewSums(isPushed)
	if err := piece.NewHasher(sums).Write(sums, pushed); err != nil {
		t.Fatal(err)
	}
	if _, _, h := l.see(isPushed); h != sums.Hash() {
		t.Error("other sums than the blob's")
	}
	c.Want(isCold, tracker.Want{Waiting: true})
	eventually(t, "the origin promises the cold blob", func() bool {
		v, p, _ := l.see(isCold)
		return v == tracker.Sources && p.Node == "origin" && p.Source
	})
	eventually(t, "and reads it", func() bool {
		_, p, h := l.see(isCold)
		return p.Complete && h != [32]byte{}
	})
	if n := count.Opens(); n != 1 {
		t.Errorf("%d reads of the backend", n)
	}
	id := idOf(t, nowhere)
	c.Want(id, tracker.Want{Waiting: true})
	eventually(t, "what nobody has may be fetched upstream", func() bool { v, _, _ := l.see(id); return v == tracker.Lease })

	// What is deleted is nobody's source.
	if err := o.client.Delete(t.Context(), origin.Ref{Digest: digest.Digest(isPushed.Digest())}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the deleted blob has no source", func() bool { _, p, _ := l.see(isPushed); return p.Node == "" })
	o.stop()

	// After a restart all is announced again, but for what is not visible.
	o = start(t, cfg)
	eventually(t, "the cold blob is announced again", func() bool {
		_, p, _ := l.see(isCold)
		return p.Complete && p.Addr == o.swarm
	})
	if _, err := o.client.Stat(t.Context(), origin.Ref{Digest: digest.Digest(isPushed.Digest())}); !errdefs.IsNotFound(err) {
		t.Errorf("the deleted blob: %v", err)
	}
	if got, _, err := o.read(origin.Ref{Digest: digest.Digest(isCold.Digest())}, 0, -1); err != nil || !bytes.Equal(got, cold) ||
		count.Opens() != 1 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// A tracker's preheat brings blobs here, and says what could not be had.
func TestPreheat(t *testing.T) {
	mem := &fetchertest.Memory{}
	s, _ := newServer(t, testConfig(t, t.TempDir(), stores{"mem": mem}))
	a, _ := testBlob(300_000, 1)
	b, _ := testBlob(100_000, 2)
	none, _ := testBlob(100_000, 3)
	var blobs []*trackerpb.Blob
	for _, data := range [][]byte{a, none, b} {
		blobs = append(blobs, trackerpb.FromID(idOf(t, data)))
	}
	put(t, mem, "", a)
	put(t, mem, "", b)
	for range 2 {
		r := &trackerpb.CommandResult{}
		s.errands.warm(t.Context(), blobs, r)
		if r.Bytes != 400_000 || len(r.Blobs) != 1 || r.Error == "" {
			t.Errorf("%v", r)
		}
	}
}
