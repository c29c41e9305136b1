package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/capelin-io/capelin/integration/harness"
)

// backups are `capelin backup` and `capelin restore` of a server.
type backups struct {
	*served
	bin, dir string
	keys     []string // of an operator

	mu     sync.Mutex
	pushed map[string]string // tags that were acknowledged, to manifests
}

func newBackups(t *testing.T, toml string) *backups {
	t.Helper()
	b := &backups{served: newServed(t, toml), pushed: map[string]string{}, bin: get(harness.Built("capelin"))(t)}
	b.dir = filepath.Join(b.c.Dir, "backup")
	get(b.pki.Issue(b.ctx, "operator", "admin"))(t)
	at := filepath.Join(b.pki.Dir, "issued", "operator")
	b.keys = []string{"--ca", at + "/ca.crt", "--cert", at + "/tls.crt", "--key", at + "/tls.key"}
	return b
}

func (b *backups) args(command string, more ...string) []string {
	args := append([]string{command, b.dir, "--json", "--index-storage", filepath.Join(b.server.Data, "index"), "--origin",
		b.server.Addr + ":7480"}, b.keys...)
	return append(args, more...)
}

// copied is a part of a command's report.
type copied struct {
	Whole   bool
	Tags    int
	Bytes   int64
	Missing int `json:"missing_blobs"`
}

func (b *backups) run(t *testing.T, command string, more ...string) (r copied) {
	t.Helper()
	out := get(b.server.Command(b.ctx, nil, b.bin, b.args(command, more...)...))(t)
	must(t, json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &r))
	if !r.Whole || r.Missing != 0 {
		t.Errorf("%s: %s", command, out)
	}
	return r
}

// killAt starts a command, which is slow, and kills it when something is so.
func (b *backups) killAt(t *testing.T, args []string, is func() bool) {
	t.Helper()
	p := get(b.server.Host.Start(args[0], nil, nil, b.bin, args...))(t)
	for !is() {
		select {
		case <-p.Done():
			if p.Err() != nil {
				t.Fatalf("%v: %v\n%s", args, p.Err(), p.Tail(5))
			}
			t.Logf("%s has ended before it was killed", args[0])
			return
		case <-b.ctx.Done():
			t.Fatal(b.ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	p.Kill()
}

// blobs counts the blobs of the back-up, and their bytes.
func blobsOf(t *testing.T, dir string) (n int, bytes int64) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, "blobs"), func(_ string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			n++
			bytes += info.Size()
		}
		return err
	})
	must(t, err)
	return n, bytes
}

// livePushes pushes images until it is told to stop, and returns how many.
func (b *backups) livePushes(t *testing.T, images []*harness.Image) (stop func() int) {
	ctx, cancel := context.WithCancel(b.ctx)
	var pushed atomic.Int64
	wait := do(func() error {
		for i := 0; ctx.Err() == nil; i++ {
			// A tag in seven is moved on each time.
			img, tag := images[i%len(images)], fmt.Sprintf("team/live%d:%d", i%3, i%7*i)
			patient := remote.WithRetryBackoff(remote.Backoff{Duration: time.Second, Steps: 100})
			if _, err := b.server.Push(b.ctx, img, tag, alice, patient); err != nil {
				return err
			}
			b.mu.Lock()
			b.pushed[tag] = img.Manifest
			b.mu.Unlock()
			pushed.Add(1)
		}
		return nil
	})
	must(t, await(b.ctx, "a first push", func() bool { return pushed.Load() > 0 }))
	return func() int {
		cancel()
		must(t, wait())
		return int(pushed.Load())
	}
}

