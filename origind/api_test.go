package origind

import (
	"bytes"
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/diskfull"
)

func TestPushAndRead(t *testing.T) {
	mem := &fetchertest.Memory{}
	o := start(t, testConfig(t, t.TempDir(), stores{"mem": mem}))
	for _, size := range []int{1, 2, 65535, 65536, 65537, 1 << 20, 5<<20 + 7} {
		for _, ns := range []string{"mem/app", "kept/app"} {
			data, d := testBlob(size, uint64(size))
			ref := origin.Ref{Namespace: ns, Digest: d}
			if ns == "mem/app" {
				if _, err := o.client.Stat(t.Context(), ref); !errdefs.IsNotFound(err) {
					t.Errorf("%d bytes: before the push: %v", size, err)
				}
			}
			info, err := o.push(ns, data, d)
			if err != nil || info.Size != int64(size) || ns == "kept/app" && !info.Durable {
				t.Fatalf("%d bytes: pushing: %+v, %v", size, info, err)
			}
			for _, ref := range []origin.Ref{ref, {Digest: d}, {Namespace: "else/where", Digest: d}} {
				if info, err := o.client.Stat(t.Context(), ref); err != nil || info.Size != int64(size) {
					t.Errorf("%d bytes: stat of %v: %+v, %v", size, ref, info, err)
				}
				got, _, err := o.read(ref, 0, -1)
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%d bytes: reading %v: %d bytes, %v", size, ref, len(got), err)
				}
			}
		}
	}
}

func TestRanges(t *testing.T) {
	o := start(t, testConfig(t, t.TempDir(), nil))
	data, d := testBlob(200_000, 1)
	o.mustPush("any/app", data)
	ref := origin.Ref{Digest: d}
	for _, tt := range []struct{ off, n int64 }{
		{0, -1}, {0, 0}, {0, 1}, {1, 1}, {199_999, 1}, {199_999, 5}, {199_999, -1}, {65_535, 2},
		{200_000, -1}, {200_000, 7}, {200_000, 0}, {100, 1 << 50}, {0, 200_000}, {0, 200_001},
	} {
		want := data[tt.off:]
		if tt.n >= 0 {
			want = want[:min(int64(len(want)), tt.n)]
		}
		got, info, err := o.read(ref, tt.off, tt.n)
		if err != nil || info.Size != 200_000 || !bytes.Equal(got, want) {
			t.Errorf("%d bytes at %d: got %d of %d bytes, %+v, %v", tt.n, tt.off, len(got), len(want), info, err)
		}
	}
	for _, off := range []int64{200_001, 1 << 50, -1} {
		for _, n := range []int64{-1, 0, 1} {
			if _, _, err := o.read(ref, off, n); !errdefs.IsOutOfRange(err) {
				t.Errorf("%d bytes at %d: got %v, want out of range", n, off, err)
			}
		}
	}
}

