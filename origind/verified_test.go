package origind

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/swarm/piece"
)

// startPair runs a ring of two, which both have acknowledged a push of data.
func startPair(t *testing.T, data []byte) (cfgs []Config, ring []*running) {
	t.Helper()
	var members []string
	for i := range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		cfg := testConfig(t, t.TempDir(), nil)
		cfg.Node, cfg.Listener = string(rune('a'+i)), l
		cfg.Ring.Replicas, cfg.Ring.MinReplicas = 2, 2
		cfgs = append(cfgs, cfg)
		members = append(members, cfg.Node+"="+l.Addr().String())
	}
	for i := range cfgs {
		cfgs[i].Ring.Members = members
		ring = append(ring, start(t, cfgs[i]))
	}
	d := digest.FromBytes(data)
	eventually(t, "both acknowledge a push", func() bool { _, err := ring[1].push("any/app", data, d); return err == nil })
	return cfgs, ring
}

// get asks an origin for a blob, and returns what came of the body.
func (r *running) get(d digest.Digest, query, rng string) (code int, body []byte, err error) {
	r.t.Helper()
	req, _ := http.NewRequest("GET", "http://"+r.addr+origin.PathBlobs+"/"+string(d)+query, nil)
	if rng != "" {
		req.Header.Set("Range", "bytes="+rng)
	}
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// A byte is wrong on the disk, and nobody has noticed yet. Whoever reads it from a ring of one gets what is right before it, and an
// error; a part that begins in its piece is refused.
func TestReadsAreVerified(t *testing.T) {
	for _, tt := range []struct {
		name, rng, query string
		code, got        int // bytes
	}{
		{"all of it", "", "", 200, 24 * 64 << 10},
		{"from the piece before", "1507328-", "", 206, 64 << 10},
		{"the piece", "1572864-1638399", "", 503, 0},
		{"another byte of the piece", "1572870-1572870", "", 503, 0},
		{"by another member", "", "?hop=1", 200, 24 * 64 << 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig(t, t.TempDir(), nil)
			o := start(t, cfg)
			data, _ := testBlob(3<<20, 1)
			d := o.mustPush("any/app", data)
			spoil(t, cfg.Root, d) // a byte of piece 24
			code, got, err := o.get(d, tt.query, tt.rng)
			if code == 503 {
				if tt.code != 503 || !bytes.Contains(got, []byte("piece 24 is wrong on this origin's disk")) {
					t.Errorf("%d: %s", code, got)
				}
			} else if off := 24*64<<10 - tt.got; code != tt.code || err == nil || !bytes.Equal(got, data[off:off+tt.got]) {
				t.Errorf("%d, %d bytes, %v; want %d, %d right bytes, and an error", code, len(got), err, tt.code, tt.got)
			}
			mark := filepath.Join(cfg.Root, "swarm/sums/sha256", d.Encoded()+".bad")
			if text, err := os.ReadFile(mark); string(text) != "24\n" {
				t.Errorf("what is marked as wrong: %q, %v", text, err)
			}
			const at = 25 * 64 << 10
			if code, got, err := o.get(d, "", "1638400-"); code != 206 || err != nil || !bytes.Equal(got, data[at:]) {
				t.Errorf("what is right: %d, %d bytes, %v", code, len(got), err)
			}
		})
	}
}

// In a ring the reader waits a moment, and another member's bytes are there.
func TestReadsAreHealed(t *testing.T) {
	data, d := testBlob(3<<20, 1)
	for _, rng := range []string{"", "1572864-"} {
		cfgs, ring := startPair(t, data)
		spoil(t, cfgs[1].Root, d)
		want := data
		if rng != "" {
			want = data[24*64<<10:]
		}
		if code, got, err := ring[1].get(d, "", rng); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%q: %d, %d bytes, %v: want the right ones", rng, code, len(got), err)
		}
		if got, err := os.ReadFile(filepath.Join(cfgs[1].Root, "blobs/sha256", d.Encoded())); err != nil || !bytes.Equal(got, data) {
			t.Errorf("the file is not right: %v", err)
		}
	}
}

// What is wrong in the cache goes, and the reader goes on with the backend's bytes.
func TestReadsGoOnFromTheBackend(t *testing.T) {
	mem := &fetchertest.Memory{}
	cfg := testConfig(t, t.TempDir(), stores{"mem": mem})
	o := start(t, cfg)
	data, _ := testBlob(3<<20, 1)
	d := put(t, mem, "", data)
	ref := origin.Ref{Digest: d, Namespace: "mem/app"}
	path := filepath.Join(cfg.Root, "cache/sha256", d.Encoded())
	eventually(t, "it is in the cache", func() bool {
		if _, _, err := o.read(ref, 0, -1); err != nil {
			t.Fatal(err)
		}
		_, err := os.Stat(path)
		return err == nil
	})
	if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, spoiled(t, data, 24), 0o600)); err != nil {
		t.Fatal(err)
	}
	if code, got, err := o.get(d, "", ""); code != 200 || err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d, %d bytes, %v", code, len(got), err)
	}
}

// A blob whose sums are lost is verified by its digest before it is sent.
func TestReadsWithoutSums(t *testing.T) {
	for _, wrong := range []bool{false, true} {
		cfg := testConfig(t, t.TempDir(), nil)
		o := start(t, cfg)
		data, _ := testBlob(3<<20, 1)
		d := o.mustPush("any/app", data)
		o.stop()
		if err := os.Remove(filepath.Join(cfg.Root, "swarm/sums/sha256", d.Encoded())); err != nil {
			t.Fatal(err)
		}
		if wrong {
			spoil(t, cfg.Root, d)
		}
		o = start(t, cfg)
		code, got, err := o.get(d, "", "100-")
		if !wrong && (code != 206 || err != nil || !bytes.Equal(got, data[100:])) {
			t.Errorf("%d, %d bytes, %v", code, len(got), err)
		}
		if wrong && code != 503 {
			t.Errorf("it is wrong: %d, %.100s", code, got)
		}
	}
}

