package origind

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/internal/httpclient"
	"github.com/capelin-io/capelin/origind/ringstate/mirror"
)

// add appends to an upload.
func (u *upload) add(t *testing.T, text string) {
	t.Helper()
	if ans, err := u.append(t.Context(), mirror.Request{Off: u.size.Load()}, strings.NewReader(text), func() {}); err != nil {
		t.Fatal(ans, err)
	}
}

// When there are as many uploads as may be, one makes room that nobody has come to for a minute: an empty one, if there is one, and
// the one that has waited for longest. Who comes back to it is told.
func TestUploadsMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := openUploads(alone(filepath.Join(t.TempDir(), "uploads"), 4))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		begin := func() (*upload, error) {
			n++
			return s.begin("", uploadMeta{Namespace: "any/app", Owner: fmt.Sprint(n)})
		}
		must := func() *upload {
			t.Helper()
			u, err := begin()
			if err != nil {
				t.Fatal(err)
			}
			return u
		}
		full := must()
		full.add(t, "text")
		time.Sleep(time.Second)
		first := must()
		time.Sleep(time.Second)
		second := must()
		open := must()
		r, w := io.Pipe()
		appended := make(chan error, 1)
		go func() {
			_, err := open.append(t.Context(), mirror.Request{Off: 0}, r, func() {})
			appended <- err
		}()
		synctest.Wait()
		time.Sleep(idleFor - 3*time.Second)
		if _, err := begin(); !errors.Is(err, origin.ErrBusy) {
			t.Fatalf("a fifth one: %v", err)
		}
		time.Sleep(2 * time.Second) // full and first have been idle for a minute
		for i, want := range []*upload{first, second, full} {
			u := must()
			u.add(t, "x")
			_, err := s.get(want.id)
			if !errdefs.IsNotFound(err) || !strings.Contains(fmt.Sprint(err), "others needed its room") {
				t.Fatalf("%d: who comes back hears %v", i, err)
			}
			if left, _ := filepath.Glob(want.path()); len(left) > 0 {
				t.Errorf("%d: its file is still there", i)
			}
			time.Sleep(time.Second)
		}
		if _, err := begin(); !errors.Is(err, origin.ErrBusy) {
			t.Errorf("the one that is being written has made room: %v", err)
		}
		w.Close()
		if err := <-appended; err != nil {
			t.Errorf("it ended with %v", err)
		}
	})
}

// Uploads that nobody has come to for a minute are room: for what is written to a full disk, and for copies.
func TestIdleUploadsAreRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ctx := newServer(t, testConfig(t, t.TempDir(), nil))
		var all []*upload
		for range 3 {
			u, err := s.startUpload("", uploadMeta{Namespace: "any/app"})
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, u)
		}
		all[0].add(t, "0123456789")
		time.Sleep(time.Second)
		all[1].add(t, "0123456789")
		time.Sleep(idleFor)
		all[2].add(t, "x") // it is not idle
		if n := s.uploads.idle(s.cfg.Root, time.Now()); n != 20 {
			t.Errorf("%d bytes are room", n)
		}
		s.uploads.free(s.cfg.Root, 1)
		if _, err := s.uploads.get(all[0].id); !errdefs.IsNotFound(err) {
			t.Errorf("the oldest has not made room: %v", err)
		}
		if _, err := s.uploads.get(all[1].id); err != nil {
			t.Errorf("two have made room for one byte: %v", err)
		}
		if freed := s.makeRoom(ctx, s.cfg.Root, 5); freed != 10 {
			t.Errorf("a full disk has %d bytes more, which nothing else could give", freed)
		}
		if freed := s.makeRoom(ctx, s.cfg.Root, 5); freed != 0 {
			t.Errorf("%d bytes of what is not idle", freed)
		}
		if n, bytes := s.uploads.count(); n != 1 || bytes != 1 {
			t.Errorf("%d uploads of %d bytes are left", n, bytes)
		}
	})
}

// Nobody has more than half of the uploads: one of theirs makes room, and nobody else's.
func TestUploadsHaveShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "uploads")
		s, err := openUploads(alone(dir, 8))
		if err != nil {
			t.Fatal(err)
		}
		must := func(id, owner, namespace string) *upload {
			t.Helper()
			u, err := s.begin(id, uploadMeta{Namespace: namespace, Owner: owner})
			if err != nil {
				t.Fatal(err)
			}
			return u
		}
		busy := func(when, owner, namespace string) {
			t.Helper()
			if u, err := s.begin("", uploadMeta{Namespace: namespace, Owner: owner}); !errors.Is(err, origin.ErrBusy) {
				t.Errorf("%s: %v, %v", when, u, err)
			}
		}
		there := func(what string, u *upload, want bool) {
			t.Helper()
			if _, err := s.get(u.id); (err == nil) != want {
				t.Errorf("%s: %v", what, err)
			}
		}
		alices := must("", "alice", "team/app")
		time.Sleep(time.Second)
		var bobs []*upload
		for i := range 4 {
			bobs = append(bobs, must("", "bob", fmt.Sprintf("bob%d/app", i)))
			time.Sleep(time.Second)
		}
		busy("a fifth of bob's", "bob", "more/app")
		must("", "carol", "team/app")
		mirrored := must(strings.Repeat("ab", origin.UploadIDLen/2), "bob", "bob0/app") // another member has let him
		time.Sleep(idleFor)
		again := must("", "bob", "more/app")
		there("the first of bob's, idle", bobs[0], false)
		there("alice's, idle for longer", alices, true)
		there("what this member mirrors", mirrored, true)
		if err := s.forget(again); err != nil {
			t.Fatal(err)
		}
		must("", "bob", "more/app")
		there("the second of bob's, after he gave one up", bobs[1], true)
		if s.isBlob(bobs[1]); s.shares["owner bob"] != 3 {
			t.Errorf("after one became a blob, bob has %d, want 3", s.shares["owner bob"])
		}
		must("", "bob", "more/app")
		there("the third of bob's, after the second became a blob", bobs[2], true)
		if s, err = openUploads(alone(dir, 80)); err != nil {
			t.Fatal(err)
		}
		if s.max = 8; s.shares["owner bob"] < 4 {
			t.Errorf("after a restart bob has %d", s.shares["owner bob"])
		}
		busy("after a restart", "bob", "more/app")

		if s, err = openUploads(alone(dir+"2", 4)); err != nil {
			t.Fatal(err)
		}
		must("", "", "team/a")
		must("", "", "team/b")
		busy("a third of a namespace's", "", "team/c")
		must("", "", "other/a")
		must("", "alice", "team/d") // she has a share of her own
	})
}

// A client is told that there are too many uploads, and to come again.
func TestTooManyUploads(t *testing.T) {
	cfg := testConfig(t, t.TempDir(), nil)
	cfg.Uploads.Max = 1
	o := start(t, cfg)
	if _, err := o.client.StartUpload(t.Context(), "any/app", ""); err != nil {
		t.Fatal(err)
	}
	_, err := o.client.StartUpload(t.Context(), "any/app", "")
	if !errors.Is(err, origin.ErrBusy) || !errdefs.IsResourceExhausted(err) || !httpclient.Answered(err) ||
		!strings.Contains(err.Error(), "uploads.max") {
		t.Errorf("got %v", err)
	}
	resp, err := http.Post("http://"+o.addr+origin.PathUploads+"?namespace=any/app", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	resp.Body.Close()
	if h := resp.Header; resp.StatusCode != http.StatusTooManyRequests || h.Get("Retry-After") != "10" || h.Get(origin.HeaderError) != "busy" {
		t.Errorf("%s, %v", resp.Status, h)
	}
}