// do makes a plain request.
func (r *running) do(method, path, header string, body io.Reader) (*http.Response, string) {
	r.t.Helper()
	req, err := http.NewRequest(method, "http://"+r.addr+path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	if k, v, ok := strings.Cut(header, ": "); ok {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	http.DefaultClient.CloseIdleConnections()
	return resp, string(b)
}

// What ORIGIN.md promises of single requests.
func TestRequests(t *testing.T) {
	o := start(t, testConfig(t, t.TempDir(), stores{}))
	data, d := testBlob(1000, 1)
	o.mustPush("kept/app", data)
	_, missing := testBlob(10, 2)
	blob := "/v1/blobs/" + string(d)
	hex := strings.Repeat("0", 32)
	for _, tt := range []struct {
		method, path, header string
		status               int
		class                string // of an error
		want                 string // in a header
	}{
		{"GET", blob, "", 200, "", "Content-Length: 1000"},
		{"HEAD", blob, "", 200, "", "Content-Length: 1000"},
		{"HEAD", blob, "", 200, "", "Capelin-Durable: true"},
		{"HEAD", blob, "", 200, "", "Accept-Ranges: bytes"},
		{"GET", blob, "Range: bytes=10-19", 206, "", "Content-Range: bytes 10-19/1000"},
		{"GET", blob, "Range: bytes=990-", 206, "", "Content-Range: bytes 990-999/1000"},
		{"GET", blob, "Range: bytes=990-5000", 206, "", "Content-Range: bytes 990-999/1000"},
		{"GET", blob, "Range: bytes=-10", 206, "", "Content-Range: bytes 990-999/1000"},
		{"GET", blob, "Range: bytes=-5000", 206, "", "Content-Range: bytes 0-999/1000"},
		{"GET", blob, "Range: bytes=1000-", 416, "out_of_range", "Content-Range: bytes */1000"},
		{"GET", blob, "Range: bytes=-0", 416, "out_of_range", ""},
		{"GET", blob, "Range: bytes=99999999999999999999-", 416, "out_of_range", ""},
		{"GET", blob, "Range: bytes=20-10", 200, "", "Content-Length: 1000"},
		{"GET", blob, "Range: bytes=0-1,5-6", 200, "", "Content-Length: 1000"},
		{"GET", blob, "Range: lines=0-1", 200, "", "Content-Length: 1000"},
		{"GET", blob + "?namespace=kept/app", "", 200, "", ""},
		{"GET", blob + "?namespace=../etc", "", 400, "invalid_argument", ""},
		{"GET", blob + "?namespace=a&namespace=b", "", 400, "invalid_argument", ""},
		{"GET", blob + "?ns=a", "", 400, "invalid_argument", ""},
		{"GET", blob + "?namespace=" + strings.Repeat("a", 256), "", 400, "invalid_argument", ""},
		{"GET", "/v1/blobs/" + string(missing), "", 404, "not_found", ""},
		{"HEAD", "/v1/blobs/" + string(missing), "", 404, "not_found", "Capelin-Reason: " + string(missing)},
		{"GET", "/v1/blobs/sha256:xyz", "", 400, "invalid_argument", ""},
		{"GET", "/v1/blobs/" + strings.ToUpper(string(d)), "", 400, "invalid_argument", ""},
		{"GET", "/v1/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", "", 400, "invalid_argument", ""},
		{"PUT", blob, "", 501, "not_implemented", ""},
		{"GET", "/v2/", "", 501, "not_implemented", ""},
		{"POST", "/v1/uploads", "", 400, "invalid_argument", ""},
		{"POST", "/v1/uploads?namespace=else/app", "", 412, "failed_precondition", ""},
		{"GET", "/v1/uploads/" + hex, "", 404, "not_found", ""},
		{"PATCH", "/v1/uploads/" + hex + "?offset=0", "", 404, "not_found", ""},
		{"PATCH", "/v1/uploads/" + hex + "?offset=-1", "", 400, "invalid_argument", ""},
		{"PATCH", "/v1/uploads/" + hex, "", 400, "invalid_argument", ""},
		{"PUT", "/v1/uploads/" + hex + "?digest=" + string(d), "", 404, "not_found", ""},
		{"PUT", "/v1/uploads/" + hex, "", 400, "invalid_argument", ""},
		{"DELETE", "/v1/uploads/" + hex, "", 404, "not_found", ""},
		{"DELETE", "/v1/uploads/..%2f..%2fblobs", "", 400, "invalid_argument", ""},
	} {
		resp, _ := o.do(tt.method, tt.path, tt.header, nil)
		var h strings.Builder
		_ = resp.Header.Write(&h)
		if resp.StatusCode != tt.status || resp.Header.Get("Capelin-Error") != tt.class || !strings.Contains(h.String(), tt.want) {
			t.Errorf("%s %s %s: status %d, class %q, headers\n%s\nwant status %d, class %q, header %q",
				tt.method, tt.path, tt.header, resp.StatusCode, resp.Header.Get("Capelin-Error"), h.String(), tt.status, tt.class, tt.want)
		}
	}
}

func TestEmptyBlob(t *testing.T) {
	o := start(t, testConfig(t, t.TempDir(), nil))
	for _, d := range []digest.Digest{digest.FromBytes(nil), digest.SHA512.FromBytes(nil)} {
		ref := origin.Ref{Digest: d}
		for _, what := range []string{"before", "after"} {
			if info, err := o.client.Stat(t.Context(), ref); err != nil || info != (origin.Info{Durable: true}) {
				t.Errorf("%s: %+v, %v", what, info, err)
			}
			for _, n := range []int64{-1, 0, 5} {
				if got, _, err := o.read(ref, 0, n); err != nil || len(got) != 0 {
					t.Errorf("%s: reading %d bytes: %d, %v", what, n, len(got), err)
				}
			}
			if info, err := o.push("any/app", nil, d); err != nil || info.Size != 0 {
				t.Errorf("pushing: %+v, %v", info, err)
			}
		}
	}
}

func TestSHA512(t *testing.T) {
	dir := t.TempDir()
	o := start(t, testConfig(t, dir, nil))
	data, wrong := testBlob(300_000, 9)
	d := digest.NewDigestFromBytes(digest.SHA512, sum512(data))
	if _, err := o.push("any/app", data[1:], d); !errdefs.IsInvalidArgument(err) {
		t.Errorf("other bytes: %v", err)
	}
	if _, err := o.push("any/app", data, d); err != nil {
		t.Fatal(err)
	}
	if got, _, err := o.read(origin.Ref{Digest: d}, 0, -1); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := o.client.Stat(t.Context(), origin.Ref{Digest: wrong}); !errdefs.IsNotFound(err) {
		t.Errorf("under its other digest: %v", err)
	}
}

func sum512(b []byte) []byte { s := sha512.Sum512(b); return s[:] }

func TestRefusals(t *testing.T) {
	readOnly := readOnly{&fetchertest.Memory{}}
	o := start(t, testConfig(t, t.TempDir(), stores{"mem": &fetchertest.Memory{}, "ro": readOnly}))
	for ns, want := range map[string]string{
		"mem/app": "ok", "kept/app": "ok", "ro/app": "failed_precondition", "other/app": "failed_precondition",
		"": "invalid_argument", "mem//app": "invalid_argument", "mem/../x": "invalid_argument",
	} {
		if _, err := o.client.StartUpload(t.Context(), ns, ""); class(err) != want {
			t.Errorf("an upload to %q: %v, want %s", ns, err, want)
		}
	}
	data, d := testBlob(100, 1)
	_, other := testBlob(100, 2)
	id, err := o.client.StartUpload(t.Context(), "mem/app", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.client.Append(t.Context(), id, 0, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 99, 101} {
		if _, err := o.client.Append(t.Context(), id, off, bytes.NewReader(data)); !errdefs.IsOutOfRange(err) {
			t.Errorf("appending at %d: %v", off, err)
		}
	}
	if _, err := o.client.Commit(t.Context(), id, other); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), string(d)) {
		t.Errorf("another digest: %v", err)
	}
	for _, d := range []digest.Digest{d, other} {
		if _, err := o.client.Stat(t.Context(), origin.Ref{Digest: d}); !errdefs.IsNotFound(err) {
			t.Errorf("visible without a commit: %v", err)
		}
	}
	for range 2 {
		if _, err := o.client.Commit(t.Context(), id, d); err != nil {
			t.Errorf("the right digest, and again: %v", err)
		}
	}
	if _, err := o.client.Commit(t.Context(), id, other); !errdefs.IsNotFound(err) {
		t.Errorf("committed, and then as another: %v", err)
	}
	if at, err := o.client.UploadOffset(t.Context(), id); err != nil || at != int64(len(data)) {
		t.Errorf("the offset of what was committed: %d, %v", at, err)
	}
	if _, err := o.client.Append(t.Context(), id, int64(len(data)), bytes.NewReader(data)); !errdefs.IsNotFound(err) {
		t.Errorf("appending to what was committed: %v", err)
	}
	for range 2 {
		if err := o.client.Cancel(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	for _, id := range []string{"", "x", strings.Repeat("0", 32), "zz-" + strings.Repeat("0", 32), "../../x"} {
		if _, err := o.client.UploadOffset(t.Context(), id); !errdefs.IsInvalidArgument(err) && !errdefs.IsNotFound(err) {
			t.Errorf("upload %q: %v", id, err)
		}
	}
}

// Whose an upload is, and to which namespace, is told to who asks for it, after a restart, too.
func TestUploadsHaveOwners(t *testing.T) {
	cfg := testConfig(t, t.TempDir(), nil)
	o := start(t, cfg)
	begin := func(owner string) string {
		id, err := o.client.BeginUpload(t.Context(), origin.NewUpload{Namespace: "any/app", Owner: owner})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	ids := map[string]string{begin("alice7"): "alice7", begin(""): ""}
	look := func(when string) {
		for id, owner := range ids {
			if u, err := o.client.Upload(t.Context(), id); err != nil || u != (origin.Upload{Namespace: "any/app", Owner: owner}) {
				t.Errorf("%s: %+v (%v), want %q", when, u, err, owner)
			}
		}
	}
	look("begun")
	for _, owner := range []string{"a b", "a/b", "ä", strings.Repeat("a", 65)} {
		if _, err := o.client.BeginUpload(t.Context(), origin.NewUpload{Namespace: "any/app", Owner: owner}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("owner %q: %v", owner, err)
		}
		resp, err := http.Post("http://"+o.addr+origin.PathUploads+"?namespace=any/app&owner="+url.QueryEscape(owner), "", nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("owner %q: %s", owner, resp.Status)
		}
	}
	o.stop()
	o = start(t, cfg)
	look("after a restart")
}

type readOnly struct{ *fetchertest.Memory }

func (readOnly) Capabilities() fetcher.Capabilities { return fetcher.Capabilities{} }

// One writer at a time, and everybody else is told so.
func TestOneWriterAtATime(t *testing.T) {
	o := start(t, testConfig(t, t.TempDir(), nil))
	data, d := testBlob(1<<20, 1)
	id, err := o.client.StartUpload(t.Context(), "any/app", "")
	if err != nil {
		t.Fatal(err)
	}
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := o.client.Append(t.Context(), id, 0, pr)
		done <- err
	}()
	pw.Write(data[:1000]) // the origin has begun to take it
	for {
		_, err := o.client.Append(t.Context(), id, 0, bytes.NewReader(data))
		if errdefs.IsConflict(err) {
			break
		}
		if err == nil {
			t.Fatal("two wrote at once")
		}
	}
	if _, err := o.client.Commit(t.Context(), id, d); !errdefs.IsConflict(err) {
		t.Errorf("a commit meanwhile: %v", err)
	}
	pw.Write(data[1000:])
	pw.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if off, err := o.client.UploadOffset(t.Context(), id); err != nil || off != 1<<20 {
		t.Errorf("offset %d, %v", off, err)
	}
	if _, err := o.client.Commit(t.Context(), id, d); err != nil {
		t.Error(err)
	}
}

// What a client has sent stays when it breaks off, and after a restart of the
// origin.
func TestResume(t *testing.T) {
	dir := t.TempDir()
	cfg := testConfig(t, dir, nil)
	o := start(t, cfg)
	data, d := testBlob(3<<20+5, 1)
	id, err := o.client.StartUpload(t.Context(), "any/app", "")
	if err != nil {
		t.Fatal(err)
	}
	broken := io.MultiReader(bytes.NewReader(data[:1_500_000]), errReader{})
	if _, err := o.client.Append(t.Context(), id, 0, broken); err == nil {
		t.Fatal("a body that broke off was taken for whole")
	}
	off, err := o.client.UploadOffset(t.Context(), id)
	for err == nil && off < 1_500_000 { // the origin may still be reading
		if off, err = o.client.UploadOffset(t.Context(), id); off > 1_500_000 {
			t.Fatalf("at %d", off)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	for {
		end, err := o.client.Append(t.Context(), id, off, bytes.NewReader(data[off:2_000_000]))
		if errdefs.IsConflict(err) {
			continue // the first request is not quite over
		}
		if err != nil || end != 2_000_000 {
			t.Fatalf("resumed to %d: %v", end, err)
		}
		break
	}
	at := id[strings.Index(id, "-"):]
	o.stop()

	o = start(t, cfg)
	fresh, err := o.client.StartUpload(t.Context(), "any/app", "")
	if err != nil {
		t.Fatal(err)
	}
	id = fresh[:strings.Index(fresh, "-")] + at // it listens elsewhere now
	if off, err := o.client.UploadOffset(t.Context(), id); err != nil || off != 2_000_000 {
		t.Fatalf("after a restart: at %d, %v", off, err)
	}
	if end, err := o.client.Append(t.Context(), id, 2_000_000, bytes.NewReader(data[2_000_000:])); err != nil || end != int64(len(data)) {
		t.Fatalf("after a restart: %d, %v", end, err)
	}
	if _, err := o.client.Commit(t.Context(), id, d); err != nil {
		t.Fatal(err)
	}
	if got, _, err := o.read(origin.Ref{Digest: d}, 0, -1); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("the client broke off") }

func TestManyPushesOfOneDigest(t *testing.T) {
	mem := &fetchertest.Memory{}
	o := start(t, testConfig(t, t.TempDir(), stores{"mem": mem}))
	data, d := testBlob(2<<20, 1)
	var wg sync.WaitGroup
	errs := make(chan error, 16)
	for i := range 16 {
		wg.Go(func() {
			_, err := o.push(fmt.Sprintf("%s/app%d", []string{"mem", "kept"}[i%2], i), data, d)
			errs <- err
		})
	}
	wg.Wait()
	for range 16 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if got, info, err := o.read(origin.Ref{Digest: d}, 0, -1); err != nil || !bytes.Equal(got, data) || !info.Durable {
		t.Errorf("%d bytes, %+v, %v", len(got), info, err)
	}
}

// What was written before the machine was booted counts for nothing, and what is written from then on does.
func TestUploadAfterBoot(t *testing.T) {
	cfg := alone(filepath.Join(t.TempDir(), "uploads"), 9)
	open := func(boot string) *uploads {
		cfg.boot = boot
		s, err := openUploads(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	u, err := open("one").begin("", uploadMeta{Namespace: "any/app", Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	u.add(t, "before")
	id := u.id
	for _, tt := range []struct {
		boot, add, want string
	}{
		{"one", "", "before"}, {"one", ", and more", "before, and more"}, {"two", "", ""}, {"two", "after", "after"}, {"two", "", "after"},
		{"", "", ""}, // unknown: it may be another
		{"", "x", "x"}, {"two", "", "x"},
	} {
		u, err := open(tt.boot).get(id)
		if err != nil {
			t.Fatal(tt, err)
		}
		if tt.add != "" {
			u.add(t, tt.add)
		}
		got, err := os.ReadFile(u.path())
		if err != nil || string(got) != tt.want || u.stands("").Offset != int64(len(tt.want)) {
			t.Errorf("%+v: %q, at %d: %v", tt, got, u.stands("").Offset, err)
		}
		if u.meta.Namespace != "any/app" || u.meta.Key != "k" {
			t.Errorf("%+v: of %+v", tt, u.meta)
		}
	}
	// As the release before wrote it.
	old := filepath.Join(cfg.dirs[0], strings.Repeat("0", origin.UploadIDLen))
	err = errors.Join(os.Mkdir(old, 0o700), os.WriteFile(filepath.Join(old, "data"), []byte("old"), 0o600),
		os.WriteFile(filepath.Join(old, "upload.json"), []byte(`{"namespace":"any/app"}`), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	if u, err := open("two").get(filepath.Base(old)); err != nil || u.size.Load() != 3 {
		t.Errorf("an upload of the release before: %v", err)
	}
}

// A full disk is said to be one, and what was taken counts.
func TestUploadOnFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	room := 0
	cfg := alone(t.TempDir()+"/uploads", 1)
	cfg.room = func(context.Context, string, int64) int64 {
		room++
		return int64(3 - room) // nothing more the third time
	}
	s, err := openUploads(cfg)
	if err != nil {
		t.Fatal(err)
	}
	u, err := s.begin("", uploadMeta{Namespace: "any/app"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.write(t.Context(), u, full, []byte("x")); !diskfull.Is(err) || room != 3 || u.size.Load() != 0 {
		t.Errorf("got %v after making room %d times, at %d", err, room, u.size.Load())
	}
}

func TestConfig(t *testing.T) {
	cfg := DefaultConfig()
	if err := cfg.Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	path := t.TempDir() + "/origind.toml"
	text := `
root = "relative"
listen = ":7480"
durability = "none"
trackers = ["a"]
[swarm]
listen = "0.0.0.0:7481"
[uploads]
max = 0
[cold]
grace = "0s"
[[backend]]
name = "main"
kind = "nothing"
namespaces = ["a("]
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	err := config.Load(path, &cfg)
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		"root: ", "listen: ", "durability: ", "trackers: ", "swarm.listen: ", "swarm.advertise: ", "uploads.max: ", "cold.grace: ",
		"backend[0].kind: ", "backend[0].namespaces: ",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("nothing about %sin\n%v", want, err)
		}
	}
	var out bytes.Buffer
	if err := config.Print(&out, DefaultConfig()); err != nil || !strings.Contains(out.String(), "durability = \"origin\"") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// Members of a ring are told where this one is.
func TestRingAddress(t *testing.T) {
	for _, tt := range []struct {
		name, self, listen, address string
		members                     []string
		ok                          bool
	}{
		{"alone", "a", ":1", "", nil, true},
		{"by name", "a", ":1", "", []string{"a=10.0.0.1:1", "dns+o:1"}, true},
		{"another's name", "b", ":1", "", []string{"a=10.0.0.1:1", "dns+o:1"}, false},
		{"a name that is not known yet", "", ":1", "", []string{"a=10.0.0.1:1", "dns+o:1"}, true},
		{"no name", "", "[::]:1", "", []string{"dns+o:1"}, false},
		{"by listen", "b", "10.0.0.2:1", "", []string{"dns+o:1"}, true},
		{"by address", "b", "0.0.0.0:1", "10.0.0.2:1", []string{"dns+o:1"}, true},
	} {
		cfg := DefaultConfig()
		cfg.Insecure, cfg.Node, cfg.Listen, cfg.Ring.Address, cfg.Ring.Members = true, tt.self, tt.listen, tt.address, tt.members
		if err := cfg.Validate(); (err == nil) != tt.ok || err != nil && !strings.HasPrefix(err.Error(), "ring.address: ") {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
