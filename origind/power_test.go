package origind

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher/file"
	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/internal/durable/disktest"
	"github.com/capelin-io/capelin/origind/record"
	"github.com/capelin-io/capelin/origind/ringstate/mirror"
	"github.com/capelin-io/capelin/swarm/piece"
)

// What is promised of a blob, under its digest.
const (
	absent  = "absent" // nobody has committed it
	acked   = "acked"  // whole, with a record, and pinned as long as no backend has it
	stored  = "stored" // that, and its backend has it
	deleted = "deleted"
)

// origins on a disk that crashes: a store and a backend of files, both on it.
type powered struct {
	s    *server
	stop func()
}

func openPowered(t testing.TB, dir string) (*powered, error) {
	b, err := file.Open(file.Config{Path: filepath.Join(dir, "backend")})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	cfg := testConfig(t, filepath.Join(dir, "origin"), stores{"file": b})
	s, err := openServer(ctx, ctx, cfg, nil, "127.0.0.1:0", prometheus.NewRegistry())
	if err != nil {
		cancel()
		return nil, errors.Join(err, b.Close())
	}
	return &powered{s, func() {
		cancel()
		_ = s.close() // on a disk that has failed
		b.Close()
	}}, nil
}

func (p *powered) push(say func(what, promise string), namespace string, data []byte, dgst digest.Digest) error {
	ctx := context.Background()
	u, err := p.s.startUpload("", uploadMeta{Namespace: namespace})
	if err != nil {
		return err
	}
	half := len(data) / 2
	for _, part := range [][]byte{data[:half], data[half:]} {
		if _, err := u.append(ctx, mirror.Request{Off: u.size.Load()}, bytes.NewReader(part), func() {}); err != nil {
			return err
		}
	}
	say(string(dgst), "") // from here on it may be there
	if _, err := u.await(ctx, u.ask(mirror.Request{Kind: mirror.Put, Off: -1, Digest: dgst}, nil)); err != nil {
		return err
	}
	if _, _, err := p.s.acknowledge(ctx, dgst, namespace, nil); err != nil {
		return err
	}
	say(string(dgst), acked)
	return nil
}

var powerData = map[digest.Digest][]byte{}

func powerBlob(alg digest.Algorithm, seed byte) ([]byte, digest.Digest) {
	data := bytes.Repeat([]byte{seed, 2, 3}, 3000)
	d := alg.FromBytes(data)
	powerData[d] = data
	return data, d
}

