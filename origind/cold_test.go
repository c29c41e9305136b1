package origind

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/internal/seeding"
	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Twenty readers of a cold blob are one read of the backend, and none of them waits
// for more than what it reads.
func TestManyReadersOneRead(t *testing.T) {
	mem := &fetchertest.Memory{}
	gate := newGated(mem)
	count := &fetchertest.Counting{Backend: gate}
	o := start(t, testConfig(t, t.TempDir(), stores{"mem": count}))
	data, _ := testBlob(4<<20, 1)
	d := put(t, mem, "", data)
	const readers = 20
	var half, all sync.WaitGroup
	half.Add(readers)
	for i := range readers {
		all.Go(func() {
			ref := origin.Ref{Digest: d}
			if i%2 == 1 {
				ref.Namespace = "mem/app"
			}
			off := int64(i) * 1000
			rc, info, err := o.client.Open(t.Context(), ref, off, -1)
			if err != nil || info.Size != 4<<20 {
				t.Errorf("reader %d: %+v, %v", i, info, err)
				half.Done()
				return
			}
			defer rc.Close()
			got := make([]byte, int64(len(data))-off)
			_, err = io.ReadFull(rc, got[:1<<20]) // the rest has not left the backend
			half.Done()
			if err == nil {
				_, err = io.ReadFull(rc, got[1<<20:])
			}
			if err != nil || !bytes.Equal(got, data[off:]) {
				t.Errorf("reader %d: %v", i, err)
			}
		})
	}
	gate.let(2 << 20)
	half.Wait()
	gate.let(1 << 62)
	all.Wait()
	if n := count.Opens(); n != 1 {
		t.Errorf("%d reads of the backend", n)
	}
	if got, _, err := o.read(origin.Ref{Digest: d}, 0, -1); err != nil || !bytes.Equal(got, data) || count.Opens() != 1 {
		t.Errorf("afterwards: %d bytes, %v, %d reads", len(got), err, count.Opens())
	}
}

// peer is a node of the swarm with a disk of its own.
type peer struct {
	node  *swarm.Node
	store *content.Store
}

func newPeer(t testing.TB) *peer {
	t.Helper()
	return newPeerWith(t, nil, func(*swarm.NodeConfig) {})
}

func newPeerWith(t testing.TB, id *identity.Source, change func(*swarm.NodeConfig)) *peer {
	t.Helper()
	store, err := content.Open(t.Context(), content.Config{Root: t.TempDir(), FreeFloor: -1})
	if err != nil {
		t.Fatal(err)
	}
	cfg := swarm.NodeConfig{Cluster: "default", Node: "node", Store: seeding.Store{Blobs: store}}
	change(&cfg)
	node, err := seeding.NewNode(cfg, id)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- node.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		store.Close()
	})
	return &peer{node, store}
}

// want takes part in a blob's swarm, with the origin as the only other peer.
func (p *peer) want(t testing.TB, o *running, id piece.ID) {
	t.Helper()
	if err := p.node.Join(t.Context(), id, swarm.JoinOptions{Want: true}); err != nil {
		t.Fatal(err)
	}
	p.node.AddPeers(id, []swarm.PeerInfo{{Node: "origin", Addr: o.swarm, Source: true}})
}