// A piece of an arriving blob that the disk has spoiled is not sent to those who follow.
func TestFollowersAreVerified(t *testing.T) {
	mem := &fetchertest.Memory{}
	gate := newGated(mem)
	cfg := testConfig(t, t.TempDir(), stores{"mem": gate})
	cfg.Cold.Attempts = 1
	o := start(t, cfg)
	data, _ := testBlob(4<<20, 1)
	d := put(t, mem, "", data)
	gate.let(2 << 20)
	ref := origin.Ref{Digest: d, Namespace: "mem/app"}
	first, _, err := o.client.Open(t.Context(), ref, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := io.ReadFull(first, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(cfg.Root, "swarm/partial", "*.data"))
	if len(files) != 1 {
		t.Fatalf("%q", files)
	}
	f, err := os.OpenFile(files[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{^data[700_000]}, 700_000); err != nil {
		t.Fatal(err)
	}
	gate.let(1 << 62)
	_, got, _ := o.get(d, "?namespace=mem/app", "")
	if !bytes.HasPrefix(data, got) {
		t.Errorf("%d bytes that are not the blob's", len(got))
	}
}

// taker takes parts of a blob.
type taker struct {
	got   []byte
	may   chan struct{} // nil: at once
	begun chan struct{} // closed at the first
}

func newTaker(waits bool) *taker {
	k := &taker{begun: make(chan struct{})}
	if waits {
		k.may = make(chan struct{})
	}
	return k
}

func (k *taker) take(p []byte) error {
	if k.got == nil {
		close(k.begun)
	}
	k.got = append(k.got, p...)
	if k.may != nil {
		<-k.may
	}
	return nil
}

// verifiedBlobs has whole blobs of two pieces of 64 KiB open.
func verifiedBlobs(t *testing.T, n int) (all []*content.Blob, data [][]byte) {
	w := newWard(t, t.TempDir(), 0)
	for i := range n {
		d, _ := testBlob(128<<10, uint64(i))
		b, err := w.store.Blob(t.Context(), w.pinned(d), false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		all, data = append(all, b), append(data, d)
	}
	return all, data
}

// There is room for one piece only. A reader whose client takes nothing gives it up when others want it, and not before; it reads it
// anew when the client goes on, and nobody gets anything wrong.
func TestSlowReadersMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blobs, data := verifiedBlobs(t, 2)
		v := newVerified(64 << 10)
		slow, quick := newTaker(true), newTaker(false)
		done := make(chan error, 2)
		go func() { _, err := v.send(t.Context(), blobs[0], 0, 100<<10, slow.take); done <- err }()
		<-slow.begun
		time.Sleep(time.Hour + takeWithin/2)
		if n := len(v.m); n != 1 {
			t.Errorf("%d pieces are in memory while nobody else wants room", n)
		}
		began := time.Now()
		n, err := v.send(t.Context(), blobs[1], 7, 100<<10, quick.take)
		waited := time.Since(began)
		if waited == 0 || waited > takeWithin || err != nil || n != 100<<10 || !bytes.Equal(quick.got, data[1][7:7+n]) {
			t.Errorf("%d bytes after %v, %v", n, waited, err)
		}
		close(slow.may)
		if err := <-done; err != nil || !bytes.Equal(slow.got, data[0][:100<<10]) {
			t.Errorf("the slow one: %d bytes, %v", len(slow.got), err)
		}
		if len(v.m) != 0 || !v.room.TryAcquire(64<<10) {
			t.Errorf("%d pieces stay", len(v.m))
		}
	})
}

// Who reads the same piece as somebody else needs no room. Who waits for room may give up.
func TestReadersShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blobs, data := verifiedBlobs(t, 2)
		v := newVerified(64 << 10)
		slow, quick := newTaker(true), newTaker(false)
		done := make(chan error, 1)
		go func() { _, err := v.send(t.Context(), blobs[0], 0, 64<<10, slow.take); done <- err }()
		<-slow.begun
		began := time.Now()
		if _, err := v.send(t.Context(), blobs[0], 1000, 1000, quick.take); err != nil || !bytes.Equal(quick.got, data[0][1000:2000]) {
			t.Errorf("%d bytes, %v", len(quick.got), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), takeWithin/2)
		defer cancel()
		if n, err := v.send(ctx, blobs[1], 0, 1, quick.take); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without room: %d bytes, %v", n, err)
		}
		if waited := time.Since(began); waited != takeWithin/2 {
			t.Errorf("they waited %v", waited)
		}
		close(slow.may)
		if err := <-done; err != nil || !v.room.TryAcquire(64<<10) {
			t.Error(err)
		}
	})
}

// Two lists that are not proved are not one: what was verified by the one is nobody's who goes by the other.
func TestUnprovedPiecesAreApart(t *testing.T) {
	data, _ := testBlob(1<<20, 1)
	wrong := spoiled(t, data, 3)
	id := idOf(t, data)
	v := newVerified(verifiedBytes)
	var held []*loaded
	for _, bytes := range [][]byte{wrong, data} {
		w := newWard(t, t.TempDir(), 0)
		b, err := w.store.Blob(t.Context(), id, true)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		a, err := b.Append(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Write(bytes[:512<<10]); err != nil {
			t.Fatal(err)
		}
		a.Close()
		all, err := v.get(t.Context(), b, 3, false)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, all...)
	}
	if at := id.Offset(3); !slices.Equal(held[1].data, data[at:at+piece.MinLength]) {
		t.Error("a reader got what another blob's list says")
	}
	v.drop(held)
}