// powerStory pushes blobs, has one stored to its backend, and deletes both, while
// the operation failAt fails.
func powerStory(t testing.TB, failAt int, fail error) (d *disktest.Disk, err error) {
	dir := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	p, err := openPowered(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	d = disktest.Watch(t, dir)
	defer d.Stop()
	d.FailAt(failAt, fail)
	x, xd := powerBlob(digest.SHA256, 1)
	y, yd := powerBlob(digest.SHA512, 2)
	for _, dgst := range []digest.Digest{xd, yd} {
		d.Say(string(dgst), absent)
	}
	ctx := context.Background()
	if err := p.push(d.Say, "file/app", x, xd); err != nil {
		return d, err
	}
	if err := p.push(d.Say, "kept/app", y, yd); err != nil {
		return d, err
	}
	if err := p.s.member.written(ctx, xd); err != nil {
		return d, err
	}
	d.Say(string(xd), stored)
	for _, dgst := range []digest.Digest{yd, xd} {
		d.Say(string(dgst), "")
		if err := p.s.delete(ctx, origin.Ref{Digest: dgst}); err != nil {
			return d, err
		}
		d.Say(string(dgst), deleted)
	}
	return d, nil
}

// checkPower starts an origin on what a power cut has left, and checks what
// ORIGIN.md and doc.go promise.
func checkPower(t testing.TB, dir string, said map[string]string) {
	p, err := openPowered(t, dir)
	if err != nil {
		t.Errorf("starting: %v", err)
		return
	}
	defer p.stop()
	for s, promise := range said {
		d := digest.Digest(s)
		data := powerData[d]
		id, err := piece.ParseID(s, int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		_, e, here, err := p.s.blobs.local(d)
		if err != nil {
			t.Errorf("%s, %s: %v", d, promise, err)
			continue
		}
		switch promise {
		case acked, stored:
			if !here {
				t.Errorf("%s is %s, and not here", d, promise)
				continue
			}
		case absent, deleted:
			if here {
				t.Errorf("%s is %s, and here", d, promise)
			}
		}
		if here {
			checkHere(t, p, id, e, promise)
		}
		if err := p.push(func(_, _ string) {}, "kept/again", data, d); err != nil {
			t.Errorf("pushing %s again: %v", d, err)
		}
	}
	if n, _ := p.s.uploads.count(); n > 1 {
		t.Errorf("%d uploads are left, of one that was under way", n)
	}
}

// checkHere checks a blob that is acked: it is whole, and pinned as long as it
// must be.
func checkHere(t testing.TB, p *powered, id piece.ID, e *record.Entry, promise string) {
	if e == nil { // bytes of a push that nobody acknowledged
		if promise != "" {
			t.Errorf("%s is %s, and has no record", id.Digest(), promise)
		}
		return
	}
	r := e.Record
	d, data := digest.Digest(id.Digest()), powerData[digest.Digest(id.Digest())]
	b, err := p.s.openLocal(context.Background(), id)
	if err != nil {
		t.Errorf("%s: %v", d, err)
		return
	}
	defer b.Close()
	got := make([]byte, len(data))
	if _, err := b.ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%s is not whole: %v", d, err)
	}
	if p.s.store.Presence(id) != content.Committed {
		if e, err = p.s.blobs.ledger.get(d); err != nil || e.Record.Pinned() { // as it is now: its backend may have got it
			t.Errorf("%s is to stay, and may be evicted: %v", d, err)
		}
	}
	if promise == stored && r.Pending() {
		t.Errorf("%s was stored to its backend, and is to be stored again", d)
	}
	for _, h := range r.Homes {
		if h.Kept() || h.Written == 0 || !r.Lives(&h) {
			continue
		}
		back, _ := p.s.homes.Get(h.Backend)
		rc, _, err := back.Open(context.Background(), h.Key, 0, -1)
		if err != nil {
			t.Errorf("the record of %s says that its backend has it: %v", d, err)
			continue
		}
		if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, data) {
			t.Errorf("the backend's %s is not whole: %v", d, err)
		}
		rc.Close()
	}
}

var powerWays = []disktest.Survival{disktest.Nothing, disktest.Names, disktest.Everything, disktest.Anything(1)}

// The power goes after each operation of pushes, write-back and deletions.
func TestPowerCut(t *testing.T) {
	d, err := powerStory(t, -1, nil)
	if err != nil {
		t.Fatal(err)
	}
	n := d.Cuts(powerWays, checkPower)
	t.Logf("%d operations, %d different disks", len(d.Ops())-1, n)
}

// Each operation fails once. The error says which file, and why; what was
// acknowledged before is there.
func TestFailingDisk(t *testing.T) {
	disktest.FailEach(t, powerStory, func(f *disktest.Failure) {
		named := func(path string) bool { return strings.Contains(f.Err.Error(), path) }
		if f.Err != nil && (!errors.Is(f.Err, f.Fail) || !named(f.Op.Path) && !named(filepath.Base(f.Op.Path))) {
			t.Errorf("%sthe error names no file, or not why: %v", f.What, f.Err)
		}
		if f.Full() && f.Err != nil && f.Op.Kind != disk.OpRemove && !errdefs.IsResourceExhausted(f.Err) {
			t.Errorf("%snot said to be a full disk: %v", f.What, f.Err)
		}
		f.Disk.LastCut(powerWays[:1], checkPower)
	})
}