// A peer asks for a cold blob, and has its first pieces while the backend has given
// no more than those.
func TestColdBlobInTheSwarm(t *testing.T) {
	mem := &fetchertest.Memory{}
	gate := newGated(mem)
	count := &fetchertest.Counting{Backend: gate}
	o := start(t, testConfig(t, t.TempDir(), stores{"mem": count}))
	data, _ := testBlob(4<<20, 1)
	d := put(t, mem, "", data)
	id := idOf(t, data)
	p := newPeer(t)
	p.want(t, o, id)
	b, err := p.store.Blob(t.Context(), id, true)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	eventually(t, "the origin opens the backend", func() bool { return count.Opens() == 1 })

	rc, _, err := o.client.Open(t.Context(), origin.Ref{Digest: d}, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	begin := time.Now()
	gate.let(2 * id.Length())
	first := make([]byte, 1)
	if _, err := io.ReadFull(rc, first); err != nil || first[0] != data[0] {
		t.Fatalf("%x, %v", first, err)
	}
	http := time.Since(begin)
	eventually(t, "the peer has a piece", func() bool { return b.Have().Count() > 0 })
	t.Logf("first byte after the backend's: HTTP %v, verified piece at a peer %v", http, time.Since(begin))

	gate.let(1 << 62)
	if err := <-p.node.Done(id); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(rc); err != nil || !bytes.Equal(rest, data[1:]) {
		t.Errorf("%d bytes, %v", len(rest), err)
	}
	if n := count.Opens(); n != 1 {
		t.Errorf("%d reads of the backend", n)
	}
}

// What was pushed is seeded with its sums, without another look at it.
func TestPushedBlobInTheSwarm(t *testing.T) {
	o := start(t, testConfig(t, t.TempDir(), nil))
	data, _ := testBlob(3<<20+1, 1)
	o.mustPush("any/app", data)
	p := newPeer(t)
	id := idOf(t, data)
	p.want(t, o, id)
	if err := <-p.node.Done(id); err != nil {
		t.Fatal(err)
	}
}

// An object that is not what its name says is found out, named, and not read again
// before somebody pushes the blob.
func TestWrongObject(t *testing.T) {
	mem := &fetchertest.Memory{}
	count := &fetchertest.Counting{Backend: mem}
	o := start(t, testConfig(t, t.TempDir(), stores{"mem": count}))
	data, d := testBlob(1<<20, 1)
	wrong := bytes.Clone(data)
	wrong[500_000] ^= 1
	key, _ := fetcher.BlobKey(d)
	if _, err := mem.Write(t.Context(), key, int64(len(wrong)), bytes.NewReader(wrong)); err != nil {
		t.Fatal(err)
	}
	ref := origin.Ref{Digest: d}
	for range 3 {
		_, _, err := o.read(ref, 0, -1)
		if !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), key) {
			t.Errorf("got %v, want lost data at %s", err, key)
		}
		if _, err := o.client.Stat(t.Context(), ref); !errdefs.IsDataLoss(err) {
			t.Errorf("stat: %v", err)
		}
	}
	if n := count.Opens(); n != 1 {
		t.Errorf("%d reads", n)
	}
	o.mustPush("mem/app", data)
	if got, _, err := o.read(ref, 0, -1); err != nil || !bytes.Equal(got, data) {
		t.Errorf("after a push: %d bytes, %v", len(got), err)
	}
	eventually(t, "the backend has the right bytes", func() bool {
		r, _, err := mem.Open(t.Context(), key, 0, -1)
		if err != nil {
			return false
		}
		defer r.Close()
		got, _ := io.ReadAll(r)
		return bytes.Equal(got, data)
	})
}

func TestLookups(t *testing.T) {
	mem := &fetchertest.Memory{}
	count := &fetchertest.Counting{Backend: mem}
	cfg := testConfig(t, t.TempDir(), stores{"mem": count})
	cfg.Lookup.Negative = config.Duration(time.Hour)
	o := start(t, cfg)
	data, d := testBlob(1000, 1)
	ref := origin.Ref{Digest: d}
	for range 3 {
		if _, err := o.client.Stat(t.Context(), ref); !errdefs.IsNotFound(err) {
			t.Fatal(err)
		}
	}
	if n := count.Stats(); n != 1 {
		t.Errorf("the backend was asked %d times for what it does not have", n)
	}
	o.mustPush("kept/app", data)
	if _, err := o.client.Stat(t.Context(), ref); err != nil {
		t.Errorf("after a push: %v", err)
	}
	if err := o.client.Delete(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if _, err := o.client.Stat(t.Context(), ref); !errdefs.IsNotFound(err) {
		t.Errorf("after its deletion: %v", err)
	}
	data, _ = testBlob(1000, 2)
	d = put(t, mem, "", data)
	before := count.Stats()
	for range 3 {
		if info, err := o.client.Stat(t.Context(), origin.Ref{Digest: d}); err != nil || info != (origin.Info{Size: 1000, Durable: true}) {
			t.Errorf("of a backend's: %+v, %v", info, err)
		}
	}
	if n := count.Stats() - before; n != 1 {
		t.Errorf("the backend was asked %d times for what it has", n)
	}
	if count.Opens() != 0 {
		t.Error("asking has read it")
	}
}

// A registry has a blob only under a repository; once it was read, the digest is
// enough, also when the blob has been evicted.
func TestRecordFindsRepository(t *testing.T) {
	mem := &fetchertest.Memory{}
	count := &fetchertest.Counting{Backend: byRepository{mem}}
	cfg := testConfig(t, t.TempDir(), stores{"hub": count})
	cfg.Cache.Size = 1
	cfg.Lookup.Negative = config.Duration(time.Millisecond)
	o := start(t, cfg)
	data, _ := testBlob(500_000, 1)
	d := put(t, byRepository{mem}, "hub/library/app", data)
	ref := origin.Ref{Digest: d}
	if _, err := o.client.Stat(t.Context(), ref); !errdefs.IsNotFound(err) {
		t.Fatalf("without a repository: %v", err)
	}
	if _, err := o.client.Stat(t.Context(), origin.Ref{Namespace: "hub/other", Digest: d}); !errdefs.IsNotFound(err) {
		t.Fatalf("in another repository: %v", err)
	}
	if got, _, err := o.read(origin.Ref{Namespace: "hub/library/app", Digest: d}, 0, -1); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	eventually(t, "the blob is evicted, and read again by its digest alone", func() bool {
		got, _, err := o.read(ref, 0, -1)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		return count.Opens() > 1
	})
	o.stop()
	o = start(t, cfg)
	if got, _, err := o.read(ref, 0, -1); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("after a restart: %d bytes, %v", len(got), err)
	}
	if err := o.client.Delete(t.Context(), ref); !errdefs.IsNotImplemented(err) {
		t.Errorf("deleting from what is read only: %v", err)
	}
}