// A server is backed up while others push to it, with two kills; its disk is lost; what was tagged before the back-up began is
// there again, byte for byte, in a new one.
func TestBackupRestore(t *testing.T) {
	b := newBackups(t, "")
	var images []*harness.Image
	for i := range 6 {
		img := b.image(t, harness.ImageOptions{Layers: 3, LayerBytes: 1 << 19, Incompress: true})
		get(b.server.Push(b.ctx, img, fmt.Sprintf("team/app:%d", i), alice))(t)
		images = append(images, img)
	}
	var live []*harness.Image
	for range 8 {
		live = append(live, b.image(t, harness.ImageOptions{Layers: 1, LayerBytes: 64 << 10}))
	}
	stop := b.livePushes(t, live)
	for range 2 {
		before, _ := blobsOf(t, b.dir)
		b.killAt(t, b.args("backup", "--rate", "1MB/s"), func() bool { n, _ := blobsOf(t, b.dir); return n > before+1 })
	}
	_, had := blobsOf(t, b.dir)
	first := b.run(t, "backup")
	if _, has := blobsOf(t, b.dir); first.Bytes > has-had {
		t.Errorf("%d bytes were moved, of which only %d were not there", first.Bytes, has-had)
	}
	if n := stop(); first.Tags < len(images) {
		t.Errorf("%d tags, %d images were pushed meanwhile", first.Tags, n)
	}

	// A second one moves what is new.
	b.run(t, "backup")
	more := b.image(t, harness.ImageOptions{Layers: 2, LayerBytes: 1 << 20, Incompress: true})
	get(b.server.Push(b.ctx, more, "team/app:more", alice))(t)
	_, had = blobsOf(t, b.dir)
	second := b.run(t, "backup")
	config, manifest := get(more.V1.RawConfigFile())(t), get(more.V1.RawManifest())(t)
	want := more.Bytes() + int64(len(config)) + int64(len(manifest))
	if _, has := blobsOf(t, b.dir); second.Bytes != want || has-had != want {
		t.Errorf("an image of %d bytes was new: %d were moved, and %d are", want, second.Bytes, has-had)
	}
	if again := b.run(t, "backup", "--verify"); again.Bytes != 0 {
		t.Errorf("nothing was new, and %d bytes were moved", again.Bytes)
	}

	b.server.Kill()
	must(t, os.RemoveAll(b.server.Data))
	must(t, b.server.Start(b.ctx))
	blobs := filepath.Join(b.server.Data, "origin", "blobs", "sha256")
	b.killAt(t, b.args("restore", "--rate", "1MB/s"), func() bool { all, _ := os.ReadDir(blobs); return len(all) > 3 })
	b.run(t, "restore")

	o, done, err := b.server.Remote(b.ctx, alice)
	must(t, err)
	defer done()
	for i, img := range append(images, more) {
		tag := fmt.Sprintf("team/app:%d", i)
		if img == more {
			tag = "team/app:more"
		}
		for _, text := range []string{tag, "team/app@" + img.Manifest} {
			got := get(remote.Image(get(name.ParseReference(b.server.Reference(text)))(t), o...))(t)
			if d := get(got.Digest())(t); d.String() != img.Manifest {
				t.Errorf("%s is %s, and was %s", text, d, img.Manifest)
			}
			sameLayers(t, got, img.V1)
		}
	}
	n := b.node(t, "n", nil)
	ref := b.server.Reference("team/app:0")
	must(t, n.PullCRI(b.ctx, ref, secret(bob)))
	must(t, n.CheckImage(b.ctx, harness.K8s, ref, images[0]))
}

// An index goes to another storage while images are pushed: what was acknowledged is there, also where the mover is killed.
func TestIndexMove(t *testing.T) {
	to := t.TempDir()
	b := newBackups(t, fmt.Sprintf("\n[index.next]\nkind = \"file\"\nfile.path = %q\n", to))
	from := filepath.Join(b.server.Data, "index")
	var live []*harness.Image
	for range 5 {
		live = append(live, b.image(t, harness.ImageOptions{Layers: 1, LayerBytes: 64 << 10}))
	}
	stop := b.livePushes(t, live)
	enough := func(n int) func() bool {
		b.mu.Lock()
		n += len(b.pushed)
		b.mu.Unlock()
		return func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return len(b.pushed) >= n || b.ctx.Err() != nil
		}
	}
	must(t, await(b.ctx, "15 pushes before the move", enough(15)))
	args := append([]string{"index", "move", from, to}, b.keys...)
	for range 2 {
		b.killAt(t, append(args, "--rate", "4KB/s"), enough(3))
	}
	out := get(b.server.Command(b.ctx, nil, b.bin, args...))(t)
	t.Log(out)
	must(t, await(b.ctx, "10 pushes after the move", enough(10)))
	stop()
	must(t, os.RemoveAll(filepath.Join(from, "index"))) // nobody reads it
	o, done, err := b.server.Remote(b.ctx, alice)
	must(t, err)
	defer done()
	for tag, manifest := range b.pushed {
		d := get(remote.Head(get(name.ParseReference(b.server.Reference(tag)))(t), o...))(t)
		if d.Digest.String() != manifest {
			t.Errorf("%s is %s, and was acknowledged as %s", tag, d.Digest, manifest)
		}
	}
	if _, err := b.server.Command(b.ctx, nil, b.bin, args...); err != nil {
		t.Errorf("once more is no error: %v", err)
	}
}
