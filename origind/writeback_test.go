package origind

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/origind/record"
)

// downable is a backend whose writes fail while it is down.
func downable(b fetcher.Backend) (*fetchertest.Faulty, *atomic.Bool) {
	down := new(atomic.Bool)
	return &fetchertest.Faulty{Backend: b, Fail: func(op fetchertest.Op, _ string) error {
		if down.Load() && op == fetchertest.OpWrite {
			return errDown
		}
		return nil
	}}, down
}

func has(b fetcher.Backend, d digest.Digest) bool {
	key, _ := fetcher.BlobKey(d)
	_, err := b.Stat(context.Background(), key)
	return err == nil
}

// What no backend has stays, however small the cache; when it has been written, it
// may go, and comes back from there. The queue survives a restart.
func TestNothingIsLostBeforeItIsWritten(t *testing.T) {
	mem := &fetchertest.Memory{}
	b, down := downable(mem)
	count := &fetchertest.Counting{Backend: b}
	down.Store(true)
	cfg := testConfig(t, t.TempDir(), stores{"mem": count})
	cfg.Cache.Size = 1
	o := start(t, cfg)
	const n = 8
	var data [n][]byte
	var refs [n]origin.Ref
	for i := range n {
		data[i], refs[i].Digest = testBlob(100_000, uint64(i))
		o.mustPush("mem/app", data[i])
	}
	check := func(what string, durable bool) {
		t.Helper()
		for i := range n {
			got, info, err := o.read(refs[i], 0, -1)
			if err != nil || !bytes.Equal(got, data[i]) || info.Durable != durable {
				t.Errorf("%s: blob %d: %d bytes, %+v, %v", what, i, len(got), info, err)
			}
		}
	}
	eventually(t, "every blob was tried", func() bool { return count.Writes() >= 2*n })
	check("before", false)
	o.stop()
	o = start(t, cfg)
	check("after a restart", false)
	if count.Opens() != 0 {
		t.Errorf("%d reads of the backend", count.Opens())
	}
	o.stop()
	down.Store(false)
	o = start(t, cfg)
	for i := range n {
		eventually(t, "the backend has it", func() bool { return has(mem, refs[i].Digest) })
		eventually(t, "and so the origin says", func() bool {
			info, err := o.client.Stat(t.Context(), refs[i])
			return err == nil && info.Durable
		})
	}
	eventually(t, "the cache empties itself", func() bool {
		check("afterwards", true)
		return count.Opens() > 0
	})
	// Its record is beside it.
	r, _, err := mem.Open(t.Context(), recordKey(refs[0].Digest), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(r)
	if rec, err := record.Parse(text, refs[0].Digest); err != nil || rec.Size != 100_000 || rec.Homes[0].Namespaces["mem/app"] == 0 {
		t.Errorf("the backend's record is %s: %v", text, err)
	}
}

func TestDurabilityBackend(t *testing.T) {
	mem := &fetchertest.Memory{}
	b, down := downable(mem)
	cfg := testConfig(t, t.TempDir(), stores{"mem": b})
	cfg.Durability = "backend"
	o := start(t, cfg)
	data, d := testBlob(100_000, 1)
	if info, err := o.push("mem/app", data, d); err != nil || !info.Durable || !has(mem, d) {
		t.Errorf("%+v, %v", info, err)
	}
	down.Store(true)
	data, d = testBlob(100_000, 2)
	id, err := o.client.StartUpload(t.Context(), "mem/app", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.client.Append(t.Context(), id, 0, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	_, at, _ := strings.Cut(id, "-")
	for range 2 { // what the client, which asks again for a minute, is told each time
		if resp, text := o.do("PUT", "/v1/uploads/"+at+"?digest="+string(d), "", nil); resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("acknowledged although the backend is down: %d, %s", resp.StatusCode, text)
		}
	}
	down.Store(false)
	if info, err := o.client.Commit(t.Context(), id, d); err != nil || !info.Durable || !has(mem, d) {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestDelete(t *testing.T) {
	mem := &fetchertest.Memory{}
	b, down := downable(mem)
	o := start(t, testConfig(t, t.TempDir(), stores{"mem": b}))
	data, d := testBlob(100_000, 1)
	stat := func(want string) {
		t.Helper()
		if _, err := o.client.Stat(t.Context(), origin.Ref{Digest: d}); class(err) != want {
			t.Errorf("stat: %v, want %s", err, want)
		}
	}
	del := func(ns string) {
		t.Helper()
		if err := o.client.Delete(t.Context(), origin.Ref{Namespace: ns, Digest: d}); err != nil {
			t.Errorf("deleting from %q: %v", ns, err)
		}
	}
	erased := func() {
		t.Helper()
		eventually(t, "the backend has it no more", func() bool { return !has(mem, d) })
	}
	del("mem/a")
	o.mustPush("mem/a", data)
	o.mustPush("mem/b", data)
	o.mustPush("kept/a", data)
	eventually(t, "it is written", func() bool { return has(mem, d) })
	del("mem/c")
	del("mem/a")
	stat("ok")
	if !has(mem, d) {
		t.Error("deleted although another namespace has it")
	}
	del("mem/b")
	erased()
	stat("ok")
	del("kept/a")
	stat("not_found")

	// While it is still to be written; and then anew.
	down.Store(true)
	o.mustPush("mem/a", data)
	del("")
	stat("not_found")
	down.Store(false)
	o.mustPush("mem/a", data)
	eventually(t, "it is written", func() bool {
		info, err := o.client.Stat(t.Context(), origin.Ref{Digest: d})
		return has(mem, d) && err == nil && info.Durable
	})
	del("")
	del("")
	stat("not_found")
	erased()
	// What nobody has asked for here is deleted as well.
	put(t, mem, "", data)
	del("mem/x")
	erased()
}

// A deletion while a blob is being written does not leave it behind.
func TestDeleteDuringWrite(t *testing.T) {
	mem := &fetchertest.Memory{}
	writing, release := make(chan struct{}, 1), make(chan struct{})
	b := &fetchertest.Faulty{Backend: mem, Fail: func(op fetchertest.Op, key string) error {
		if op == fetchertest.OpWrite && strings.HasPrefix(key, "blobs/") {
			writing <- struct{}{}
			<-release
		}
		return nil
	}}
	count := &fetchertest.Counting{Backend: b}
	o := start(t, testConfig(t, t.TempDir(), stores{"mem": count}))
	data, d := testBlob(100_000, 1)
	o.mustPush("mem/a", data)
	<-writing
	if err := o.client.Delete(t.Context(), origin.Ref{Digest: d}); err != nil {
		t.Fatal(err)
	}
	close(release)
	eventually(t, "the backend has what was deleted no more", func() bool { return !has(mem, d) && count.Writes() > 0 })
}

// What the disk has spoiled is not written to a backend as if it were whole.
func TestSpoiledBlobIsNotWritten(t *testing.T) {
	mem := &fetchertest.Memory{}
	b, down := downable(mem)
	down.Store(true)
	cfg := testConfig(t, t.TempDir(), stores{"mem": b})
	o := start(t, cfg)
	data, d := testBlob(100_000, 1)
	o.mustPush("mem/a", data)
	o.stop()
	spoil(t, cfg.Root, d)
	down.Store(false)
	count := &fetchertest.Counting{Backend: b}
	cfg.Stores = stores{"mem": count}
	o = start(t, cfg)
	eventually(t, "it was tried", func() bool { return count.Writes() > 2 })
	if has(mem, d) {
		t.Error("the backend has spoiled bytes")
	}
	o.mustPush("mem/other", data)
}

func TestUploadsExpire(t *testing.T) {
	cfg := testConfig(t, t.TempDir(), nil)
	cfg.Uploads.Max = 2
	o := start(t, cfg)
	for _, ns := range []string{"any/app", "other/app"} {
		if _, err := o.client.StartUpload(t.Context(), ns, ""); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := o.client.StartUpload(t.Context(), "any/app", ""); !errdefs.IsResourceExhausted(err) {
		t.Errorf("a third: %v", err)
	}
	o.stop()
	u, err := openUploads(alone(cfg.Root+"/uploads", 2))
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := u.tick(time.Now().Add(59 * time.Minute)); n != 0 {
		t.Errorf("%d removed early", n)
	}
	if n, _ := u.tick(time.Now().Add(61 * time.Minute)); n != 2 {
		t.Errorf("%d removed", n)
	}
	if left, err := os.ReadDir(cfg.Root + "/uploads"); len(left) > 0 || err != nil {
		t.Errorf("%d are left, %v", len(left), err)
	}
	cfg.Uploads.Expire = config.Duration(time.Hour)
	o = start(t, cfg)
	if _, err := o.client.StartUpload(t.Context(), "any/app", ""); err != nil {
		t.Error(err)
	}
}

func TestMetrics(t *testing.T) {
	cfg := testConfig(t, t.TempDir(), nil)
	cfg.Metrics = "127.0.0.1:0"
	var at atomic.Value
	o := startWith(t, cfg, func(metrics string) { at.Store(metrics) })
	data, _ := testBlob(1000, 1)
	o.mustPush("any/app", data)
	resp, err := http.Get("http://" + at.Load().(string) + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	for _, want := range []string{
		`capelin_origin_blobs{state="pinned"} 1`, "capelin_origin_pushes_total 1", "capelin_origin_push_bytes_total 1000",
		"capelin_origin_upload_bytes_total 1000", "capelin_origin_queue_length 0", "capelin_origin_cold_reads 0",
		`capelin_origin_http_requests_total{code="201",method="PUT"} 1`, "capelin_origin_uploads 0",
	} {
		if !strings.Contains(string(b), want+"\n") {
			t.Errorf("no %s", want)
		}
	}
}

// spoil changes a byte of a blob on disk.
func spoil(t *testing.T, root string, d digest.Digest) {
	t.Helper()
	p := filepath.Join(root, "blobs", string(d.Algorithm()), d.Encoded())
	b, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.Chmod(p, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A deletion of what nobody knows here removes it from the backend, too.
func TestDeleteUnknown(t *testing.T) {
	mem := &fetchertest.Memory{}
	o := start(t, testConfig(t, t.TempDir(), stores{"mem": mem}))
	for i, ns := range []string{"mem/app", ""} {
		data, d := testBlob(1000, uint64(i))
		put(t, mem, "", data)
		if err := o.client.Delete(t.Context(), origin.Ref{Namespace: ns, Digest: d}); err != nil {
			t.Errorf("from %q: %v", ns, err)
		}
		eventually(t, "the backend has it no more", func() bool { return !has(mem, d) })
		if _, err := o.client.Stat(t.Context(), origin.Ref{Digest: d}); !errdefs.IsNotFound(err) {
			t.Errorf("from %q: it is there: %v", ns, err)
		}
		o.mustPush("mem/app", data)
		eventually(t, "it is written again", func() bool { return has(mem, d) })
	}
}