var errDown = errors.Join(errors.New("the backend is down"), errdefs.ErrUnavailable)

// A short range far beyond what has arrived does not wait for all before it.
func TestFarRange(t *testing.T) {
	mem := &fetchertest.Memory{}
	gate := newGated(mem)
	count := &fetchertest.Counting{Backend: gate}
	o := start(t, testConfig(t, t.TempDir(), stores{"mem": count}))
	data, _ := testBlob(40<<20, 1)
	d := put(t, mem, "", data)
	ref := origin.Ref{Digest: d}
	gate.let(64 << 10)
	off := int64(len(data) - 64<<10)
	if got, _, err := o.read(ref, off, -1); err != nil || !bytes.Equal(got, data[off:]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if n := count.Bytes(); n != 64<<10 {
		t.Errorf("%d bytes were read", n)
	}
}

// Who pushes what is at a backend already costs it a look, and heals it if it is
// not there after all.
func TestPushAgain(t *testing.T) {
	mem := &fetchertest.Memory{}
	count := &fetchertest.Counting{Backend: mem}
	o := start(t, testConfig(t, t.TempDir(), stores{"mem": count}))
	data, d := testBlob(100_000, 1)
	durable := func() bool {
		info, err := o.client.Stat(t.Context(), origin.Ref{Digest: d})
		return err == nil && info.Durable && has(mem, d)
	}
	o.mustPush("mem/a", data)
	eventually(t, "it is written", durable)
	writes := count.Writes()
	o.mustPush("mem/b", data)
	eventually(t, "it was looked for", durable)
	if n := count.Writes() - writes; n != 1 {
		t.Errorf("%d writes, want the record's", n)
	}
	key, _ := fetcher.BlobKey(d)
	if err := mem.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	o.mustPush("mem/a", data)
	eventually(t, "it is written again", durable)
}

// A backend that fails before its first byte is an error, not an answer that breaks
// off.
func TestColdOpenFails(t *testing.T) {
	data, d := testBlob(1000, 1)
	for want, err := range map[string]error{
		"unavailable": errDown, "not_found": errdefs.ErrNotFound, "unavailable ": errdefs.ErrPermissionDenied, "data_loss": nil,
	} {
		mem := &fetchertest.Memory{}
		b := &fetchertest.Faulty{Backend: mem, Fail: func(op fetchertest.Op, _ string) error {
			if op == fetchertest.OpOpen {
				return err
			}
			return nil
		}}
		cfg := testConfig(t, t.TempDir(), stores{"mem": b})
		cfg.Cold.Attempts = 2
		o := start(t, cfg)
		put(t, mem, "", data)
		if err == nil { // nothing fails, but what is there is not the blob
			key, _ := fetcher.BlobKey(d)
			if _, err := mem.Write(t.Context(), key, 1000, bytes.NewReader(make([]byte, 1000))); err != nil {
				t.Fatal(err)
			}
			o.do("GET", "/v1/blobs/"+string(d), "", nil) // finds out
		}
		resp, _ := o.do("GET", "/v1/blobs/"+string(d), "", nil)
		if got := resp.Header.Get("Capelin-Error"); got != strings.TrimSpace(want) {
			t.Errorf("%v: status %d, class %q, want %q", err, resp.StatusCode, got, want)
		}
	}
}
